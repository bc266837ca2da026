"""What every job starts with, and how it says how far it is."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sirius_rec.config import Config
from sirius_rec.processes import is_main
from sirius_rec.recipes.run_folder import RunFolder

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset


def say(text: str) -> None:
    """Progress of a job: one flushed line; of several processes the main one speaks."""
    if is_main():
        print(text, flush=True)


def quiet() -> None:
    """Silence what transformers prints per step; our own lines say what a job does."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def open_job(path: str) -> tuple[RunFolder, Config, Dataset]:
    from sirius_rec.data.store import open_dataset

    quiet()
    run = RunFolder(Path(path))
    return run, run.config(), open_dataset(run.data)


class Ticker:
    """Counts rows and says how far a long scoring is, about every ten seconds."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.said = name, total, 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            say(f"{self.name}: {self.done}/{self.total} rows")
