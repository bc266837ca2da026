"""Pass 1: the events of a piece of the log, cleaned, go to the shards of their users.

A piece becomes one file in which the shards' events stand one after another, each in the order of the log; and another
one of impressions, where the log has such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.sharded.plan import Plan, load_plan
from sirius_rec.data.sources.cleaning import Rules, Tally
from sirius_rec.data.sources.lines import Account
from sirius_rec.data.sources.span import TIME
from sirius_rec.data.sources.timestamps import Evidence, Seen
from sirius_rec.errors import DataError
from sirius_rec.schema import ITEM, ITEM_ID, USER_ID

AT = "at"  # number of an event in its piece
EVENTS, SHOWN = "events", "impressions"  # the files of a piece
_FEW = 1 << 16  # bytes of the first look


@dataclass
class Partitioned:
    """What was found in a piece. broken: the message of what could not be read, if anything.

    records, continued: of a delimited file, see `LogFile.format`. events: that are left. shown: the tally of
    impressions, of which `impressions` are left.
    """

    tally: Tally
    shown: Tally
    records: int = 0
    continued: int = 0
    events: int = 0
    impressions: int = 0
    broken: str | None = None


def first_look(plan: Plan) -> Evidence:
    """What the log's first times say about their unit."""
    for piece in plan.pieces:
        tally, file = Tally(Account(plan.folder)), plan.files[piece.file]
        for frame, _ in file.read(piece.span, _columns(plan), _FEW):
            plan.rules.rows(frame, file.path, tally)
            if tally.evidence != Evidence():
                return tally.evidence
    return Evidence()


def partition(plan_file: Path, number: int, unit: str) -> Partitioned:
    """Clean a piece, its times read as `unit`, and write its events by shard, unless that was done before."""
    plan = load_plan(plan_file)
    target = plan.events(number, unit)
    if target.is_dir():
        return _found(json.loads((target / "found.json").read_text(encoding="utf-8")), plan)
    found = Partitioned(Tally(Account(plan.folder)), Tally(Account(plan.folder)))
    with suppress(_NotKept), atomic.replacing(target) as partial:
        partial.mkdir()
        try:
            with _Pile(partial, EVENTS, plan) as events, _Pile(partial, SHOWN, plan) as impressions:
                _divide(plan, number, unit, found, events, impressions)
        except DataError as error:
            found.broken = str(error)
        (partial / "found.json").write_text(json.dumps(_saved(found), default=str), encoding="utf-8")
        if found.broken or found.tally.faults or found.shown.faults:
            raise _NotKept
    return found


class _NotKept(Exception):
    """What is not in order is told, and not kept."""


class _Pile:
    """A file in which the shards' rows stand one after another, frame by frame, and where in it each one's begin."""

    def __init__(self, folder: Path, name: str, plan: Plan) -> None:
        self._folder, self._name, self._n_shards = folder, name, plan.sharding.shards
        self._offsets: list[list[int]] = []

    def __enter__(self) -> Self:
        self._file = (self._folder / self._name).open("wb")
        return self

    def add(self, rows: pl.DataFrame) -> None:
        offsets = [self._file.tell()]
        for part in _by_shard(rows, self._n_shards):
            if part.height:
                part.write_ipc_stream(self._file)
            offsets.append(self._file.tell())
        self._offsets.append(offsets)

    def __exit__(self, *error: object) -> None:
        self._file.close()
        offsets = np.array(self._offsets, dtype=np.int64).reshape(-1, self._n_shards + 1)
        np.save(self._folder / f"{self._name}.npy", offsets)


def rows_of_shard(plan: Plan, shard: int, unit: str, name: str) -> Iterator[pl.DataFrame]:
    """user_id, item (number), `TIME`, `AT` of a shard's events or impressions, piece by piece; `AT` counts on through
    the pieces."""
    for number in range(len(plan.pieces)):
        folder = plan.events(number, unit)
        offsets = np.load(folder / f"{name}.npy", mmap_mode="r")
        with (folder / name).open("rb") as file:
            for start, stop in offsets[:, shard : shard + 2].tolist():
                if start < stop:
                    file.seek(start)
                    part = pl.read_ipc_stream(file.read(stop - start))
                    yield part.with_columns(pl.col(AT).cast(pl.Int64) + (number << 40))


