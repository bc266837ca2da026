"""Strict YAML → frozen configuration. Unknown keys are named with the nearest valid one; all errors come at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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

from sirius_rec.config_problems import Contradiction, Contradictions, describe, further_problems, nearest
from sirius_rec.config_yaml import apply_overrides, read_yaml
from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.floors import FLOORS

if TYPE_CHECKING:
    from sirius_rec.prompts.templates import Template


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
# Ω_ε: a sensitivity below ε; from 1 on the unsampled pair moves as much as the sampled one.
Epsilon = Annotated[Number, Field(gt=0, le=1)]
NotNegative = Annotated[Number, Field(ge=0)]
# What score tables allow in the name of a method.
_ARM_NAME = re.compile(r"[A-Za-z0-9_.]+")
_RESERVED = ("sft", "pretrain", *FLOORS)


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
    """`full` is the whole catalogue: it takes no size, and only floors are scored on it (splits: [test])."""

    protocol: Literal["uniform", "popularity", "hard", "full", "sdpo-legacy", "given"] = "uniform"
    size: Annotated[StrictInt, Field(ge=2)] | None = 20
    seed: Seed = 0
    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")

    @model_validator(mode="before")
    @classmethod
    def _full_has_no_size(cls, value: Any) -> Any:
        """Protocol full stands without a size; any other has one."""
        if not isinstance(value, dict):
            return value
        if value.get("protocol") != "full":
            if "size" in value and value["size"] is None:
                raise ValueError("size: null is for protocol full only: give a number")
            return value
        if value.get("size") is not None:
            raise ValueError(f"size: protocol full takes the whole catalogue: remove size {value['size']}")
        return {**value, "size": None}


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
    """How a row becomes text. slate: list the candidates in the prompt, as the paper does; without them the model
    answers from the history alone, and rows of one history share one prompt whatever their slate."""

    template: str = "generic"
    slate: StrictBool = True
    chat: StrictBool = False

    def form(self) -> Template:
        """The template with these options; ConfigError for an unknown name."""
        from sirius_rec.prompts.templates import get_template

        return get_template(self.template, shows_slate=self.slate)


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

    Every history is written `epochs` times, each time in another random order and cut elsewhere into pieces of at most
    `piece` titles. All these pieces are mixed by the seed and read once; an epoch is an equal part of the mix, so it
    may hold a history twice or not at all. The epoch whose next-title HR@1 on validation slates is best goes on to SFT.
    """

    piece: Annotated[StrictInt, Field(ge=2)] = 24


