"""sirius-rec: preference alignment of language-model recommenders, with reward-hacking evidence and honest evaluation.

The way of the data: events → sequences → examples → frozen slates (`data`) → prompts (`prompts`) → token rows →
log-probs (`scoring`) → losses (`objectives`) → training (`training`) → ranks and metrics (`evaluation`) →
`diagnostics` → `report`. `recipes` tells it as one story; `cli` is its command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sirius_rec.data.prepare import prepare
    from sirius_rec.data.store import open_dataset
    from sirius_rec.schema import Interactions
    from sirius_rec.training.config import SiriusConfig
    from sirius_rec.training.trainer import SiriusTrainer

__version__ = "0.1.0"
__all__ = ["Interactions", "SiriusConfig", "SiriusTrainer", "__version__", "open_dataset", "prepare"]

_HOMES = {
    "Interactions": "sirius_rec.schema",
    "SiriusConfig": "sirius_rec.training.config",
    "SiriusTrainer": "sirius_rec.training.trainer",
    "open_dataset": "sirius_rec.data.store",
    "prepare": "sirius_rec.data.prepare",
}


def __getattr__(name: str) -> Any:
    """Each is imported when it is first asked for: the trainer brings torch and transformers."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sirius_rec' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
