"""Lists of titles in the JSON that chat models write: bare, fenced, in objects, among other lists and talk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

# Where a JSON list or object of texts may begin.
_START = re.compile(r'\[\s*["{\[]|\{\s*"')
# Keys of an object that is a list: "1", "rank_1".
_PLACE = re.compile(r"(?:rank|place|position|item)?[\s_#-]*(\d{1,3})", re.IGNORECASE)
# Where titles stand in objects, the likeliest first.
_KEYS = ("title", "name", "item")


def json_lists(text: str, named: Callable[[list[str]], int], marked: Callable[[str], bool]) -> Iterator[list[str]]:
    """The lists of texts in a text, one called a ranking before others of the same object.

    named: how many entries of a list name a candidate. marked: whether a line is an entry of a list of lines, whose
    brackets are part of that entry.
    """
    for value in _values(text, marked):
        lists = [(name, column) for name, found in _lists(value) if (column := _texts(found, named))]
        ranking = [column for name, column in lists if "rank" in name.lower() and named(column)]
        yield from ranking[:1] or [column for _, column in lists]


def _values(text: str, marked: Callable[[str], bool]) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while found := _START.search(text, at):
        at = found.start() + 1
        if marked(text[text.rfind("\n", 0, at) + 1 : at]):
            continue
        try:
            value, at = decoder.raw_decode(text, found.start())
        except ValueError:
            continue
        except RecursionError:
            return
        yield value


def _lists(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """The lists in a value with their keys; objects whose keys are places count as lists."""
    if isinstance(value, list):
        yield name, value
    elif isinstance(value, dict) and depth < 10:
        places = [_PLACE.fullmatch(key) for key in value]
        if value and all(places):
            entries = zip((int(place[1]) for place in places if place), value.values(), strict=True)
            yield name, [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]
            return
        for key, inner in value.items():
            yield from _lists(inner, key, depth + 1)


def _texts(found: list[Any], named: Callable[[list[str]], int]) -> list[str] | None:
    """A list of texts, or of objects that hold one each; None for any other."""
    if found and all(isinstance(entry, dict) for entry in found):
        return _column(found, named)
    return found if found and all(isinstance(entry, str) for entry in found) else None


def _column(objects: list[dict[str, Any]], named: Callable[[list[str]], int]) -> list[str] | None:
    """The texts under one key, the same in all objects: a usual one, else the one under which most titles are named.

    One key for the whole list, so that a genre or a comment that happens to be a title is not taken for an answer.
    """
    texts: dict[str, list[str]] = {}
    for entry in _by_place(objects):
        for key, value in entry.items():
            if isinstance(value, str):
                texts.setdefault(key, []).append(value)
    usual = next((key for name in _KEYS for key in texts if key.lower() == name), None)
    chosen = usual or max(texts, key=lambda key: named(texts[key]), default=None)
    return None if chosen is None else texts[chosen]


def _by_place(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of their "rank" or "position", where all have one of their own; else as they stand."""
    for key in ("rank", "position", "place"):
        places = [entry.get(key) for entry in objects]
        if all(type(place) is int for place in places) and len(set(places)) == len(places):
            return sorted(objects, key=lambda entry: int(entry[key]))
    return objects