def _divide(plan: Plan, number: int, unit: str, found: Partitioned, events: _Pile, impressions: _Pile) -> None:
    """Clean a piece, and put its rows on the piles."""
    piece = plan.pieces[number]
    file = plan.files[piece.file]
    for frame, continued in file.read(piece.span, _columns(plan), plan.sharding.block):
        found.records += frame.height
        found.continued += continued
        cleaned = _cleaned(plan, plan.rules, frame, file.path, unit, found.tally, found.events)
        events.add(cleaned)
        found.events += cleaned.height
        if plan.shown is not None:
            plan.shown.check_apart(plan.rules, frame, file.path)
            cleaned = _cleaned(plan, plan.shown, frame, file.path, unit, found.shown, found.impressions)
            impressions.add(cleaned)
            found.impressions += cleaned.height


def _cleaned(
    plan: Plan, rules: Rules, frame: pl.DataFrame, path: Path, unit: str, tally: Tally, before: int
) -> pl.DataFrame:
    rows = rules.events(rules.rows(frame, path, tally), path, unit, tally)
    return rows.select(
        USER_ID,
        pl.col(ITEM_ID).cast(plan.item_ids, strict=False).to_physical().cast(pl.Int32).alias(ITEM),
        TIME,
        pl.int_range(before, before + rows.height, dtype=pl.Int64).alias(AT),
    )


def _columns(plan: Plan) -> list[str]:
    shown = [] if plan.shown is None else plan.shown.where
    return list(dict.fromkeys([*plan.rules.names.values(), *plan.rules.where, *shown]))


def _by_shard(events: pl.DataFrame, n_shards: int) -> Iterator[pl.DataFrame]:
    shard_E = (events[USER_ID].hash(0) % n_shards).to_numpy().astype(np.uint16)
    ordered = events[np.argsort(shard_E, kind="stable")]
    start = 0
    for count in np.bincount(shard_E, minlength=n_shards).tolist():
        yield ordered.slice(start, count)
        start += count


def _saved(found: Partitioned) -> dict[str, Any]:
    """For JSON; pieces with faults are not kept."""
    counts = {name: getattr(found, name) for name in ("records", "continued", "events", "impressions")}
    return {"tally": _saved_tally(found.tally), "shown": _saved_tally(found.shown), **counts}


def _saved_tally(tally: Tally) -> dict[str, Any]:
    account = {"read": tally.account.read, "dropped": dict(tally.account.dropped)}
    counts = {name: getattr(tally, name) for name in ("below", "untitled", "unknown", "header")}
    return {"account": account, **counts, "evidence": asdict(tally.evidence)}


def _found(saved: dict[str, Any], plan: Plan) -> Partitioned:
    """The inverse of `_saved`."""
    tally, shown = (_found_tally(saved.pop(name), plan) for name in ("tally", "shown"))
    return Partitioned(tally, shown, **saved)


def _found_tally(about: dict[str, Any], plan: Plan) -> Tally:
    tally = Tally(Account(plan.folder))
    tally.account.read = about["account"]["read"]
    tally.account.dropped.update(about["account"]["dropped"])
    tally.below, tally.untitled, tally.unknown = about["below"], about["untitled"], about["unknown"]
    tally.header = about["header"]
    evidence = about["evidence"]
    tally.evidence = Evidence(
        {name: Path(path) for name, path in evidence["types"].items()},
        evidence["starts_numeric"],
        {unit: Seen(Path(seen["path"]), seen["row"], seen["value"]) for unit, seen in evidence["firsts"].items()},
        evidence["counts"],
    )
    return tally
