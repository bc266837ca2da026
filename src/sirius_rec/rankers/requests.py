"""Requests in JSON lines: reading them in order, and writing answers so that a killed run can go on.

A request: {"history": [ids or titles, oldest first], "candidates": [ids or titles]}, and anything in "id"; where the
whole catalogue is ranked there are no candidates, but "exclude" may name what is no answer.
An answer: {"line": 1, "id": …, "candidates": [best first], "scores": [as ordered]}, one per request, in their order.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sirius_rec import atomic
from sirius_rec.data.sources.lines import blocks
from sirius_rec.errors import DataError, RunError, ScoringError
from sirius_rec.progress import Advance

PARTIAL = ".partial"
_TRAIL = len("00000000 ")  # before an answer in the partial file


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
RECOMMENDING = Form(("history",), ("exclude",), {"history": "there is nothing to recommend from"})


@dataclass(frozen=True)
class BadRequest:
    """A line that is no request, and why."""

    line: int
    why: str
    trail: int = field(default=0, compare=False)


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
    """Requests of a plain or gzip file behind its line `after`; blank lines are passed over. Bounded memory.

    trail: the checksum that the line `after` had. Raises DataError if the file cannot be read, or if the lines up to
    `after` are not those that gave this checksum.
    """
    passed, matched = 0, not after or trail is None
    for first, block in blocks(path, advance, size=1 << 20):
        for number, text in enumerate(block.split(b"\n"), first):
            if not text.strip():
                continue
            passed = zlib.crc32(text.strip() + b"\n", passed)
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


class AnswerFile:
    """Answers in the order of the requests: FILE.partial while they come, FILE once all are there.

    A first line in FILE.partial says what makes them (`recipe`); one of another recipe is refused. Each answer there
    stands behind the checksum of all requests so far. `answered` is the number of the last request line that has its
    answer on disk, `trail` its checksum; a torn last line is cut off. Without any answer no partial file is left.
    earlier: what calls before this one answered and refused.
    """

    def __init__(self, path: Path, recipe: dict[str, Any]) -> None:
        """RunError if the file is there already, or a partial one was made by another recipe."""
        self.path, self.partial = path, path.with_name(path.name + PARTIAL)
        if path.exists():
            raise RunError(f"{path}: exists already: choose another --out, or remove it")
        self.answered, self.trail, self.earlier = 0, 0, Outcome()
        head = json.dumps(recipe, sort_keys=True).encode() + b"\n"
        self._file = self.partial.open("r+b" if self.partial.exists() else "w+b")
        self._lock()
        first = self._file.readline()
        if not first.endswith(b"\n"):  # new, or killed before its first line was whole
            self._file.seek(0)
            self._file.truncate()
            self._file.write(head)
            first = head
        if first != head:
            self._file.close()
            raise RunError(
                f"{self.partial}: was made from another input, model or options: choose another --out, or remove it"
            )
        end = self._file.seek(len(head))
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            body = json.loads(line[_TRAIL:])
            self.answered, self.trail = int(body["line"]), int(line[:_TRAIL], 16)
            self.earlier.skipped += "error" in body
            self.earlier.answered += "error" not in body
        self._file.truncate(end)
        self._file.seek(end)

    def _lock(self) -> None:
        """RunError if another process writes the same answers. The lock ends with the process."""
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RunError(
                f"{self.partial}: another process is writing it: wait for it or choose another --out"
            ) from None

    def write(self, answers: list[dict[str, Any]], trails: list[int]) -> None:
        """Append answers, each with its request's `trail`, and put them on the disk."""
        lines = (
            f"{trail:08x} {json.dumps(answer, ensure_ascii=False, allow_nan=False)}\n"
            for answer, trail in zip(answers, trails, strict=True)
        )
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        if answers:
            self.answered, self.trail = answers[-1]["line"], trails[-1]

    def finish(self) -> None:
        """Everything is answered: head and checksums go, and the file gets its name."""
        self._file.seek(0)
        self._file.readline()
        with atomic.replacing(self.path) as complete, complete.open("wb") as out:
            out.writelines(line[_TRAIL:] for line in self._file)
            out.flush()
            os.fsync(out.fileno())
        self.partial.unlink()
        self._file.close()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._file.closed and not self.answered:
            self.partial.unlink(missing_ok=True)
        self._file.close()


