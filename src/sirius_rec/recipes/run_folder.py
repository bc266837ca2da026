"""RUN/: where everything of a run lies, and its lock.

RUN/
  config.yaml  environment.json       what was run, on what
  data/                               the prepared data set (schema.py)
  backbone/                           tokenizer of the tiny backbone
  methods/<method>/s<seed>/           every other recommender: done.json, and what it keeps
  start/s<seed>/                      what a warm start took from another run (starting.py)
  pretrain/s<seed>/  sft/s<seed>/  align/<arm>/s<seed>/
      metrics.jsonl  held_out/  checkpoints/  best/  last/  done.json
  reference/s<seed>.npz               cached log π_ref; of streamed rows in s<seed>-train/
  rows/<slates>/                      train rows as arrays, with training.stream
  scores/  generation/                score tables and greedy answers; .….coming of one under way
  results.json  comparison.json  diagnostics.json  report.html  figures/
  refit.json                          of a final fit: whose recipe it is, and what was measured of that
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirius_rec import atomic
from sirius_rec.config import Config, read_config
from sirius_rec.errors import RunError, first_line

ENVIRONMENT = "environment.json"
# What a finished training leaves in its folder.
DONE = "done.json"
LOCK = ".lock"


def read_done(folder: Path) -> dict[str, Any]:
    """What a training left in its folder. RunError where that cannot be read."""
    file = folder / DONE
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file}: cannot be read ({first_line(error)}): delete {folder} and train it again") from error


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def backbone(self) -> Path:
        return self.path / "backbone"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def comparison(self) -> Path:
        return self.path / "comparison.json"

    @property
    def refit(self) -> Path:
        """What a final fit on all of the data was made from (`refitting`)."""
        return self.path / "refit.json"

    @property
    def diagnostics(self) -> Path:
        return self.path / "diagnostics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def start(self, seed: int) -> Path:
        """What a warm start took from another run."""
        return self.path / "start" / f"s{seed}"

    def pretrain(self, seed: int) -> Path:
        return self.path / "pretrain" / f"s{seed}"

    def sft(self, seed: int) -> Path:
        return self.path / "sft" / f"s{seed}"

    def arm(self, key: str, seed: int) -> Path:
        return self.path / "align" / key / f"s{seed}"

    def method(self, key: str, seed: int) -> Path:
        """Folder of a method beside SFT and the arms."""
        return self.path / "methods" / key / f"s{seed}"

    def reference(self, seed: int) -> Path:
        return self.path / "reference" / f"s{seed}.npz"

    def reference_shards(self, seed: int) -> Path:
        """The cached log π_ref of train rows that are not held."""
        return self.path / "reference" / f"s{seed}-train"

    def rows(self, slates: str) -> Path:
        """Train rows and their slates as arrays, which are not held."""
        return self.path / "rows" / slates

    @property
    def scores(self) -> Path:
        return self.path / "scores"

    def retrieved(self, slates: str) -> Path:
        """The file of slates that the run makes itself."""
        return self.path / "slates" / f"{slates}.parquet"

    @property
    def generation(self) -> Path:
        return self.path / "generation"

    def origin(self) -> dict[str, Any] | None:
        """Of a final fit (`refitting`) the `run`, `method`, `seed` and training (`trained`) that it was chosen in, that
        run's `data`, what was `measured` there on test slates, and the `retriever` fitted beside it; None of any other
        run."""
        return dict(json.loads(self.refit.read_text())) if self.refit.is_file() else None

    def config(self) -> Config:
        """The configuration that this folder was made with."""
        if not self.config_file.is_file():
            raise RunError(f"{self.path}: not a run folder (no config.yaml): make one with `sirius run CONFIG`")
        return read_config(self.config_file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process may train in a run folder; RunError if another one does. A killed one leaves no lock."""
        # Windows, which has no such lock, would not let the folder go while a file in it is open.
        if sys.platform == "win32" or os.environ.get("RANK", "0") != "0":
            yield
            return
        with (self.path / LOCK).open("w") as file:
            if not atomic.lock(file):
                raise RunError(
                    f"{self.path}: another process is working in this run folder: wait for it or choose another --out"
                )
            yield

    def is_new(self) -> bool:
        """Whether the folder holds nothing but what it was made with."""
        made = {
            self.config_file.name,
            self.refit.name,
            ENVIRONMENT,
            LOCK,
            self.backbone.name,
            self.start(0).parent.name,
        }
        return {entry.name for entry in self.path.iterdir()} <= made

    def discard_if_untrained(self) -> None:
        """Remove the folder again if nothing was trained in it yet: a corrected configuration can use its name."""
        made = {
            self.config_file.name,
            self.refit.name,
            ENVIRONMENT,
            LOCK,
            self.data.name,
            self.backbone.name,
            self.start(0).parent.name,
        }
        if {entry.name for entry in self.path.iterdir()} <= made:
            shutil.rmtree(self.path)

    def begun(self, key: str) -> bool:
        """Whether an arm or method has a folder or scores."""
        folders = (self.arm(key, 0).parent, self.method(key, 0).parent)
        return any(path.exists() for path in folders) or any(self.scores.glob(f"{key}-s[0-9]*"))

    def aligned(self) -> bool:
        """Whether alignment, or the reference that it needs, was begun."""
        return (self.path / "align").exists() or self.reference(0).parent.exists()

    def write_config(self, config: Config) -> None:
        atomic.write_text(self.config_file, config.to_yaml())
