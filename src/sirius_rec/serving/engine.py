"""One thread that owns the models: requests that wait together are answered together, and a broken one fails alone."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sirius_rec.errors import SiriusError
from sirius_rec.rankers.answers import bodies, by_popularity, prepared
from sirius_rec.rankers.requests import BadRequest, Request
from sirius_rec.serving.bodies import Asked, Refused
from sirius_rec.serving.metrics import Metrics
from sirius_rec.serving.models import Loaded, Model, Responder, Size
from sirius_rec.serving.options import Batching

Kind = Literal["rank", "recommend"]


@dataclass
class Job:
    """A request in the queue. model: as it was when it came; a swap does not change who answers it. answer: set in the
    loop that asked. gone: nobody waits for it any more."""

    kind: Kind
    asked: Asked
    model: Model
    answer: asyncio.Future[Answer]
    loop: asyncio.AbstractEventLoop
    since: float = field(default_factory=time.perf_counter)
    gone: bool = False


@dataclass(frozen=True)
class Answer:
    """said: scores per candidate, or what an answer says. marks: what else. queued, batch: for the log."""

    model: Model
    said: Any
    marks: dict[str, Any]
    size: Size
    queued: float
    batch: int
    request: Request


@dataclass(frozen=True)
class _Ready:
    job: Job
    request: Request
    marks: dict[str, Any]
    size: Size


class Engine:
    """Answers jobs with what `load` gives. Its thread runs from `start` to `stop`.

    draining: what is new is refused. leaving: connections are to end with their answer.
    """

    def __init__(self, load: Callable[[], Loaded], batching: Batching, metrics: Metrics) -> None:
        self._load, self.batching, self.metrics = load, batching, metrics
        self.loaded = load()
        self.draining = self.leaving = False
        self._queue: deque[Job] = deque()
        self._some = threading.Condition()
        self._stopped = False
        self._loading = threading.Lock()
        self._rate = 0.0  # requests per second, as lately answered
        self._thread = threading.Thread(target=self._work, name="sirius-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread behind the batch that it is at."""
        with self._some:
            self._stopped = True
            self._some.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def broken(self) -> bool:
        """Whether the thread ended without being told to: nobody would answer."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stopped

    @property
    def ready(self) -> bool:
        return self._thread.is_alive() and not self.draining

    def submit(self, kind: Kind, asked: Asked, loaded: Loaded) -> Job:
        """Queue a request, from a running event loop. loaded: of which its names are.

        Refused: 404 for a model that is not served, 422 for what it cannot do, 429 and 503 for a queue that is full or
        closed.
        """
        model = chosen(loaded, asked.model)
        _responder(model, kind)
        loop = asyncio.get_running_loop()
        job = Job(kind, asked, model, loop.create_future(), loop)
        with self._some:
            self.admit()
            self._queue.append(job)
            self.metrics.queue.set(len(self._queue))
            self._some.notify()
        return job

    def admit(self) -> None:
        """Refused, with 429 or 503, while the queue is full or closed."""
        if self.draining or self._stopped:
            raise Refused(503, "the service is shutting down", 1, "draining")
        if self.broken:
            raise Refused(503, "the service has failed and must be started again; its log says why", None, "error")
        if (waiting := len(self._queue)) >= self.batching.queue:
            wait = math.ceil(waiting / self._rate) if self._rate else 1
            raise Refused(429, f"{waiting} requests wait already", min(max(wait, 1), 60), "busy")

    def reload(self) -> Loaded:
        """Load everything anew beside what answers, then answer with it. Where that fails, nothing changes."""
        with self._loading:
            try:
                loaded = self._load()
            except BaseException:
                self.metrics.reloads.labels("failed").inc()
                raise
            self.loaded = loaded
            self.metrics.reloads.labels("done").inc()
            return loaded

    # The thread

    def _work(self) -> None:
        while (first := self._next(None)) is not None:
            batch = self._gather(first)
            started = time.perf_counter()
            if batch:
                self._answer(batch)
                seconds = time.perf_counter() - started
                rate = len(batch) / max(seconds, 1e-6)
                self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
                self.metrics.batch.observe(len(batch))
                self.metrics.batch_seconds.observe(seconds)
                loaded = self.loaded
                for model in loaded.models.values():
                    self.metrics.cache(model.key, model.cache())
                loaded.after_batch()

    def _next(self, until: float | None) -> Job | None:
        """The next job that somebody waits for; None when the time is up or the engine is stopped and all is done."""
        with self._some:
            while True:
                while self._queue:
                    job = self._queue.popleft()
                    self.metrics.queue.set(len(self._queue))
                    if not job.gone:
                        return job
                if self._stopped:
                    return None
                left = None if until is None else until - time.perf_counter()
                if left is not None and left <= 0:
                    return None
                self._some.wait(left)

    def _gather(self, first: Job) -> list[_Ready]:
        """Jobs until the time of the first is up or the batch is full; those that cannot be answered are refused."""
        until = time.perf_counter() + self.batching.wait
        batch: list[_Ready] = []
        prompts: set[tuple[int, Kind, str]] = set()  # what is computed once
        tokens = 0
        job: Job | None = first
        while job is not None:
            ready = self._prepared(job)
            if ready is not None:
                batch.append(ready)
                prompt = id(job.model), job.kind, ready.size.prompt
                tokens += ready.size.n_candidates + (0 if prompt in prompts else ready.size.n_prompt)
                prompts.add(prompt)
            if len(batch) >= self.batching.requests or tokens >= self.batching.tokens:
                break
            job = self._next(until)
        return batch

    def _prepared(self, job: Job) -> _Ready | None:
        try:
            responder = _responder(job.model, job.kind)
            (request,), marks = prepared([job.asked.request], responder.check, responder.unknown)
            if isinstance(request, BadRequest):
                raise Refused(422, request.why)
            return _Ready(job, request, marks.get(request.line, {}), responder.size(request))
        except Exception as error:
            self._deliver([(job, error)])
            return None

    def _answer(self, batch: list[_Ready]) -> None:
        """Groups that one call can answer: of one model, and of a catalogue with the same wish."""
        groups: dict[tuple[Any, ...], list[_Ready]] = {}
        for ready in batch:
            asked = ready.job.asked
            wish = (asked.top, asked.exclude_seen) if ready.job.kind == "recommend" else ()
            groups.setdefault((id(ready.job.model), ready.job.kind, *wish), []).append(ready)
        for group in groups.values():
            found = self._together(group)
            self._deliver([(r.job, outcome) for r, outcome in zip(group, found, strict=True)])

    def _together(self, group: list[_Ready]) -> list[Answer | Exception]:
        try:
            return list(self._said(group))
        except Exception as error:
            if len(group) == 1:
                return [error]
        return [outcome for ready in group for outcome in self._together([ready])]

    def _said(self, group: Sequence[_Ready]) -> list[Answer]:
        first = group[0]
        responder, started = _responder(first.job.model, first.job.kind), time.perf_counter()
        if first.job.kind == "recommend":
            responder.ask(first.job.asked.top or 1, first.job.asked.exclude_seen)
        # Numbers of the engine's own: two event loops may count alike.
        requests = [replace(ready.request, line=n) for n, ready in enumerate(group)]
        marks = {n: ready.marks for n, ready in enumerate(group)}
        said = bodies(requests, by_popularity(requests, marks), responder.respond, responder.unknown)
        self.metrics.tokens.labels("prompt").inc(sum(r.size.n_prompt for r in group))
        self.metrics.tokens.labels("candidates").inc(sum(r.size.n_candidates for r in group))
        return [
            Answer(
                ready.job.model, said[n], ready.marks, ready.size, started - ready.job.since, len(group), requests[n]
            )
            for n, ready in enumerate(group)
        ]

    @staticmethod
    def _deliver(outcomes: list[tuple[Job, Answer | Exception]]) -> None:
        """Hand outcomes over, with one call for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Job, Answer | Exception]]] = {}
        for job, outcome in outcomes:
            by_loop.setdefault(job.loop, []).append((job, outcome))
        for loop, some in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_set, some)


def chosen(loaded: Loaded, key: str | None) -> Model:
    """The model that a request names, or the first; Refused (404) with the names that there are."""
    if key is None:
        return loaded.default
    if key not in loaded.models:
        raise Refused(404, f"model {key[:60]!r} is not served; there are {', '.join(loaded.models)}", None, "unknown")
    return loaded.models[key]


def _responder(model: Model, kind: Kind) -> Responder:
    if kind == "rank":
        return model.rank
    if model.recommend is None:
        raise Refused(422, model.why_not)
    return model.recommend


def _set(outcomes: list[tuple[Job, Answer | Exception]]) -> None:
    for job, outcome in outcomes:
        if job.answer.done():
            continue
        if isinstance(outcome, Answer):
            job.answer.set_result(outcome)
        elif isinstance(outcome, Refused):
            job.answer.set_exception(outcome)
        elif isinstance(outcome, SiriusError):
            job.answer.set_exception(Refused(422, " ".join(str(outcome).split())))
        else:
            job.answer.set_exception(outcome)
