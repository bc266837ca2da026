"""sirius-rec: preference alignment of language-model recommenders, with reward-hacking evidence and honest evaluation.

The way of the data: events → sequences → examples → frozen slates (`data`) → prompts (`prompts`) → token rows →
log-probs (`scoring`) → losses (`objectives`) → training (`training`) → ranks and metrics (`evaluation`) →
`diagnostics` → `report`. `recipes` tells it as one story; `cli` is its command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sirius_rec.training.config import SiriusConfig
    from sirius_rec.training.trainer import SiriusTrainer

__version__ = "0.1.0"
__all__ = ["SiriusConfig", "SiriusTrainer", "__version__"]

_HOMES = {"SiriusConfig": "sirius_rec.training.config", "SiriusTrainer": "sirius_rec.training.trainer"}


def __getattr__(name: str) -> Any:
    """The trainer is imported when it is first asked for: it brings torch and transformers."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sirius_rec' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
