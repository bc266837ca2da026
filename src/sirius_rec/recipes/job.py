"""How a job says how far it is."""

from __future__ import annotations

import time

from sirius_rec.processes import log

__all__ = ["Ticker", "duration", "log"]


class Ticker:
    """Counts rows and says how far a long scoring is and how long it still takes, about every ten seconds."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.started = self.logged = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.logged > 10:
            self.logged = now
            left = (now - self.started) / max(self.done, 1) * max(self.total - self.done, 0)
            log(f"{self.name}: {self.done}/{self.total} rows, {duration(left)} left")


def duration(seconds: float) -> str:
    """A time in words: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
