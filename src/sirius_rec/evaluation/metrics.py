"""Ranking metrics of one relevant item in a slate, per example first.

Ties are counted in expectation: with g candidates strictly above the target and t candidates (the target among them)
on the target's score, the target's rank is uniform on g + 1 … g + t, and every metric is its mean over those ranks.
Constant scores therefore give exactly HR@K = min(K, N) / N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.errors import DataError
from sirius_rec.schema import SlateName

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METRICS: Final = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr")
"""The metrics of a result table. NDCG@1 is HR@1."""

LISTED: Final = 100
"""How far down a ranking of the whole catalogue is known: a language model is asked for so many titles, best first."""

_DEPTHS: Final = (1, 5, 10)
_CATALOGUE_DEPTHS: Final = (1, 5, 10, 20, 50, LISTED)
CATALOGUE_METRICS: Final = (
    *(f"hr@{k}" for k in _CATALOGUE_DEPTHS), *(f"ndcg@{k}" for k in _CATALOGUE_DEPTHS[1:]), f"mrr@{LISTED}",
)  # fmt: skip
"""The metrics of a ranking of the whole catalogue. MRR@100: 1 / rank down to rank 100, 0 beyond."""


def metrics_of(slates: str) -> tuple[str, ...]:
    """The metrics that are measured on slates of this name.

    >>> metrics_of("test-uniform-20-s0") == METRICS, metrics_of("test-full-4606-s0")[-1]
    (True, 'mrr@100')
    """
    return CATALOGUE_METRICS if SlateName.parse(slates).protocol == "full" else METRICS


def flatten(values: Any, what: str = "values", dtype: npt.DTypeLike = np.float64) -> tuple[npt.NDArray[Any], Ints]:
    """A [rows, C] array, a list of rows, or a polars list column -> (flat values, row lengths [rows]).

    Raises DataError for a missing row, an empty row, or anything that is not a list of numbers per row.
    """
    if isinstance(values, pl.Series):
        missing = np.flatnonzero(values.is_null().to_numpy())
        if missing.size:
            raise DataError(f"{what}: row {missing[0]} is missing")
        if isinstance(values.dtype, pl.Array):
            values = values.arr.to_list()
        lengths = values.list.len().to_numpy().astype(np.int64)
        inner = values.explode()
        # an exploded empty list is one null; it is reported as an empty row below
        flat = inner.to_numpy() if not inner.null_count() or not lengths.all() else None
        if flat is None:
            row = int(np.repeat(np.arange(len(lengths)), lengths)[inner.is_null().to_numpy()][0])
            raise DataError(f"{what}: row {row} holds a null")
    elif isinstance(values, np.ndarray) and values.ndim == 2:
        flat, lengths = values.reshape(-1), np.full(len(values), values.shape[1], dtype=np.int64)
    else:
        rows = [np.asarray(row) for row in values]
        if any(row.ndim != 1 for row in rows):
            raise DataError(f"{what}: every row must be one list of numbers")
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.concatenate(rows) if rows else np.empty(0)
    if (lengths == 0).any():
        raise DataError(f"{what}: row {int(np.flatnonzero(lengths == 0)[0])} is empty; every slate needs a candidate")
    try:
        return np.asarray(flat).astype(dtype), lengths
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: not all values are numbers ({error})") from error


def _starts(lengths: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)


def _sums(flat: npt.NDArray[Any], lengths: Ints) -> npt.NDArray[Any]:
    """Sum of every row."""
    if not len(lengths):
        return np.empty(0, dtype=flat.dtype)
    return np.asarray(np.add.reduceat(flat, _starts(lengths)))


def _maxima(flat: Floats, lengths: Ints) -> Floats:
    if not len(lengths):
        return np.empty(0)
    return np.asarray(np.maximum.reduceat(flat, _starts(lengths)), dtype=np.float64)


def _first_bad_row(bad: npt.NDArray[np.bool_], lengths: Ints) -> tuple[int, int]:
    """Row and position inside the row of the first True."""
    index = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(np.cumsum(lengths), index, side="right"))
    return row, index - int(_starts(lengths)[row])


def _named(row: int, row_ids: Sequence[int] | None) -> str:
    return f"row {row}" if row_ids is None else f"row_id {row_ids[row]}"


def _checked_scores(scores: Any, row_ids: Sequence[int] | None) -> tuple[Floats, Ints]:
    flat, lengths = flatten(scores, "scores")
    bad = np.isnan(flat)
    if bad.any():
        row, position = _first_bad_row(bad, lengths)
        raise DataError(
            f"scores: {_named(row, row_ids)}, candidate {position} is NaN; a ranking needs a number for every candidate"
        )
    return flat, lengths


def target_positions(
    candidates: Any, targets: Any, row_ids: Sequence[int] | None = None, *, may_lack: bool = False
) -> Ints:
    """Position of each target inside its slate, [rows].

    may_lack: a slate may lack its target, as what a retriever found may; its position is −1.
    Raises DataError naming the row when the target is not in its slate or is duplicated.

    >>> target_positions([[7, 3], [4, 5, 6]], [3, 4])
    array([1, 0])
    """
    flat, lengths = flatten(candidates, "candidates", np.int64)
    wanted = np.asarray(targets, dtype=np.int64)
    if len(wanted) != len(lengths):
        raise DataError(f"targets: {len(wanted)} targets for {len(lengths)} slates; give one per slate")
    matches = flat == np.repeat(wanted, lengths)
    counts = _sums(matches.astype(np.int64), lengths)
    wrong = np.flatnonzero((counts > 1) | ((counts == 0) & (not may_lack)))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(
            f"candidates: {_named(row, row_ids)} holds its target {wanted[row]} {counts[row]} times; "
            "it must stand there once"
        )
    positions = np.full(len(lengths), -1, dtype=np.int64)
    held = np.flatnonzero(counts)
    positions[held] = np.flatnonzero(matches) - _starts(lengths)[held]
    return positions


def rank_bounds(scores: Any, positions: Any, row_ids: Sequence[int] | None = None) -> tuple[Ints, Ints]:
    """(g, t): candidates strictly above the target, and candidates on its score with the target itself; [rows] each.

    scores: [rows, C], or a list column where slates differ in size; positions [rows]: the target's place in its slate.
    Raises DataError on NaN (naming the row) and on a position outside its slate. Infinite scores are allowed.
    """
    flat, lengths = _checked_scores(scores, row_ids)
    place = np.asarray(positions, dtype=np.int64)
    if len(place) != len(lengths):
        raise DataError(f"positions: {len(place)} positions for {len(lengths)} slates; give one per slate")
    outside = np.flatnonzero((place < 0) | (place >= lengths))
    if outside.size:
        row = int(outside[0])
        raise DataError(f"positions: {_named(row, row_ids)} has {place[row]}, its slate has {lengths[row]} candidates")
    if not len(lengths):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    target = np.repeat(flat[_starts(lengths) + place], lengths)
    above = _sums((flat > target).astype(np.int64), lengths)
    tied = _sums((flat == target).astype(np.int64), lengths)
    return above, tied


def hit_rate(above: Ints, tied: Ints, k: int) -> Floats:
    """HR@K = P(rank <= K), in expectation over tie orders."""
    return np.asarray(np.clip(k - above, 0, tied) / tied, dtype=np.float64)


def _mean_gain(gain: Floats, above: Ints, tied: Ints) -> Floats:
    """Mean of gain[rank - 1] over ranks above + 1 … above + tied."""
    total = np.concatenate([[0.0], np.cumsum(gain)])
    # a lone target takes its gain directly: a difference of cumulative sums would lose the last bits
    return np.where(tied == 1, gain[above], (total[above + tied] - total[above]) / tied)


def ndcg(above: Ints, tied: Ints, k: int) -> Floats:
    """NDCG@K = 1 / log2(1 + rank) if rank <= K else 0 (one relevant item), in expectation over tie orders."""
    ranks = np.arange(1, int((above + tied).max(initial=1)) + 1)
    return _mean_gain(np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0), above, tied)


def reciprocal_rank(above: Ints, tied: Ints, k: int | None = None) -> Floats:
    """1 / rank, in expectation over tie orders; its mean is MRR. k: 0 beyond rank k."""
    ranks = np.arange(1, int((above + tied).max(initial=1)) + 1)
    return _mean_gain(np.where(ranks <= (k or len(ranks)), 1.0 / ranks, 0.0), above, tied)


def per_example(
    scores: Any, positions: Any, row_ids: Sequence[int] | None = None, *, catalogue: bool = False
) -> pl.DataFrame:
    """Every metric of every example: columns hr@1, hr@5, hr@10, ndcg@1, ndcg@5, ndcg@10, mrr, rank, chance.

    `rank` is the mean rank over tie orders (1 = best); `chance` is 1 / (slate size), the HR@1 of a blind guess. A slate
    without its target (position −1) is a miss: its metrics are 0, its rank is behind its last candidate.
    catalogue: the columns of `CATALOGUE_METRICS` too, for slates of the whole catalogue.

    >>> per_example([[0.1, 0.9, 0.9]], [1]).select("hr@1", "mrr", "rank").row(0)
    (0.5, 0.75, 1.5)
    >>> per_example([[0.1, 0.9]], [-1]).select("hr@10", "mrr", "rank").row(0)
    (0.0, 0.0, 3.0)
    """
    place = np.asarray(positions, dtype=np.int64)
    lacks = place == -1
    above, tied = rank_bounds(scores, np.where(lacks, 0, place), row_ids)
    _, lengths = flatten(scores, "scores")
    depths = _CATALOGUE_DEPTHS if catalogue else _DEPTHS
    columns = {f"hr@{k}": hit_rate(above, tied, k) for k in depths}
    columns |= {f"ndcg@{k}": ndcg(above, tied, k) for k in depths}
    columns["mrr"] = reciprocal_rank(above, tied)
    if catalogue:
        columns[f"mrr@{LISTED}"] = reciprocal_rank(above, tied, LISTED)
    columns = {name: np.where(lacks, 0.0, values) for name, values in columns.items()}
    columns["rank"] = np.where(lacks, lengths + 1.0, above + (tied + 1) / 2)
    columns["chance"] = np.where(lacks, 0.0, 1.0 / lengths)
    return pl.DataFrame(columns)


def true_reward(scores: Any, utilities: Any, row_ids: Sequence[int] | None = None) -> Floats:
    """(U(top choice) − mean U) / (max U − mean U) of every slate, [rows].

    U are the true utilities of the slate, aligned with `scores`. 1 is the best possible choice, 0 what a random choice
    gets on average, below 0 worse than random. Several candidates on the top score count by their mean utility.
    Raises DataError on NaN, on rows of different length, and on a slate whose utilities are all equal (the scale has
    no length there).
    """
    flat, lengths = _checked_scores(scores, row_ids)
    truth, truth_lengths = flatten(utilities, "utilities")
    if len(truth_lengths) != len(lengths) or (truth_lengths != lengths).any():
        raise DataError("utilities: not the same number of rows and candidates as the scores; score the same slates")
    bad = ~np.isfinite(truth)
    if bad.any():
        row, position = _first_bad_row(bad, lengths)
        raise DataError(f"utilities: {_named(row, row_ids)}, candidate {position} is not a finite number")
    best, mean = _maxima(truth, lengths), _sums(truth, lengths) / lengths
    flat_rows = np.flatnonzero(best == -_maxima(-truth, lengths))
    if flat_rows.size:
        row = int(flat_rows[0])
        raise DataError(
            f"utilities: {_named(row, row_ids)} has one utility for all candidates; true reward is undefined"
        )
    top = flat == np.repeat(_maxima(flat, lengths), lengths)
    chosen = _sums(np.where(top, truth, 0.0), lengths) / _sums(top.astype(np.int64), lengths)
    return np.asarray((chosen - mean) / (best - mean), dtype=np.float64)
