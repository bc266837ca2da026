"""The recommenders beside SFT and its arms, by the name that a configuration gives them. Light: torch comes late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from sirius_rec.errors import ConfigError
from sirius_rec.rankers.option_types import number


@dataclass(frozen=True)
class Method:
    """label: in tables. options: of its own.

    kind: `closed` (a formula), `sequential` (a small network), `language` (the run's backbone) or `remote` (a chat
    endpoint). trained: by gradient, so that seeds and early stopping matter. stage: trained as SFT is, by the `sft`
    section and the options that replace parts of it.
    """

    label: str
    kind: str = "closed"
    trained: bool = False
    options: tuple[str, ...] = ()
    stage: bool = False


METHODS: dict[str, Method] = {
    "recency": Method("Recency"),
    "markov": Method("Markov (first order)"),
    "item_knn_shrunk": Method("Item-kNN (shrinkage)", options=("shrinkage",)),
    "ease": Method("EASE^R", options=("l2",)),
    "gru4rec": Method("GRU4Rec", "sequential", trained=True),
    "caser": Method("Caser", "sequential", trained=True),
    "sasrec": Method("SASRec", "sequential", trained=True),
    "morec": Method("MoRec (SASRec over titles)", "sequential", trained=True),
    "zero_shot": Method("Zero-shot LLM", "language", options=("slate",)),
    # The form of the publication: yes or no for each item.
    "tallrec": Method("TALLRec (yes/no per item)", "language", trained=True, options=("negatives",), stage=True),
    # What the SIRIUS paper's tables call TALLRec (its E.3.1): titles from a prompt that shows the slate.
    "tallrec_listwise": Method("TALLRec (listwise)", "language", trained=True, stage=True),
    "llara": Method("LLaRA", "language", trained=True, options=("slate", "curriculum"), stage=True),
    "chatrec": Method("ChatRec", "remote"),
}
# The paper's E.3.1: LLM-based baselines are trained for a single epoch.
PAPER_STAGE = {"epochs": 1}


@dataclass(frozen=True)
class LanguageOptions:
    """Options of the methods on the run's backbone.

    slate: list the candidates in the prompt; null takes `prompts.slate`. negatives: questions with the answer No per
    training row (TALLRec). curriculum: share of the training steps over which the chance of a hybrid prompt rises from
    0 to 1 (LLaRA).
    """

    slate: bool | None = None
    negatives: int = 1
    curriculum: float = 1.0

    def __post_init__(self) -> None:
        if self.slate is not None and not isinstance(self.slate, bool):
            raise ConfigError(f"slate must be true or false, got {self.slate!r}")
        if not isinstance(self.negatives, int) or isinstance(self.negatives, bool) or self.negatives < 1:
            raise ConfigError(f"negatives must be a whole number from 1, got {self.negatives!r}")
        number = isinstance(self.curriculum, int | float) and not isinstance(self.curriculum, bool)
        if not number or not 0 < self.curriculum <= 1:
            raise ConfigError(f"curriculum must lie in (0, 1], got {self.curriculum!r}")


def method_label(method: str, preset: str, options: Mapping[str, Any]) -> str:
    """How tables call it: what differs from the tuned preset is named."""
    entry = METHODS[method]
    if entry.kind == "remote":  # the rest of its options is plumbing
        return f"{entry.label} ({options['model']})"
    own = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in options.items()]
    if entry.trained and preset != "tuned":
        own.insert(0, f"{preset}'s settings")
    return ", ".join([entry.label, *own])


def check_options(
    method: str, preset: str, options: Mapping[str, Any], stage: Callable[[Mapping[str, Any]], Any] | None = None
) -> None:
    """ConfigError for a preset or an option that the method does not have, or a value out of range.

    stage: builds the training section from the options that are not the method's own.
    """
    entry = METHODS[method]
    if entry.kind == "sequential":
        network_options(method, preset, options)
        return
    if preset != "tuned" and not entry.trained:
        raise ConfigError(f"preset '{preset}': {method} has no settings of the paper, leave it out")
    if entry.kind == "remote":
        from sirius_rec.rankers.chat.options import chat_options

        chat_options(options)
    elif entry.kind == "language":
        own, rest = split_options(method, options)
        LanguageOptions(**own)
        if entry.stage and stage is not None:
            stage(rest)
        elif rest:
            raise unknown_option(next(iter(rest)), method, entry.options)
    else:
        for key in options:
            if key not in entry.options:
                raise unknown_option(key, method, entry.options)
        build_closed(method, options)


def network_options(method: str, preset: str, options: Mapping[str, Any]) -> Any:
    """`SequentialOptions` (MoRec: `MoRecOptions`) of a preset with some options changed; ConfigError as theirs."""
    from sirius_rec.rankers.sequential.morec import morec_options
    from sirius_rec.rankers.sequential.options import PRESETS, with_options

    if "network" in options:
        raise ConfigError(f"unknown option 'network' of {method}: the method names the network")
    if method == "morec":
        return morec_options(PRESETS[preset]["sasrec"], **options)
    return with_options(PRESETS[preset][method], **options)


def unknown_option(key: str, method: str, known: tuple[str, ...]) -> ConfigError:
    """The error that names an option's nearest, or all there are; never its value, which may be a secret."""
    near = get_close_matches(str(key), known, n=1)
    has = f"choose from {', '.join(known)}" if known else "it takes none"
    hint = f", did you mean '{near[0]}'?" if near else f": {has}"
    return ConfigError(f"unknown option '{key}' of {method}{hint}")


def split_options(method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A language method's own options, and the others (those of its training stage)."""
    own = {key: value for key, value in options.items() if key in METHODS[method].options}
    return own, {key: value for key, value in options.items() if key not in own}


def build_closed(method: str, options: Mapping[str, Any]) -> Any:
    """The unfitted ranker of a method that is not trained by gradient."""
    from sirius_rec.rankers.floors import ItemKNN
    from sirius_rec.rankers.linear import EASE, Markov, Recency

    made: dict[str, Any] = {"recency": Recency, "markov": Markov, "item_knn_shrunk": ItemKNN, "ease": EASE}
    defaults: dict[str, Any] = {"shrinkage": 10.0} if method == "item_knn_shrunk" else {}
    # Every option of a closed method is a number.
    given = {name: number(name, value) for name, value in options.items()}
    return made[method](**{**defaults, **given})
