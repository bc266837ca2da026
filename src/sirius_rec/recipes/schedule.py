"""Jobs with dependencies, in this process or side by side in worker processes.

A finished job leaves a `done.json`; a run that was killed does the missing jobs only. Workers end with their parent,
also when it was killed, so that a restarted run never writes beside a leftover of the old one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from sirius_rec import stopping
from sirius_rec.errors import Stopped, TrainingError
from sirius_rec.processes import count, is_main
from sirius_rec.processes import wait as wait_for_others

# Seconds that workers get: after an error or Ctrl-C, and after SIGTERM, when trainings still save their step.
_TO_END, _TO_SAVE = 5.0, 300.0


@dataclass(frozen=True)
class Job:
    """name: unique, shown to people. run: a picklable function of `args`. after: names of jobs it needs.

    alone: of several processes the main one does it, and the others wait.
    """

    name: str
    run: Callable[..., None]
    args: tuple[Any, ...]
    after: frozenset[str] = field(default_factory=frozenset)
    alone: bool = False


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


def start_worker(parent: int, threads: int | None) -> None:
    _end_with(parent)
    stopping.listen(ends=True)
    limit_threads(threads)


def _work(run: Callable[..., None], args: tuple[Any, ...]) -> None:
    """A job in a worker; after SIGTERM the worker ends instead of waiting for its next job."""
    try:
        run(*args)
    except Stopped:
        os._exit(0)


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
    log: Callable[[str], None],
) -> None:
    """Run jobs in dependency order, `workers` at a time (1: in this process).

    The first error stops the rest: running jobs are ended, and it is raised here. Under torchrun all processes do every
    job together, so they are done one after the other whatever `workers` says.
    """
    done = 0
    if count() > 1 and workers > 1:
        log(f"compute.jobs: {workers} is for one process: {count()} processes do one job after the other, together")
        workers = 1

    def finished(job: Job, seconds: float) -> None:
        nonlocal done
        done += 1
        log(f"[{done}/{len(jobs)}] {job.name} done in {seconds:.0f} s")

    if workers == 1 or len(jobs) == 1:
        limit_threads(threads)
        for job in in_dependency_order(jobs):
            started = time.monotonic()
            if is_main() or not job.alone:
                job.run(*job.args)
            wait_for_others()
            finished(job, time.monotonic() - started)
        return
    _run_in_workers(jobs, workers, threads, finished)


def in_dependency_order(jobs: Sequence[Job]) -> list[Job]:
    """Every job behind those that it needs, otherwise in the order given."""
    waiting, ordered, names = list(jobs), list[Job](), {job.name for job in jobs}
    while waiting:
        done = {job.name for job in ordered}
        following = next((job for job in waiting if job.after & names <= done), None)
        assert following is not None, f"jobs that wait for each other: {', '.join(job.name for job in waiting)}"
        waiting.remove(following)
        ordered.append(following)
    return ordered


def _end(processes: Collection[BaseProcess], seconds: float) -> None:
    """Terminate, and kill what has not ended after so many seconds."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.1))
        if process.is_alive():
            process.kill()


def _run_in_workers(
    jobs: Sequence[Job], workers: int, threads: int | None, finished: Callable[[Job, float], None]
) -> None:
    waiting = {job.name: job for job in jobs}
    names = set(waiting)
    ready: set[str] = set()
    running: dict[Future[None], tuple[Job, float]] = {}
    others = set(multiprocessing.active_children())
    started_workers: set[BaseProcess] = set()
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(os.getpid(), threads),
    )
    try:
        while waiting or running:
            for job in list(waiting.values()):
                if len(running) < workers and (job.after & names) <= ready:
                    with workers_ignore_interrupts():
                        future = pool.submit(_work, job.run, job.args)
                    running[future] = (waiting.pop(job.name), time.monotonic())
            assert running, f"jobs that wait for each other: {', '.join(waiting)}"
            started_workers |= set(multiprocessing.active_children()) - others
            completed = wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done
            # The pool may overlook the death of a worker that it started last; without this, we would wait for it.
            if not completed and connection.wait([worker.sentinel for worker in started_workers], timeout=0):
                raise BrokenProcessPool("a worker is gone")
            for future in completed:
                job, started = running.pop(future)
                future.result()
                ready.add(job.name)
                finished(job, time.monotonic() - started)
    except BaseException as error:
        stopped = stopping.requested()
        _end(set(multiprocessing.active_children()) - others, _TO_SAVE if stopped else _TO_END)
        pool.shutdown(wait=False, cancel_futures=True)
        if stopped:
            raise Stopped("stopped by SIGTERM") from None
        if isinstance(error, BrokenProcessPool):
            raise TrainingError(
                "the process of a job was killed (out of memory?): start the same command again to go on"
            ) from error
        raise
    pool.shutdown()
