"""How docstrings of this project become Markdown: lines `name: what it is` are a list of arguments, not one paragraph."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ENTRY = re.compile(r"^([a-z_][\w@]*(?: \([^)]*\))?(?:, [a-z_][\w@]*(?: \([^)]*\))?)*): (?=\S)")
_NAME = re.compile(r"(?<![\w(])[a-z_][\w@]*(?![\w)])(?=[^()]*(?:\(|$))")


class HouseDocstrings(Extension):
    """Rewrites docstrings before they are rendered."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring whose paragraphs of `name: …` lines are lists; sections such as Args stay as they are.

    >>> print(as_markdown("Scores.\\n\\nrows: what is scored,\\n    one by one. mode: how.\\nk: how many."))
    Scores.
    <BLANKLINE>
    - `rows`: what is scored,
        one by one. mode: how.
    - `k`: how many.
    """
    parts, fenced = [], False
    for part in text.split("\n\n"):
        if not fenced and _ENTRY.match(part):
            part = "\n".join(_line(line) for line in part.splitlines())
        fenced ^= part.count("```") % 2 == 1
        parts.append(part)
    return "\n\n".join(parts)


def _line(line: str) -> str:
    found = _ENTRY.match(line)
    if not found:
        return f"    {line.strip()}"
    return f"- {_NAME.sub(lambda name: f'`{name[0]}`', found[1])}: {line[found.end() :]}"
