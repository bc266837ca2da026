"""Jobs with dependencies, in this process, side by side in worker processes, or on a Ray cluster.

A finished job leaves a `done.json`; a run that was killed does the missing jobs only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sirius_rec.cluster import Cluster, Tasks
from sirius_rec.errors import ConfigError, TrainingError, memory_error
from sirius_rec.processes import count, is_main, one_for_all
from sirius_rec.processes import wait as wait_for_others
from sirius_rec.workers import BrokenProcessPool, Pool, Workers


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
    cluster: Cluster | None = None,
    files: Sequence[Path] = (),
) -> None:
    """Run jobs in dependency order, `workers` at a time (1: in this process).

    cluster: where they are done instead, as many as there are GPUs, or cores; its nodes must see `files`.

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

    if cluster is not None:
        if count() > 1:
            raise ConfigError("--engine ray: is one process that hands jobs out: start it without torchrun")
        with Tasks(cluster, start=limit_threads, arguments=(threads,), gpus=True, logs=True) as tasks:
            tasks.reach(files)
            _run_in_pool(tasks, jobs, tasks.room, finished)
        return
    if workers == 1 or len(jobs) == 1:
        limit_threads(threads)
        for job in in_dependency_order(jobs):
            started = time.monotonic()
            if job.alone:
                with one_for_all():
                    if is_main():
                        with _memory_said(job):
                            job.run(*job.args)
            else:
                with _memory_said(job):
                    job.run(*job.args)
                wait_for_others()
            finished(job, time.monotonic() - started)
        return
    try:
        with Workers(workers, start=limit_threads, arguments=(threads,)) as pool:
            _run_in_pool(pool, jobs, workers, finished)
    except BrokenProcessPool as error:
        raise TrainingError(
            "the process of a job was killed (out of memory?): start the same command again to go on. (With "
            "compute.jobs above 1 a script of your own must keep what it runs under `if __name__ == '__main__':`.)"
        ) from error


@contextmanager
def _memory_said(job: Job, side_by_side: int = 1) -> Iterator[None]:
    """Say which job had no memory left, and what to do about it."""
    try:
        yield
    except Exception as error:
        reason = memory_error(error)
        if reason is None:
            raise
        fewer = f"compute.jobs ({side_by_side} side by side), " if side_by_side > 1 else ""
        raise TrainingError(
            f"{job.name}: {reason}: lower {fewer}the stage's micro_batch_size (or set its gradient_checkpointing), or, "
            "in an evaluation, evaluation.batch_tokens, and start the same command again: none of them changes the run"
        ) from error


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


def _run_in_pool(pool: Pool, jobs: Sequence[Job], most: int, finished: Callable[[Job, float], None]) -> None:
    waiting = {job.name: job for job in jobs}
    names = set(waiting)
    ready: set[str] = set()
    running: dict[Future[None], tuple[Job, float]] = {}
    while waiting or running:
        for job in list(waiting.values()):
            if len(running) < most and (job.after & names) <= ready:
                running[pool.submit(job.run, *job.args)] = (waiting.pop(job.name), time.monotonic())
        assert running, f"jobs that wait for each other: {', '.join(waiting)}"
        for future in pool.wait(running):
            job, started = running.pop(future)
            with _memory_said(job, side_by_side=most if isinstance(pool, Workers) else 1):
                future.result()
            ready.add(job.name)
            finished(job, time.monotonic() - started)
