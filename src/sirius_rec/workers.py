"""Worker processes that end with their parent, also when it was killed, so that a run that is started again never
writes beside a leftover of the old one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, Self

from sirius_rec import stopping
from sirius_rec.errors import Stopped

__all__ = ["BrokenProcessPool", "Pool", "Workers"]

# Seconds that workers get to end: after an error or Ctrl-C, and after SIGTERM, when trainings still save their step.
_TO_END, _TO_SAVE = 5.0, 300.0


class Pool(Protocol):
    """Calls functions elsewhere: `Workers`, or `cluster.Tasks`, whose methods say what these do."""

    def submit(self, run: Callable[..., Any], *arguments: Any) -> Future[Any]: ...

    def wait(self, futures: Collection[Future[Any]]) -> set[Future[Any]]: ...


class Workers:
    """A pool of spawned processes.

    start: called in each with `arguments` before anything else. environment: variables that they begin with. As a
    context it waits for them at the end, or after an error ends them.
    """

    def __init__(
        self,
        count: int,
        *,
        start: Callable[..., None] | None = None,
        arguments: tuple[Any, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._others = set(multiprocessing.active_children())
        self._started: set[BaseProcess] = set()
        self._environment = dict(environment or {})
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(os.getpid(), start, arguments),
        )

    def submit(self, run: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a picklable function called in a worker."""
        with workers_ignore_interrupts(), _environment(self._environment):
            return self._pool.submit(_work, run, arguments)

    def wait(self, futures: Collection[Future[Any]]) -> set[Future[Any]]:
        """Those that are done, after at most a second; raises `BrokenProcessPool` if a worker is gone."""
        self._started |= set(multiprocessing.active_children()) - self._others
        completed = wait(futures, timeout=1.0, return_when=FIRST_COMPLETED).done
        # The pool may overlook the death of a worker that it started last; without this, we would wait for it.
        if not completed and connection.wait([worker.sentinel for worker in self._started], timeout=0):
            raise BrokenProcessPool("a worker is gone")
        return completed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self.end()

    def close(self) -> None:
        """Wait for the workers to end."""
        self._pool.shutdown()

    def end(self) -> None:
        """End the workers at once; after SIGTERM raise `Stopped`, as they save what they can."""
        stopped = stopping.requested()
        _end(set(multiprocessing.active_children()) - self._others, _TO_SAVE if stopped else _TO_END)
        self._pool.shutdown(wait=False, cancel_futures=True)
        if stopped:
            raise Stopped("stopped by SIGTERM") from None


def _start_worker(parent: int, start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    _end_with(parent)
    stopping.listen(ends=True)
    if start is not None:
        start(*arguments)


def _work(run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A call in a worker; after SIGTERM the worker ends instead of waiting for its next one."""
    try:
        return run(*arguments)
    except Stopped:
        os._exit(0)


def _end_with(parent: int) -> None:
    """A daemon thread that ends this process as soon as its parent is gone."""

    def watch() -> None:
        process = multiprocessing.parent_process()
        while os.getppid() == parent:
            time.sleep(0.3) if process is None else process.join(0.3)  # which returns at once when it ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def workers_ignore_interrupts() -> Iterator[None]:
    """Processes started here never see Ctrl-C, which reaches the whole group: the parent alone answers it, by ending
    them.

    Blocked and inherited rather than set in the worker, so that it also holds while a worker still imports; blocked
    rather than ignored, so that one that comes meanwhile reaches this process afterwards.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes started here inherit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end(processes: Collection[BaseProcess], seconds: float) -> None:
    """Terminate, and kill what has not ended after so many seconds."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.1))
        if process.is_alive():
            process.kill()
