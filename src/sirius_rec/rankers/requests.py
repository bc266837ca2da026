"""Requests, read in order: JSON lines, or what `request_files` makes such of.

A request: {"history": [ids or titles, oldest first], "candidates": [ids or titles]}, and anything in "id"; where the
whole catalogue is ranked there are no candidates, but "exclude" may name what is no answer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.errors import DataError
from sirius_rec.progress import Advance
from sirius_rec.rankers.request_files import request_lines


@dataclass(frozen=True)
class Request:
    """line: its number in the file, from 1. key: what "id" held, `named` where there was one. trail: a checksum of this
    line and all before it. exclude: of the whole catalogue, what is no answer."""

    line: int
    history: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    key: Any = None
    named: bool = False
    trail: int = field(default=0, compare=False)
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """Which lists a request has, and which it may have. empty: what is wrong with one of them when it is empty."""

    lists: tuple[str, ...]
    optional: tuple[str, ...]
    empty: Mapping[str, str]

    @property
    def known(self) -> tuple[str, ...]:
        return ("id", *self.lists, *self.optional)

    @property
    def example(self) -> str:
        return "{" + ", ".join(f'"{name}": [...]' for name in self.lists) + "}"


RANKING = Form(("history", "candidates"), (), {"candidates": "there is nothing to rank"})
RECOMMENDING = Form(("history",), ("exclude",), {})


@dataclass(frozen=True)
class BadRequest:
    """A line that is no request, and why; key, named: as in `Request`, where that could be read."""

    line: int
    why: str
    trail: int = field(default=0, compare=False)
    key: Any = None
    named: bool = False


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def parse_request(line: int, text: bytes, form: Form = RANKING) -> Request | BadRequest:
    """One request, or the reason why it is none. Ids may be text or whole numbers; a candidate stands once."""
    try:
        record = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return BadRequest(line, f"not a JSON object ({str(error) or type(error).__name__})")
    return request_of(line, record, form)


def request_of(line: int, record: Any, form: Form = RANKING) -> Request | BadRequest:
    """`parse_request` of what JSON held."""
    found = _request_of(line, record, form)
    if isinstance(found, BadRequest) and isinstance(record, dict) and "id" in record and _no_id(record["id"]) is None:
        return replace(found, key=record["id"], named=True)
    return found


def checked(request: Request, line: int, form: Form = RANKING) -> Request | BadRequest:
    """A request that somebody made himself, as one of line `line` of a file: its ids may be whole numbers."""
    lists: dict[str, Any] = {"history": request.history, "candidates": request.candidates, "exclude": request.exclude}
    record = {name: _plain(held) for name, held in lists.items() if name in form.lists or len(held)}
    return request_of(line, {**record, **({"id": request.key} if request.named else {})}, form)


def _plain(held: Any) -> Any:
    return held if isinstance(held, str) else [int(one) if isinstance(one, np.integer) else one for one in held]


def _request_of(line: int, record: Any, form: Form) -> Request | BadRequest:
    if not isinstance(record, dict):
        return BadRequest(line, f"not a JSON object; write {form.example}")
    if unknown := sorted(set(record) - set(form.known)):
        return BadRequest(line, f"unknown field {unknown[0]!r}; known are {', '.join(form.known)}")
    lists: dict[str, tuple[str, ...]] = {}
    for name in (*form.lists, *(name for name in form.optional if name in record)):
        entries = record.get(name)
        if not isinstance(entries, list):
            return BadRequest(line, f"{name} is {'missing' if entries is None else repr(entries)}; give a list")
        for entry in entries:
            if isinstance(entry, bool) or not isinstance(entry, int | str) or entry == "":
                return BadRequest(line, f"{name} holds {entry!r}; give ids or titles")
            if isinstance(entry, str) and any("\ud800" <= c <= "\udfff" for c in entry):
                return BadRequest(line, f"{name} holds {entry!r}, which is not valid text")
        lists[name] = tuple(map(str, entries))
    for name, why in form.empty.items():
        if not lists[name]:
            return BadRequest(line, f"{name} is empty; {why}")
    candidates = lists.get("candidates", ())
    if len(set(candidates)) < len(candidates):
        twice = next(c for i, c in enumerate(candidates) if c in candidates[:i])
        return BadRequest(line, f"candidate {twice!r} is duplicated")
    if (unwritable := _no_id(record.get("id"))) is not None:
        return BadRequest(line, unwritable)
    excluded = lists.get("exclude", ())
    return Request(line, lists["history"], candidates, record.get("id"), "id" in record, exclude=excluded)


def _no_id(key: Any) -> str | None:
    """Why an "id" cannot be written back. Python reads some that are no JSON when they are written."""
    try:
        json.dumps(key, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return f"id holds {key!r}, which is not valid text"
    except (ValueError, RecursionError):
        return "id holds a number that is too large, or is nested too deeply: give text or a smaller number"
    return None


def read_requests(
    path: Path, after: int = 0, advance: Advance | None = None, *, trail: int | None = None, form: Form = RANKING
) -> Iterator[Request | BadRequest]:
    """Requests of a file or folder (`request_lines`) behind its line `after`. Bounded memory.

    trail: the checksum that the line `after` had. Raises DataError if a file cannot be read, or if the lines up to
    `after` are not those that gave this checksum.
    """
    passed, matched = 0, not after or trail is None
    for number, text in request_lines(path, advance):
        passed = zlib.crc32(text + b"\n", passed)
        if number == after and passed == trail:
            matched = True
        if number > after:
            if not matched:
                raise _changed(path, after)
            yield replace(parse_request(number, text, form), trail=passed)
    if not matched:
        raise _changed(path, after)


def _changed(path: Path, after: int) -> DataError:
    return DataError(
        f"{path}: its first {after} lines are not those that were answered before: choose another --out, or put the "
        "old requests back"
    )


def in_parts(requests: Iterator[Request | BadRequest], size: int) -> Iterator[list[Request | BadRequest]]:
    """Consecutive lists of at most `size` requests."""
    for first in requests:
        yield list(chain([first], islice(requests, size - 1)))