def answer(request: Request, scores: Any, top: int | None, marks: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Candidates by falling score, ties in the order given; rounded to 1e-6. ScoringError for NaN or infinity.

    marks: what else to say of the answer, beside "id".

    >>> answer(Request(1, ("a",), ("b", "c", "d")), [-3.0, -1.0, -2.0], top=2)["candidates"]
    ['c', 'd']
    """
    return _headed(request, marks, ordered(request, scores, top))


def ordered(request: Request, scores: Any, top: int | None) -> dict[str, Any]:
    """What `answer` says of the candidates alone."""
    order = sorted(range(len(request.candidates)), key=lambda c: -float(scores[c]))[:top]
    return {"candidates": [request.candidates[c] for c in order], "scores": finite(request, scores, order)}


def finite(request: Request, scores: Any, order: Sequence[int]) -> list[float]:
    """Scores in an order, rounded to 1e-6. ScoringError if any of them is NaN or infinity."""
    if not all(math.isfinite(float(score)) for score in scores):
        raise ScoringError(
            f"request line {request.line}: a score is not a finite number; the model's weights are damaged"
        )
    return [round(float(scores[c]), 6) for c in order]


def _headed(request: Request, marks: Mapping[str, Any] | None, body: Mapping[str, Any]) -> dict[str, Any]:
    named = {"id": request.key} if request.named else {}
    return {"line": request.line, **named, **(marks or {}), **body}


def refusal(bad: BadRequest) -> dict[str, Any]:
    """What stands in the place of an answer where bad lines are skipped."""
    return {"line": bad.line, "error": bad.why}


def refuse(path: Path, bad: BadRequest) -> DataError:
    return DataError(f"{path}, line {bad.line}: {bad.why}; mend it, or pass over such lines with --skip-bad")


Scorer = Callable[[list[Request]], list[Any]]  # scores per candidate, or what answers say
Check = Callable[[Request], str | None]


@dataclass(frozen=True)
class Unknown:
    """What to do with history items that a ranker does not know, where they are dropped instead of refused.

    known: whether it knows an item. popular: answers by popularity, for a history of which nothing is left; such an
    answer is marked. None where that is not known: `check` refuses such a
    history.
    """

    known: Callable[[str], bool]
    popular: Scorer | None


@dataclass
class Outcome:
    """Of one call: requests answered and bad lines skipped; history items dropped, and answers by popularity alone."""

    answered: int = 0
    skipped: int = 0
    dropped: int = 0
    by_popularity: int = 0


def rank_file(
    path: Path,
    out: AnswerFile,
    score: Scorer,
    check: Check,
    *,
    top: int | None = None,
    unknown: Unknown | None = None,
    **options: Any,
) -> Outcome:
    """Answer every request of `path` behind those answered already with its candidates in order.

    score: requests → scores per candidate. unknown, options: as in `answer_file`.
    """

    def respond(scorer: Scorer) -> Scorer:
        return lambda requests: [ordered(r, found, top) for r, found in zip(requests, scorer(requests), strict=True)]

    given = unknown
    if unknown is not None and unknown.popular is not None:
        given = Unknown(unknown.known, respond(unknown.popular))
    return answer_file(path, out, respond(score), check, unknown=given, **options)


def answer_file(
    path: Path,
    out: AnswerFile,
    respond: Scorer,
    check: Check,
    *,
    form: Form = RANKING,
    part: int = 256,
    skip_bad: bool = False,
    unknown: Unknown | None = None,
    advance: Advance | None = None,
) -> Outcome:
    """Answer every request of `path` behind those answered already.

    respond: requests → what each answer says, beside its line and "id". check: why a request cannot be answered, or
    None. part: requests in memory. unknown: drop history items that the ranker does not know; None leaves them to
    `check`. Raises DataError at the first bad line, after its predecessors are answered, unless `skip_bad`.
    """
    outcome = Outcome()
    for requests in in_parts(read_requests(path, out.answered, advance, trail=out.trail, form=form), part):
        checked, marks = prepared(requests, check, unknown)
        first_bad = next((r for r in checked if isinstance(r, BadRequest)), None)
        if first_bad is not None and not skip_bad:
            checked = checked[: checked.index(first_bad)]
        good = [r for r in checked if isinstance(r, Request)]
        popular = by_popularity(good, marks)
        said = bodies(good, popular, respond, unknown)
        out.write(
            [_headed(r, marks.get(r.line), said[r.line]) if isinstance(r, Request) else refusal(r) for r in checked],
            [r.trail for r in checked],
        )
        outcome.answered += len(good)
        outcome.skipped += len(checked) - len(good)
        outcome.dropped += sum(marks.get(r.line, {}).get("unknown", 0) for r in good)
        outcome.by_popularity += len(popular)
        if first_bad is not None and not skip_bad:
            raise refuse(path, first_bad)
    return outcome


Marks = dict[int, dict[str, Any]]  # by line: what an answer says of its request, beside "id"


def prepared(
    requests: Sequence[Request | BadRequest], check: Check, unknown: Unknown | None
) -> tuple[list[Request | BadRequest], Marks]:
    """Requests without history items that the ranker does not know, or the reason why one cannot be answered."""
    checked: list[Request | BadRequest] = []
    marks: Marks = {}
    for request in requests:
        if isinstance(request, Request) and unknown is not None:
            request, marks[request.line] = _without_unknown(request, unknown)
        why = check(request) if isinstance(request, Request) else None
        checked.append(request if why is None else BadRequest(request.line, why, request.trail))
    return checked, marks


def by_popularity(requests: Sequence[Request], marks: Marks) -> set[int]:
    """Lines of requests of whose history nothing is left."""
    return {request.line for request in requests if "by" in marks.get(request.line, {})}


def _without_unknown(request: Request, unknown: Unknown) -> tuple[Request, dict[str, Any]]:
    """The request with the known part of its history, and what its answer will say of the rest."""
    history = tuple(item for item in request.history if unknown.known(item))
    dropped = len(request.history) - len(history)
    if not dropped:
        return request, {}
    return replace(request, history=history), {"unknown": dropped, **({} if history else {"by": "popularity"})}


def bodies(requests: list[Request], popular: set[int], respond: Scorer, unknown: Unknown | None) -> dict[int, Any]:
    """What answers say, by line: by the ranker or by popularity."""
    said: dict[int, Any] = {}
    groups: list[tuple[Scorer, list[Request]]] = [(respond, [r for r in requests if r.line not in popular])]
    if unknown is not None and unknown.popular is not None:
        groups.append((unknown.popular, [r for r in requests if r.line in popular]))
    for responder, group in groups:
        if group:
            said.update(zip((r.line for r in group), responder(group), strict=True))
    return said
