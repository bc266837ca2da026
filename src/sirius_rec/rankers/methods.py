"""The recommenders without a language model, by the name that a configuration gives them. Light: torch comes late."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sirius_rec.errors import ConfigError


@dataclass(frozen=True)
class Method:
    """label: in tables. trained: by gradient, so that seeds and early stopping matter. options: of the others."""

    label: str
    trained: bool = False
    options: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    "recency": Method("Recency"),
    "markov": Method("Markov (first order)"),
    "item_knn_shrunk": Method("Item-kNN (shrinkage)", options=("shrinkage",)),
    "ease": Method("EASE^R", options=("l2",)),
    "gru4rec": Method("GRU4Rec", trained=True),
    "caser": Method("Caser", trained=True),
    "sasrec": Method("SASRec", trained=True),
}


def method_label(method: str, preset: str, options: Mapping[str, Any]) -> str:
    """How tables call it: what differs from the tuned preset is named."""
    own = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in options.items()]
    if METHODS[method].trained and preset != "tuned":
        own.insert(0, f"{preset}'s settings")
    return ", ".join([METHODS[method].label, *own])


def check_options(method: str, preset: str, options: Mapping[str, Any]) -> None:
    """ConfigError for a preset or an option that the method does not have, or a value out of range."""
    entry = METHODS[method]
    if entry.trained:
        from sirius_rec.rankers.sequential.ranker import PRESETS, with_options

        with_options(PRESETS[preset][method], **options)
        return
    if preset != "tuned":
        raise ConfigError(f"preset '{preset}': {method} has no settings of the paper, leave it out")
    for key in options:
        if key not in entry.options:
            has = f"choose from {', '.join(entry.options)}" if entry.options else "it takes none"
            raise ConfigError(f"unknown option '{key}' of {method}: {has}")
    build_closed(method, options)


def build_closed(method: str, options: Mapping[str, Any]) -> Any:
    """The unfitted ranker of a method that is not trained by gradient."""
    from sirius_rec.rankers.floors import ItemKNN
    from sirius_rec.rankers.linear import EASE, Markov, Recency

    made: dict[str, Any] = {"recency": Recency, "markov": Markov, "item_knn_shrunk": ItemKNN, "ease": EASE}
    defaults: dict[str, Any] = {"shrinkage": 10.0} if method == "item_knn_shrunk" else {}
    return made[method](**{**defaults, **options})
