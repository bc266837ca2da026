"""What a training was made with, kept beside it: an objective whose parts or numbers change, in a preset or in code of
one's own, must not pass for the one that weights came from.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from types import CodeType
from typing import Any

from sirius_rec.objectives.losses import PARTS, Objective

_CODE, _PYTHON = "code", "python"
_PACKAGE = __name__.partition(".")[0]
_PLAIN = (str, bytes, int, float, bool, type(None))


def identity(objective: Objective) -> dict[str, Any]:
    """All numbers and names of parts, and of each part whether it is this package's or a hash of the code that it is.

    The code is what is loaded, without comments, layout and docstring, with defaults, plain values that a closure, a
    `partial` or an instance holds, and flags; not what it calls by a module's name.
    """
    code = {f"{part} {getattr(objective, part)}": _hash(table[getattr(objective, part)])
            for part, (table, _) in PARTS.items()}  # fmt: skip
    return {**asdict(objective), _CODE: code, _PYTHON: platform.python_version().rpartition(".")[0]}


def difference(saved: Mapping[str, Any], objective: Objective, but: Collection[str] = ()) -> str | None:
    """In words, the first thing in which an objective is another than the one that `saved` is the identity of.

    Options that were unknown when it was saved had today's default then. Code is compared under one version of Python,
    which compiles it. but: options that may differ.
    """
    now, defaults = identity(objective), {field.name: field.default for field in fields(Objective)}
    for name, default in defaults.items():
        before = saved.get(name, default)
        if before != now[name] and name not in but:
            return f"{name}: then {before!r}, now {now[name]!r}"
    if saved.get(_PYTHON) == now[_PYTHON]:
        before = saved.get(_CODE, {})
        for part, digest in now[_CODE].items():
            if before.get(part, digest) != digest:
                return f"the code of {part} has changed"
    return None


def _hash(part: Any) -> str:
    """Of a part's code; the package's name where all of it is from there."""
    functions = [v for _, v in _members(part) if callable(v)] if is_dataclass(part) else [part]
    if all(str(getattr(one, "__module__", "")).partition(".")[0] == _PACKAGE for one in functions):
        return _PACKAGE
    return hashlib.sha256("\n".join(_words(part)).encode()).hexdigest()


def _members(part: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(part, field.name)) for field in fields(part)]


def _words(value: Any, depth: int = 8) -> Iterator[str]:
    """What a value is, as texts that are the same in every process. depth: how far what it holds is followed."""
    if isinstance(value, CodeType):
        yield from (value.co_code.hex(), *value.co_names, *value.co_varnames, *value.co_freevars)
        inside: Any = value.co_consts
    elif isinstance(value, _PLAIN):
        yield repr(value)
        return
    elif isinstance(value, tuple | list):
        inside = value
    elif isinstance(value, frozenset):
        inside = sorted(value, key=repr)
    elif hasattr(value, "__code__"):
        named = sorted((value.__kwdefaults__ or {}).items())
        inside = (_without_docstring(value), value.__defaults__, named, _held(value))
    elif isinstance(value, functools.partial):
        inside = (value.func, value.args, sorted(value.keywords.items()))
    elif is_dataclass(value) and not isinstance(value, type):
        inside = _members(value)
    else:  # an instance that can be called, or something that says nothing but its type
        yield f"{type(value).__module__}.{type(value).__qualname__}"
        inside = (getattr(type(value).__call__, "__code__", None), sorted(getattr(value, "__dict__", {}).items()))
    if depth:
        for one in inside:
            yield from _words(one, depth - 1)


def _without_docstring(function: Any) -> CodeType:
    code: CodeType = function.__code__
    documented = function.__doc__ is not None and code.co_consts[:1] == (function.__doc__,)
    return code.replace(co_consts=(None, *code.co_consts[1:])) if documented else code


def _held(function: Any) -> list[Any]:
    """What a closure's variables hold."""
    held = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty yet
            held.append(cell.cell_contents)
    return held
