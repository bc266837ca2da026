"""Pass 2: a shard's users in the order of their first events, each user's events in order of time, as flat arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.sharded.partition import AT, EVENTS, SHOWN, rows_of_shard
from sirius_rec.data.sharded.plan import Plan, load_plan
from sirius_rec.data.sources.events import Bits, Codes, count_ties, first_of_pairs, in_seconds, time_order, user_hashes
from sirius_rec.data.sources.span import TIME, Days
from sirius_rec.schema import ITEM, TIMESTAMP, USER_ID

Int = npt.NDArray[np.int64]
_USERS = 1 << 13  # whose ids stand together in a shard's file of users


@dataclass(frozen=True)
class Shard:
    """A shard's folder, its arrays mapped into memory.

    count_U, first_U: how many events a user has, and the place in the log of the user's first one; users are in the
    order of that. item_E: numbers in the whole catalogue. time_E: seconds. shown_U, shown_item_N, shown_time_N: how
    many impressions each user has, and the items and seconds of these, user by user.
    """

    folder: Path

    @cached_property
    def count_U(self) -> npt.NDArray[np.int32]:
        return self._array("count")

    @cached_property
    def first_U(self) -> Int:
        return self._array("first")

    @cached_property
    def item_E(self) -> npt.NDArray[np.int32]:
        return self._array("item")

    @cached_property
    def time_E(self) -> Int:
        return self._array("time")

    @cached_property
    def stop_U(self) -> Int:
        """Behind each user's last event."""
        return self._array("stop")

    @cached_property
    def shown_U(self) -> Int:
        return self._array("shown")

    @cached_property
    def shown_item_N(self) -> npt.NDArray[np.int32]:
        return self._array("shown-item")

    @cached_property
    def shown_time_N(self) -> Int:
        return self._array("shown-time")

    @property
    def notes(self) -> dict[str, Any]:
        """events; repeated, events dropped; groups and rows of ties."""
        return dict(json.loads((self.folder / "notes.json").read_text(encoding="utf-8")))

    @property
    def days(self) -> Days:
        return Days(pl.read_ipc_stream(self.folder / "days"))

    def users(self, start: int, stop: int) -> pl.Series:
        """Ids of users number start to stop."""
        offsets = self._array("users")
        blocks = [pl.Series(USER_ID, [], dtype=pl.String)]
        with (self.folder / "ids").open("rb") as file:
            for block in range(start // _USERS, -(-stop // _USERS) if stop > start else start // _USERS):
                file.seek(offsets[block])
                blocks.append(pl.read_ipc_stream(file.read(offsets[block + 1] - offsets[block]))[USER_ID])
        return pl.concat(blocks).slice(start % _USERS, stop - start)

    def _array(self, name: str) -> npt.NDArray[Any]:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")  # type: ignore[no-any-return]


def sort_shard(plan_file: Path, number: int, unit: str) -> None:
    """Put a shard's events in order and write them, unless that was done before."""
    plan = load_plan(plan_file)
    target = plan.shard(number)
    if target.is_dir():
        return
    parts = list(rows_of_shard(plan, number, unit, EVENTS))
    events = pl.concat(parts) if parts else _NOTHING
    del parts
    users = events[USER_ID].unique(maintain_order=True)
    user: Codes = events[USER_ID].cast(pl.Enum(users)).to_physical().cast(pl.Int32).to_numpy()
    item: Codes = events[ITEM].to_numpy()
    time = events[TIME].to_numpy()
    newest = np.maximum.accumulate(user) if user.size else user
    first_U = events[AT].to_numpy()[np.flatnonzero(np.diff(newest, prepend=-1))]
    del events, newest

    order = time_order(user, item, time, None if plan.ties == "file" else _luck(plan, users))
    user, item, time = user[order], item[order], time[order]
    del order
    kept = first_of_pairs(user, item, len(plan.rules.listed), plan.keep_repeats)
    repeated = int((~kept).sum())
    if repeated:
        user, item, time = user[kept], item[kept], time[kept]
    groups, rows = count_ties(user, time)
    with atomic.replacing(target) as partial:
        partial.mkdir()
        _write_users(partial, users)
        np.save(partial / "first.npy", first_U)
        count_U = np.bincount(user, minlength=len(users))
        np.save(partial / "count.npy", count_U.astype(np.int32))
        np.save(partial / "stop.npy", count_U.cumsum())
        np.save(partial / "item.npy", item)
        np.save(partial / "time.npy", np.floor(time).astype(np.int64))
        if plan.shown is not None:
            moments = pl.DataFrame({USER_ID: users.gather(user), TIME: time}, schema_overrides={TIME: pl.Float64})
            _write_impressions(partial, rows_of_shard(plan, number, unit, SHOWN), users, moments)
        Days.of(time).table.write_ipc_stream(partial / "days")
        notes = {"events": item.size, "repeated": repeated, "groups": groups, "rows": rows}
        (partial / "notes.json").write_text(json.dumps(notes), encoding="utf-8")


_NOTHING = pl.DataFrame(schema={USER_ID: pl.String, ITEM: pl.Int32, TIME: pl.Float64, AT: pl.Int64})


def _write_impressions(folder: Path, parts: Iterable[pl.DataFrame], users: pl.Series, moments: pl.DataFrame) -> None:
    """Those of users who have events, user by user. moments: user_id, `TIME` of these events."""
    rows = in_seconds(pl.concat([_NOTHING, *parts]), moments)
    rows = rows.with_columns(pl.col(USER_ID).cast(pl.Enum(users), strict=False).to_physical().cast(pl.Int64))
    rows = rows.drop_nulls(USER_ID).sort(USER_ID, maintain_order=True)
    np.save(folder / "shown.npy", np.bincount(rows[USER_ID].to_numpy(), minlength=len(users)))
    np.save(folder / "shown-item.npy", rows[ITEM].to_numpy())
    np.save(folder / "shown-time.npy", rows[TIMESTAMP].to_numpy())


def _luck(plan: Plan, users: pl.Series) -> Any:
    def luck(who: Codes, what: Codes) -> Bits:
        tied, at = np.unique(who, return_inverse=True)
        drawn: Bits = user_hashes(users.gather(tied), plan.asked.seed)[at] ^ plan.item_hashes[what]
        return drawn

    return luck


def _write_users(folder: Path, users: pl.Series) -> None:
    offsets = [0]
    with (folder / "ids").open("wb") as file:
        for block in users.alias(USER_ID).to_frame().iter_slices(_USERS):
            block.write_ipc_stream(file)
            offsets.append(file.tell())
    np.save(folder / "users.npy", np.array(offsets, dtype=np.int64))
