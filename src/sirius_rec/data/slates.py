"""Frozen candidate slates.

A row's slate is drawn from (data set fingerprint, split, row_id, seed) and from nothing else: not from the target, not
from the rows beside it. The negatives of a target therefore differ from row to row, and the target's place says
nothing about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.windows import as_lists
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, EXCLUDED, HISTORY, ROW_ID, TARGET, TIMESTAMP, USER_ID, SlateName

Int = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]
Items = npt.NDArray[np.int32]

# splitmix64 (Steele, Lea & Flood 2014; the constants of java.util.SplittableRandom). NumPy's generators cannot be
# started at a million (row, draw) counters in one vectorised call, which is what independence between rows needs.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_CELLS = 1 << 24  # bound on the entries of one working table: 128 MB of uint64
_QUICK = 1 << 17  # of tables that are gone through several times, and should stay in the processor's cache


@dataclass(frozen=True)
class ExcludedItems:
    """The items that may not be negatives of a row.

    item: int64[…]. start_R, stop_R: int64[R]; row r excludes item[start_R[r]:stop_R[r]], each once, its target among
    them. Rows may share a range: all rows of a user, or the beginnings of one sequence. everyone: further items, in no
    row's range, that all rows exclude.
    """

    item: Int
    start_R: Int
    stop_R: Int
    everyone: Int = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def count_R(self) -> Int:
        """How many items each row excludes."""
        return self.stop_R - self.start_R + len(self.everyone)

    def select(self, rows: npt.NDArray[np.generic]) -> ExcludedItems:
        """The same for a selection of rows (mask or positions)."""
        return ExcludedItems(self.item, self.start_R[rows], self.stop_R[rows], self.everyone)

    def blocks(self, rows: Int, ranges: int, most: int) -> Iterator[Int]:
        """Consecutive rows of these, at most `most` and of at most `ranges` ranges that follow each other."""
        start_R, stop_R = self.start_R[rows], self.stop_R[rows]
        changes = (np.diff(start_R) != 0) | (np.diff(stop_R) != 0)
        group_R = np.append(0, changes.cumsum()) // ranges if len(rows) else rows
        for group in np.split(rows, np.flatnonzero(np.diff(group_R)) + 1):
            for start in range(0, len(group), most):
                yield group[start : start + most]

    def bitmap(self, rows: Int, n_items: int) -> tuple[npt.NDArray[np.bool_], Int]:
        """(bool[G, n_items] of what each distinct range of these rows excludes, int64[len(rows)] range of each row)."""
        start_R, stop_R = self.start_R[rows], self.stop_R[rows]
        _, first, local_R = np.unique(start_R * (len(self.item) + 1) + stop_R, return_index=True, return_inverse=True)
        start, length = start_R[first], (stop_R - start_R)[first]
        row = np.repeat(np.arange(len(first)), length)
        within = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
        excluded = np.zeros((len(first), n_items), dtype=bool)
        excluded[row, self.item[np.repeat(start, length) + within]] = True
        excluded[:, self.everyone] = True
        return excluded, local_R


@dataclass(frozen=True)
class Shortage:
    """Rows that leave too few items for their negatives: the first one, how many it leaves, and how many such rows.

    every: whether all rows that were looked at are such.
    """

    row: int
    available: int
    rows: int
    every: bool = False

    def error(self, name: SlateName, n_items: int) -> DataError:
        drop = ", or drop such rows with data.unusable: drop, which leaves those that have enough"
        return DataError(
            f"slates {name}: row {self.row} needs {name.size - 1} negatives, but its user leaves only "
            f"{self.available} of {n_items} items to draw from ({'all ' * self.every}{self.rows} such rows); "
            f"use a smaller size{'' if self.every else drop}"
        )


def shortage(excluded: ExcludedItems, row_id_R: Int, n_items: int, name: SlateName) -> Shortage | None:
    """None if every row leaves enough."""
    available_R = n_items - excluded.count_R
    short = np.flatnonzero(available_R < name.size - 1)
    if not short.size:
        return None
    return Shortage(int(row_id_R[short[0]]), int(available_R[short[0]]), short.size, short.size == row_id_R.size)


def check_enough(excluded: ExcludedItems, row_id_R: Int, n_items: int, name: SlateName) -> Int:
    """int64[R]: how many items each row may draw from.

    Raises:
        DataError: fewer than the negatives asked for.
    """
    if (found := shortage(excluded, row_id_R, n_items, name)) is not None:
        raise found.error(name, n_items)
    return n_items - excluded.count_R


def interacted_items(examples: pl.DataFrame) -> ExcludedItems:
    """Items in any history or target of a row's user, over all the rows given; rows without user_id stand alone."""
    rows = examples.select(
        pl.int_range(pl.len()).alias("row"),
        pl.col(USER_ID),
        pl.concat_list(HISTORY, TARGET).alias("item"),
    )
    alone = -1 - pl.col("row")  # one negative number per row without a user
    named = rows.select(USER_ID).drop_nulls().unique(maintain_order=True).with_row_index("number")
    rows = rows.join(named, on=USER_ID, how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("number").cast(pl.Int64).fill_null(alone))
    group_R = np.unique(rows["number"].to_numpy(), return_inverse=True)[1]
    pairs = rows.select(pl.Series("group", group_R), "item").explode("item").unique().sort("group", "item")
    counts = np.bincount(pairs["group"].to_numpy(), minlength=int(group_R.max(initial=-1)) + 1)
    stop_G = counts.cumsum()
    return ExcludedItems(
        pairs["item"].to_numpy().astype(np.int64), (stop_G - counts)[group_R], stop_G[group_R].astype(np.int64)
    )


