"""Every recommender of a run, as objects: trivial baselines, classical ones, networks, language models, chat models."""

from __future__ import annotations

from collections.abc import Iterable

from sirius_rec.config import Config, MethodSection
from sirius_rec.errors import ConfigError
from sirius_rec.option_errors import nearest
from sirius_rec.recipes.methods.arms import Arm
from sirius_rec.recipes.methods.base import Method, Prerequisite
from sirius_rec.recipes.methods.chatrec import ChatRec
from sirius_rec.recipes.methods.closed_form import TRIVIAL, Ease, ItemKnnShrunk, MarkovChain, Recency
from sirius_rec.recipes.methods.fusion import Fusion
from sirius_rec.recipes.methods.llara import Llara
from sirius_rec.recipes.methods.networks import Caser, ESasRec, Gru4Rec, Hstu, MoRec, SasRec, SasRecOfRecTools
from sirius_rec.recipes.methods.sft import Sft
from sirius_rec.recipes.methods.tallrec import TallRec, TallRecListwise
from sirius_rec.recipes.methods.zero_shot import ZeroShot

__all__ = ["METHODS", "Method", "Prerequisite", "build_methods", "kind_of", "reserved_keys"]

_METHODS: tuple[type[Method], ...] = (
    Recency, MarkovChain, ItemKnnShrunk, Ease,
    Gru4Rec, Caser, SasRec, MoRec, ESasRec, Hstu, SasRecOfRecTools,
    ZeroShot, TallRec, TallRecListwise, Llara, ChatRec, Fusion,
)  # fmt: skip
# What `methods:` of a configuration may name.
METHODS: dict[str, type[Method]] = {method.name: method for method in _METHODS}


def kind_of(name: str) -> type[Method]:
    """What `methods:` calls by this name.

    Raises:
        ConfigError: nothing is called so, in this process: a script's own method that the script has not entered here.
    """
    if name not in METHODS:
        raise ConfigError(
            f"methods: no method is called '{name}' here{nearest(name, METHODS)}; if it is your own, name its module "
            "in plugins, or put it into METHODS before the run is opened"
        )
    return METHODS[name]


def reserved_keys() -> tuple[str, ...]:
    """Keys that no arm or method may take: methods that are always there, and names of jobs and folders."""
    return (Sft.name, "pretrain", "reference", *(method.name for method in TRIVIAL))


def build_methods(config: Config) -> dict[str, Method]:
    """Every recommender of a run by its key: trivial baselines, SFT and the arms, `methods:`, in that order.

    ConfigError for a method that needs another which is not listed before it.
    """
    methods: list[Method] = [kind(config, MethodSection(method=kind.name)) for kind in TRIVIAL]
    if config.trains_language_model:
        methods += [Sft(config), *(Arm(config, arm) for arm in config.arms)]
    methods += [kind_of(entry.method)(config, entry) for entry in config.methods]
    built: dict[str, Method] = {}
    for method in methods:
        method.join(built)
        built[method.key] = method
    return built


def in_order_of_check(methods: Iterable[Method]) -> list[Method]:
    """Cheap checks first: those that need no backbone; last those that may cost money."""
    return sorted(methods, key=lambda method: (method.remote, method.uses_backbone))
