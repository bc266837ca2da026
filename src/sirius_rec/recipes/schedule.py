"""Jobs with dependencies, in this process or side by side in worker processes.

A finished job leaves a `done.json`; a run that was killed does the missing jobs only. Workers end with their parent,
also when it was killed, so that a restarted run never writes beside a leftover of the old one.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from sirius_rec.errors import TrainingError


@dataclass(frozen=True)
class Job:
    """name: unique, shown to people. run: a picklable function of `args`. after: names of jobs it needs."""

    name: str
    run: Callable[..., None]
    args: tuple[Any, ...]
    after: frozenset[str] = field(default_factory=frozenset)


def _end_with(parent: int) -> None:
    """A daemon thread that ends this process as soon as its parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_worker(parent: int, threads: int | None) -> None:
    _end_with(parent)
    limit_threads(threads)


def limit_threads(threads: int | None) -> None:
    """CPU threads of this process; None leaves torch's default."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int | None,
    say: Callable[[str], None],
) -> None:
    """Run jobs in dependency order, `workers` at a time (1: in this process).

    The first error stops the rest: running jobs are ended, and it is raised here.
    """
    done = 0

    def finished(job: Job, seconds: float) -> None:
        nonlocal done
        done += 1
        say(f"[{done}/{len(jobs)}] {job.name} done in {seconds:.0f} s")

    if workers == 1 or len(jobs) == 1:
        limit_threads(threads)
        ready = set[str]()
        names = {job.name for job in jobs}
        for job in jobs:
            assert job.after & names <= ready, f"{job.name} stands before what it needs"
            started = time.monotonic()
            job.run(*job.args)
            ready.add(job.name)
            finished(job, time.monotonic() - started)
        return
    _run_in_workers(jobs, workers, threads, finished)


def _run_in_workers(
    jobs: Sequence[Job], workers: int, threads: int | None, finished: Callable[[Job, float], None]
) -> None:
    waiting = {job.name: job for job in jobs}
    names = set(waiting)
    ready: set[str] = set()
    running: dict[Future[None], tuple[Job, float]] = {}
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), threads),
    )
    try:
        while waiting or running:
            for job in list(waiting.values()):
                if len(running) < workers and (job.after & names) <= ready:
                    running[pool.submit(job.run, *job.args)] = (waiting.pop(job.name), time.monotonic())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, started = running.pop(future)
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise TrainingError(
                        f"{job.name}: its process was killed (out of memory?): start the run again, it goes on"
                    ) from error
                ready.add(job.name)
                finished(job, time.monotonic() - started)
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
