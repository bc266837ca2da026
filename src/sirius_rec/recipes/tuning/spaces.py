"""What is tried: of every arm and method the options that are tuned, and the values that they may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sirius_rec.config import ArmSection, Config, MethodSection
from sirius_rec.config_sections import Range, Space
from sirius_rec.errors import ConfigError
from sirius_rec.rankers.linear import L2_STEPS
from sirius_rec.rankers.sequential.options import SequentialOptions
from sirius_rec.recipes.methods import METHODS
from sirius_rec.recipes.methods.networks import NetworkMethod

if TYPE_CHECKING:
    from optuna.trial import Trial

# The paper's grids (E.3).
BETAS: Space = (1.0, 1.5, 2.0, 2.5, 3.0)
GAMMAS: Space = (0.4, 0.6, 0.8, 1.0)
_RATES = 4.0  # the configured learning rate, divided and multiplied by it
_NLL: Space = (0.03, 0.1, 0.3, 1.0, 3.0)
_NETWORK: dict[str, Space] = {
    "learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "weight_decay": Range(low=1e-4, high=1.0, log=True),
    "dropout": (0.1, 0.2, 0.3, 0.4, 0.5),
}
_ADAMS_DECAY = Range(low=1e-7, high=1e-3, log=True)  # in the gradient it weighs more than beside it
_CLOSED: dict[str, dict[str, Space]] = {
    "ease": {"l2": Range(low=min(L2_STEPS), high=max(L2_STEPS), log=True)},
    "item_knn_shrunk": {"shrinkage": Range(low=0.1, high=1_000.0, log=True)},
}


def spaces(config: Config) -> dict[str, dict[str, Space]]:
    """Key of each arm and method → option → its values: those of `tune.spaces`, by key or by loss or method, else the
    usual ones. A method without any has one trial and is compared as it is.

    ConfigError for a space of nobody, or of an option that the arm or method does not have.
    """
    entries: list[ArmSection | MethodSection] = [*config.arms, *config.methods]
    kinds = {entry.key: entry.loss if isinstance(entry, ArmSection) else entry.method for entry in entries}
    for name in config.tune.spaces:
        if name not in kinds and name not in kinds.values():
            raise ConfigError(f"tune.spaces: no arm or method is called '{name}': there are {', '.join(kinds)}")
    found = {}
    for entry in entries:
        usual = _of_arm(config, entry) if isinstance(entry, ArmSection) else _of_method(config, entry)
        own = config.tune.spaces.get(entry.key, config.tune.spaces.get(kinds[entry.key]))
        found[entry.key] = usual if own is None else dict(own)
        for option, space in found[entry.key].items():
            _check(config, entry, option, space)
    return found


def _of_arm(config: Config, arm: ArmSection) -> dict[str, Space]:
    objective, rate = config.objective(arm), arm.learning_rate or config.align.learning_rate
    space: dict[str, Space] = {"learning_rate": Range(low=rate / _RATES, high=rate * _RATES, log=True)}
    if objective.comparison != "none" or objective.anchor != "none":
        space["beta"] = BETAS
    if objective.gamma:
        space["gamma"] = GAMMAS
    if objective.nll_weight and objective.comparison != "none":
        space["nll_weight"] = _NLL
    return space


def _of_method(config: Config, entry: MethodSection) -> dict[str, Space]:
    if issubclass(METHODS[entry.method], NetworkMethod):
        usual = dict(_NETWORK)
        options: SequentialOptions = METHODS[entry.method](config, entry).options  # type: ignore[attr-defined]
        if options.weight_decays:  # a grid of its own, as the paper's
            usual["weight_decay"] = options.weight_decays
        elif not options.decoupled:
            usual["weight_decay"] = _ADAMS_DECAY
        return {k: v for k, v in usual.items() if k not in entry.options}
    return {k: v for k, v in _CLOSED.get(entry.method, {}).items() if k not in entry.options}


def _check(config: Config, entry: ArmSection | MethodSection, option: str, space: Space) -> None:
    """ConfigError where an option is unknown, or the first or last of its values is refused."""
    ends = (space.low, space.high) if isinstance(space, Range) else space
    if not ends:
        raise ConfigError(f"tune.spaces.{entry.key}.{option}: has no values: give some, or leave it out")
    for value in ends:
        try:
            changed = with_values(entry, {option: value})
            if isinstance(changed, ArmSection):
                config.objective(changed)
            else:
                METHODS[changed.method](config, changed)
        except ConfigError as error:
            raise ConfigError(f"tune.spaces.{entry.key}.{option}: {error}") from None


def with_values(entry: ArmSection | MethodSection, values: Mapping[str, Any]) -> Any:
    """An arm or method with the options of a trial; ConfigError for an option that it does not have."""
    if isinstance(entry, MethodSection):
        return entry.changed(options={**entry.options, **values})
    for option in values:
        if option not in ArmSection.model_fields or option in ("loss", "name"):
            raise ConfigError(f"arms have no option '{option}'")
    return entry.changed(**values)


def suggest(trial: Trial, space: Mapping[str, Space]) -> dict[str, Any]:
    """The values of a trial."""
    values: dict[str, Any] = {}
    for option, allowed in space.items():
        if isinstance(allowed, Range):
            values[option] = trial.suggest_float(option, allowed.low, allowed.high, log=allowed.log)
        else:
            values[option] = trial.suggest_categorical(option, list(allowed))
    return values


def configured(config: Config, entry: ArmSection | MethodSection, space: Mapping[str, Space]) -> dict[str, Any] | None:
    """The values that the configuration itself has, to be tried first; None where one has no place in its space."""
    if isinstance(entry, ArmSection):
        objective = config.objective(entry)
        rate = entry.learning_rate or config.align.learning_rate
        own = {k: rate if k == "learning_rate" else getattr(objective, k, None) for k in space}
    else:
        options = getattr(METHODS[entry.method](config, entry), "options", None)
        own = {k: getattr(options, k, None) for k in space}
    for option, value in own.items():
        allowed = space[option]
        inside = value is not None and (
            allowed.low <= value <= allowed.high if isinstance(allowed, Range) else value in allowed
        )
        if not inside:
            return None
    return own
