"""Filters on events: k-core and minimum sequence length."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from sirius_rec.errors import DataError
from sirius_rec.schema import ITEM_ID, USER_ID


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
    steps: list[FilterStep] = []
    changed = True
    while changed:
        changed = False
        for name, column, least in (("min_item", ITEM_ID, min_item), ("min_user", USER_ID, min_user)):
            kept = events.filter(pl.len().over(column) >= least)
            if kept.height < events.height:
                steps.append(_step(f"{name}={least}", events, kept))
                events, changed = kept, True
    return events, steps


def min_sequence(events: pl.DataFrame, least: int) -> tuple[pl.DataFrame, list[FilterStep]]:
    """Drop users whose sequence is shorter than `least`; once, without looking at items again."""
    kept = events.filter(pl.len().over(USER_ID) >= least)
    if kept.height == events.height:
        return events, []
    return kept, [_step(f"min_sequence={least}", events, kept)]


def filter_events(
    events: pl.DataFrame, *, min_item: int = 1, min_user: int = 1, sequence: int = 1
) -> tuple[pl.DataFrame, list[FilterStep]]:
    """`k_core`, then `min_sequence`.

    Raises:
        DataError: nothing is left.
    """
    kept, steps = k_core(events, min_item=min_item, min_user=min_user)
    kept, more = min_sequence(kept, sequence)
    if events.height and not kept.height:
        raise DataError(
            f"the filters min_item={min_item}, min_user={min_user}, min_sequence={sequence} leave none of "
            f"{events.height} events; lower them"
        )
    return kept, steps + more


def _step(name: str, before: pl.DataFrame, after: pl.DataFrame) -> FilterStep:
    return FilterStep(
        name=name,
        users=before[USER_ID].n_unique() - after[USER_ID].n_unique(),
        items=before[ITEM_ID].n_unique() - after[ITEM_ID].n_unique(),
        events=before.height - after.height,
    )
