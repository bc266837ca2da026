"""The passes, each over all pieces, shards or parts, and what the main process adds up of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.example_set import drawn_from
from sirius_rec.data.fingerprint import combined_fingerprint, files_fingerprint, table_fingerprint
from sirius_rec.data.freezing import slate_names
from sirius_rec.data.impressions import filled_in_words
from sirius_rec.data.sharded.counting import Counted, count_all
from sirius_rec.data.sharded.engine import Engine
from sirius_rec.data.sharded.partition import Partitioned, first_look, partition
from sirius_rec.data.sharded.parts import EXAMPLES, Global, make_part
from sirius_rec.data.sharded.plan import Plan
from sirius_rec.data.sharded.shard import Shard, sort_shard
from sirius_rec.data.sharded.slates import freeze_part, raise_first
from sirius_rec.data.sources.cleaning import Tally
from sirius_rec.data.sources.events import tie_notes
from sirius_rec.data.sources.lines import Account
from sirius_rec.data.sources.span import Days
from sirius_rec.data.sources.table import OpenTable, impression_notes
from sirius_rec.data.splitting import chosen
from sirius_rec.data.store import ALL_TRAIN, parts_of, write_table
from sirius_rec.errors import DataError
from sirius_rec.progress import Pace
from sirius_rec.schema import SPLITS, SlateName

Say = Callable[[str], None]


@dataclass(frozen=True)
class Frozen:
    """names: with what each set of slates excludes. counts: of each part's rows within the limits. limited: whether
    limits make rows fewer; cut: whether train rows."""

    names: dict[SlateName, str | None]
    counts: list[dict[str, Any]]
    limited: bool
    cut: bool

    def rows(self, split: str) -> int:
        return sum(int(part["rows"][split]) for part in self.counts)

    def filled_up(self, name: SlateName) -> dict[str, dict[str, int]]:
        """Of slates of impressions, `filled_up` for dataset.json."""
        if name.protocol != "impressions":
            return {}
        parts = [part["filled_up"][str(name)] for part in self.counts]
        return {"filled_up": {key: sum(part[key] for part in parts) for key in ("rows", "negatives")}}


@dataclass(frozen=True)
class Passes:
    """The passes over pieces, shards and parts, in this order. plan_file: where workers find the plan."""

    engine: Engine
    plan: Plan
    plan_file: Path
    say: Say

    def _map(self, what: str, run: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What `run` returns for each call, in their order."""
        self.say(f"{what}: {len(calls):,}")
        pace = Pace(what, len(calls), self.say)
        results: list[Any] = [None] * len(calls)
        for number, result in self.engine.map(run, [(self.plan_file, *call) for call in calls]):
            results[number] = result
            pace()
        return results

    def events(self, table: OpenTable, files: list[dict[str, Any]]) -> dict[str, Any]:
        """Passes 1 and 2: the shards; returns the notes of reading the log."""
        file = self.plan.folder / "log.json"
        if not file.is_file():
            found, unit = self._partitioned()
            kept = sum(part.events for part in found)
            whole = Tally(Account(table.path))
            for part in found:
                whole.add(part.tally)
            table.rules.check(whole, table.path, kept)
            shown = self._impressions(table, found)  # before shards are made of what was refused
            self._map("ordering shards", sort_shard, [(shard, unit) for shard in range(self.plan.sharding.shards)])
            shards = [Shard(self.plan.shard(number)) for number in range(self.plan.sharding.shards)]
            sums = {name: sum(shard.notes[name] for shard in shards) for name in shards[0].notes}
            notes = table.notes(
                whole,
                files=files,
                formats=self._formats(found),
                unit=unit,
                kept=sums["events"],
                repeated=sums["repeated"],
            )
            notes["times"] = Days.joined(shard.days for shard in shards).notes()
            notes["ties"] = tie_notes(self.plan.ties, self.plan.asked.seed, sums["groups"], sums["rows"])
            notes |= shown
            atomic.write_text(file, json.dumps(notes))
        for left in self.plan.folder.glob("events-*"):
            shutil.rmtree(left)
        return dict(json.loads(file.read_text(encoding="utf-8")))

    def _impressions(self, table: OpenTable, found: Sequence[Partitioned]) -> dict[str, Any]:
        """What was read of them, for the notes; a `DataError` for what is not in order."""
        if table.shown is None:
            return {}
        whole = Tally(Account(table.path))
        for part in found:
            whole.add(part.shown)
        return {"impressions": impression_notes(whole, table.path, sum(part.impressions for part in found))}

    def _partitioned(self) -> tuple[list[Partitioned], str]:
        """What was found in each piece, and the unit of the times: guessed, and done again should it be another."""
        rules = self.plan.rules
        try:
            unit = first_look(self.plan).unit(rules.unit, rules.bad_times)
        except DataError:
            unit = "s"  # the first times are of several units; what all of them say is told below
        while True:
            found = self._map("reading pieces", partition, [(piece, unit) for piece in range(len(self.plan.pieces))])
            broken = next((part.broken for part in found if part.broken), None)
            if broken:
                raise DataError(broken)
            whole = Tally(Account(self.plan.folder))
            for part in found:
                whole.add(part.tally)
            if (really := whole.unit(rules)) == unit:
                return found, unit
            unit = really

    def _formats(self, found: Sequence[Partitioned]) -> list[dict[str, Any]]:
        """How each file is written."""
        formats = []
        for number, file in enumerate(self.plan.files):
            of_file = [part for piece, part in zip(self.plan.pieces, found, strict=True) if piece.file == number]
            formats.append(file.format(sum(part.records for part in of_file), sum(part.continued for part in of_file)))
        return formats

    def counted(self, table: OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of the users, the catalogue."""
        return count_all(self.engine, self.plan, table.items, self.say)

    def parts(self) -> list[dict[str, Any]]:
        """Pass 4: all rows, by part; returns the parts' counts. Short rows stay where all rows are."""
        all_short = self.plan.folder / "all-short"
        n_parts = Global(self.plan.folder / "order").n_parts
        if self.plan.asked.unusable == "drop" and not all_short.is_file():
            counts = self._map("windowing parts", make_part, [(part, True) for part in range(n_parts)])
            if any(sum(part["rows"].values()) for part in counts):
                return counts
            shutil.rmtree(self.plan.folder / "parts")  # first: a kill behind the mark would leave parts without rows
            atomic.write_text(all_short, "")
        return self._map("windowing parts", make_part, [(part, False) for part in range(n_parts)])

    def base(self, items: pl.DataFrame) -> str:
        """The fingerprint of the items and of all examples, from which slates are drawn."""
        file = self.plan.folder / "examples.fingerprint"
        if not file.is_file():
            self.say("fingerprint of the examples")
            n_parts = Global(self.plan.folder / "order").n_parts
            files = [self.plan.part(part) / EXAMPLES for part in range(n_parts)]
            atomic.write_text(file, files_fingerprint(files))
        examples = file.read_text(encoding="utf-8")
        return combined_fingerprint({"items": drawn_from(items), "examples": examples})

    def slates(self, fingerprint: str, parts: Sequence[Mapping[str, Any]], n_items: int) -> Frozen:
        """Pass 5: what is within the limits, and its slates."""
        folder, plan, limits = self.plan.folder, self.plan, self.plan.asked.limits
        rows = {split: sum(part["rows"][split] for part in parts) for split in SPLITS}
        names = slate_names(plan.asked.slates, plan.excluded, [split for split in SPLITS if rows[split]], n_items)
        limited = {}
        for split in SPLITS:
            if split in limits and rows[split] > limits[split]:
                limited[split] = folder / f"limit-{split}.npy"
                np.save(limited[split], chosen(rows[split], limits[split], split, plan.asked.seed))
        if any(name.protocol == "popularity" for name in names):
            count_I = sum(np.load(plan.part(part) / "train.npy") for part in range(len(parts)))
            np.save(folder / "popularity.npy", count_I)
        calls = []
        before = dict.fromkeys(SPLITS, 0)
        for number, part in enumerate(parts):
            calls.append((number, names, fingerprint, n_items, dict(before), limited, "train" in limited))
            before = {split: count + part["rows"][split] for split, count in before.items()}
        frozen = self._map("freezing slates of parts", freeze_part, calls)
        raise_first(frozen, names, n_items)
        made = Frozen(names, [one["counts"] for one in frozen], bool(limited), "train" in limited)
        for name in names:
            if filled := made.filled_up(name):
                self.say(filled_in_words(name, filled["filled_up"], made.rows(name.split)))
        return made

    def assemble(self, items: pl.DataFrame, frozen: Frozen) -> dict[str, str]:
        """The tables of the dataset, and their fingerprints."""
        plan = self.plan
        (plan.final / "slates").mkdir(parents=True, exist_ok=True)
        n_parts = len(frozen.counts)
        made = [plan.folder / "frozen" / f"{part:05d}" for part in range(n_parts)]
        examples = made if frozen.limited else [plan.part(part) for part in range(n_parts)]
        tables = {"examples": [folder / EXAMPLES for folder in examples]}
        if frozen.cut:
            tables[ALL_TRAIN] = [folder / f"{ALL_TRAIN}.parquet" for folder in made]
        for slates in frozen.names:
            tables[f"slates/{slates}"] = [folder / "slates" / f"{slates}.parquet" for folder in made]
        for name, files in tables.items():
            _move(files, plan.final / f"{name}.parquet")
        write_table(items, plan.final / "items.parquet")
        known = {"items": table_fingerprint(items)}
        if not frozen.limited:
            known["examples"] = (plan.folder / "examples.fingerprint").read_text(encoding="utf-8")
        unknown = [name for name in tables if name not in known]
        calls = [(plan.final, name) for name in unknown]
        for number, fingerprint in self._fingerprints(calls):
            known[unknown[number]] = fingerprint
        return {name: known[name] for name in ("items", *tables)}

    def _fingerprints(self, calls: Sequence[tuple[Path, str]]) -> Any:
        self.say(f"fingerprints of tables: {len(calls)}")
        return self.engine.map(_fingerprint, calls)


def _fingerprint(folder: Path, name: str) -> str:
    return files_fingerprint(parts_of(folder, name))


def _move(files: Sequence[Path], target: Path) -> None:
    """Parts of a table to their place: a folder of files, or one file where there is one part."""
    if len(files) > 1:
        target.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        place = target / f"part-{number:05d}.parquet" if len(files) > 1 else target
        if file.is_file():  # else it was moved before a kill
            os.replace(file, place)
