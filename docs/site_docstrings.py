"""How docstrings of this project become Markdown: lines of `name: what it is` are a list, examples are code."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from griffe import Class, Extension, Function, Object

_ENTRY = re.compile(r"^([a-z_][\w@]*(?: \([^)]*\))?(?:, [a-z_][\w@]*(?: \([^)]*\))?)*): (?=\S)")
_NAME = re.compile(r"(?<![\w(])[a-z_][\w@]*(?![\w)])(?=[^()]*(?:\(|$))")
_NEXT = re.compile(r"(?<=[.)]) (?=([a-z_]\w*)(?:, [a-z_]\w*)*: )")


class HouseDocstrings(Extension):
    """Rewrites docstrings before they are rendered."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, _names(obj))


def _names(obj: Object) -> set[str]:
    """Parameters of a function; attributes of a class and what makes one."""
    if isinstance(obj, Function):
        return {parameter.name for parameter in obj.parameters}
    if isinstance(obj, Class):
        made = obj.members.get("__init__")
        return set(obj.members) | (_names(made) if isinstance(made, Function) else set())
    return set()


def as_markdown(text: str, names: Collection[str] = ()) -> str:
    """A docstring whose paragraphs of `name: …` lines are lists, and its examples code; sections stay as they are.

    names: those that begin an entry behind another one, too.

    >>> print(as_markdown("Scores.\\n\\nrows: what is scored,\\n    one by one. mode: how.\\nk: how many.", {"mode"}))
    Scores.
    <BLANKLINE>
    - `rows`: what is scored,
        one by one.
    - `mode`: how.
    - `k`: how many.
    """
    parts, fenced = [], False
    for part in text.split("\n\n"):
        if not fenced and _ENTRY.match(part):
            alone = _NEXT.sub(lambda found: "\n" if found[1] in names else " ", part)
            part = "\n".join(map(_line, alone.splitlines()))
        if not fenced and part.startswith(">>> "):
            part = f"```pycon\n{part}\n```"
        fenced ^= part.count("```") % 2 == 1
        parts.append(part)
    return "\n\n".join(parts)


def _line(line: str) -> str:
    found = _ENTRY.match(line)
    if not found:
        return f"    {line.strip()}"
    return f"- {_NAME.sub(lambda name: f'`{name[0]}`', found[1])}: {line[found.end() :]}"
