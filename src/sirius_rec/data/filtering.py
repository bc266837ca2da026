"""Filters on events: k-core and minimum sequence length."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.errors import DataError
from sirius_rec.schema import ITEM_ID, USER_ID

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class FilterStep:
    """What one filter dropped; a user or item counts as dropped when its last event is gone."""

    name: str
    users: int
    items: int
    events: int


def k_core(events: pl.DataFrame, *, min_item: int = 1, min_user: int = 1) -> tuple[pl.DataFrame, list[FilterStep]]:
    """Drop items with fewer than `min_item` events, then users with fewer than `min_user`, until nothing changes.

    The result is the largest set of events in which both hold, whatever the order of dropping.

    Args:
        events: user_id, item_id, …; the order of rows is kept.
    """
    if min_item <= 1 and min_user <= 1:
        return events, []
    user, item = numbered(events[USER_ID]), numbered(events[ITEM_ID])
    left = np.arange(events.height)
    steps: list[FilterStep] = []
    changed = True
    while changed:
        changed = False
        for name, codes, least in (("min_item", item, min_item), ("min_user", user, min_user)):
            remaining = left[np.bincount(codes[left])[codes[left]] >= least] if left.size else left
            if remaining.size < left.size:
                steps.append(
                    FilterStep(
                        name=f"{name}={least}",
                        users=_distinct(user[left]) - _distinct(user[remaining]),
                        items=_distinct(item[left]) - _distinct(item[remaining]),
                        events=left.size - remaining.size,
                    )
                )
                left, changed = remaining, True
    return (events[left] if steps else events), steps


def numbered(ids: pl.Series) -> Codes:
    """int32 numbers of texts in order of first appearance."""
    return ids.cast(pl.Enum(ids.unique(maintain_order=True))).to_physical().cast(pl.Int32).to_numpy()


def _distinct(codes: Codes) -> int:
    return int(np.count_nonzero(np.bincount(codes)))


def min_sequence(events: pl.DataFrame, least: int) -> tuple[pl.DataFrame, list[FilterStep]]:
    """Drop users whose sequence is shorter than `least`; once, without looking at items again."""
    remaining, steps = k_core(events, min_user=least)
    return remaining, [replace(step, name=f"min_sequence={least}") for step in steps]


def filter_events(
    events: pl.DataFrame, *, min_item: int = 1, min_user: int = 1, sequence: int = 1
) -> tuple[pl.DataFrame, list[FilterStep]]:
    """`k_core`, then `min_sequence`.

    Raises:
        DataError: nothing is left.
    """
    remaining, steps = k_core(events, min_item=min_item, min_user=min_user)
    remaining, more = min_sequence(remaining, sequence)
    if events.height and not remaining.height:
        raise nothing_left(events.height, min_item=min_item, min_user=min_user, min_sequence=sequence)
    return remaining, steps + more


def nothing_left(n_events: int, **filters: int) -> DataError:
    """The error that filters leave none of so many events."""
    asked = ", ".join(f"{name}={least}" for name, least in filters.items())
    return DataError(f"the filters {asked} leave none of {n_events} events; lower them")
