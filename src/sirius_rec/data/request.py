"""What a preparation is asked for, checked before anything is read."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sirius_rec.data.freezing import excludes
from sirius_rec.data.holding_out import check_hold_out
from sirius_rec.data.options import INTERACTED_LEAKY, Preparation, SlateOptions, Unusable
from sirius_rec.data.recipe import NO_OPTIONS
from sirius_rec.data.sources import FRAMES, SOURCES, is_ours, source_of
from sirius_rec.data.sources.files import check_choice
from sirius_rec.errors import ConfigError
from sirius_rec.options import Options
from sirius_rec.schema import SPLITS, SlateName

Kind = TypeVar("Kind", bound=Options)


def options_from(kind: type[Kind], value: object, name: str, word: str | None = None) -> Kind:
    """`value`, or the options that a dict of them gives; a bare word is that of the option `word`.

    Raises:
        ConfigError: it is nothing of the kind, or an option in it is unknown or out of range.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and word is not None:
        value = {word: value}
    if not isinstance(value, Mapping):
        either = f", a word for {word}" if word else ""
        raise ConfigError(f"{name}={value!r}: give {kind.__name__}, a dict of its options{either}, or leave it out")
    try:
        return kind(**{str(key): one for key, one in value.items()})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def slates_from(value: object) -> tuple[SlateOptions, ...]:
    """One set of slates or several (or none), each as `options_from` takes it; a `ConfigError` as there."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(options_from(SlateOptions, one, "slates", "protocol") for one in several)


def check_options(source: str, options: Mapping[str, Any]) -> None:
    """ConfigError for an option that a source does not have, or that holds what it may not."""
    known = [name for name in inspect.signature(source_of(source)).parameters if name not in NO_OPTIONS]
    for name in options:
        if name not in known:
            raise ConfigError(f"source {source!r} has no option {name!r}; it has {', '.join(known) or 'none'}")
    _check_option_types(source, options)


def check_request(asked: Preparation, *, sharded: bool) -> None:
    """ConfigError for what is unknown, out of range, or does not go together."""
    source, slates = asked.source, asked.slates
    if source != FRAMES and source not in SOURCES:
        raise ConfigError(f"source {source!r} is unknown; use one of {', '.join(SOURCES)}")
    parameters = inspect.signature(source_of(source)).parameters
    for name in ("path", "seed"):
        if name not in parameters:
            raise ConfigError(f"source {source!r} has no parameter {name}; make it load(path, *, seed, **options)")
    if asked.input is None and parameters["path"].default is inspect.Parameter.empty:
        instead = "" if is_ours(source_of(source)) else ", or write load(path=None, …) if it reads none"
        raise ConfigError(f"source {source!r} needs an input; name its file or folder{instead}")
    check_options(source, asked.options)
    _check_whole("seed", asked.seed, 0)
    check_choice("unusable", asked.unusable, Unusable)
    if asked.max_title is not None:
        _check_whole("max_title", asked.max_title, 1)
    for name, limit in asked.limits.items():
        if name not in SPLITS:
            raise ConfigError(f"limit for split {name!r}: use some of {', '.join(SPLITS)}")
        _check_whole(f"limit for {name}", limit, 1)
    if asked.split.kind != "user":  # with users split, only the rows say whether a source's own splits share users
        excludes(slates, True)
    names = [
        str(SlateName(s, o.protocol, o.size or 0, o.seed, o.exclude == INTERACTED_LEAKY))
        for o in slates
        for s in o.splits
    ]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"slates {name} are asked for twice; give one of them another size or seed")
    check_hold_out(asked.held_out, slates, sharded)


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} is not a whole number of at least {least}")


def _check_option_types(source: str, options: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for the first option whose value is not of the type in the signature of the source."""
    hints = get_type_hints(source_of(source))
    for name, value in options.items():
        if name not in hints:  # of a source that says no types
            continue
        adapter = TypeAdapter(hints[name], config=ConfigDict(strict=True, allow_inf_nan=False))
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            raise ConfigError(
                f"source {source!r}: option {name}={value!r} is not {_in_words(hints[name])}; fix it or leave it out"
            ) from error


def _in_words(hint: Any) -> str:
    """What a type of option accepts, for people.

    >>> _in_words(float | None), _in_words(Literal["s", "ms"])
    ('a number or null', 'one of s, ms')
    """
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) in (Union, types.UnionType):
        parts = get_args(hint)  # a path may always be given as text
        return " or ".join(_in_words(part) for part in parts if not (part is str and Path in parts))
    words = {int: "a whole number", float: "a number", str: "text", Path: "a path", types.NoneType: "null"}
    return words.get(hint, "a mapping of text to text" if get_origin(hint) is dict else str(hint))
