"""Controls that keep popularity: items of like popularity in each other's place, negatives drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sirius_rec.audit.slates import NONE, Bools, Floats, Int, SlateSet

_TOLERANCE = 0.5  # standard deviations of a count within which two items are of like popularity
_TRIES = 8


def like_popularity(counts_I: Floats) -> Int:
    """int64[n_items]: classes of items whose counts differ by less than half a standard deviation (√count)."""
    order = np.argsort(counts_I, kind="stable")
    ordered = counts_I[order]
    class_I = np.empty(len(counts_I), dtype=np.int64)
    start = number = 0
    while start < len(ordered):
        stop = int(np.searchsorted(ordered, ordered[start] + _TOLERANCE * np.sqrt(ordered[start]), side="right"))
        class_I[order[start:stop]] = number
        start, number = stop, number + 1
    return class_I


def swapped(class_I: Int, rng: np.random.Generator) -> Int:
    """int64[n_items]: a random item of its class for each item, every item once."""
    there = np.lexsort((rng.random(len(class_I)), class_I))
    here = np.argsort(class_I, kind="stable")
    other_I = np.empty(len(class_I), dtype=np.int64)
    other_I[here] = there
    return other_I


@dataclass(frozen=True)
class Interacted:
    """What the rows' users interacted with, as far as the files show it: sorted keys group * n_items + item."""

    keys: Int
    n_items: int

    def has(self, group: Int, item: Int) -> Bools:
        """bool, as broadcast: whether the group has the item; False for padding."""
        asked = group * self.n_items + np.maximum(item, 0)
        at = np.minimum(np.searchsorted(self.keys, asked), max(len(self.keys) - 1, 0))
        return np.asarray((self.keys[at] == asked) & (item != NONE)) if len(self.keys) else np.zeros(asked.shape, bool)


def interacted(slates: SlateSet, learn: SlateSet | None, n_items: int) -> Interacted:
    """Histories and targets of the rows' groups here, and of the same users in the learning rows."""
    keys = [_keys(slates.group_R, slates, n_items)]
    if learn is not None and slates.users and learn.users:
        names, first = np.unique(slates.user_R, return_index=True)
        at = np.minimum(np.searchsorted(names, learn.user_R), len(names) - 1)
        same = names[at] == learn.user_R
        keys.append(_keys(slates.group_R[first][at[same]], learn.select(same), n_items))
    return Interacted(np.unique(np.concatenate(keys)), n_items)


def _keys(group_R: Int, rows: SlateSet, n_items: int) -> Int:
    item_RX = np.hstack([rows.history_RH, rows.target_R[:, None]])
    return np.unique((group_R[:, None] * n_items + item_RX)[item_RX != NONE])


def redrawn_alike(slates: SlateSet, class_I: Int, known: Interacted, rng: np.random.Generator) -> Int:
    """int64[R, C]: slates in which each negative gives way to a random item of like popularity.

    Not one that the user interacted with, nor one that the slate holds already; where eight draws find none, the
    negative stays.
    """
    members = np.argsort(class_I, kind="stable")
    first_K = np.searchsorted(class_I[members], np.arange(int(class_I.max(initial=-1)) + 2))

    def draw(item: Int) -> Int:
        low, high = first_K[class_I[item]], first_K[class_I[item] + 1]
        return members[low + (rng.random(len(item)) * (high - low)).astype(np.int64)]

    return _redrawn(slates, known, draw)


def redrawn_uniformly(slates: SlateSet, n_items: int, unseen: int, known: Interacted, rng: np.random.Generator) -> Int:
    """int64[R, C]: slates whose negatives are drawn uniformly from n_items items and `unseen` others (n_items, …)."""
    return _redrawn(slates, known, lambda item: rng.integers(0, n_items + unseen, len(item)))


def _redrawn(slates: SlateSet, known: Interacted, draw: object) -> Int:
    assert callable(draw)
    made = slates.candidates_RC.copy()
    open_RC = slates.valid_RC & (made != slates.target_R[:, None])
    for _ in range(_TRIES):
        row, column = np.nonzero(open_RC)
        if not row.size:
            break
        item = draw(slates.candidates_RC[row, column])
        tried = made.copy()
        tried[row, column] = item
        ordered = np.sort(tried, axis=1)
        crowded_R = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any(axis=1)
        good = (item >= known.n_items) | ~known.has(slates.group_R[row], np.minimum(item, known.n_items - 1))
        good &= item != slates.target_R[row]
        if crowded_R.any():
            mine = crowded_R[row]
            good[mine] &= _only_one(tried, row[mine], item[mine])
        made[row[good], column[good]] = item[good]
        open_RC[row[good], column[good]] = False
    return made


def _only_one(tried: Int, row: Int, item: Int) -> Bools:
    return np.asarray((tried[row] == item[:, None]).sum(axis=1) == 1)
