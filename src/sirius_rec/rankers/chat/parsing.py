"""What a chat model said → an order of the slate's candidates.

One rule: a line (or an entry of a JSON list, see `listed`) names a candidate when it is that title, after list numbers,
bullets, labels, quotes and markdown are taken off, or that title followed by an explanation. A title that looks like
such marks ("1. Outside", "#1 Crush") is found first: as little as possible is taken off. A line may also list titles
between commas, arrows and the like, up to the first explanation. Titles are never looked for inside running text:
"Can", "Air" and "Low" are words too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sirius_rec.prompts.encoding import normalise_title
from sirius_rec.rankers.chat.listed import json_lists

# Thoughts end at the last closing tag (the opening one may stand in the chat template), or were cut off and never end.
_THOUGHT = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*\Z", re.DOTALL)
# Long gaps, which no title has, would take the patterns below time in the square of their length.
_GAP = re.compile(r"([^\S\r\n]{20})[^\S\r\n]+")
_FENCE = re.compile(r"^\s*```")
# Behind a quotation or a heading: a bullet; 1. 1) (1) [1] **1.** 1\. 1: ; "1 - "; "#1 " and "#1: "; "| 1 | ".
_NUMBER = re.compile(
    r"""\s*(?:>\s*)*(?:\#+\s*)?(?:
    [-*•+–—]\s+
    | \*{0,2}[(\[]?\d{1,3}\*{0,2}\\?[.):\]]\*{0,2}\s*
    | \*{0,2}\d{1,3}\*{0,2}\s+[-–—]\s+
    | \*{0,2}\#\d{1,3}[.):]?\*{0,2}\s+(?:[-–—]\s+)?
    | \|\s*\d{1,3}\.?\s*\|\s*
    )(?=\S)""",
    re.VERBOSE,
)
_NOUNS = "artist|band|album|song|track|book|novel|game|movie|film|item|title|name|candidate"
# "Rank 1: ", "Movie 2 - ".
_RANK = re.compile(
    rf"\s*\*{{0,2}}(?:rank|place|position|choice|number|no\.?|{_NOUNS})\s*#?\d{{1,3}}"
    r"(?:\*{0,2}[.:)]\*{0,2}|\*{0,2}\s+[-–—])\s+(?=\S)",
    re.IGNORECASE,
)
# A quotation or a heading alone.
_BLOCK = re.compile(r"(?:>|#+\s)\s*(?=\S)")
# "Artist: ", "My final ranking: ".
_LABEL = re.compile(
    rf"\*{{0,2}}(?:{_NOUNS}|(?:[a-z]+\s+){{0,3}}(?:ranking|order|answer|list))\*{{0,2}}:\*{{0,2}}\s+(?=\S)",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`", "*": "*", "_": "_", "[": "]", "「": "」"}
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
# What may stand between a title and an explanation, tried from the right: the longest title wins.
_CUT = re.compile(r"\s+[-–—(\[|]|\s*[:;,|]\s|\*\*|[\"”»]\s")
_EDGE = " -–—:;,|(["
_LIST = re.compile(r"\s*[,;>→|]\s*")
# Words that begin an explanation where a title could stand.
_TALK = re.compile(r"(?:as|because|but|for|given|like|similar|since|which|who|whose|with)\b", re.IGNORECASE)
_YEAR = re.compile(r"\s*\(\d{4}\)\s*")


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
    """Positions of candidates by title: as written, else by what differs in case and white space only, else without
    the year at its end."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.exact: dict[str, list[int]] = {}
        self.loose: dict[str, list[int]] = {}
        self.undated: dict[str, list[int]] = {}
        for position, title in enumerate(titles):
            self.exact.setdefault(title.strip(), []).append(position)
            self.loose.setdefault(normalise_title(title), []).append(position)
            if (year := _YEAR.search(title)) and year.end() == len(title) and year.start():
                self.undated.setdefault(normalise_title(title[: year.start()]), []).append(position)
        # Titles that look like marks: "1. Outside", "Rank 1".
        self.marked = [title for title in self.loose if _NUMBER.match(title) or _RANK.match(f"{title}: x")]
        # More parts of a line, or more characters, are no single title.
        self.most_parts = 1 + max((len(_LIST.findall(title)) for title in titles), default=0)
        self.longest = 60 + 2 * max(map(len, titles), default=0)

    def find(self, text: str) -> int | None:
        """The one candidate of that title; None where there is none, or nobody can say which."""
        found = self.exact.get(text.strip()) or self.loose.get(normalise_title(text)) or []
        return found[0] if len(found) == 1 else None

    def find_bare(self, text: str, *, undated: bool = True) -> int | None:
        """The candidate that a text is, once as little as possible around it is taken off.

        undated: "Heat" may be "Heat (1995)", if no other candidate is called so.
        """
        variants = list(self._bare(text)) if len(text) <= self.longest else []
        for variant in variants:
            if (position := self.find(variant)) is not None:
                return position
        for variant in variants if undated else ():
            name = normalise_title(variant)
            if name not in self.loose and len(found := self.undated.get(name, [])) == 1:
                return found[0]
        return None

    def begins(self, line: str) -> bool:
        """Whether a line that seems marked begins with a title that looks like a mark."""
        text = normalise_title(line)
        return any(text.startswith(title) and not text[len(title) :][:1].isalnum() for title in self.marked)

    def _bare(self, entry: str) -> Iterator[str]:
        """The entry, then with less and less around it; the first that is a title counts ("1. Outside" may be one)."""
        yield entry
        entry = entry.strip()
        marks = (_BLOCK.match, _NUMBER.match, _RANK.match, self._label)
        while entry:
            before = entry
            if width := _wrapped(entry):
                entry = entry[width:-width].strip()
            elif mark := next(filter(None, (find(entry) for find in marks)), None):
                entry = entry[mark.end() :].strip()
            elif entry[-1] in ".,;|":
                entry = entry[:-1].strip()
            elif entry.count("**") == 1:  # its partner went with the mark, or with an explanation
                entry = entry.removeprefix("**").removesuffix("**").strip()
            if entry == before:
                entry = _ESCAPED.sub(r"\1", entry)
            if entry == before:
                return
            yield entry

    def _label(self, entry: str) -> re.Match[str] | None:
        """A label that is not a title itself; "New Order: loved for Low" is about New Order."""
        label = _LABEL.match(entry)
        return None if label is None or self.find(label[0].strip(" *:")) is not None else label


