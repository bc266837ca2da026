"""The sections of a configuration: frozen, strict, with their defaults. `config.Config` joins and checks them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, model_validator

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


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitSection(Section):
    kind: Literal["user", "time", "leave_last_out"] = "user"
    seed: Seed = 0
    ratios: tuple[Count, Count, Count] = (8, 1, 1)


class FilterSection(Section):
    min_item: Positive = 1
    min_user: Positive = 1
    min_sequence: Positive = 1


class WindowSection(Section):
    max_history: Positive = 10
    min_history: Count = 10


class SlateSection(Section):
    """`full` is the whole catalogue: it takes no size, and only floors are scored on it (splits: [test]).

    exclude: items that are no negatives: what the row's user interacted with up to its target (past), or ever
    (interacted). null: interacted where users are split, past otherwise, where interacted leaks.
    """

    protocol: Literal["uniform", "popularity", "hard", "full", "sdpo-legacy", "given"] = "uniform"
    size: Annotated[StrictInt, Field(ge=2)] | None = 20
    seed: Seed = 0
    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
    exclude: Literal["past", "interacted", "interacted-LEAKY"] | None = None

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


class DataSection(Section):
    """What to prepare. `input` is relative to the working directory; `options` go to the source.

    prepared: a folder that `sirius prepare` made with this very section, taken over with its frozen slates.
    """

    source: str = "simulated"
    input: Path | None = None
    prepared: Path | None = None
    options: dict[str, Any] = {}
    seed: Seed = 0
    filter: FilterSection = FilterSection()
    split: SplitSection = SplitSection()
    window: WindowSection = WindowSection()
    slates: tuple[SlateSection, ...] = (SlateSection(),)
    limits: dict[Literal["train", "val", "test"], Positive] = {}


class PromptSection(Section):
    """How a row becomes text. slate: list the candidates in the prompt, as the paper does; without them the model
    answers from the history alone, and rows of one history share one prompt whatever their slate."""

    template: str = "generic"
    slate: StrictBool = True
    chat: StrictBool = False

    def form(self) -> Template:
        """The template with these options; ConfigError for an unknown name."""
        from sirius_rec.prompts.templates import get_template

        return get_template(self.template, shows_slate=self.slate)


class TinySection(Section):
    hidden_size: Positive = 96
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 256
    vocab_size: Annotated[StrictInt, Field(ge=300)] = 512
    title_tokens: Count = 32768
    context: Positive = 2048


class LoraSection(Section):
    """LoRA on all linear layers; the paper's "32×8" read as rank 32, alpha 8."""

    rank: Positive = 32
    alpha: Rate = 8.0
    dropout: Share = 0.0


class StageSection(Section):
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


class BackboneSection(Section):
    """`name`: tiny, a Hugging Face id, or a local folder. `lora: null` trains all weights; tiny takes no LoRA.

    dtype bfloat16: with LoRA the frozen base is held in bfloat16; otherwise float32 weights compute in bfloat16.
    attention auto: on CUDA the fastest kernel that is right, measured once per run; on CPU sdpa in parts.
    quantization 4bit: the frozen base in 4 bits under LoRA (QLoRA); needs CUDA and bitsandbytes.
    `tiny` and `pretrain` are for the tiny backbone only; `pretrain: null` starts SFT from random weights.
    """

    name: str = "tiny"
    tiny: TinySection = TinySection()
    pretrain: PretrainSection | None = PretrainSection()
    lora: LoraSection | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "sdpa", "eager", "flex"] = "auto"
    quantization: Literal["4bit"] | None = None


class AlignSection(StageSection):
    """Alignment; score_unsampled: candidates scored in each step beyond the sampled negatives, for the logs.

    epsilons: the ε of the logged insensitive shares, 0 < ε ≤ 1.
    """

    score_unsampled: Count | Literal["all"] = "all"
    epsilons: tuple[Epsilon, ...] = (0.1, 0.5)
    beta: Rate | None = None
    gamma: NotNegative | None = None


class ArmSection(Section):
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


class MethodSection(Section):
    """Another recommender, from `rankers.methods.METHODS`.

    preset: `tuned` (as strong as we could make it) or `paper` (the SIRIUS paper's settings), for trained ones.
    options: differ from the preset; methods that are trained as SFT is take those of the `sft` section too, in its
    place. `name` is how tables and folders call it, as with arms. seeds: the run's and more of them, for networks that
    train in minutes beside language models that do not; null takes the run's.
    """

    method: str
    name: str | None = None
    seeds: tuple[Seed, ...] | None = None
    preset: Literal["tuned", "paper"] = "tuned"
    options: dict[str, Any] = {}

    @property
    def key(self) -> str:
        return self.name or (self.method if self.preset == "tuned" else f"{self.method}_{self.preset}")


class EvaluationSection(Section):
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


class ComputeSection(Section):
    """jobs: how many trainings run side by side, each with `threads` CPU threads. Results depend on threads only."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs: Positive = 1
    threads: Positive | None = None
    scoring: Literal["auto", "packed", "naive"] = "auto"
