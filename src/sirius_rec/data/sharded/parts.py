"""Pass 4: the rows of a part of the users, who come from all shards and stand in the order of the log.

What a part holds does not depend on the number of shards: its users follow each other in the order of all users.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.example_set import Sequences, Windowed, windowed
from sirius_rec.data.freezing import too_few_negatives
from sirius_rec.data.impressions import Impressions
from sirius_rec.data.protocols import train_counts
from sirius_rec.data.sharded.filters import Order
from sirius_rec.data.sharded.plan import Plan, load_plan
from sirius_rec.data.sharded.shard import Int, Shard
from sirius_rec.data.slates import ExcludedItems
from sirius_rec.data.splitting import Labels, labels_at, leave_last_out
from sirius_rec.data.statistics import row_counts
from sirius_rec.data.store import write_table
from sirius_rec.schema import IMPRESSIONS, SPLIT

EXAMPLES, SHOWN = "examples.parquet", "impressions.parquet"


@dataclass(frozen=True)
class Global:
    """The outcome of pass 3, as the parts read it from a folder.

    number_I: of each item of the whole catalogue in that of the dataset, -1 for those that are gone. row_P: the number
    of each part's first row. labels: of each user where users are split, else empty. cuts: where time is split.
    """

    folder: Path

    @staticmethod
    def write(
        folder: Path,
        order: Order,
        number_I: npt.NDArray[np.int32],
        row_P: Int,
        labels: Labels,
        cuts: tuple[int, int] | None,
    ) -> None:
        np.save(folder / "number.npy", number_I)
        np.save(folder / "row.npy", row_P)
        np.save(folder / "first.npy", order.first_P)
        np.save(folder / "start.npy", order.start_PS)
        np.save(folder / "labels.npy", labels)
        for shard, rank_U in enumerate(order.rank_SU):
            np.save(folder / f"rank-{shard:05d}.npy", rank_U)
        (folder / "cuts.json").write_text(json.dumps(cuts), encoding="utf-8")

    def array(self, name: str) -> npt.NDArray[Any]:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @property
    def cuts(self) -> tuple[int, int]:
        first, second = json.loads((self.folder / "cuts.json").read_text(encoding="utf-8"))
        return first, second

    @property
    def n_parts(self) -> int:
        return len(self.array("first")) - 1


def make_part(plan_file: Path, number: int, drop_short: bool) -> dict[str, Any]:
    """Write a part's examples and excluded items, unless that was done before, and return its counts.

    drop_short: leave out rows whose user leaves too few items for the negatives of some slate.
    """
    plan = load_plan(plan_file)
    target = plan.part(number)
    if not target.is_dir():
        of_all = Global(plan.folder / "order")
        n_items = int(np.count_nonzero(of_all.array("number") >= 0))
        sequences = _sequences(plan, of_all, number)
        rows = windowed(sequences, plan.asked.window, n_items, int(of_all.array("row")[number]))
        short = too_few_negatives(rows, n_items, plan.asked.slates, plan.excluded)
        if drop_short and short.any():
            rows = Windowed(*selected(rows, ~short), rows.counts)
        else:
            short = short[:0]
        shown = sequences.impressions
        counts = {
            **row_counts(rows.examples), "windows": rows.counts, "short": int(short.sum()),
            "impressions": 0 if shown is None else len(shown.item_N),
        }  # fmt: skip
        with atomic.replacing(target) as partial:
            partial.mkdir()
            write_table(in_dataset(rows.examples), partial / EXAMPLES)
            if shown is not None:
                write_table(rows.examples.select(IMPRESSIONS), partial / SHOWN)
            _write_excluded(partial, rows)
            if any(option.protocol == "popularity" for option in plan.asked.slates):
                train = rows.examples.filter(pl.col(SPLIT) == "train")
                np.save(partial / "train.npy", train_counts(train, n_items))
            (partial / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    return dict(json.loads((target / "counts.json").read_text(encoding="utf-8")))


def in_dataset(examples: pl.DataFrame) -> pl.DataFrame:
    """Examples with the columns that the dataset has."""
    return examples.drop(IMPRESSIONS, strict=False)


def selected(rows: Windowed, chosen: npt.NDArray[np.bool_]) -> tuple[pl.DataFrame, ExcludedItems, ExcludedItems]:
    """examples, interacted, past of a selection of rows."""
    return rows.examples.filter(pl.Series(chosen)), rows.interacted.select(chosen), rows.past.select(chosen)


def read_part(plan: Plan, number: int) -> Windowed:
    """A part's rows."""
    folder = plan.part(number)
    item, start, stop, past = (np.load(folder / f"{name}.npy").astype(np.int64) for name in _EXCLUDED)
    examples = pl.read_parquet(folder / EXAMPLES)
    if (folder / SHOWN).is_file():
        examples = examples.hstack(pl.read_parquet(folder / SHOWN))
    return Windowed(examples, ExcludedItems(item, start, stop), ExcludedItems(item, start, past), {})