def past_items(examples: pl.DataFrame) -> ExcludedItems:
    """Items of a row's own history and target, and those in rows of its user with an earlier timestamp.

    Rows of one user at one time do not say which came first, and neither do rows without a timestamp: of those, each
    excludes its own items only.
    """
    rows = examples.select(
        pl.int_range(pl.len()).alias("row"),
        pl.col(USER_ID).alias("user"),
        pl.col(TIMESTAMP).alias("time"),
        pl.concat_list(HISTORY, TARGET).alias("item"),
    )
    own = rows.explode("item")
    since = own.drop_nulls(["user", "time"]).group_by("user", "item").agg(pl.col("time").min().alias("since"))
    earlier = rows.drop("item").join(since, on="user").filter(pl.col("since") < pl.col("time"))
    pairs = pl.concat([own.select("row", "item"), earlier.select("row", "item")]).unique().sort("row", "item")
    stop_R = np.bincount(pairs["row"].to_numpy(), minlength=examples.height).cumsum().astype(np.int64)
    return ExcludedItems(pairs["item"].to_numpy().astype(np.int64), np.r_[0, stop_R[:-1]], stop_R)


def seen_items(examples: pl.DataFrame, past: ExcludedItems) -> pl.DataFrame:
    """row_id, excluded (list[int32], ascending): what a ranking of the whole catalogue leaves out, never the target.

    examples: row_id, target of R rows. past: of the same rows, as `past_items` has it.
    """
    target_R = examples[TARGET].to_numpy()
    items = [np.sort(past.item[a:b]) for a, b in zip(past.start_R, past.stop_R, strict=True)]
    lists = [row[row != target].tolist() for row, target in zip(items, target_R, strict=True)]
    return pl.DataFrame({ROW_ID: examples[ROW_ID], EXCLUDED: pl.Series(lists, dtype=pl.List(pl.Int32))})


def mix64(state: Bits) -> Bits:
    """The finaliser of splitmix64: a bijection of 64 bits in which every input bit reaches every output bit."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def row_states(key: str, row_id_R: Int) -> Bits:
    """uint64[R]: the start of each row's own stream, from a text key and the row_id alone."""
    digest = np.frombuffer(hashlib.sha256(key.encode()).digest()[:16], dtype="<u8").astype(np.uint64)
    return mix64(mix64(row_id_R.astype(np.uint64) * _GAMMA + digest[0]) ^ digest[1])


def draws(state_R: Bits, first: int, count: int) -> Bits:
    """uint64[R, count]: draws number `first` … of each row's splitmix64 stream."""
    steps = np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GAMMA
    return mix64(state_R[:, None] + steps[None, :])


