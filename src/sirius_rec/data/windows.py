"""Windows: the items before an event as history, the event as target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.schema import HISTORY

Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows over E events, in the order of their targets.

    position_R: int64[R], the event that is the target.
    start_R: int64[R], the first event of the history; the position itself where the history is empty.
    history: list[int32] Series of length R, oldest first.
    """

    position_R: Int
    start_R: Int
    history: pl.Series


def sliding_windows(user_E: Int, item_E: Int, *, max_history: int = 10, min_history: int = 10) -> Windows:
    """One window per event that has at least `min_history` earlier events of its user.

    Args:
        user_E: user numbers; one user's events stand together, in time order.
        item_E: item numbers.
        max_history: the history is the last `max_history` items before the target.
        min_history: 0 ≤ min_history ≤ max_history; equal to max_history, only full windows come.

    >>> windows = sliding_windows(np.zeros(4, int), np.array([7, 8, 9, 5]), max_history=2, min_history=1)
    >>> windows.position_R.tolist(), windows.history.to_list()
    ([1, 2, 3], [[7], [7, 8], [8, 9]])
    """
    return anchored_windows(user_E, item_E, max_history=max_history, min_history=min_history, step=1)


def anchored_windows(user_E: Int, item_E: Int, *, max_history: int, min_history: int, step: int) -> Windows:
    """The same targets as `sliding_windows`, with histories that start at multiples of `step` in the user's sequence.

    The history of the target at place t is seq[s:t], s the smallest multiple of `step` with t − s ≤ max_history. So
    rows of one start are prefixes of one another, and a history has max_history − step + 1 to max_history items once
    the sequence is long enough. With step 1 every place may be a start: the windows slide.

    Args:
        user_E, item_E, max_history: as in `sliding_windows`.
        min_history: least events of the user before a target, whether they are in its history or not.
        step: 1 ≤ step ≤ max_history.

    >>> windows = anchored_windows(np.zeros(6, int), np.arange(6), max_history=3, min_history=1, step=2)
    >>> windows.history.to_list()
    [[0], [0, 1], [0, 1, 2], [2, 3], [2, 3, 4]]
    """
    index = np.arange(user_E.size)
    is_start = np.ones(user_E.size, dtype=bool)
    is_start[1:] = user_E[1:] != user_E[:-1]
    start_E = np.maximum.accumulate(np.where(is_start, index, 0)) if user_E.size else index
    earlier_E = index - start_E
    position_R = np.flatnonzero(earlier_E >= min_history)
    place_R = earlier_E[position_R]
    first_R = -(-np.maximum(place_R - max_history, 0) // step) * step
    length_R = place_R - first_R
    # right-aligned table, one column per step back; what lies before the user's start is cut off by `tail`
    table = np.zeros((position_R.size, max_history), dtype=np.int32)
    for back in range(1, max_history + 1):
        table[:, max_history - back] = item_E[np.maximum(position_R - back, 0)]
    return Windows(position_R, position_R - length_R, ragged(HISTORY, table, length_R))


def ragged(name: str, table: npt.NDArray[np.int32], length_R: Int) -> pl.Series:
    """list[int32] Series of the last `length_R[r]` entries of each row of a 2-D table."""
    lists = as_lists(name, table)
    if (length_R == table.shape[1]).all():
        return lists
    frame = pl.DataFrame({name: lists, "length": length_R})
    return frame.select(pl.col(name).list.tail(pl.col("length")))[name]


def as_lists(name: str, table: npt.NDArray[np.generic]) -> pl.Series:
    """List Series whose rows are the rows of a 2-D table."""
    inner = pl.Float64 if table.dtype.kind == "f" else pl.Int32
    if not table.size:
        return pl.Series(name, [[]] * table.shape[0], dtype=pl.List(inner))
    return pl.Series(name, table).cast(pl.List(inner))
