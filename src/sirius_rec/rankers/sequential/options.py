"""What a sequential network is and how it is trained: options, and the presets `tuned` and `paper`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sirius_rec.errors import ConfigError
from sirius_rec.rankers.option_types import typed
from sirius_rec.rankers.sequential.losses import LOSSES
from sirius_rec.rankers.sequential.networks import NETWORKS


@dataclass(frozen=True)
class SequentialOptions:
    """What is trained and how.

    network: sasrec, gru4rec or caser. length: items of history looked at, and chunks that histories are cut into.
    loss: full_softmax, sampled_softmax, shared_softmax, bce or bpr; negatives: drawn per position (shared_softmax: for
        the whole batch), for all but the first.
    learning_rate, weight_decay (L2 in Adam's gradient, as the papers' λ; decoupled: AdamW's), batch_size in chunks.
    weight_decays: a grid instead of the one; each is trained, and the best by validation NDCG@10 stays.
    windows: train every target on a window of its own, the `length` items before it (RecBole's way), instead of every
        state of a chunk; a batch then counts windows. Caser always does.
    shuffle: read every training history in a new random order in each epoch, for data whose order is mostly ties.
    epochs at most; patience: stop after so many epochs without a better validation NDCG@10 (the best is kept).
    """

    network: str = "sasrec"
    dimension: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    length: int = 10
    loss: str = "full_softmax"
    negatives: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    weight_decays: tuple[float, ...] = ()
    decoupled: bool = True
    windows: bool = False
    shuffle: bool = False
    batch_size: int = 128
    epochs: int = 200
    patience: int = 10

    def __post_init__(self) -> None:
        for name, value, allowed in (("network", self.network, NETWORKS), ("loss", self.loss, LOSSES)):
            if value not in allowed:
                raise ConfigError(f"unknown {name} '{value}': choose one of {', '.join(allowed)}")
        for name in ("dimension", "layers", "heads", "length", "negatives", "batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dimension % self.heads:
            raise ConfigError(f"dimension {self.dimension} is not a multiple of heads {self.heads}: change one")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not self.learning_rate > 0 or min(self.weight_decay, *self.weight_decays, 0.0) < 0:
            raise ConfigError(
                f"learning_rate must be positive and weight_decay not negative, got {self.learning_rate} and "
                f"{list(self.weight_decays) or self.weight_decay}"
            )


# The paper's settings (E.2: Adam, 1e-3, dimension 64, L2 from a grid), with the originals' losses.
_PAPER: dict[str, Any] = {"weight_decays": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), "decoupled": False}
PAPER: dict[str, SequentialOptions] = {
    "sasrec": SequentialOptions("sasrec", loss="bce", negatives=1, **_PAPER),
    "gru4rec": SequentialOptions("gru4rec", layers=1, loss="bpr", negatives=1, **_PAPER),
    "caser": SequentialOptions("caser", layers=1, loss="bce", negatives=3, **_PAPER),
}
# Chosen on Last.fm validation slates (docs/experiments.md): small steps of few chunks, and longer chunks than windows.
_TUNED: dict[str, Any] = {"length": 20, "batch_size": 16, "weight_decay": 0.1}
TUNED: dict[str, SequentialOptions] = {
    "sasrec": SequentialOptions("sasrec", **_TUNED),
    "gru4rec": SequentialOptions("gru4rec", layers=1, **_TUNED),
    "caser": SequentialOptions("caser", layers=1, weight_decay=0.1, batch_size=64),
}
PRESETS = {"paper": PAPER, "tuned": TUNED}


def with_options(options: SequentialOptions, **changes: Any) -> SequentialOptions:
    """A preset with some options changed; ConfigError for an unknown one."""
    allowed = set(asdict(options))
    for name in changes:
        if name not in allowed:
            raise ConfigError(f"unknown option '{name}' of {options.network}: choose from {', '.join(sorted(allowed))}")
    return replace(options, **typed(SequentialOptions, one_or_grid(changes)))


def one_or_grid(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes in which one weight decay replaces a preset's grid; ConfigError for both."""
    if "weight_decay" in changes and "weight_decays" in changes:
        raise ConfigError("weight_decay and weight_decays: give one of them")
    return {**({"weight_decays": ()} if "weight_decay" in changes else {}), **changes}