def below(bits: Bits, bound: int) -> Int:
    """Integers in [0, bound) from uniform bits; the deviation from uniform is under bound / 2^32."""
    return (((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def uniform_slates(
    examples: pl.DataFrame, excluded: ExcludedItems, *, n_items: int, name: SlateName, fingerprint: str
) -> pl.DataFrame:
    """Slates of `name.size`: the target and size - 1 items that the row does not exclude, in random order.

    The negatives are drawn uniformly without replacement; the target's place is uniform.

    Args:
        examples: row_id, target of R rows of one split.
        excluded: for the same R rows.
        fingerprint: of the data set's items and examples.

    Returns:
        row_id, candidates (list[int32]).

    Raises:
        DataError: a row excludes so many items that too few are left.
    """
    row_id_R, target_R = examples[ROW_ID].to_numpy(), examples[TARGET].to_numpy().astype(np.int64)
    key = f"{fingerprint}|{name.split}|{name.seed}"
    negatives = uniform_negatives(row_id_R, excluded, n_items=n_items, name=name, key=f"{key}|negatives")
    table = with_target(negatives, target_R, target_places(key, row_id_R, name.size))
    return pl.DataFrame({ROW_ID: row_id_R, CANDIDATES: as_lists(CANDIDATES, table)})


def target_places(key: str, row_id_R: Int, size: int) -> Int:
    """int64[R]: where each row's target stands among `size` candidates, uniform."""
    return below(row_states(f"{key}|place", row_id_R), size)


def uniform_negatives(row_id_R: Int, excluded: ExcludedItems, *, n_items: int, name: SlateName, key: str) -> Items:
    """int32[R, size - 1]: items that a row does not exclude, uniform without replacement, in the order of their draws.

    key: of the rows' streams. DataError where a row leaves too few.
    """
    n_negatives = name.size - 1
    available_R = check_enough(excluded, row_id_R, n_items, name)
    state_R = row_states(key, row_id_R)
    # Rejection needs few draws while most items are free; where they are not, every item gets a random key.
    crowded = (available_R < 2 * n_negatives) | (available_R < n_items / 2)
    table = np.empty((len(row_id_R), n_negatives), dtype=np.int32)
    for method, rows, most in (
        (by_rejection, np.flatnonzero(~crowded), _QUICK // (2 * n_negatives + 32)),
        (_by_random_keys, np.flatnonzero(crowded), _CELLS // max(n_items, 2 * n_negatives + 32)),
    ):
        for part in excluded.blocks(rows, max(1, _CELLS // n_items), max(1, most)):
            table[part] = method(state_R[part], *excluded.bitmap(part, n_items), n_negatives)
    return table


def with_target(negatives: Int | Items, target_R: Int, place_R: Int) -> npt.NDArray[np.int32]:
    """int32[R, n+1]: each row's negatives in their order, with the target put in at its place."""
    table = np.empty((len(target_R), negatives.shape[1] + 1), dtype=np.int32)
    is_negative = np.arange(table.shape[1])[None, :] != place_R[:, None]
    table[is_negative] = negatives.ravel()
    table[np.arange(len(target_R)), place_R] = target_R
    return table


def by_rejection(
    state_R: Bits,
    bitmap: npt.NDArray[np.bool_],
    local_R: Int,
    n: int,
    pick: Callable[[Bits], Int] | None = None,
) -> Int:
    """The first `n` distinct items not excluded in each row's stream of draws; int64[R, n].

    pick: random bits → items; uniform over the bitmap's items when not given.
    """
    result = np.empty((len(state_R), n), dtype=np.int64)
    open_rows = np.arange(len(state_R))
    count = n  # most rows need no more
    while open_rows.size:
        bits = draws(state_R[open_rows], 0, count)
        items = below(bits, bitmap.shape[1]) if pick is None else pick(bits)
        rejected = bitmap[local_R[open_rows, None], items]
        # sorting (item, draw number) puts the repeats of an item behind its first draw
        shift = count.bit_length()
        ordered = np.sort((items << shift) | np.arange(count), axis=1)
        repeat = np.zeros_like(rejected)
        repeat[:, 1:] = (ordered[:, 1:] >> shift) == (ordered[:, :-1] >> shift)
        if count == n:
            done = ~(rejected | repeat).any(axis=1)
            result[open_rows[done]] = items[done]
            open_rows, count = open_rows[~done], n + n // 4 + 12
            continue
        again = np.zeros_like(rejected)
        np.put_along_axis(again, ordered & ((1 << shift) - 1), repeat, axis=1)
        good = ~rejected & ~again
        rank = good.cumsum(axis=1)
        done = rank[:, -1] >= n
        result[open_rows[done]] = items[done][(good & (rank <= n))[done]].reshape(-1, n)
        # the same stream, further on: the result does not depend on where it was cut
        open_rows, count = open_rows[~done], 2 * count
    return result


def _by_random_keys(state_R: Bits, bitmap: npt.NDArray[np.bool_], local_R: Int, n: int) -> Int:
    """The `n` items not excluded with the smallest random keys, in order of key; int64[R, n]."""
    keys = draws(state_R, 0, bitmap.shape[1])
    keys[bitmap[local_R]] = np.iinfo(np.uint64).max
    return np.argsort(keys, axis=1, kind="stable")[:, :n]


def slates_from_examples(examples: pl.DataFrame, *, name: SlateName) -> pl.DataFrame:
    """The slates that a source brought itself (protocol `given`), in the order it gave.

    Args:
        examples: row_id, candidates (list[int32]) of one split.

    Raises:
        DataError: a row has no slate, or one of another size than `name.size`.
    """
    if CANDIDATES not in examples.columns:
        raise DataError(f"slates {name}: the source brings no candidates; use protocol uniform")
    length = examples[CANDIDATES].list.len()
    if length.null_count():
        row = examples.filter(length.is_null())[ROW_ID][0]
        raise DataError(f"slates {name}: row {row} has no candidates; add them, or use protocol uniform")
    if (other := examples.filter(length != name.size)).height:
        row, got = other[ROW_ID][0], other[CANDIDATES].list.len()[0]
        raise DataError(
            f"slates {name}: row {row} has {got} candidates, not {name.size}; set size to what the file has"
        )
    return examples.select(ROW_ID, CANDIDATES)
