"""How a backbone is made and trained: sections of a configuration, and options of the library. Light, no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StrictInt, model_validator

from sirius_rec.options import Count, Flag, NotNegative, Options, Positive, Rate, Share


class TinyOptions(Options):
    """Size of the tiny backbone. title_tokens: how many of the most frequent titles become single tokens."""

    hidden_size: Positive = 96
    layers: Positive = 3
    heads: Positive = 4
    intermediate_size: Positive = 256
    vocab_size: Annotated[StrictInt, Field(ge=300)] = 512
    title_tokens: Count = 32768
    context: Positive = 2048


class LoraOptions(Options):
    """LoRA, the paper's "32×8" read as rank 32, alpha 8. targets: names of the layers that get it, as PEFT takes them;
    null: all linear ones but the output head. dora: weights in magnitude and direction (Liu et al. 2024, arXiv
    2402.09353). rslora: scaled by alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732)."""

    rank: Positive = 32
    alpha: Rate = 8.0
    dropout: Share = 0.0
    targets: tuple[str, ...] | None = None
    dora: Flag = False
    rslora: Flag = False


class StageOptions(Options):
    """How a stage is trained. batch_size is the effective batch, whatever the number of processes.

    examples_per_epoch: null takes every training row in each epoch.
    stop_after: ends behind so many of the epochs, which learning rate and rows do not know of: what a best epoch was,
        without validation slates to choose it (`sirius refit`); null trains all of them.
    save_steps: null saves at the end of each epoch. neftune_alpha: noise on the embeddings in training, of size
    alpha / √(tokens × width) (Jain et al. 2023, arXiv 2310.05914); a prefix that rows share has one noise.
    What only says how a step is computed may change under way: up to rounding the training is the same, but for the
    masks of dropout (of LoRA, or of the backbone in SFT), which follow micro_batch_size.
    """

    HOW: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch_size", "gradient_checkpointing", "save_steps", "logging_steps"}
    )

    epochs: Positive = 5
    stop_after: Positive | None = None
    examples_per_epoch: Positive | None = None
    batch_size: Positive = 128
    micro_batch_size: Positive | None = None
    learning_rate: Rate = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.05
    weight_decay: NotNegative = 0.01
    max_grad_norm: Rate = 1.0
    neftune_alpha: Rate | None = None
    gradient_checkpointing: Flag = False
    save_steps: Positive | None = None
    logging_steps: Positive = 1

    @model_validator(mode="after")
    def _stops_in_time(self) -> Self:
        if self.stop_after is not None and self.stop_after > self.epochs:
            raise ValueError(f"stop_after {self.stop_after} is behind the last of {self.epochs} epochs: lower it")
        return self

    @property
    def trained_epochs(self) -> int:
        """How many epochs are trained."""
        return self.stop_after or self.epochs

    def wanted(self, n_rows: int) -> int:
        """How many of the training rows its epochs take."""
        return n_rows if self.examples_per_epoch is None else min(n_rows, self.epochs * self.examples_per_epoch)

    def batch_problem(self) -> str | None:
        """Why the batch cannot be cut into micro-batches; None where it can."""
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            return f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
        return None


class PretrainOptions(StageOptions):
    """What the tiny backbone reads before SFT: the training users' histories as plain text.

    Every history is written `epochs` times, each time in another random order and cut elsewhere into chunks of at most
    `piece` titles. All these chunks are mixed by the seed and read once; an epoch is an equal part of the mix, so it
    may hold a history twice or not at all. The epoch whose next-title HR@1 on validation slates is best goes on to SFT.
    """

    piece: Annotated[StrictInt, Field(ge=2)] = 24
