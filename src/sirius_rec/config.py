"""Strict YAML → frozen configuration. Unknown keys are named with the nearest valid one; all errors come at once."""

from __future__ import annotations

import json
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sirius_rec.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitSection(_Section):
    kind: Literal["user", "time", "leave_last_out"] = "user"
    seed: Seed = 0
    ratios: tuple[int, int, int] = (8, 1, 1)


class FilterSection(_Section):
    min_item: Positive = 1
    min_user: Positive = 1
    min_sequence: Positive = 1


class WindowSection(_Section):
    max_history: Positive = 10
    min_history: Annotated[int, Field(ge=0)] = 10


class SlateSection(_Section):
    protocol: Literal["uniform", "given"] = "uniform"
    size: Annotated[int, Field(ge=2)] = 20
    seed: Seed = 0
    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


class DataSection(_Section):
    """What to prepare. `input` is relative to the working directory; `options` go to the source."""

    source: str = "simulated"
    input: Path | None = None
    options: dict[str, Any] = {}
    seed: Seed = 0
    filter: FilterSection = FilterSection()
    split: SplitSection = SplitSection()
    window: WindowSection = WindowSection()
    slates: tuple[SlateSection, ...] = (SlateSection(),)
    limits: dict[Literal["train", "val", "test"], Positive] = {}


class PromptSection(_Section):
    template: str = "generic"
    chat: bool = False


class TinySection(_Section):
    hidden_size: Positive = 96
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 256
    vocab_size: Annotated[int, Field(ge=300)] = 512
    title_tokens: Annotated[int, Field(ge=0)] = 32768
    context: Positive = 2048


class LoraSection(_Section):
    """LoRA on all linear layers; the paper's "32×8" read as rank 32, alpha 8."""

    rank: Positive = 32
    alpha: Rate = 8.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class StageSection(_Section):
    """How a stage is trained. batch_size is the effective batch, whatever the number of processes.

    examples_per_epoch: null takes every training row in each epoch.
    save_steps: null saves at the end of each epoch.
    """

    epochs: Positive = 5
    examples_per_epoch: Positive | None = None
    batch_size: Positive = 128
    micro_batch_size: Positive | None = None
    learning_rate: Rate = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Rate = 1.0
    gradient_checkpointing: bool = False
    save_steps: Positive | None = None
    logging_steps: Positive = 1


class PretrainSection(StageSection):
    """Language modelling of the training users' histories as text: what the tiny backbone knows before SFT.

    Histories are cut into pieces of at most `piece` titles, at another random place in each of `cuts` variants; one
    epoch sees every history about once.
    """

    piece: Annotated[int, Field(ge=2)] = 24
    cuts: Positive = 8


class BackboneSection(_Section):
    """`name`: tiny, a Hugging Face id, or a local folder. `lora: null` trains all weights.

    dtype bfloat16: with LoRA the frozen base is held in bfloat16; otherwise float32 weights compute in bfloat16.
    `tiny` and `pretrain` are for the tiny backbone only; `pretrain: null` starts SFT from random weights.
    """

    name: str = "tiny"
    tiny: TinySection = TinySection()
    pretrain: PretrainSection | None = PretrainSection()
    lora: LoraSection | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"


class AlignSection(StageSection):
    """Alignment; score_unsampled: candidates scored in each step beyond the sampled negatives, for the logs."""

    score_unsampled: int | Literal["all"] = "all"
    epsilons: tuple[Rate, ...] = (0.1, 0.5)
    beta: float | None = None
    gamma: float | None = None


class ArmSection(_Section):
    """One arm: a preset of `objectives.LOSSES` and what differs from it. `name` is how tables call it."""

    loss: str
    name: str | None = None
    beta: float | None = None
    gamma: float | None = None
    negatives: Positive | Literal["all"] | None = None
    anchor: str | None = None
    anchor_constant: float | None = None
    anchor_margin: float | None = None
    nll_weight: float | None = None
    nll_per_token: bool | None = None
    filter: bool | None = None
    learning_rate: Rate | None = None

    @property
    def key(self) -> str:
        return self.name or self.loss


class EvaluationSection(_Section):
    """checkpoints: the best epoch by held-out HR@1, the last, or both. slates: null means all test slates.

    generation_rows: how many test prompts are answered by greedy generation (ValidRatio); 0 for none.
    validation_rows: how many validation rows are ranked after each epoch; null for all.
    """

    checkpoints: tuple[Literal["best", "last"], ...] = ("best",)
    slates: tuple[str, ...] | None = None
    generation_rows: Annotated[int, Field(ge=0)] = 500
    validation_rows: Positive | None = None
    batch_tokens: Positive = 8192
    baseline: str = "sft_continued"


