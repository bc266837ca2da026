"""Slate protocols beside `uniform`: `popularity`, `hard`, and `sdpo-legacy`, which repeats published slates.

As with `uniform`, a row's slate is drawn from (data set fingerprint, split, row_id, seed) and never from its target,
and the target's place is uniform. `sdpo-legacy` breaks both rules on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from sirius_rec.data.slates import (
    Bits,
    ExcludedItems,
    Int,
    below,
    by_rejection,
    check_enough,
    draws,
    row_states,
    with_target,
)
from sirius_rec.data.windows import as_lists
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, HISTORY, ROW_ID, TARGET, USER_ID, SlateName

Floats = npt.NDArray[np.float64]

_CELLS = 1 << 23  # bound on the entries of one working table
_RANK_ROWS = 4_000  # train rows from which `hard` learns how near targets are
_TOP = (1 << 37) - 1
_FREE_MASS = 0.25  # least weight left to draw from, below which every item gets a random key instead

LEGACY_WARNING: Final = (
    "LEAKY: seeded by the target, as published (S-DPO). The target's slot and its negatives are functions of the "
    "target, so slates can be solved without looking at the user; for repeating published figures only"
)
EXCLUSION_WARNING: Final = (
    "LEAKY: an item that a user ever interacts with is no negative of that user, and users have rows in several "
    "splits; the candidate that was never a negative of the user in train is likely the target"
)
HARD_CAUTION: Final = (
    "negatives are as near to the history (co-occurrence in train) as targets are, so co-occurrence cannot rank them; "
    "not comparable with uniform slates"
)


def train_counts(examples: pl.DataFrame, n_items: int) -> Int:
    """int64[n_items]: in how many train users' windows (train rows, where there are no users) each item stands."""
    return np.bincount(_train_pairs(examples)["item"].to_numpy(), minlength=n_items).astype(np.int64)


def _train_pairs(examples: pl.DataFrame) -> pl.DataFrame:
    """Distinct (who, item) over histories and targets of train rows; who numbers users, or rows without one."""
    rows = examples.select(
        pl.coalesce("u" + pl.col(USER_ID), "r" + pl.col(ROW_ID).cast(pl.String)).alias("who"),
        pl.concat_list(HISTORY, TARGET).alias("item"),
    )
    return rows.explode("item").unique(maintain_order=True).with_columns(pl.col("who").rank("dense").cast(pl.Int64) - 1)


def popularity_slates(
    examples: pl.DataFrame, excluded: ExcludedItems, counts_I: Int, *, name: SlateName, fingerprint: str
) -> pl.DataFrame:
    """Negatives drawn one after another with probability ∝ train count + 1 among the items not excluded and not drawn.

    The + 1 matters: if an item without train events could not be a negative, it would have to be the target.

    Args:
        examples: row_id, target of R rows of one split. excluded: for the same rows. counts_I: int64[n_items].

    Raises:
        DataError: a row excludes so many items that too few are left.
    """
    row_id_R, target_R = _rows(examples)
    n, weight_I = name.size - 1, counts_I + 1
    check_enough(excluded, row_id_R, len(weight_I), name)
    cumulated = weight_I.cumsum()
    total = int(cumulated[-1])

    def pick(bits: Bits) -> Int:
        return np.searchsorted(cumulated, below(bits, total), side="right").astype(np.int64)

    mass = np.append(0, weight_I[excluded.item].cumsum())
    heaviest = int(np.sort(weight_I)[::-1][:n].sum())
    crowded = (mass[excluded.stop_R] - mass[excluded.start_R] + heaviest) > (1 - _FREE_MASS) * total
    state_R, place_R = _streams(row_id_R, name, fingerprint)
    table = np.empty((len(row_id_R), name.size), dtype=np.int32)
    for keyed in (False, True):
        rows = np.flatnonzero(crowded == keyed)
        for part, bitmap, local in _blocks(rows, excluded, len(weight_I)):
            if keyed:
                negatives = _by_weighted_keys(state_R[part], bitmap, local, weight_I, n)
            else:
                negatives = by_rejection(state_R[part], bitmap, local, n, pick)
            table[part] = with_target(negatives, target_R[part], place_R[part])
    return pl.DataFrame({ROW_ID: row_id_R, CANDIDATES: as_lists(CANDIDATES, table)})


