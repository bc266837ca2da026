"""Recency, first-order Markov and EASE^R, in the shape of `trivial`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from sirius_rec.errors import ConfigError, DataError, ScoringError
from sirius_rec.rankers.trivial import Floats, Items, _joined, _same_rows, _split

# A dense float64 matrix of that many items takes 3.2 GB; XᵀX, its inverse and the best of those so far are three.
EASE_ITEMS = 20_000


def checked_times(timestamps: npt.ArrayLike, rows: int) -> Floats:
    """float64 [rows]; DataError where a time is missing."""
    times = np.asarray(timestamps, dtype=np.float64)
    if times.shape != (rows,) or not np.isfinite(times).all():
        raise DataError("recency: every train row needs its timestamp; sources of ready-made windows have none")
    return times


def check_size(n_items: int) -> None:
    """ConfigError where EASE's matrix would be too large."""
    if n_items > EASE_ITEMS:
        raise ConfigError(f"ease: {n_items} items; its dense matrix is made for at most {EASE_ITEMS}, leave it out")


class Recency:
    """Score = when the item was last a target in train (seconds); items that never were rank last, together."""

    def __init__(self) -> None:
        self.last_I: Floats | None = None

    def fit(self, targets: Items, timestamps: npt.ArrayLike, n_items: int) -> Recency:
        """targets, timestamps: of the train rows. DataError where a time is missing."""
        times = checked_times(timestamps, len(targets))
        target, _ = _joined([np.asarray(targets)], n_items, "targets")
        self.last_I = np.full(n_items, -np.inf)
        np.maximum.at(self.last_I, target, times)
        earliest = times.min() - 1.0 if len(times) else 0.0
        self.last_I[np.isinf(self.last_I)] = earliest
        return self

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        if self.last_I is None:
            raise ScoringError("recency: not fitted; call fit(targets, timestamps, n_items) first")
        _same_rows(histories, candidates)
        flat, lengths = _joined(candidates, len(self.last_I), "candidates")
        return _split(self.last_I[flat], lengths)


class Markov:
    """Score = how often the candidate came right after the history's last item in train; ties by popularity.

    count(last → c) + popularity(c) / (total + 1): the second part is below 1 and only ranks what the first ties.
    An empty history leaves popularity.
    """

    def __init__(self) -> None:
        self._counts: sparse.csr_array | None = None

    def fit(self, sequences: Sequence[Items], n_items: int) -> Markov:
        flat, lengths = _joined([s for s in sequences if len(s)], n_items, "sequences")
        if len(flat):
            inner = np.ones(len(flat) - 1, dtype=bool)
            inner[np.cumsum(lengths)[:-1] - 1] = False
        else:
            inner = np.zeros(0, dtype=bool)
        before, after = flat[:-1][inner], flat[1:][inner]
        counts = sparse.coo_array((np.ones(len(before)), (before, after)), shape=(n_items, n_items)).tocsr()
        counts.sort_indices()  # lets scipy look the pairs up by bisection
        self._counts = counts
        self._popularity = np.bincount(flat, minlength=n_items) / (len(flat) + 1.0)
        return self

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        if self._counts is None:
            raise ScoringError("markov: not fitted; call fit(sequences, n_items) first")
        _same_rows(histories, candidates)
        n_items = self._counts.shape[0]
        _joined(histories, n_items, "histories")
        flat, lengths = _joined(candidates, n_items, "candidates")
        last = np.array([row[-1] if len(row) else -1 for row in histories], dtype=np.int64)
        scores = self._popularity[flat]
        last_F = np.repeat(last, lengths)
        rows = np.flatnonzero(last_F >= 0)
        if len(rows):
            scores[rows] += np.asarray(self._counts[last_F[rows], flat[rows]]).reshape(-1)
        return _split(scores, lengths)


# λ that are tried where none is given; the search begins at the one that is named.
L2_STEPS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0)
_FIRST_L2 = 300.0


class EASE:
    """EASE^R (Steck 2019): the item–item matrix that best rebuilds users' item sets, with a zero diagonal.

    P = (XᵀX + λI)⁻¹, B = −P / diag(P) column by column, B_jj = 0; score(candidate) = Σ B[h, candidate] over the
    history's distinct items. l2: λ > 0. Dense in the catalogue: refused above 20,000 items.
    """

    def __init__(self, l2: float = 100.0) -> None:
        if not (np.isfinite(l2) and l2 > 0):
            raise ConfigError(f"ease l2: {l2}; give a number above 0")
        self.l2 = l2
        self.weights_II: Floats | None = None

    def fit(self, sequences: Sequence[Items], n_items: int) -> EASE:
        return self._solve(_together(sequences, n_items))

    def _solve(self, gram_II: Floats) -> EASE:
        """gram_II: XᵀX, of which a copy is inverted."""
        regular_II = gram_II.copy()
        regular_II[np.diag_indices(len(gram_II))] += self.l2
        inverse_II = linalg.inv(regular_II, overwrite_a=True, check_finite=False)
        inverse_II /= -np.diag(inverse_II)[None, :]
        np.fill_diagonal(inverse_II, 0.0)
        self.weights_II = inverse_II
        return self

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        if self.weights_II is None:
            raise ScoringError("ease: not fitted; call fit(sequences, n_items) first")
        _same_rows(histories, candidates)
        n_items = len(self.weights_II)
        _joined(histories, n_items, "histories")
        flat, lengths = _joined(candidates, n_items, "candidates")
        starts = np.append(0, np.cumsum(lengths))
        out = np.zeros(len(flat))
        for row, history in enumerate(histories):
            part = slice(starts[row], starts[row + 1])
            items = np.unique(np.asarray(history, dtype=np.int64))
            out[part] = self.weights_II[np.ix_(items, flat[part])].sum(axis=0)
        return _split(out, lengths)


def _together(sequences: Sequence[Items], n_items: int) -> Floats:
    """[items, items] XᵀX: how many users had both."""
    check_size(n_items)
    flat, lengths = _joined(sequences, n_items, "sequences")
    users = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(users * n_items + flat)
    x = sparse.csr_array((np.ones(len(pairs)), (pairs // n_items, pairs % n_items)), shape=(len(lengths), n_items))
    gram: Floats = (x.T @ x).toarray()
    return gram


def best_ease(sequences: Sequence[Items], n_items: int, quality: Callable[[EASE], float]) -> EASE:
    """EASE with the λ of L2_STEPS that has the best `quality` (higher is better).

    From 300 the search goes up or down as long as that is an improvement: λ too small learns by heart, too large learns
    popularity, and there is one best in between.
    """
    gram_II = _together(sequences, n_items)
    best = EASE(_FIRST_L2)._solve(gram_II)
    highest = quality(best)
    first = L2_STEPS.index(_FIRST_L2)
    for steps in (L2_STEPS[first + 1 :], L2_STEPS[:first][::-1]):
        for l2 in steps:
            ranker = EASE(l2)._solve(gram_II)
            found = quality(ranker)
            if found <= highest:
                break
            best, highest = ranker, found
        if best.l2 != _FIRST_L2:
            break
    return best
