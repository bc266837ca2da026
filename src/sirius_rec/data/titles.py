"""Titles as they are shown to a model: one line, and distinct, so that a completion names exactly one item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import polars as pl

_PLAIN = re.compile(r"[!-~]+( [!-~]+)*")  # titles that are tidy already, as most are
# Zero-width spaces show nothing and join nothing; joiners (U+200C, U+200D) do, in emoji and in Persian.
_NOTHING = "[\u200b\u2060\ufeff]"
_INVISIBLE = r"^[\p{Cf}\s]*$"  # a title of nothing but format characters is none


def collapse_whitespace(titles: pl.Series) -> tuple[pl.Series, int]:
    """Titles in one line: NFC, no zero-width space, every run of white space one space; also how many changed.

    A title of invisible characters alone becomes "". A tidy title stays as it is: zero-width spaces go first, since one
    may stand between a letter and its accent.

    >>> tidy, changed = collapse_whitespace(pl.Series(["Red", " House\\n Painters "]))
    >>> tidy.to_list(), changed
    (['Red', 'House Painters'], 1)
    """
    tidy = titles.str.replace_all(_NOTHING, "").str.normalize("NFC").str.replace_all(_INVISIBLE, "")
    tidy = tidy.str.replace_all(r"\s+", " ").str.strip_chars()
    return tidy, int((tidy != titles).sum())


@lru_cache(maxsize=1 << 16)
def tidy_title(title: str) -> str:
    """One title, as `collapse_whitespace` has it, and by its code: Python's own white space is more than polars'.

    >>> tidy_title(" House\\n Painters ")
    'House Painters'
    """
    return title if _PLAIN.fullmatch(title) else str(collapse_whitespace(pl.Series([title], dtype=pl.String))[0][0])


def distinct_titles(titles: Sequence[str]) -> tuple[list[str], list[int]]:
    """Append " (2)", " (3)" … to later holders of a title, in item order, passing over titles already in use.

    Returns:
        the titles, and the positions of those renamed.

    >>> distinct_titles(["Chasing Amy", "Chasing Amy", "Chasing Amy (2)"])
    (['Chasing Amy', 'Chasing Amy (3)', 'Chasing Amy (2)'], [1])
    """
    taken = set(titles)
    seen: set[str] = set()
    result, renamed = [], []
    for position, title in enumerate(titles):
        name, number = title, 2
        if title in seen:
            while name in taken:
                name = f"{title} ({number})"
                number += 1
            renamed.append(position)
            taken.add(name)
        seen.add(name)
        result.append(name)
    return result, renamed