def _by_weighted_keys(
    state_R: Bits, bitmap: npt.NDArray[np.bool_], local_R: Int, weight_I: Int | Floats, n: int
) -> Int:
    """int64[R, n]: the n smallest Exp(weight) keys, as if drawn one after another (Efraimidis & Spirakis 2006)."""
    bits = draws(state_R, 0, len(weight_I))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    keys = -np.log(uniform) / weight_I
    keys[bitmap[local_R]] = np.inf
    nearest = np.argpartition(keys, n - 1, axis=1)[:, :n]
    return np.take_along_axis(nearest, np.argsort(np.take_along_axis(keys, nearest, axis=1), axis=1), axis=1)


class CoOccurrence:
    """Cosine of items' sets of train users; who has both, over the geometric mean of who has each."""

    def __init__(self, train: pl.DataFrame, n_items: int) -> None:
        pairs = _train_pairs(train)
        who, item = pairs["who"].to_numpy(), pairs["item"].to_numpy().astype(np.int64)
        count = np.bincount(item, minlength=n_items)
        self.scale = 1.0 / np.sqrt(np.maximum(count, 1))
        ones = sparse.coo_array((self.scale[item], (who, item)), shape=(int(who.max(initial=-1)) + 1, n_items))
        self._matrix = ones.tocsr()
        self._transposed = self._matrix.T.tocsr()

    def nearness(self, history_H: pl.Series) -> Floats:
        """float64[R, n_items]: Σ over the history's items of the cosine with each item."""
        lengths = history_H.list.len().to_numpy()
        item = history_H.explode().drop_nulls().to_numpy()
        row = np.repeat(np.arange(len(lengths)), lengths)
        shape = (len(lengths), self._matrix.shape[1])
        histories = sparse.coo_array((np.ones(len(item)), (row, item)), shape=shape).tocsr()
        return np.asarray(((histories @ self._transposed) @ self._matrix).toarray())


def hard_slates(
    examples: pl.DataFrame,
    excluded: ExcludedItems,
    train: pl.DataFrame,
    train_excluded: ExcludedItems,
    *,
    n_items: int,
    name: SlateName,
    fingerprint: str,
) -> pl.DataFrame:
    """Negatives near the history by train co-occurrence, as near as targets are.

    Items not excluded are ranked by nearness to the row's history; negatives stand at ranks drawn from where the
    targets of train rows stand (their own user left out). Taking the nearest items as they come would give the target
    away: it would be the candidate farthest from the history.

    Args:
        examples: row_id, history, target of R rows of one split. excluded: for the same rows.
        train: user_id, row_id, history, target of the train rows. train_excluded: for these.
    """
    row_id_R, target_R = _rows(examples)
    check_enough(excluded, row_id_R, n_items, name)
    near = CoOccurrence(train, n_items)
    weight_I = _rank_weights(near, train, train_excluded, n_items, fingerprint, name)
    n = name.size - 1
    state_R, place_R = _streams(row_id_R, name, fingerprint)
    toss_R = row_states(f"{fingerprint}|{name.split}|{name.seed}|{name.protocol}|ties", row_id_R)
    table = np.empty((len(row_id_R), name.size), dtype=np.int32)
    for part, bitmap, local in _blocks(np.arange(len(row_id_R)), excluded, n_items):
        order = _nearest_first(near.nearness(examples[HISTORY].gather(part)), bitmap[local], toss_R[part])
        taken = np.arange(n_items)[None, :] >= (~bitmap[local]).sum(axis=1)[:, None]
        ranks = _by_weighted_keys(state_R[part], taken, np.arange(len(part)), weight_I, n)
        table[part] = with_target(np.take_along_axis(order, ranks, axis=1), target_R[part], place_R[part])
    return pl.DataFrame({ROW_ID: row_id_R, CANDIDATES: as_lists(CANDIDATES, table)})


def _nearest_first(scores_RI: Floats, excluded_RI: npt.NDArray[np.bool_], toss_R: Bits) -> Int:
    """int64[R, n_items]: items by falling score (to 2^-31), ties in random order, excluded ones last."""
    falling = np.uint64(_TOP) - np.minimum(scores_RI * 2.0**31, _TOP).astype(np.uint64)
    keys = (falling << np.uint64(26)) | (draws(toss_R, 0, scores_RI.shape[1]) >> np.uint64(38))
    keys[excluded_RI] = np.iinfo(np.uint64).max
    return np.argsort(keys, axis=1)


