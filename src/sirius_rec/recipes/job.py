"""How a job says how far it is."""

from __future__ import annotations

from sirius_rec.processes import log
from sirius_rec.progress import Pace

__all__ = ["Ticker", "log"]


class Ticker(Pace):
    """Counts the rows of a long scoring in the log."""

    def __init__(self, name: str, rows: int) -> None:
        super().__init__(name, rows, log)
