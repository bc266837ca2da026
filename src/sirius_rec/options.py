"""What every options class is: frozen, strict, and the same class in a configuration and in Python.

A section of the YAML file is one of these classes, so an option has one name, one type and one default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
)

from sirius_rec.errors import ConfigError
from sirius_rec.option_errors import in_one_line, nearest


def _number(value: Any) -> Any:
    """Text stays allowed, because YAML reads 1e-3 (without a dot) as text; true and false are no numbers."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value}")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Flag = StrictBool
Positive = Annotated[StrictInt, Field(ge=1)]
Count = Annotated[StrictInt, Field(ge=0)]
Seed = Count
Rate = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
NotNegative = Annotated[Number, Field(ge=0)]


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _ChecksInOneLine(ModelMetaclass):
    """Makes `Options(...)` raise ConfigError; validation of a whole configuration does not come this way."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ConfigError(in_one_line(error, cls)) from None  # type: ignore[arg-type]


class Options(BaseModel, metaclass=_ChecksInOneLine):
    """Base of all options classes. Made in Python, a value out of range is a ConfigError; in a configuration every
    such error is collected and named with its place."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # Options that say how something is computed, not what comes out: a run folder lets them change at any time.
    HOW: ClassVar[frozenset[str]] = frozenset()
    # Options that say what is measured of what was trained. They may change, too: what is missing is measured then.
    MEASURED: ClassVar[frozenset[str]] = frozenset()

    def changed(self, **changes: Any) -> Self:
        """The same with some options changed, and checked again."""
        return type(self)(**{**self.model_dump(), **changes})


def options_of(kind: type[Options], values: dict[str, Any], owner: str) -> Any:
    """`kind` from an `options:` section of `owner`; ConfigError naming an unknown option's nearest.

    The value of an unknown option is not repeated: it may be a secret.
    """
    for key in values:
        if key not in kind.model_fields:
            raise unknown_option(key, owner, list(kind.model_fields))
    return kind(**values)


def unknown_option(key: str, owner: str, known: list[str]) -> ConfigError:
    """The error that names an unknown option's nearest, or all there are."""
    hint = nearest(key, known) if known else ": it takes none"
    return ConfigError(f"unknown option '{key}' of {owner}{hint}")