class BackboneSection(_Section):
    """`name`: tiny, a Hugging Face id, or a local folder. `lora: null` trains all weights; tiny takes no LoRA.

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
    """Alignment; score_unsampled: candidates scored in each step beyond the sampled negatives, for the logs.

    epsilons: the ε of the logged insensitive shares, 0 < ε ≤ 1.
    """

    score_unsampled: Count | Literal["all"] = "all"
    epsilons: tuple[Epsilon, ...] = (0.1, 0.5)
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
    """One run: data, backbone, SFT, arms, evaluation. `name` names the default run folder, runs/<name>."""

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

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        if value.strip() in ("", ".", "..") or re.search(r"[/\\\0]", value):
            raise ValueError(f"must be the name of one folder (it names runs/<name>), got '{value}'")
        return value

    @model_validator(mode="after")
    def _check(self) -> Config:
        found = [
            *self._list_problems(), *self._data_problems(), *self._backbone_problems(), *self._name_problems(),
            *self._arm_problems(),
        ]  # fmt: skip
        if found:
            raise Contradictions(found)
        return self

    def _list_problems(self) -> Iterator[Contradiction]:
        keys = [arm.key for arm in self.arms]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            places = (place for number, other in enumerate(keys) if other == key for place in self._named_by(number))
            yield Contradiction(f"arms: '{key}' stands twice: give one of them another name", *places)
        if len(set(self.seeds)) < len(self.seeds):
            yield Contradiction("seeds: a seed stands twice", "seeds")
        if not self.seeds:
            yield Contradiction("seeds: at least one is needed", "seeds")
        if not self.evaluation.checkpoints:
            place = "evaluation.checkpoints"
            yield Contradiction(f"{place}: at least one of best, last is needed", place)

    @staticmethod
    def _named_by(number: int) -> tuple[str, str]:
        """The places that name an arm."""
        return f"arms.{number}.name", f"arms.{number}.loss"

    def _train_slates(self) -> list[SlateSection]:
        return [slate for slate in self.data.slates if "train" in slate.splits]

    def _data_problems(self) -> Iterator[Contradiction]:
        from sirius_rec.data.sources import SOURCES

        source = self.data.source
        if source not in SOURCES:
            yield Contradiction(f"data.source: no source is called '{source}'{nearest(source, SOURCES)}", "data.source")
        train = len(self._train_slates())
        if train != 1:
            found = f"{train} do" if train else "none does"
            message = f"data.slates: exactly one entry must have 'train' among its splits, {found}"
            yield Contradiction(message, "data.slates")
        full = [split for s in self.data.slates if s.protocol == "full" for split in s.splits if split != "test"]
        if full:
            message = (
                f"data.slates: protocol full covers {', '.join(dict.fromkeys(full))}: language models train and "
                "validate on slates of a size; give it splits: [test]"
            )
            yield Contradiction(message, "data.slates")
        low, high = self.data.window.min_history, self.data.window.max_history
        if low > high:
            message = f"data.window: min_history {low} is above max_history {high}: lower it"
            yield Contradiction(message, "data.window.min_history", "data.window.max_history")

    def _backbone_problems(self) -> Iterator[Contradiction]:
        tiny = self.backbone.tiny
        if self.backbone.name == "tiny" and tiny.hidden_size % tiny.heads:
            message = f"backbone.tiny: hidden_size {tiny.hidden_size} is not a multiple of heads {tiny.heads}"
            yield Contradiction(message, "backbone.name", "backbone.tiny.hidden_size", "backbone.tiny.heads")
        if self.backbone.name == "tiny" and self.backbone.lora is not None:
            message = "backbone.lora: the tiny backbone is fully trained: remove lora, or name a pretrained backbone"
            yield Contradiction(message, "backbone.name")
        stages = {"sft": self.sft, "align": self.align, "backbone.pretrain": self.backbone.pretrain}
        for name, stage in stages.items():
            if stage is not None and stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
                micro = stage.micro_batch_size
                message = f"{name}: batch_size {stage.batch_size} is not a multiple of micro_batch_size {micro}"
                yield Contradiction(message, f"{name}.batch_size", f"{name}.micro_batch_size")

    def _name_problems(self) -> Iterator[Contradiction]:
        for number, arm in enumerate(self.arms):
            places = self._named_by(number)
            if not _ARM_NAME.fullmatch(arm.key):
                yield Contradiction(f"{places[0]}: '{arm.key}' may hold letters, digits, _ and . only", *places)
            elif arm.key in _RESERVED:
                yield Contradiction(f"{places[0]}: '{arm.key}' is taken: give the arm another name", *places)
        try:
            from sirius_rec.objectives.losses import LOSSES
        except ImportError:  # data-only installation
            return
        known = list(dict.fromkeys(["sft", *(arm.key for arm in self.arms), *LOSSES]))
        if self.evaluation.baseline not in known:
            baseline = self.evaluation.baseline
            message = f"evaluation.baseline: no arm is called '{baseline}'{nearest(baseline, known)}"
            names = (place for number in range(len(self.arms)) for place in self._named_by(number))
            yield Contradiction(message, "evaluation.baseline", *names)

    def _arm_problems(self) -> Iterator[Contradiction]:
        try:
            self.prompts.form()
        except ConfigError as error:
            yield Contradiction(f"prompts.template: {error}", "prompts.template")
        slate_size = next((slate.size for slate in self._train_slates()), None)
        for number, arm in enumerate(self.arms):
            place = f"arms.{number}"
            try:
                objective = self.objective(arm)
            except ConfigError as error:
                yield Contradiction(f"{place} ({arm.key}): {error}", f"{place}.loss")
                continue
            except ImportError:  # data-only installation: arms are checked where they are trained
                continue
            sampled = objective.negatives if isinstance(objective.negatives, int) else 0
            if slate_size and objective.uses_negatives and sampled > slate_size - 1:
                has = f"a train slate of {slate_size} has {slate_size - 1}"
                message = f"{place} ({arm.key}): {sampled} negatives, but {has}"
                yield Contradiction(message, f"{place}.loss", f"{place}.negatives", "data.slates")

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
    return parse_config(apply_overrides(read_yaml(path), overrides or []), str(path))


# Stands for an arm that cannot be read while the others are checked.
_STAND_INS: dict[str, Callable[[int], Any]] = {"arms": lambda number: {"loss": "sft", "name": f"unreadable.{number}"}}


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check a raw mapping. Raises ConfigError with every problem in one line."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = describe(error, Config) + further_problems(error, raw, Config, _STAND_INS)
        raise ConfigError(f"{where}: {'; '.join(dict.fromkeys(problems))}") from None
