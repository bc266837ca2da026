"""Who does the work of a pass: functions of paths, called in this process or in several.

What a function is called with is small, and what it returns, too; all else goes through files, which appear whole or
not at all. So a cluster can do the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from sirius_rec.errors import RunError
from sirius_rec.workers import BrokenProcessPool, Workers


class Engine(Protocol):
    """Calls functions."""

    def map(self, run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """(number of the call, what it returned), in any order; the first error ends it."""
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
        coming = iter(enumerate(calls))
        running: dict[Future[Any], int] = {}
        while True:
            while len(running) < 2 * self.jobs and (following := next(coming, None)) is not None:
                running[self._workers.submit(run, *following[1])] = following[0]
            if not running:
                return
            for future in self._workers.wait(running):
                yield running.pop(future), future.result()

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