_EXCLUDED = ("item", "start", "stop", "past")


def _write_excluded(folder: Path, rows: Windowed) -> None:
    assert (rows.interacted.start_R == rows.past.start_R).all()
    arrays = (rows.interacted.item, rows.interacted.start_R, rows.interacted.stop_R, rows.past.stop_R)
    for name, array in zip(_EXCLUDED, arrays, strict=True):
        np.save(folder / f"{name}.npy", array.astype(np.int32))


def _sequences(plan: Plan, of_all: Global, number: int) -> Sequences:
    """The events of a part's users, in the order of all users."""
    first, last = of_all.array("first")[number : number + 2].tolist()
    number_I = of_all.array("number")[:]
    pieces = [
        _from_shard(plan, shard, of_all.array(f"rank-{shard:05d}")[start:stop], start, number_I)
        for shard, (start, stop) in enumerate(of_all.array("start")[number : number + 2].T.tolist())
        if start < stop
    ]
    users = pl.concat([piece.users for piece in pieces])
    rank_U, count_U, item_E, time_E = (
        np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("rank_U", "count_U", "item_E", "time_E")
    )
    order_U = np.argsort(rank_U)
    assert rank_U[order_U[0]] == first and rank_U[order_U[-1]] == last - 1 and len(users) == last - first
    order_E = _ragged_order(count_U, order_U)
    item_E, time_E, count_U = item_E[order_E].astype(np.int64), time_E[order_E], count_U[order_U]
    user_E = np.repeat(np.arange(len(users)), count_U)
    split = plan.asked.split.kind
    if split == "user":
        label_E = of_all.array("labels")[first:last][user_E]
    else:
        label_E = leave_last_out(user_E) if split == "leave_last_out" else labels_at(of_all.cuts, time_E)
    impressions = None
    if plan.shown is not None:
        rank_N, shown_N, at_N = (np.concatenate([piece.shown[k] for piece in pieces]) for k in range(3))
        impressions = Impressions(rank_N - first, shown_N.astype(np.int64), at_N)
    return Sequences(users.gather(order_U), user_E, item_E, time_E, label_E, impressions)


@dataclass(frozen=True)
class _Piece:
    users: pl.Series
    rank_U: Int
    count_U: Int
    item_E: npt.NDArray[np.int32]
    time_E: Int
    shown: tuple[Int, npt.NDArray[np.int32], Int]  # rank of the user, item and second of each impression


def _from_shard(plan: Plan, number: int, rank_U: Int, start: int, number_I: npt.NDArray[np.int32]) -> _Piece:
    """What is left of the users number `start` and following of a shard, as many as there are ranks."""
    shard, stop = Shard(plan.shard(number)), start + rank_U.size
    count_U = shard.count_U[start:stop]
    events = slice(int(shard.stop_U[start] - count_U[0]), int(shard.stop_U[stop - 1]))
    item_E, time_E = number_I[shard.item_E[events]], shard.time_E[events]
    left_U = rank_U >= 0
    left_E = (item_E >= 0) & np.repeat(left_U, count_U)
    counts = np.add.reduceat(left_E, np.cumsum(count_U) - count_U, dtype=np.int64)
    users = shard.users(start, stop).filter(pl.Series(left_U))
    shown = _shown(shard, rank_U, start, number_I) if plan.shown is not None else (rank_U[:0], number_I[:0], rank_U[:0])
    return _Piece(users, rank_U[left_U], counts[left_U], item_E[left_E], time_E[left_E], shown)


def _shown(
    shard: Shard, rank_U: Int, start: int, number_I: npt.NDArray[np.int32]
) -> tuple[Int, npt.NDArray[np.int32], Int]:
    """The impressions of those users, of items that are left."""
    before, count_U = int(shard.shown_U[:start].sum()), shard.shown_U[start : start + rank_U.size]
    of_users = slice(before, before + int(count_U.sum()))
    rank_N, item_N = np.repeat(rank_U, count_U), number_I[shard.shown_item_N[of_users]]
    left_N = (rank_N >= 0) & (item_N >= 0)
    return rank_N[left_N].astype(np.int64), item_N[left_N], shard.shown_time_N[of_users][left_N]


def _ragged_order(count_U: Int, order_U: Sequence[int] | Int) -> Int:
    """Positions of all entries of ragged rows when the rows are put in another order.

    >>> _ragged_order(np.array([2, 1, 3]), [2, 0, 1]).tolist()
    [3, 4, 5, 0, 1, 2]
    """
    before_U = count_U.cumsum() - count_U
    counts = count_U[order_U]
    shift = before_U[order_U] - (counts.cumsum() - counts)
    return np.asarray(np.repeat(shift, counts) + np.arange(counts.sum()))
