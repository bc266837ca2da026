"""Who answers requests: this process, several on this machine, or actors on a Ray cluster; the answers are the same.

One process reads the requests and writes the answers, in order. Each worker loads the ranker itself, from what it is
sent (`AnswererSpec`), and answers whole parts; a part is answered alike wherever it is.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from sirius_rec.cluster import Cluster, result, room
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.rankers.answers import AnsweredPart, Answerer, Each, Part, ranking
from sirius_rec.recipes.ranking import Served
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.schedule import limit_threads
from sirius_rec.workers import BrokenProcessPool, Workers

_AHEAD = 2  # parts that are handed out for each worker: one is answered while the next one waits


@dataclass(frozen=True)
class AnswererSpec:
    """Which ranker, and how it answers: picklable, and all that a worker is sent.

    load: makes the ranker. top: how many candidates are said, where it ranks them. drop_unknown: drop history items
    that it does not know, if it is one that can.
    """

    load: Callable[[], Served]
    top: int | None
    drop_unknown: bool = True
    skip_bad: bool = False

    @cached_property
    def served(self) -> Served:
        return self.load()

    @cached_property
    def answerer(self) -> Answerer:
        served = self.served
        unknown = served.unknown if self.drop_unknown else None
        answerer = Answerer(served.respond, served.check, unknown, self.skip_bad, served.unread)
        return ranking(answerer, self.top) if served.says == "scores" else answerer

    @property
    def about(self) -> About:
        return About(self.served.name, self.served.recipe, self.served.unknown is not None)


@dataclass(frozen=True)
class About:
    """name, recipe: of the ranker (`Served`). knows: whether it tells items that it knows from others."""

    name: str
    recipe: dict[str, Any]
    knows: bool


@dataclass(frozen=True)
class Pool:
    """Answerers of one ranker. each: answers parts of the requests, in order."""

    about: About
    each: Each


def opened(path: str, load: Callable[..., Served], **options: Any) -> Served:
    """A ranker of the run in a folder, as `load` makes it."""
    return load(Run.open(path), **options)


@contextmanager
def answerer_pool(spec: AnswererSpec, jobs: int | None, cluster: Cluster | None = None) -> Iterator[Pool]:
    """Answerers for as long as the context lasts. jobs: how many; None is one here, and on a cluster one per GPU
    or core.

    ConfigError where Ray is not installed or the cluster not reached.
    """
    if cluster is not None:
        with _on_ray(spec, jobs, cluster) as found:
            yield found
    elif jobs is None or jobs == 1:
        yield Pool(spec.about, partial(map, spec.answerer))
    else:
        with _processes(spec, jobs) as found:
            yield found


def _in_order(
    parts: Iterable[Part], submit: Callable[[Part], Any], result: Callable[[Any], AnsweredPart], ahead: int
) -> Iterator[AnsweredPart]:
    """Answers in the order of the parts, with at most `ahead` of them under way."""
    waiting: deque[Any] = deque()
    for part in parts:
        waiting.append(submit(part))
        if len(waiting) >= ahead:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())


# On this machine

_MINE: list[AnswererSpec] = []  # of a worker process


def _begin(threads: int, spec: AnswererSpec, devices: list[str], turns: Any) -> None:
    limit_threads(threads)
    if devices:
        with turns.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[turns.value % len(devices)]
            turns.value += 1
    _MINE.append(spec)


def _tell() -> About:
    return _MINE[0].about


def _answer(part: Part) -> AnsweredPart:
    return _MINE[0].answerer(part)


@contextmanager
def _processes(spec: AnswererSpec, jobs: int) -> Iterator[Pool]:
    threads = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
    turns = multiprocessing.get_context("spawn").Value("i", 0)
    pool = Workers(jobs, start=_begin, arguments=(threads, spec, _devices(), turns))

    def result(future: Any) -> Any:
        try:
            while not pool.wait([future]):
                pass
            return future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process has died (killed, or out of memory): start the same command again, with fewer --jobs"
            ) from error

    try:
        about = result(pool.submit(_tell))
        each = partial(_in_order, submit=partial(pool.submit, _answer), result=result, ahead=_AHEAD * jobs)
        yield Pool(about, each)
    finally:
        pool.end()


def _devices() -> list[str]:
    """How CUDA calls the devices of this process, for one worker after the other."""
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]


# On a cluster


class _Actor:
    """Loads on its first task, and again where Ray had to start it anew."""

    def __init__(self, spec: AnswererSpec) -> None:
        self.spec = spec

    def tell(self) -> About:
        return self.spec.about

    def answer(self, part: Part) -> AnsweredPart:
        return self.spec.answerer(part)


@contextmanager
def _on_ray(spec: AnswererSpec, jobs: int | None, cluster: Cluster) -> Iterator[Pool]:
    with cluster.joined():
        import ray
        from ray.util import ActorPool

        places, what = room()
        if jobs is not None and jobs > places:  # the others would wait for a place for ever, and answers for them
            raise ConfigError(f"--jobs {jobs}: the cluster has {places} {what}, one for each actor; ask for fewer")
        count = jobs or places
        # An actor whose process or node has died is started elsewhere, and its part answered again.
        kind = ray.remote(num_cpus=1, num_gpus=int(what == "GPUs"), max_restarts=-1, max_task_retries=-1)(_Actor)
        actors = [kind.remote(spec) for _ in range(count)]
        about = result(lambda: ray.get(actors[0].tell.remote()))

        def each(parts: Iterable[Part]) -> Iterator[AnsweredPart]:
            pool = ActorPool(actors)  # a new one: what an earlier call left unfinished is not this one's

            def submit(part: Part) -> None:
                pool.submit(lambda actor, given: actor.answer.remote(given), part)

            return _in_order(parts, submit, lambda _: result(pool.get_next), _AHEAD * count)

        yield Pool(about, each)
