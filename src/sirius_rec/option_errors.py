"""pydantic's errors in words: one short clause per problem, with the place, the value, and the nearest valid name."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "path_type": "must be a path",
    "tuple_type": "must be a list, [a, b, …]",
    "too_long": "needs at most {max_length} entries",
    "dict_type": "must be a section of key: value lines",
    "model_type": "must be a section of key: value lines",
    "model_attributes_type": "must be a section of key: value lines",
    "literal_error": "must be {expected}",
    "invalid_key": "is not a key: keys are text",
}


_MOST = 8  # problems that one line names


def in_one_line(error: ValidationError, root: type[BaseModel]) -> str:
    """`describe`, at most eight problems of it and how many more there are."""
    found = describe(error, root)
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return "; ".join([*found[:_MOST], *more])


def describe(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """The problems of a configuration of type `root`, each named once and in the order of the file's sections."""
    alternatives: dict[str, list[Any]] = {}
    for entry in error.errors():
        alternatives.setdefault(_place(entry["loc"], root), []).append(entry)
    return [_problem(place, entries, root) for place, entries in alternatives.items()]


def _place(loc: tuple[Any, ...], root: type[BaseModel]) -> str:
    """`arms.0.beta`: the keys and list positions of a location, without pydantic's names for union members."""
    parts: list[str] = []
    annotation: Any = root
    for at, part in enumerate(loc):
        section = section_of(annotation)
        if isinstance(part, int) or part == "[key]":
            parts += [str(part)] if isinstance(part, int) else []
        elif annotation is None or (section is not None and (part in section.model_fields or at == len(loc) - 1)):
            parts.append(str(part))
            annotation = section.model_fields[part].annotation if section and part in section.model_fields else None
        elif _holds(annotation, dict):
            parts.append(str(part))
            annotation = None
    return ".".join(parts)


def _problem(place: str, entries: list[Any], root: type[BaseModel]) -> str:
    """One clause; `entries` are the reasons why no member of a union took the value (one where there is no union)."""
    first = entries[0]
    if first["type"] == "extra_forbidden":
        *parents, last = first["loc"]
        return f"unknown key '{place}'{nearest(last, keys_at(tuple(parents), root), '.'.join(place.split('.')[:-1]))}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return f"{place.rpartition('.')[0]}: needs at least {first['loc'][-1] + 1} entries, got {first['input']!r}"
    if first["type"] == "missing":
        return f"'{place}' is missing"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{place}: {message}" if place else message
    wanted = " or ".join(dict.fromkeys(_wanted(entry) for entry in entries)).replace(" or must be ", " or ")
    return f"{place}: {wanted}, got {first['input']!r}"


def _wanted(entry: Any) -> str:
    words = _WORDS.get(entry["type"])
    return words.format(**entry.get("ctx", {})) if words else entry["msg"][0].lower() + entry["msg"][1:]


def nearest(name: Any, known: Iterable[str], parent: str = "") -> str:
    """`, did you mean 'x'?`, or the list of what is known where nothing is near."""
    names = list(known)
    near = get_close_matches(str(name), names, n=1)
    if near:
        return f", did you mean '{parent + '.' if parent else ''}{near[0]}'?"
    return f" (known: {', '.join(names)})"


def keys_at(loc: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    """The valid keys of the section at `loc`."""
    section: type[BaseModel] = root
    for part in loc:
        if isinstance(part, str) and part in section.model_fields:
            section = section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `PretrainSection | None` or `tuple[ArmSection, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        for argument in typing.get_args(annotation):
            if found := section_of(argument):
                return found
    return None


def _holds(annotation: Any, kind: type) -> bool:
    return (typing.get_origin(annotation) or annotation) in (kind, Mapping)
