"""What a training was made with, kept beside it: an objective whose parts or numbers change, in a preset or in code of
one's own, must not pass for the one that weights came from.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from sirius_rec.objectives.losses import PARTS, Objective

_OWN_CODE = "code"
_PACKAGE = __name__.partition(".")[0]


def identity(objective: Objective) -> dict[str, Any]:
    """All numbers and names of parts, and of each part from outside this package a hash of its code.

    The code counts without comments and layout. What it calls does not count, nor what has no source to be read.
    """
    code = {
        f"{part} {getattr(objective, part)}": digest
        for part, (table, _) in PARTS.items()
        if (digest := "".join(_hashes(table[getattr(objective, part)])))
    }
    return {**asdict(objective), _OWN_CODE: code}


def difference(saved: Mapping[str, Any], objective: Objective) -> str | None:
    """In words, the first thing in which an objective is another than the one that `saved` is the identity of.

    Options that were unknown when it was saved had today's default then.
    """
    now, defaults = identity(objective), {field.name: field.default for field in fields(Objective)}
    for key, value in now.items():
        before = saved.get(key, defaults.get(key, {}))
        if key == _OWN_CODE:
            changed = [part for part in value if part in before and before[part] != value[part]]
            if changed:
                return f"the code of {changed[0]} has changed"
        elif before != value:
            return f"{key}: then {before!r}, now {value!r}"
    return None


def _hashes(part: Any) -> Iterator[str]:
    """Of the functions of a part that are not this package's."""
    for value in [getattr(part, field.name) for field in fields(part)] if is_dataclass(part) else [part]:
        if callable(value) and getattr(value, "__module__", "").partition(".")[0] != _PACKAGE:
            try:
                source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(value))))
            except (OSError, TypeError, SyntaxError):  # typed at a prompt, built in, a lambda amid an expression
                continue
            yield hashlib.sha256(source.encode()).hexdigest()