def parse_ranking(text: str, titles: Sequence[str]) -> Ranking:
    """The candidates that an answer names, each once, in its order. Made-up titles are passed over.

    >>> parse_ranking("1. **Red House Painters**\\n2. Oasis\\n3. 'Red' (1997)", ["Red", "Red House Painters"]).order
    (1, 0)
    """
    known = _Titles(titles)
    entries = _entries(_GAP.sub(r"\1", _THOUGHT.sub("", text)), known)
    order: list[int] = []
    for entry in entries:
        for position in _named(entry, known):
            if position not in order:
                order.append(position)
    first = known.find_bare(entries[0], undated=False) if entries else None
    return Ranking(text, tuple(order), first is not None, first)


def _entries(text: str, known: _Titles) -> list[str]:
    """The entries of the JSON list that names most, else the lines of a list, without what is said around it."""

    def named(entries: list[str]) -> int:
        return sum(bool(_named(entry, known)) for entry in entries)

    # Of equals the last: a slate that is repeated comes before its ranking.
    listed = max(reversed([*json_lists(text, named, _marked)]), key=named, default=[])
    if named(listed):
        return listed
    lines = [line for line in text.splitlines() if line.strip() and not _FENCE.match(line)]
    # Where some lines are numbered, the others are talk, unless they are titles.
    if any(_marked(line) and not known.begins(line) for line in lines):
        return [line for line in lines if _marked(line) or known.find_bare(line) is not None]
    # A line that ends like an introduction is none of the titles.
    return [line for line in lines if not line.rstrip().endswith(":") or known.find(line) is not None]


def _marked(line: str) -> bool:
    return bool(_NUMBER.match(line) or _RANK.match(line))


def _wrapped(entry: str) -> int:
    """How many signs stand around the whole entry: 2 in bold, 1 in quotes. "**1.** **Oasis**" is not wrapped."""
    if len(entry) > 3 and entry.startswith("**") and entry.endswith("**"):
        return 0 if "**" in entry[2:-2] else 2
    if len(entry) < 2 or (closing := _QUOTES.get(entry[0])) != entry[-1]:
        return 0
    return 0 if closing in "*]" and closing in entry[1:-1] else 1


def _named(entry: str, known: _Titles) -> list[int]:
    """The candidate that an entry is, or begins with; several where it is a list in one line."""
    if (position := known.find_bare(entry)) is not None:
        return [position]
    head = _head(entry, known)
    if head is not None and not _LIST.match(entry, head[1]):
        return [head[0]]
    text = entry.strip()
    listed = _in_line(text[1:-1] if text[0] + text[-1:] == "[]" else entry, known) if text else []
    return listed or ([] if head is None else [head[0]])


def _head(entry: str, known: _Titles) -> tuple[int, int] | None:
    """The longest title that an entry begins with, before a `_CUT`, and where it ends."""
    # "1 - Suede" is no "1" with an explanation.
    start = 0
    while mark := _NUMBER.match(entry, start):
        start = mark.end()
    cuts = {at for match in _CUT.finditer(entry, start) for at in match.span()}
    for cut in sorted(cuts, reverse=True):
        text = entry[:cut].rstrip(_EDGE)
        # With another year it is another film.
        position = known.find_bare(text, undated=not _YEAR.match(entry, len(text)))
        if position is not None:
            return position, len(text)
    return None


def _in_line(text: str, known: _Titles) -> list[int]:
    """Titles of a list in one line, the longest run of parts first ("Earth, Wind & Fire" holds a comma).

    It ends where an explanation begins, and is none where most of its parts are no titles ("Blur, because of Air").
    """
    borders = [0, *(m.end() for m in _LIST.finditer(text))]
    ends = [*(m.start() for m in _LIST.finditer(text)), len(text)]
    out: list[int] = []
    at = n_parts = 0
    explained = False
    while at < len(borders) and not explained:
        for last in range(min(len(ends), at + known.most_parts) - 1, at - 1, -1):
            if (position := known.find_bare(text[borders[at] : ends[last]])) is not None:
                out.append(position)
                at = last
                break
        else:
            part = text[borders[at] : ends[at]]
            # A year belongs to a made-up title.
            explained = bool(_CUT.search(_YEAR.sub("", part).strip(), 1) or _TALK.match(part.strip()))
            if explained and (head := _head(part, known)):
                out.append(head[0])
        n_parts += bool(text[borders[at] : ends[at]])
        at += 1
    most = 2 * len(out) > n_parts or (2 * len(out) == n_parts and known.find_bare(text[: ends[0]]) is not None)
    return out if len(borders) > 1 and most else []
