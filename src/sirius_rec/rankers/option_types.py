"""Options of methods by the types of their fields, as the sections of a configuration are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from sirius_rec.errors import ConfigError


def typed(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of the dataclass `kind`, numbers as numbers; ConfigError for a value of another type.

    Text may stand for a number, because YAML reads 1e-3 (without a dot) as text; true and false may not.
    """
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    return {name: _as(hints[name], name, value) if name in names else value for name, value in options.items()}


def number(name: str, value: Any) -> float:
    """A finite number, or ConfigError."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    return number


def _as(hint: Any, name: str, value: Any) -> Any:
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if hint is str and not isinstance(value, str):
        raise ConfigError(f"{name} must be text, got {value!r}")
    if hint == tuple[float, ...]:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list of numbers, got {value!r}")
        return tuple(number(name, entry) for entry in value)
    if hint is float or (hint == float | None and value is not None):
        return number(name, value)
    return value
