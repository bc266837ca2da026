"""Answers to requests, in their order, written so that a killed run can go on.

An answer: {"line": 1, "id": …, "candidates": [best first], "scores": [as ordered]}, one per request.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sirius_rec import atomic
from sirius_rec.errors import DataError, RunError, ScoringError
from sirius_rec.progress import Advance
from sirius_rec.rankers.requests import RANKING, BadRequest, Form, Request, in_parts, read_requests

PARTIAL = ".partial"
_TRAIL = len("00000000 ")  # before an answer in the partial file


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
        if not atomic.lock(self._file):
            self._file.close()
            raise RunError(f"{self.partial}: another process is writing it: wait for it or choose another --out")

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

    def finish(self, send: Callable[[Path], None] | None = None) -> None:
        """Everything is answered: head and checksums go, and the file gets its name.

        send: brings the whole file elsewhere instead; if that fails, another call on the same partial file tries again.
        """
        self._file.seek(0)
        self._file.readline()
        whole = self.path if send is None else self.path.with_name(f".{self.path.name}.whole")
        with atomic.replacing(whole) as complete, complete.open("wb") as out:
            out.writelines(line[_TRAIL:] for line in self._file)
            out.flush()
            os.fsync(out.fileno())
        if send is not None:
            try:
                send(whole)
            finally:
                whole.unlink()
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
    return {"line": bad.line, **({"id": bad.key} if bad.named else {}), "error": bad.why}


def refuse(path: str | Path, bad: BadRequest) -> DataError:
    return DataError(f"{path}, line {bad.line}: {bad.why}; fix it, or pass over such lines with --skip-bad")


Part = list[Request | BadRequest]
Respond = Callable[[list[Request]], list[Any]]  # of each request scores per candidate, or what its answer says
Check = Callable[[Request], str | None]


@dataclass(frozen=True)
class Unknown:
    """What to do with history items that a ranker does not know, where they are dropped instead of refused.

    known: whether it knows an item. popular: answers by popularity for a history that is empty, or of which nothing is
    left; such an
    answer is marked. None where that is not known: such a request is refused.
    """

    known: Callable[[str], bool]
    popular: Respond | None


@dataclass
class Outcome:
    """Of one call: requests answered and bad lines skipped; history items dropped, and answers by popularity alone;
    titles that the ranker knows nothing of."""

    answered: int = 0
    skipped: int = 0
    dropped: int = 0
    by_popularity: int = 0
    unread: set[str] = field(default_factory=set)

    def add(self, other: Outcome) -> None:
        self.answered += other.answered
        self.skipped += other.skipped
        self.dropped += other.dropped
        self.by_popularity += other.by_popularity
        self.unread |= other.unread


@dataclass(frozen=True)
class Answerer:
    """Answers requests, a part of them per call.

    respond: requests → what each answer says, beside its line and "id". check: why a request cannot be answered, or
    None. unknown: drop history items that the ranker does not know; None leaves them to `check`. skip_bad: say of a bad
    line why it is none, and go on. unread: titles met since it was asked last that the ranker knows nothing of.
    """

    respond: Respond
    check: Check
    unknown: Unknown | None = None
    skip_bad: bool = False
    unread: Callable[[], set[str]] = set

    def __call__(self, requests: Part) -> AnsweredPart:
        """Answers to a part of the requests; without `skip_bad` to those before its first bad line."""
        checked, marks = prepared(requests, self.check, self.unknown)
        first_bad = None if self.skip_bad else next((r for r in checked if isinstance(r, BadRequest)), None)
        if first_bad is not None:
            checked = checked[: checked.index(first_bad)]
        good = [r for r in checked if isinstance(r, Request)]
        popular = by_popularity(good, marks)
        said = bodies(good, popular, self.respond, self.unknown)
        lines = [_headed(r, marks.get(r.line), said[r.line]) if isinstance(r, Request) else refusal(r) for r in checked]
        dropped = sum(marks.get(r.line, {}).get("unknown", 0) for r in good)
        outcome = Outcome(len(good), len(checked) - len(good), dropped, len(popular), self.unread())
        return AnsweredPart(lines, [r.trail for r in checked], outcome, first_bad)


@dataclass(frozen=True)
class AnsweredPart:
    """lines: of the file of answers, one per request. trails: of the requests. first_bad: where answering stopped."""

    lines: list[dict[str, Any]]
    trails: list[int]
    outcome: Outcome
    first_bad: BadRequest | None = None


# Answers parts one after the other, or several at once, and hands them over in order.
Each = Callable[[Iterable[Part]], Iterator[AnsweredPart]]


def ranking(answerer: Answerer, top: int | None) -> Answerer:
    """Of an answerer whose `respond` gives scores per candidate: one that says the candidates in order."""

    def respond(score: Respond) -> Respond:
        return lambda requests: [ordered(r, found, top) for r, found in zip(requests, score(requests), strict=True)]

    unknown = answerer.unknown
    if unknown is not None and unknown.popular is not None:
        unknown = Unknown(unknown.known, respond(unknown.popular))
    return replace(answerer, respond=respond(answerer.respond), unknown=unknown)


def answer_file(
    path: Path,
    out: AnswerFile,
    each: Each,
    *,
    form: Form = RANKING,
    part: int = 256,
    advance: Advance | None = None,
    named: str | None = None,
) -> Outcome:
    """Answer every request of `path` (in errors: `named`) behind those answered already.

    each: `partial(map, answerer)`, or the same in other processes. part: requests that are answered at once. Raises
    DataError at the first bad line, after its predecessors are answered, unless the answerer skips such.
    """
    total = Outcome()
    requests = read_requests(path, out.answered, advance, trail=out.trail, form=form)
    for answered in each(in_parts(requests, part)):
        out.write(answered.lines, answered.trails)
        total.add(answered.outcome)
        if answered.first_bad is not None:
            raise refuse(named or path, answered.first_bad)
    return total


Marks = dict[int, dict[str, Any]]  # by line: what an answer says of its request, beside "id"


def prepared(
    requests: Sequence[Request | BadRequest], check: Check, unknown: Unknown | None
) -> tuple[list[Request | BadRequest], Marks]:
    """Requests without history items that the ranker does not know, or the reason why one cannot be answered."""
    checked: list[Request | BadRequest] = []
    marks: Marks = {}
    for request in requests:
        why = None
        if isinstance(request, Request):
            if unknown is not None:
                request, marks[request.line] = _without_unknown(request, unknown)
            if not request.history and (unknown is None or unknown.popular is None):
                why = _nothing_to_go_by(request, marks.get(request.line, {}))
            why = why or check(request)
        if isinstance(request, Request) and why is not None:
            request = BadRequest(request.line, why, request.trail, request.key, request.named)
        checked.append(request)
    return checked, marks


def by_popularity(requests: Sequence[Request], marks: Marks) -> set[int]:
    """Lines of requests of whose history nothing is left."""
    return {request.line for request in requests if "by" in marks.get(request.line, {})}


def _without_unknown(request: Request, unknown: Unknown) -> tuple[Request, dict[str, Any]]:
    """The request with the known part of its history, and what its answer will say of the rest."""
    history = tuple(item for item in request.history if unknown.known(item))
    dropped = len(request.history) - len(history)
    marks: dict[str, Any] = {"unknown": dropped} if dropped else {}
    if not history and unknown.popular is not None:
        marks["by"] = "popularity"
    return replace(request, history=history), marks


def _nothing_to_go_by(request: Request, marks: dict[str, Any]) -> str | None:
    """Why an empty history has no answer where popularity gives none; candidates can be ranked all the same."""
    if "unknown" in marks:
        return "history holds no item of the catalogue; there is nothing to go by"
    return None if request.candidates else "history is empty; there is nothing to recommend from"


def bodies(requests: list[Request], popular: set[int], respond: Respond, unknown: Unknown | None) -> dict[int, Any]:
    """What answers say, by line: by the ranker or by popularity."""
    said: dict[int, Any] = {}
    groups: list[tuple[Respond, list[Request]]] = [(respond, [r for r in requests if r.line not in popular])]
    if unknown is not None and unknown.popular is not None:
        groups.append((unknown.popular, [r for r in requests if r.line in popular]))
    for responder, group in groups:
        if group:
            said.update(zip((r.line for r in group), responder(group), strict=True))
    return said
