"""Impressions: what users were shown and passed over, as the negatives of what they took next.

An impression belongs to the first event at or after it: what a user was shown since the event before is what they had
before their eyes when they chose. Times of one second (or day) that several events share are one moment; in a log of
milliseconds what is shown after an event, in its second, counts from the next second on (`sources.events.in_seconds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.slates import (
    Bits,
    ExcludedItems,
    Int,
    Items,
    mix64,
    row_states,
    target_places,
    uniform_negatives,
    with_target,
)
from sirius_rec.data.windows import as_lists
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, IMPRESSIONS, ITEM_ID, ROW_ID, TARGET, TIMESTAMP, USER_ID, SlateName

_ODD: Final = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64, which spreads item numbers over 64 bits
_LAST: Final = np.uint64(1 << 63)
_CELLS: Final = 1 << 24  # bound on the entries of one working table


@dataclass(frozen=True)
class Impressions:
    """N impressions of the users of a log: user, item number and second of each, in any order.

    dropped: impressions that are not here, because their user or item has no events that are left.
    """

    user_N: Int
    item_N: Int
    time_N: Int
    dropped: int = 0

    @classmethod
    def of(cls, table: pl.DataFrame, users: pl.Series, items: pl.DataFrame) -> Impressions:
        """Those of a table (user_id, item_id, timestamp) whose user and item are numbered."""
        number = pl.int_range(pl.len(), dtype=pl.Int64)
        kept = table.join(users.to_frame(USER_ID).with_columns(number.alias("user")), on=USER_ID)
        kept = kept.join(items.select(ITEM_ID, number.alias("number")), on=ITEM_ID)
        user, item, time = (kept[name].cast(pl.Int64).to_numpy() for name in ("user", "number", TIMESTAMP))
        return cls(user, item, time, dropped=table.height - kept.height)

    def before(self, user_E: Int, time_E: Int, target_R: Int) -> pl.Series:
        """list[int32] of R rows: what the user was shown with each target, each item once, ascending.

        That is what was shown after the user's last event of an earlier time, up to the time of the target; where that
        is nothing, the last that was shown to the user before, whenever that was (several events may follow one page).

        Args:
            user_E, time_E: of the log's events, each user's together and in time order.
            target_R: which events are targets.
        """
        times = np.r_[time_E, self.time_N]
        least, width = times.min(), np.ptp(times) + 2  # place 0 of a user is before all of it
        key_N, key_E = (
            user * width + 1 + (time - least) for user, time in ((self.user_N, self.time_N), (user_E, time_E))
        )
        order = np.argsort(key_N, kind="stable")
        key_N, item_N = key_N[order], self.item_N[order]
        first_E = np.searchsorted(key_E, key_E)  # the first event of each one's moment
        earlier_E = np.where(first_E > 0, key_E[first_E - 1], -1)
        since_E = np.where(earlier_E // width == user_E, earlier_E, user_E * width)
        key_R = key_E[target_R]
        start_R = np.searchsorted(key_N, since_E[target_R], side="right")
        stop_R = np.searchsorted(key_N, key_R, side="right")
        none = np.flatnonzero(start_R == stop_R)
        if key_N.size:
            last = key_N[np.maximum(stop_R[none] - 1, 0)]
            here = (stop_R[none] > 0) & (last // width == user_E[target_R[none]])
            start_R[none[here]] = np.searchsorted(key_N, last[here])
        return _lists(item_N, start_R, stop_R)


def _lists(item_N: Int, start_R: Int, stop_R: Int) -> pl.Series:
    """list[int32] of R ranges, each item of a range once, ascending. Many rows may have one range."""
    ranges, of_R = np.unique(np.stack([start_R, stop_R], axis=1), axis=0, return_inverse=True)
    return _distinct(item_N, ranges[:, 0], ranges[:, 1]).gather(of_R.reshape(-1))


def _distinct(item_N: Int, start_R: Int, stop_R: Int) -> pl.Series:
    """`_lists` of ranges that are few enough to be written out one behind the other."""
    length_R = stop_R - start_R
    row = np.repeat(np.arange(len(length_R)), length_R)
    within = np.arange(length_R.sum()) - np.repeat(length_R.cumsum() - length_R, length_R)
    pairs = pl.DataFrame({"row": row, "item": item_N[np.repeat(start_R, length_R) + within].astype(np.int32)})
    every = pl.select(row=pl.int_range(len(length_R)), item=pl.lit(None, dtype=pl.Int32))
    lists = pl.concat([every, pairs.unique().sort("row", "item")]).group_by("row", maintain_order=True)
    return lists.agg(pl.col("item").drop_nulls())["item"].alias(IMPRESSIONS)


def impression_slates(
    examples: pl.DataFrame, excluded: ExcludedItems, *, n_items: int, name: SlateName, fingerprint: str
) -> pl.DataFrame:
    """Slates of `name.size`: the target, and items that the user was shown with it and passed over.

    Of more than size - 1 a row's are drawn without replacement; where there are fewer, the others are drawn as those of
    protocol uniform. All stand in random order, the target in a random place.

    Args:
        examples: row_id, target, impressions (list[int32]) of R rows of one split.
        excluded: for the same R rows.

    Returns:
        row_id, candidates (list[int32]).

    Raises:
        DataError: the source has no impressions, or a row excludes so many items that too few are left.
    """
    if IMPRESSIONS not in examples.columns:
        raise DataError(
            f"slates {name}: the source has no impressions; say which rows of the log they are (table: option "
            "impressions, as {event: impression}), or use protocol uniform"
        )
    row_id_R, target_R = examples[ROW_ID].to_numpy(), examples[TARGET].to_numpy().astype(np.int64)
    key = f"{fingerprint}|{name}"
    fill_RN = uniform_negatives(row_id_R, excluded, n_items=n_items, name=name, key=f"{key}|fill")
    state_R = row_states(f"{key}|negatives", row_id_R)
    negatives_RN = np.empty_like(fill_RN)
    most = max(1, _CELLS // n_items)
    for part in excluded.blocks(np.arange(len(row_id_R)), most, most):
        shown = _shown(examples[IMPRESSIONS].gather(part), *excluded.bitmap(part, n_items))
        negatives_RN[part] = _filled(*shown, fill_RN[part], state_R[part])
    place_R = target_places(key, row_id_R, name.size)
    table = with_target(negatives_RN, target_R, place_R)
    return pl.DataFrame({ROW_ID: row_id_R, CANDIDATES: as_lists(CANDIDATES, table)})


def filled_up(examples: pl.DataFrame, slates: pl.DataFrame) -> dict[str, int]:
    """How many `negatives` of impression slates were never shown with their target, and in how many `rows` such stand.

    examples: target, impressions of the rows of the slates, in their order.
    """
    shown = pl.col(CANDIDATES).list.set_difference(IMPRESSIONS).list.set_difference(pl.concat_list(TARGET))
    filled = pl.concat([slates, examples.select(TARGET, IMPRESSIONS)], how="horizontal").select(shown.list.len())
    count_R = filled.to_series()
    return {"rows": int((count_R > 0).sum()), "negatives": int(count_R.sum())}


def impression_report(kept: int, dropped: int) -> dict[str, Any]:
    """For `filters` of dataset.json."""
    return {"impressions": {"kept": kept, "of_users_or_items_without_events_dropped": dropped}}


def filled_in_words(name: SlateName, filled: dict[str, int], rows: int) -> str:
    """A line for people. filled: as `filled_up` counts it. rows: of the slates."""
    share = filled["negatives"] / (rows * (name.size - 1))
    where = f"in {filled['rows']:,} of {rows:,} rows"
    return f"slates {name}: {share:.1%} of the negatives, {where}, were not shown and are drawn uniformly"


def _shown(lists: pl.Series, bitmap: npt.NDArray[np.bool_], local_R: Int) -> tuple[Int, Int]:
    """(row, item) of the impressions that may be negatives. bitmap, local_R: as `ExcludedItems.bitmap` has them."""
    row = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
    item = lists.explode().drop_nulls().to_numpy().astype(np.int64)
    free = ~bitmap[local_R[row], item]
    return row[free], item[free]


def _filled(row: Int, item: Int, fill_RN: Items, state_R: Bits) -> Int:
    """int64[R, N]: of each row N of its impressions or, where it has fewer, all of them and the first of `fill_RN` that
    are none, in random order.

    Of N distinct uniform draws at least as many are no impressions as are wanted, and those are uniform draws of the
    items that are none.
    """
    n_rows, n = fill_RN.shape
    row = np.r_[row, np.repeat(np.arange(n_rows), n)]
    item = np.r_[item, fill_RN.ravel()].astype(np.int64)
    luck = mix64(state_R[row] ^ mix64(item.astype(np.uint64) * _ODD)) >> np.uint64(1)
    place = np.tile(np.arange(n, dtype=np.uint64) + _LAST, n_rows)  # behind every impression
    turn = np.r_[luck[: len(row) - len(place)], place]
    order = np.lexsort((turn, item, row))
    row, item, turn, luck = row[order], item[order], turn[order], luck[order]
    once = np.r_[True, (row[1:] != row[:-1]) | (item[1:] != item[:-1])]
    row, item, turn, luck = row[once], item[once], turn[once], luck[once]
    order = np.lexsort((turn, row))
    count_R = np.bincount(row, minlength=n_rows)
    rank = np.arange(len(row)) - np.repeat(count_R.cumsum() - count_R, count_R)
    chosen = order[rank < n]
    shuffled = chosen[np.lexsort((mix64(luck[chosen]), row[chosen]))]
    negatives: Int = item[shuffled].reshape(n_rows, n)
    return negatives