class ComputeSection(_Section):
    """jobs: how many trainings run side by side, each with `threads` CPU threads. Results depend on threads only."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs: Positive = 1
    threads: Positive | None = None
    scoring: Literal["auto", "packed", "naive"] = "auto"


class Config(_Section):
    """One run: data, backbone, SFT, arms, evaluation."""

    name: str = "run"
    seeds: tuple[Seed, ...] = (0,)
    data: DataSection = DataSection()
    prompts: PromptSection = PromptSection()
    backbone: BackboneSection = BackboneSection()
    sft: StageSection = StageSection()
    align: AlignSection = AlignSection()
    arms: tuple[ArmSection, ...] = (ArmSection(loss="dpo"), ArmSection(loss="dpo_sirius"))
    evaluation: EvaluationSection = EvaluationSection()
    compute: ComputeSection = ComputeSection()

    @field_validator("arms", mode="before")
    @classmethod
    def _names_are_arms(cls, value: Any) -> Any:
        """A bare name stands for the preset of that name."""
        if isinstance(value, list | tuple):
            return [{"loss": arm} if isinstance(arm, str) else arm for arm in value]
        return value

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems = []
        keys = [arm.key for arm in self.arms]
        problems += [f"arm '{key}' stands twice: give one a name" for key in sorted({k for k in keys if keys.count(k) > 1})]
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: a seed stands twice")
        if not self.seeds:
            problems.append("seeds: at least one is needed")
        train = [s for s in self.data.slates if "train" in s.splits]
        if len(train) != 1:
            problems.append(f"data.slates: exactly one entry must cover the train split, found {len(train)}")
        problems += self._arm_problems(train[0].size if train else None)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _arm_problems(self, slate_size: int | None) -> list[str]:
        from sirius_rec.prompts.templates import get_template

        problems = []
        try:
            get_template(self.prompts.template)
        except ConfigError as error:
            problems.append(f"prompts.template: {error}")
        for arm in self.arms:
            try:
                objective = self.objective(arm)
            except ConfigError as error:
                problems.append(f"arm '{arm.key}': {error}")
                continue
            except ImportError:  # data-only installation: arms are checked where they are trained
                continue
            sampled = objective.negatives if isinstance(objective.negatives, int) else 0
            if slate_size and objective.uses_negatives and sampled > slate_size - 1:
                problems.append(
                    f"arm '{arm.key}': {sampled} negatives, but train slates of {slate_size} have {slate_size - 1}"
                )
        return problems

    def objective(self, arm: ArmSection) -> Any:
        """The arm's `Objective`: its own options over align's β and γ over the preset's."""
        from sirius_rec.objectives.losses import build_objective

        return build_objective(arm.loss, **self.arm_options(arm))

    def arm_options(self, arm: ArmSection) -> dict[str, Any]:
        """The loss options of an arm; align.gamma reaches the SimPO family only (γ = 0 for the DPO family)."""
        from sirius_rec.objectives.losses import LOSSES

        options = {k: v for k, v in arm.model_dump().items() if k not in ("loss", "name", "learning_rate")}
        if options["beta"] is None:
            options["beta"] = self.align.beta
        preset = LOSSES.get(arm.loss)
        if options["gamma"] is None and preset is not None and preset.options.get("gamma"):
            options["gamma"] = self.align.gamma
        return options

    def to_yaml(self) -> str:
        """The resolved configuration, as it is written into the run folder."""
        return yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False, allow_unicode=True)


def load_config(path: Path | str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), and check everything.

    Raises ConfigError with every problem in one line.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, found {type(raw).__name__}")
    return parse_config(apply_overrides(raw, overrides or []), str(path))


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`raw` with `key.path=value` overrides, each value read as YAML; `raw` itself is changed."""
    for override in overrides:
        _apply(raw, override)
    return raw


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check a raw mapping. Raises ConfigError with every problem in one line."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(e) for e in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(problems)}") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise ConfigError(f"override '{override}': write it as key=value, for example align.epochs=3")
    at: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigError(f"override '{override}': '{part}' has no parts")
    try:
        at[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from error


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1])
        near = get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f", did you mean '{near[0]}'?" if near else f" (known: {', '.join(known)})"
        return f"unknown key '{place}'{hint}"
    message = error["msg"].removeprefix("Value error, ")
    if not place:
        return str(message)
    return f"{place}: {message[0].lower()}{message[1:]}, got {error.get('input')!r}"


def _keys_at(loc: tuple[Any, ...]) -> list[str]:
    """The valid keys of the section at `loc`."""
    model: Any = Config
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        for argument in typing.get_args(annotation):
            if found := _section_of(argument):
                return found
    return None