def _rank_weights(
    near: CoOccurrence, train: pl.DataFrame, excluded: ExcludedItems, n_items: int, fingerprint: str, name: SlateName
) -> Floats:
    """float64[n_items]: how often train targets stand at each rank of items not excluded, even in doubling bins."""
    chosen = np.argsort(row_states(f"{fingerprint}|{name.seed}|ranks", train[ROW_ID].to_numpy()))[:_RANK_ROWS]
    rows = train[np.sort(chosen)]
    part_excluded = excluded.select(np.sort(chosen))
    target_R = rows[TARGET].to_numpy().astype(np.int64)
    toss = below(row_states(f"{fingerprint}|{name.seed}|toss", rows[ROW_ID].to_numpy()), 1 << 20) / (1 << 20)
    rank_R = np.empty(rows.height, dtype=np.int64)
    for part, bitmap, local in _blocks(np.arange(rows.height), part_excluded, n_items):
        scores = near.nearness(rows[HISTORY].gather(part))
        histories = rows[HISTORY].gather(part)
        own = np.array([near.scale[np.asarray(h)].sum() for h in histories.to_list()]) * near.scale[target_R[part]]
        mine = np.round(scores[np.arange(len(part)), target_R[part]] - own, 12)[:, None]
        others = np.where(bitmap[local], -np.inf, np.round(scores, 12))
        above, tied = (others > mine).sum(axis=1), (others == mine).sum(axis=1)
        rank_R[part] = above + (toss[part] * (tied + 1)).astype(np.int64)
    bin_of = np.floor(np.log2(np.arange(n_items) + 1)).astype(np.int64)
    counts = np.bincount(bin_of[np.minimum(rank_R, n_items - 1)], minlength=int(bin_of[-1]) + 1)
    widths = np.bincount(bin_of)
    return np.asarray(((counts + 1.0) / widths)[bin_of])  # + 1 keeps every rank possible


def legacy_slates(examples: pl.DataFrame, *, n_items: int, name: SlateName) -> pl.DataFrame:
    """The published slates of S-DPO, LEAKY: Python's `random` seeded with the target.

    seed(target); size - 1 of the items that are neither in the row's history nor the target; target behind them;
    seed(target) again; shuffle. `target` is the item's number in the catalogue. The slates' own seed is not used.

    Raises:
        DataError: fewer items than asked for are outside a row's history.
    """
    row_id_R, target_R = _rows(examples)
    table = np.empty((len(row_id_R), name.size), dtype=np.int32)
    for row, (history, target) in enumerate(zip(examples[HISTORY].to_list(), target_R.tolist(), strict=True)):
        excluded = np.array(sorted({*history, target}))
        free = n_items - len(excluded)
        if free < name.size - 1:
            raise DataError(
                f"slates {name}: row {row_id_R[row]} needs {name.size - 1} negatives, only {free} items are outside "
                "its history; use a smaller size"
            )
        generator = random.Random(target)
        drawn = np.array(generator.sample(range(free), name.size - 1))
        # the k-th free item, without listing all of them: step over the excluded ones that lie before it
        slate = (drawn + np.searchsorted(excluded - np.arange(len(excluded)), drawn, side="right")).tolist()
        slate.append(target)
        random.Random(target).shuffle(slate)
        table[row] = slate
    return pl.DataFrame({ROW_ID: row_id_R, CANDIDATES: as_lists(CANDIDATES, table)})


def _rows(examples: pl.DataFrame) -> tuple[Int, Int]:
    return examples[ROW_ID].to_numpy(), examples[TARGET].to_numpy().astype(np.int64)


def _streams(row_id_R: Int, name: SlateName, fingerprint: str) -> tuple[Bits, Int]:
    """(start of each row's stream of negatives, place of each row's target)."""
    key = f"{fingerprint}|{name.split}|{name.seed}|{name.protocol}"
    return row_states(f"{key}|negatives", row_id_R), below(row_states(f"{key}|place", row_id_R), name.size)


def _blocks(rows: Int, excluded: ExcludedItems, n_items: int) -> Iterator[tuple[Int, npt.NDArray[np.bool_], Int]]:
    """(rows, bool[ranges, n_items] of excluded items, range of each row in it), bounded in size."""
    step = max(1, _CELLS // n_items)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        yield part, *excluded.bitmap(part, n_items)
