"""Who does the work of a pass: functions of paths, called in this process, in several, or on a cluster.

What a function is called with is small, and what it returns, too; all else goes through files, which appear whole or
not at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sirius_rec.cluster import Cluster, Tasks
from sirius_rec.data.sharded.work import token
from sirius_rec.errors import RunError
from sirius_rec.workers import BrokenProcessPool, Pool, Workers

_AHEAD = 2  # calls that are handed out for each worker: one is made while the next one waits


class Engine(Protocol):
    """Calls functions."""

    def map(self, run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """(number of the call, what it returned), in any order; the first error ends it."""
        ...

    def reach(self, files: Iterable[Path], out: Path) -> None:
        """RunError unless the files, and the disk where `out` will be, are seen wherever calls are made."""
        ...


class Local:
    """On this machine: in this process, or in `jobs` others."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._workers: Workers | None = None

    def map(self, run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        if self.jobs == 1:
            yield from ((number, run(*arguments)) for number, arguments in enumerate(calls))
            return
        if self._workers is None:
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            self._workers = Workers(self.jobs, environment={"POLARS_MAX_THREADS": str(threads)})
        yield from _in_turn(self._workers, _AHEAD * self.jobs, run, calls)

    def reach(self, files: Iterable[Path], out: Path) -> None:
        pass

    def __enter__(self) -> Local:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._workers is None:
            return
        if error is None:
            self._workers.close()
            return
        self._workers.end()
        if isinstance(error, BrokenProcessPool):
            raise RunError(
                "prepare: a worker process was killed (out of memory?): start the same command again to go on; more "
                "shards or fewer jobs need less memory"
            ) from error


class OnRay:
    """On a cluster: a call a core."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def map(self, run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        return _in_turn(self._tasks, _AHEAD * self._tasks.room, _again, [(run, *arguments) for arguments in calls])

    def reach(self, files: Iterable[Path], out: Path) -> None:
        with token(out) as seen:
            self._tasks.reach([*files, seen])


@contextmanager
def engine(jobs: int, cluster: Cluster | None) -> Iterator[Engine]:
    """`jobs` processes of this machine, or a cluster, for as long as the context lasts."""
    if cluster is None:
        with Local(jobs) as local:
            yield local
        return
    with Tasks(cluster, environment={"POLARS_MAX_THREADS": "1"}) as tasks:
        yield OnRay(tasks)


def _in_turn(
    pool: Pool, most: int, run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Any]]:
    """The calls, with at most so many under way."""
    coming = iter(enumerate(calls))
    running: dict[Future[Any], int] = {}
    while True:
        while len(running) < most and (following := next(coming, None)) is not None:
            running[pool.submit(run, *following[1])] = following[0]
        if not running:
            return
        for future in pool.wait(running):
            yield running.pop(future), future.result()


def _again(run: Callable[..., Any], *arguments: Any) -> Any:
    """A call whose node was only believed lost may find, at its end, what the call that replaced it has written: it
    takes that."""
    try:
        return run(*arguments)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return run(*arguments)
