"""Strict YAML → frozen configuration. Unknown keys are named with the nearest valid one; all errors come at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sirius_rec.config_problems import describe, nearest
from sirius_rec.errors import ConfigError


def _number(value: Any) -> Any:
    """Text stays allowed, because YAML reads 1e-3 (without a dot) as text; true and false are no numbers."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[StrictInt, Field(ge=1)]
Count = Annotated[StrictInt, Field(ge=0)]
Seed = Count
Rate = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
NotNegative = Annotated[Number, Field(ge=0)]
# What score tables allow in the name of a method.
_ARM_NAME = re.compile(r"[A-Za-z0-9_.]+")
_RESERVED = ("sft", "pretrain", "random", "popularity", "item_knn", "item_knn_directed")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitSection(_Section):
    kind: Literal["user", "time", "leave_last_out"] = "user"
    seed: Seed = 0
    ratios: tuple[Count, Count, Count] = (8, 1, 1)


class FilterSection(_Section):
    min_item: Positive = 1
    min_user: Positive = 1
    min_sequence: Positive = 1


class WindowSection(_Section):
    max_history: Positive = 10
    min_history: Count = 10


class SlateSection(_Section):
    protocol: Literal["uniform", "given"] = "uniform"
    size: Annotated[StrictInt, Field(ge=2)] = 20
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
    chat: StrictBool = False


class TinySection(_Section):
    hidden_size: Positive = 96
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 256
    vocab_size: Annotated[StrictInt, Field(ge=300)] = 512
    title_tokens: Count = 32768
    context: Positive = 2048


class LoraSection(_Section):
    """LoRA on all linear layers; the paper's "32×8" read as rank 32, alpha 8."""

    rank: Positive = 32
    alpha: Rate = 8.0
    dropout: Share = 0.0


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
    warmup: Share = 0.05
    weight_decay: NotNegative = 0.01
    max_grad_norm: Rate = 1.0
    gradient_checkpointing: StrictBool = False
    save_steps: Positive | None = None
    logging_steps: Positive = 1


class PretrainSection(StageSection):
    """What the tiny backbone reads before SFT: the training users' histories as plain text.

    In each epoch every history stands in another random order, cut into pieces of at most `piece` titles. The epoch
    whose next-title HR@1 on validation slates is best goes on to SFT.
    """

    piece: Annotated[StrictInt, Field(ge=2)] = 24


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

    score_unsampled: Count | Literal["all"] = "all"
    epsilons: tuple[Rate, ...] = (0.1, 0.5)
    beta: Rate | None = None
    gamma: NotNegative | None = None


class ArmSection(_Section):
    """One arm: a preset of `objectives.LOSSES` and what differs from it.

    `name` is how tables and folders call it: letters, digits, _ and . only.
    """

    loss: str
    name: str | None = None
    beta: Number | None = None
    gamma: Number | None = None
    negatives: Positive | Literal["all"] | None = None
    anchor: str | None = None
    anchor_constant: Number | None = None
    anchor_margin: Number | None = None
    nll_weight: Number | None = None
    nll_per_token: StrictBool | None = None
    filter: StrictBool | None = None
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
    generation_rows: Count = 500
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
        twice = sorted({key for key in keys if keys.count(key) > 1})
        problems += [f"arms: '{key}' stands twice: give one of them another name" for key in twice]
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("seeds: a seed stands twice")
        if not self.seeds:
            problems.append("seeds: at least one is needed")
        train = [s for s in self.data.slates if "train" in s.splits]
        if len(train) != 1:
            found = "none does" if not train else f"{len(train)} do"
            problems.append(f"data.slates: exactly one entry must have 'train' among its splits, {found}")
        if not self.evaluation.checkpoints:
            problems.append("evaluation.checkpoints: at least one of best, last is needed")
        window = self.data.window
        if window.min_history > window.max_history:
            problems.append(
                f"data.window: min_history {window.min_history} is above max_history {window.max_history}: lower it"
            )
        problems += self._backbone_problems() + self._name_problems()
        problems += self._arm_problems(train[0].size if train else None)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _backbone_problems(self) -> list[str]:
        problems = []
        tiny = self.backbone.tiny
        if self.backbone.name == "tiny" and tiny.hidden_size % tiny.heads:
            problems.append(f"backbone.tiny: hidden_size {tiny.hidden_size} is not a multiple of heads {tiny.heads}")
        stages = {"sft": self.sft, "align": self.align, "backbone.pretrain": self.backbone.pretrain}
        for name, stage in stages.items():
            if stage is not None and stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
                micro = stage.micro_batch_size
                problems.append(f"{name}: batch_size {stage.batch_size} is not a multiple of micro_batch_size {micro}")
        return problems

    def _name_problems(self) -> list[str]:
        problems = []
        for number, arm in enumerate(self.arms):
            if not _ARM_NAME.fullmatch(arm.key):
                problems.append(f"arms.{number}.name: '{arm.key}' may hold letters, digits, _ and . only")
            elif arm.key in _RESERVED:
                problems.append(f"arms.{number}.name: '{arm.key}' is taken: give the arm another name")
        try:
            from sirius_rec.objectives.losses import LOSSES
        except ImportError:  # data-only installation
            return problems
        known = list(dict.fromkeys(["sft", *(arm.key for arm in self.arms), *LOSSES]))
        if self.evaluation.baseline not in known:
            baseline = self.evaluation.baseline
            problems.append(f"evaluation.baseline: no arm is called '{baseline}'{nearest(baseline, known)}")
        return problems

    def _arm_problems(self, slate_size: int | None) -> list[str]:
        from sirius_rec.prompts.templates import get_template

        problems = []
        try:
            get_template(self.prompts.template)
        except ConfigError as error:
            problems.append(f"prompts.template: {error}")
        for number, arm in enumerate(self.arms):
            try:
                objective = self.objective(arm)
            except ConfigError as error:
                problems.append(f"arms.{number} ({arm.key}): {error}")
                continue
            except ImportError:  # data-only installation: arms are checked where they are trained
                continue
            sampled = objective.negatives if isinstance(objective.negatives, int) else 0
            if slate_size and objective.uses_negatives and sampled > slate_size - 1:
                has = f"a train slate of {slate_size} has {slate_size - 1}"
                problems.append(f"arms.{number} ({arm.key}): {sampled} negatives, but {has}")
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
        return str(yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False, allow_unicode=True))


def load_config(path: Path | str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), and check everything.

    Raises ConfigError with every problem in one line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: save it as UTF-8") from error
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
        raise ConfigError(f"{where}: {'; '.join(describe(error, Config))}") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise ConfigError(f"override '{override}': write it as key=value, for example align.epochs=3")
    at: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if isinstance(at, list):
            raise ConfigError(f"override '{override}': '{part}' is a list: give the whole of it, {part}=[…]")
        if not isinstance(at, dict):
            raise ConfigError(f"override '{override}': '{part}' is a value, not a section")
    try:
        at[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from error
