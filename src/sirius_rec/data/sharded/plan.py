"""What every worker must know of a preparation: written into the work folder once, read by each process."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import polars as pl

from sirius_rec import atomic
from sirius_rec.data.options import Preparation, Sharding
from sirius_rec.data.sharded.source import LogFile
from sirius_rec.data.sources.cleaning import Rules
from sirius_rec.data.sources.csv_bytes import Span
from sirius_rec.data.sources.events import Bits, Ties, item_hashes


@dataclass(frozen=True)
class Piece:
    """A piece of the log: which file, and which part of it."""

    file: int
    span: Span


@dataclass(frozen=True)
class Plan:
    """folder: the work folder. files, pieces: of the log, in its order. ties, keep_repeats: the source's options.
    excluded: what each entry of slates excludes. shown: the rules of impressions, where the log has such.

    Where things are: `events/NNNNN` of a piece, `shards/NNNNN`, `parts/NNNNN`, and `final`, which becomes the dataset.
    """

    folder: Path
    rules: Rules
    files: list[LogFile]
    pieces: list[Piece]
    sharding: Sharding
    asked: Preparation
    ties: Ties
    keep_repeats: bool
    excluded: list[str | None]
    shown: Rules | None = None

    def save(self, name: str) -> Path:
        file = self.folder / name
        atomic.write_bytes(file, pickle.dumps(self))
        return file

    @cached_property
    def item_ids(self) -> pl.Enum:
        """The catalogue's ids; the physical values are the items' numbers in it."""
        return pl.Enum(self.rules.listed)

    @cached_property
    def item_hashes(self) -> Bits:
        return item_hashes(self.rules.listed, self.asked.seed)

    def events(self, piece: int, unit: str) -> Path:
        """Of a piece, with its times read as `unit`."""
        return self.folder / f"events-{unit}" / f"{piece:05d}"

    def shard(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:05d}"

    def part(self, number: int) -> Path:
        return self.folder / "parts" / f"{number:05d}"

    @property
    def final(self) -> Path:
        return self.folder / "final"


@lru_cache(maxsize=1)
def load_plan(file: Path) -> Plan:
    """From the folder of this very run, where `Plan.save` put it under a name that no other run uses."""
    with file.open("rb") as stream:
        plan = pickle.load(stream)
    assert isinstance(plan, Plan)
    return plan
