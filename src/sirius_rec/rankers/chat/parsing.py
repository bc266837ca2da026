"""What a chat model said → an order of the slate's candidates.

One rule: a line (or an entry of a JSON list) names a candidate when it is that title, after list numbers, bullets,
quotes and markdown are taken off, or that title followed by an explanation. Titles are never looked for inside running
text: "Can", "Air" and "Low" are words too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sirius_rec.prompts.encoding import normalise_title

# Thoughts end at the last closing tag (the opening one may stand in the chat template), or were cut off and never end.
_THOUGHT = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*\Z", re.DOTALL)
_MARKER = re.compile(r"^\s*(?:#+\s*)?(?:\*\*)?(?:[-*•+–]\s+|\(?\d{1,3}[.):\]]\s*)(?=\S)")
_FENCE = re.compile(r"^\s*```")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`", "*": "*", "_": "_", "[": "]", "「": "」"}
# What may stand between a title and an explanation, tried from the right: the longest title wins.
_CUT = re.compile(r"\s+[-–—(\[|]|\s*[:;,|]\s|\*\*|[\"”»]\s")
_LIST = re.compile(r"\s*[,;>→|]\s*")


@dataclass(frozen=True)
class Ranking:
    """text: as said. order: positions of the candidates named, first to last. valid: the first entry is exactly one
    candidate's title. first: the position that this entry names, or None."""

    text: str
    order: tuple[int, ...]
    valid: bool
    first: int | None

    def scores(self, n_candidates: int) -> npt.NDArray[np.float32]:
        """n, n − 1, … in the order named; what is not named shares 0, behind all."""
        out = np.zeros(n_candidates, dtype=np.float32)
        for place, position in enumerate(self.order):
            out[position] = n_candidates - place
        return out


class _Titles:
    """Positions of candidates by title: as written, else by what differs in case and white space only."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.exact: dict[str, list[int]] = {}
        self.loose: dict[str, list[int]] = {}
        for position, title in enumerate(titles):
            self.exact.setdefault(title.strip(), []).append(position)
            self.loose.setdefault(normalise_title(title), []).append(position)

    def find(self, text: str) -> int | None:
        """The one candidate of that title; None where there is none, or nobody can say which."""
        found = self.exact.get(text.strip()) or self.loose.get(normalise_title(text)) or []
        return found[0] if len(found) == 1 else None


def parse_ranking(text: str, titles: Sequence[str]) -> Ranking:
    """The candidates that an answer names, each once, in its order. Made-up titles are passed over.

    >>> parse_ranking("1. **Red House Painters**\\n2. Oasis\\n3. 'Red' (1997)", ["Red", "Red House Painters"]).order
    (1, 0)
    """
    known = _Titles(titles)
    entries = _entries(_THOUGHT.sub("", text), known)
    order: list[int] = []
    for entry in entries:
        for position in _named(entry, known):
            if position not in order:
                order.append(position)
    found = (known.find(variant) for variant in _bare(entries[0] if entries else ""))
    first = next((position for position in found if position is not None), None)
    return Ranking(text, tuple(order), first is not None, first)


def _entries(text: str, known: _Titles) -> list[str]:
    """The lines of a list, without what is said around it; the entries of a JSON list."""
    listed = _json_list(text, known)
    if listed is not None:
        return listed
    lines = [line for line in text.splitlines() if line.strip() and not _FENCE.match(line)]
    # Where some lines are numbered, the others are talk, unless they are titles.
    if any(_MARKER.match(line) and known.find(line) is None for line in lines):
        return [line for line in lines if _MARKER.match(line) or known.find(line) is not None]
    # A line that ends like an introduction is none of the titles.
    return [line for line in lines if not line.rstrip().endswith(":") or known.find(line) is not None]


def _json_list(text: str, known: _Titles) -> list[str] | None:
    """Entries of a JSON list of titles, or of objects that hold one each; None where the text has no such list."""
    start, end = text.find("["), text.rfind("]")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return None
    if not isinstance(found, list) or not found:
        return None
    if all(isinstance(entry, dict) for entry in found):
        return _column(found, known)
    return found if all(isinstance(entry, str) for entry in found) else None


# Where titles stand in objects, the likeliest first.
_KEYS = ("title", "name", "item")


def _column(objects: list[dict[str, object]], known: _Titles) -> list[str] | None:
    """The texts under one key, the same in all objects: a usual one, else the one under which most titles are named.

    One key for the whole list, so that a genre or a comment that happens to be a title is not taken for an answer.
    """
    texts: dict[str, list[str]] = {}
    for entry in objects:
        for key, value in entry.items():
            if isinstance(value, str):
                texts.setdefault(key, []).append(value)
    usual = next((key for name in _KEYS for key in texts if key.lower() == name), None)
    named = {key: sum(bool(_named(text, known)) for text in column) for key, column in texts.items()}
    chosen = usual or max(named, key=lambda key: named[key], default=None)
    return None if chosen is None else texts[chosen]


def _bare(entry: str) -> Iterator[str]:
    """The entry, then with less and less around it; the first that is a title counts ("1. Outside" may be one)."""
    yield entry
    entry = _MARKER.sub("", entry, count=1).strip()
    yield entry
    while True:
        before = entry
        if len(entry) > 1 and entry.startswith("**") and entry.endswith("**"):
            entry = entry[2:-2].strip()
        elif len(entry) > 1 and _QUOTES.get(entry[0]) == entry[-1]:
            entry = entry[1:-1].strip()
        elif entry[-1:] in (".", ",", ";"):
            entry = entry[:-1].strip()
        if entry == before:
            return
        yield entry


def _named(entry: str, known: _Titles) -> list[int]:
    """The candidate that an entry is, or begins with; several where it is a list in one line."""
    bare = list(_bare(entry))
    for variant in bare:
        if (position := known.find(variant)) is not None:
            return [position]
    text = bare[1]
    for cut in sorted({match.start() for match in _CUT.finditer(text)} | {m.end() for m in _CUT.finditer(text)})[::-1]:
        for variant in _bare(text[:cut].rstrip(" -–—:;,|([")):
            if (position := known.find(variant)) is not None:
                rest = _in_line(text[cut:], known)
                # "Blur, Air, Can" is a list; "Blur, because of Air" is not.
                return [position, *rest] if _is_list(text, known) else [position]
    return _in_line(text, known) if _is_list(text, known) else []


def _is_list(text: str, known: _Titles) -> bool:
    """Whether most of a line's parts are titles."""
    parts = [part for part in _LIST.split(text) if part]
    return len(parts) > 1 and 2 * len(_in_line(text, known)) >= len(parts)


def _in_line(text: str, known: _Titles) -> list[int]:
    """Titles of a list in one line, the longest run of parts first ("Earth, Wind & Fire" holds a comma)."""
    borders = [0, *(m.end() for m in _LIST.finditer(text))]
    ends = [*(m.start() for m in _LIST.finditer(text)), len(text)]
    out, at = [], 0
    while at < len(borders):
        for last in range(len(ends) - 1, at - 1, -1):
            found = (known.find(v) for v in _bare(text[borders[at] : ends[last]]))
            if (position := next((p for p in found if p is not None), None)) is not None:
                out.append(position)
                at = last
                break
        at += 1
    return out
