"""The way of a log that does not fit into memory, pass by pass; the outcome is that of preparing it in memory.

Each pass reads files and writes files into the work folder, piece by piece, shard by shard or part by part; a finished
piece is not made again, so a preparation that was killed goes on. At no time is more held than a few pieces, and some
numbers per user and item.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sirius_rec import __version__, atomic
from sirius_rec.data.example_set import drawn_from
from sirius_rec.data.fingerprint import combined_fingerprint, files_fingerprint, table_fingerprint
from sirius_rec.data.freezing import description, excludes, slate_names
from sirius_rec.data.options import FilterOptions, Sharding, SlateOptions, SplitOptions, WindowOptions
from sirius_rec.data.sharded.counting import count_all
from sirius_rec.data.sharded.engine import Engine, Local
from sirius_rec.data.sharded.partition import Partitioned, first_look, partition
from sirius_rec.data.sharded.parts import EXAMPLES, Global, make_part
from sirius_rec.data.sharded.plan import Piece, Plan
from sirius_rec.data.sharded.shard import Shard, sort_shard
from sirius_rec.data.sharded.slates import freeze_part, raise_first
from sirius_rec.data.sharded.source import LogFile
from sirius_rec.data.sharded.work import opened
from sirius_rec.data.sources.cleaning import Tally
from sirius_rec.data.sources.csv_table import Dialect
from sirius_rec.data.sources.events import Ties, tie_notes
from sirius_rec.data.sources.files import check_choice, file_note
from sirius_rec.data.sources.lines import Account
from sirius_rec.data.sources.span import Days
from sirius_rec.data.sources.table import OpenTable, load, open_table
from sirius_rec.data.splitting import chosen
from sirius_rec.data.statistics import joint_statistics, paper_statistics
from sirius_rec.data.store import ALL_TRAIN, Dataset, give_name, open_dataset, parts_of, write_info, write_table
from sirius_rec.data.usable import Unusable
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Pace
from sirius_rec.schema import SPLITS, SlateName

Say = Callable[[str], None]


def prepare_sharded(
    input: Path,
    out: Path,
    recipe: dict[str, Any],
    *,
    options: Mapping[str, Any],
    filter: FilterOptions,
    split: SplitOptions,
    window: WindowOptions,
    slates: Sequence[SlateOptions],
    seed: int,
    limits: Mapping[str, int],
    unusable: Unusable,
    max_title: int | None,
    sharding: Sharding,
    say: Say,
) -> Dataset:
    """Write the dataset folder that `prepare` would, for source `table`.

    Raises:
        ConfigError, DataError, RunError: as `prepare`; and RunError where the work folder is another preparation's, or
            full.
    """
    if any(option.protocol == "hard" for option in slates):
        raise ConfigError(
            "slates: protocol hard ranks the catalogue by all train rows at once, which shards do not have; leave "
            "data.shards out, or the protocol"
        )
    with Local(sharding.jobs) as engine:
        defaults = {name: p.default for name, p in inspect.signature(load).parameters.items()}
        asked = {**defaults, **options}
        check_choice("ties", asked["ties"], Ties)
        table = open_table(input, **{k: v for k, v in options.items() if k not in ("ties", "keep_repeats")})
        files = _look(engine, table, sharding, say)
        notes = [*(file.note for file in files), file_note(table.items_path)]
        divided = asdict(replace(sharding, jobs=1))
        identity = {
            "recipe": recipe, "files": notes, "sharding": divided, "versions": [__version__, pl.__version__]
        }  # fmt: skip
        with opened(out, identity) as folder:
            plan = Plan(
                folder=folder,
                rules=table.rules,
                files=files,
                pieces=[Piece(number, span) for number, file in enumerate(files) for span in file.spans],
                sharding=sharding,
                seed=seed,
                ties=asked["ties"],
                keep_repeats=asked["keep_repeats"],
                split=split,
                window=window,
                slates=tuple(slates),
                excluded=excludes(slates, split.kind != "user"),
            )
            way = _Way(engine, plan, plan.save(f"plan-{os.getpid()}-{os.urandom(4).hex()}"), say)
            log = way.events(table, notes)
            counted = count_all(
                engine, plan, table.items, filter=filter, unusable=unusable, max_title=max_title, say=say
            )
            parts = way.parts(unusable == "drop")
            info = {
                "recipe": recipe,
                "source": {"name": "table", "notes": {**log, **counted.notes}},
                "statistics": {},
                "filters": {},
                "titles": counted.titles,
                "slates": {},
            }
            base = way.base(counted.items)
            frozen = way.slates(base, parts, counted.items.height, limits)
            windows = {name: sum(part["windows"][name] for part in parts) for name in parts[0]["windows"]}
            info["statistics"] = {
                **counted.statistics(windows), **joint_statistics(frozen.counts), **paper_statistics("table")
            }  # fmt: skip
            info["filters"] = counted.filters(windows["repeats"])
            if short := sum(part["short"] for part in parts):
                info["filters"]["rows_without_enough_negatives_dropped"] = short
            fingerprints = way.assemble(counted.items, frozen)
            info["slates"] = {
                str(name): description(name, exclude, frozen.rows(name.split), fingerprints[f"slates/{name}"])
                for name, exclude in frozen.names.items()
            }
            write_info(plan.final, info, fingerprints)
            say(f"writing {out}")
            give_name(plan.final, out)
    return open_dataset(out)


def _look(engine: Engine, table: OpenTable, sharding: Sharding, say: Say) -> list[LogFile]:
    """All files of the log, each read once."""
    say(f"looking at {table.path}")
    calls = [(file, table.dialect, tuple(table.rules.names.values()), sharding) for file in table.files]
    found: list[LogFile | str] = [""] * len(calls)
    for number, file in engine.map(_look_at, calls):
        found[number] = file
    for file in found:
        if isinstance(file, str):
            raise DataError(file)
        table.rules.check_columns(file.empty, file.path)
    return [file for file in found if isinstance(file, LogFile)]


def _look_at(path: Path, dialect: Dialect, wanted: Sequence[str], sharding: Sharding) -> LogFile | str:
    """The file, or the message of what is wrong with it, so that the first of several files is told."""
    try:
        return LogFile.look(path, dialect, wanted, sharding)
    except DataError as error:
        return str(error)


@dataclass(frozen=True)
class _Frozen:
    """names: with what each set of slates excludes. counts: of each part's rows within the limits. limited: whether
    limits make rows fewer; cut: whether train rows."""

    names: dict[SlateName, str | None]
    counts: list[dict[str, Any]]
    limited: bool
    cut: bool

    def rows(self, split: str) -> int:
        return sum(int(part["rows"][split]) for part in self.counts)


@dataclass(frozen=True)
class _Way:
    """The passes over pieces, shards and parts. plan_file: where workers find the plan."""

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
            pace.one_more()
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
            notes["ties"] = tie_notes(self.plan.ties, self.plan.seed, sums["groups"], sums["rows"])
            atomic.write_text(file, json.dumps(notes))
        for left in self.plan.folder.glob("events-*"):
            shutil.rmtree(left)
        return dict(json.loads(file.read_text(encoding="utf-8")))

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

    def parts(self, drop_short: bool) -> list[dict[str, Any]]:
        """Pass 4: all rows, by part; returns the parts' counts. Short rows stay where all rows are."""
        all_short = self.plan.folder / "all-short"
        n_parts = Global(self.plan.folder / "order").n_parts
        if drop_short and not all_short.is_file():
            counts = self._map("windowing parts", make_part, [(part, True) for part in range(n_parts)])
            if any(sum(part["rows"].values()) for part in counts):
                return counts
            atomic.write_text(all_short, "")
            shutil.rmtree(self.plan.folder / "parts")
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

    def slates(
        self, fingerprint: str, parts: Sequence[Mapping[str, Any]], n_items: int, limits: Mapping[str, int]
    ) -> _Frozen:
        """Pass 5: what is within the limits, and its slates."""
        folder, plan = self.plan.folder, self.plan
        rows = {split: sum(part["rows"][split] for part in parts) for split in SPLITS}
        names = slate_names(plan.slates, plan.excluded, [split for split in SPLITS if rows[split]], n_items)
        limited = {}
        for split in SPLITS:
            if split in limits and rows[split] > limits[split]:
                limited[split] = folder / f"limit-{split}.npy"
                np.save(limited[split], chosen(rows[split], limits[split], split, plan.seed))
        if any(name.protocol == "popularity" for name in names):
            count_I = sum(np.load(plan.part(part) / "train.npy") for part in range(len(parts)))
            np.save(folder / "popularity.npy", count_I)
        calls = []
        before = dict.fromkeys(SPLITS, 0)
        for number, part in enumerate(parts):
            calls.append((number, names, fingerprint, n_items, dict(before), limited, "train" in limited))
            before = {split: count + part["rows"][split] for split, count in before.items()}
        frozen = self._map("freezing slates of parts", freeze_part, calls)
        raise_first({part: one["faults"] for part, one in enumerate(frozen)}, names, n_items)
        return _Frozen(names, [one["counts"] for one in frozen], bool(limited), "train" in limited)

    def assemble(self, items: pl.DataFrame, frozen: _Frozen) -> dict[str, str]:
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
