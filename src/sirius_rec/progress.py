"""Progress: over bytes a bar in a terminal, and elsewhere, as over pieces of work, a line about every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# (file name, bytes done, bytes in all or 0 where that is unknown)
Advance = Callable[[str, int, int], None]
_EVERY = 10.0  # seconds between lines


@contextmanager
def byte_bar(verb: str) -> Iterator[Advance]:
    """Something to call as bytes are read or fetched, one bar per file."""
    if not sys.stderr.isatty():
        yield _Lines(verb)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn(f"{verb} {{task.description}}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=done, total=total or None)

        yield advance


class _Lines:
    """`reading log.csv: 40 %, 12 s left`"""

    def __init__(self, verb: str) -> None:
        self.verb, self.started = verb, dict[str, float]()
        self.logged = time.monotonic()

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self.started.setdefault(name, now)
        if now - self.logged < _EVERY:
            return
        self.logged = now
        left = (now - began) / max(done, 1) * (total - done)
        share = f"{done / total:.0%}, {left:.0f} s left" if total else f"{done:,} bytes"
        print(f"{self.verb} {name}: {share}", file=sys.stderr, flush=True)


class Pace:
    """`shards: 12 of 64, 8 s left`, said about every ten seconds; before the first is done, how long that takes."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self.what, self.total, self.say, self.done = what, total, say, 0
        self.started = self.said = time.monotonic()

    def __call__(self, count: int = 1) -> None:
        """So many more are done; none tells that the work goes on."""
        self.done += count
        now = time.monotonic()
        if now - self.said < _EVERY or self.done >= self.total:
            return
        self.said, so_far = now, now - self.started
        left = f"{duration(so_far / self.done * (self.total - self.done))} left" if self.done else ""
        self.say(f"{self.what}: {self.done:,} of {self.total:,}, {left or duration(so_far) + ' so far'}")


def duration(seconds: float) -> str:
    """A time in words: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
