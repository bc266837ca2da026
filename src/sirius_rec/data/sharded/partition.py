"""Pass 1: the events of a piece of the log, cleaned, go to the shards of their users.

A piece becomes one file in which the shards' events stand one after another, each in the order of the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.sharded.plan import Plan, load_plan
from sirius_rec.data.sources.cleaning import Tally
from sirius_rec.data.sources.lines import Account
from sirius_rec.data.sources.span import TIME
from sirius_rec.data.sources.timestamps import Evidence, Seen
from sirius_rec.errors import DataError
from sirius_rec.schema import ITEM, ITEM_ID, USER_ID

AT = "at"  # number of an event in its piece
_FEW = 1 << 16  # bytes of the first look


@dataclass
class Partitioned:
    """What was found in a piece. broken: the message of what could not be read, if anything.

    records, continued: of a delimited file, see `LogFile.format`. events: that are left.
    """

    tally: Tally
    records: int = 0
    continued: int = 0
    events: int = 0
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
    found = Partitioned(Tally(Account(plan.folder)))
    with suppress(_NotKept), atomic.replacing(target) as partial:
        partial.mkdir()
        offsets = _write_events(partial / "events", plan, number, unit, found)
        np.save(partial / "offsets.npy", offsets)
        (partial / "found.json").write_text(json.dumps(_saved(found), default=str), encoding="utf-8")
        if found.broken or found.tally.faults:
            raise _NotKept
    return found


class _NotKept(Exception):
    """What is not in order is told, and not kept."""


def _write_events(target: Path, plan: Plan, number: int, unit: str, found: Partitioned) -> npt.NDArray[np.int64]:
    """int64[frames, n_shards + 1]: where in the file each frame's events of each shard begin, and end."""
    offsets: list[list[int]] = []
    with target.open("wb") as file:
        try:
            for events in _cleaned(plan, number, unit, found):
                offsets.append([file.tell()])
                for part in _by_shard(events, plan.sharding.shards):
                    if part.height:
                        part.write_ipc_stream(file)
                    offsets[-1].append(file.tell())
        except DataError as error:
            found.broken = str(error)
    return np.array(offsets, dtype=np.int64).reshape(-1, plan.sharding.shards + 1)


def events_of_shard(plan: Plan, shard: int, unit: str) -> Iterator[pl.DataFrame]:
    """user_id, item (number), `TIME`, `AT` of a shard, piece by piece; `AT` counts on through the pieces."""
    for number in range(len(plan.pieces)):
        folder = plan.events(number, unit)
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        with (folder / "events").open("rb") as file:
            for start, stop in offsets[:, shard : shard + 2].tolist():
                if start < stop:
                    file.seek(start)
                    part = pl.read_ipc_stream(file.read(stop - start))
                    yield part.with_columns(pl.col(AT).cast(pl.Int64) + (number << 40))


def _cleaned(plan: Plan, number: int, unit: str, found: Partitioned) -> Iterator[pl.DataFrame]:
    piece, rules, tally = plan.pieces[number], plan.rules, found.tally
    file = plan.files[piece.file]
    for frame, continued in file.read(piece.span, _columns(plan), plan.sharding.block):
        found.records += frame.height
        found.continued += continued
        events = rules.events(rules.rows(frame, file.path, tally), file.path, unit, tally)
        yield events.select(
            USER_ID,
            pl.col(ITEM_ID).cast(plan.item_ids, strict=False).to_physical().cast(pl.Int32).alias(ITEM),
            TIME,
            pl.int_range(found.events, found.events + events.height, dtype=pl.Int64).alias(AT),
        )
        found.events += events.height


def _columns(plan: Plan) -> list[str]:
    return list(dict.fromkeys([*plan.rules.names.values(), *plan.rules.where]))


def _by_shard(events: pl.DataFrame, n_shards: int) -> Iterator[pl.DataFrame]:
    shard_E = (events[USER_ID].hash(0) % n_shards).to_numpy().astype(np.uint16)
    ordered = events[np.argsort(shard_E, kind="stable")]
    start = 0
    for count in np.bincount(shard_E, minlength=n_shards).tolist():
        yield ordered.slice(start, count)
        start += count


def _saved(found: Partitioned) -> dict[str, Any]:
    """For JSON; pieces with faults are not kept."""
    account = {"read": found.tally.account.read, "dropped": dict(found.tally.account.dropped)}
    counts = {name: getattr(found.tally, name) for name in ("below", "untitled", "unknown", "header")}
    tally = {"account": account, **counts, "evidence": asdict(found.tally.evidence)}
    return {"tally": tally, "records": found.records, "continued": found.continued, "events": found.events}


def _found(saved: dict[str, Any], plan: Plan) -> Partitioned:
    """The inverse of `_saved`."""
    tally = Tally(Account(plan.folder))
    about = saved["tally"]
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
    return Partitioned(tally, saved["records"], saved["continued"], saved["events"])
