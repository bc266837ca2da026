"""Trivial baselines: rankers that every result table carries, none of which learns by gradient.

All share one shape: `fit(sequences, n_items)` on the users' train sequences (arrays of dense item numbers), or for
`DirectedItemKNN` `fit(histories, targets, n_items)` on the train windows, then
`score(histories, candidates) -> list of float64 arrays aligned with the candidates`; a larger score ranks higher.
An item never seen in train scores 0. Scores of a row do not depend on the other rows of the call, except for
`RandomRanker`, whose stream runs through the rows in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sirius_rec.errors import ConfigError, DataError, ScoringError

Floats = npt.NDArray[np.float64]
Items = npt.NDArray[np.integer[Any]]

_PAIRS = 4_000_000  # (history item, candidate) pairs held at once
_ROWS = 512  # co-occurrence rows held at once


def _joined(rows: Sequence[Items], n_items: int, what: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Flat items and row lengths; every item must be 0 … n_items - 1."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if len(rows) else np.empty(0, np.int64)
    outside = np.flatnonzero((flat < 0) | (flat >= n_items))
    if outside.size:
        row = int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))
        raise DataError(
            f"{what}: row {row} holds item {flat[outside[0]]}, the catalogue has {n_items} items (0 … {n_items - 1})"
        )
    return flat, lengths


def _split(flat: Floats, lengths: npt.NDArray[np.int64]) -> list[Floats]:
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _same_rows(histories: Sequence[Items], candidates: Sequence[Items]) -> None:
    if len(histories) != len(candidates):
        raise ScoringError(f"{len(histories)} histories for {len(candidates)} slates; give one history per slate")


class RandomRanker:
    """Uniform random scores: its HR@1 is chance, its interval shows what noise looks like."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, sequences: Sequence[Items], n_items: int) -> RandomRanker:
        """Nothing to learn."""
        return self

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        """Uniform on [0, 1); the same call gives the same scores."""
        _same_rows(histories, candidates)
        lengths = np.array([len(row) for row in candidates], dtype=np.int64)
        return _split(np.random.default_rng(self.seed).random(int(lengths.sum())), lengths)


class Popularity:
    """Score = number of interactions with the item in train."""

    def __init__(self) -> None:
        self.counts: Floats | None = None

    def fit(self, sequences: Sequence[Items], n_items: int) -> Popularity:
        flat, _ = _joined(sequences, n_items, "sequences")
        self.counts = np.bincount(flat, minlength=n_items).astype(np.float64)
        return self

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        if self.counts is None:
            raise ScoringError("popularity: not fitted; call fit(sequences, n_items) first")
        _same_rows(histories, candidates)
        flat, lengths = _joined(candidates, len(self.counts), "candidates")
        return _split(self.counts[flat], lengths)


class ItemKNN:
    """Item-based nearest neighbours on users' train item sets.

    sim(i, j) = |U_i ∩ U_j| / (sqrt(|U_i| |U_j|) + shrinkage) with U_i the users who have i in train, and sim(i, i) = 0;
    score(candidate) = Σ sim(h, candidate) over the history's items (an item listed twice counts twice). With
    shrinkage 0 this is the cosine; larger values trust rare items less.
    """

    def __init__(self, shrinkage: float = 0.0) -> None:
        if not (np.isfinite(shrinkage) and shrinkage >= 0):
            raise ConfigError(f"item_knn shrinkage: {shrinkage}; give a number >= 0")
        self.shrinkage = shrinkage
        self._users_items: sparse.csr_array | None = None

    def fit(self, sequences: Sequence[Items], n_items: int) -> ItemKNN:
        flat, lengths = _joined(sequences, n_items, "sequences")
        users = np.repeat(np.arange(len(lengths)), lengths)
        pairs = np.unique(users * n_items + flat)  # a set per user: repeats count once
        matrix = sparse.csr_array(
            (np.ones(len(pairs)), (pairs // n_items, pairs % n_items)), shape=(len(lengths), n_items)
        )
        self._users_items, self._items_users = matrix, matrix.T.tocsr()
        self._norm = np.sqrt(np.bincount(pairs % n_items, minlength=n_items))
        return self

    def _similarity(self, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> Floats:
        """sim of item pairs, [pairs]. Only co-occurrence rows of items in `left` are ever formed, a block at a time."""
        assert self._users_items is not None
        order = np.argsort(left, kind="stable")
        unique, first = np.unique(left[order], return_index=True)
        ends = np.append(first[1:], len(left))
        together = np.zeros(len(left))
        for start in range(0, len(unique), _ROWS):
            block = unique[start : start + _ROWS]
            counts = (self._items_users[block] @ self._users_items).tocsr()
            counts.sort_indices()  # lets scipy look the pairs up by bisection
            chosen = order[first[start] : ends[start + len(block) - 1]]
            rows = np.searchsorted(block, left[chosen])
            together[chosen] = np.asarray(counts[rows, right[chosen]]).reshape(-1)
        scale = self._norm[left] * self._norm[right] + self.shrinkage
        return np.divide(together, scale, out=np.zeros(len(left)), where=(together > 0) & (left != right))

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        if self._users_items is None:
            raise ScoringError("item_knn: not fitted; call fit(sequences, n_items) first")
        _same_rows(histories, candidates)
        n_items = self._users_items.shape[1]
        seen, history_lengths = _joined(histories, n_items, "histories")
        slate, slate_lengths = _joined(candidates, n_items, "candidates")
        scores = np.zeros(len(slate))
        # one entry per candidate: its row's history is a run of `seen`
        runs = np.repeat(history_lengths, slate_lengths)
        starts = np.repeat(np.cumsum(history_lengths) - history_lengths, slate_lengths)
        bounds = np.searchsorted(np.cumsum(runs), np.arange(_PAIRS, int(runs.sum()) + _PAIRS, _PAIRS), side="left") + 1
        begin = 0
        for end in np.minimum(bounds, len(slate)):
            run, entry = runs[begin:end], np.arange(begin, end)
            offsets = np.arange(int(run.sum())) - np.repeat(np.cumsum(run) - run, run)
            left, right = seen[np.repeat(starts[begin:end], run) + offsets], np.repeat(slate[entry], run)
            owner = np.repeat(entry - begin, run)
            scores[begin:end] = np.bincount(owner, weights=self._similarity(left, right), minlength=end - begin)
            begin = int(end)
        return _split(scores, slate_lengths)


class DirectedItemKNN:
    """Item-based nearest neighbours from history item to next item, on the train windows.

    c(h, t) = number of windows with h in the history and t as target, n_h and n_t its margins (windows with h in the
    history, windows with target t): sim(h → t) = c(h, t) / sqrt(n_h n_t), the cosine of the two window sets;
    score(candidate) = Σ sim(h → candidate) over the history's items (an item listed twice counts twice). Unlike
    `ItemKNN` it knows what comes after what, and what is ever a target at all.
    """

    def __init__(self) -> None:
        self._similarity: sparse.csr_array | None = None

    def fit(self, histories: Sequence[Items], targets: Sequence[int] | Items, n_items: int) -> DirectedItemKNN:
        """histories: one array per window; targets [windows]. A repeated item of a history counts once."""
        if len(histories) != len(targets):
            raise ScoringError(f"{len(histories)} histories for {len(targets)} targets; give one history per target")
        flat, lengths = _joined(histories, n_items, "histories")
        target_W, _ = _joined([np.array([target]) for target in targets], n_items, "targets")
        windows = np.repeat(np.arange(len(lengths)), lengths)
        pairs = np.unique(windows * n_items + flat)
        window_P, item_P = pairs // n_items, pairs % n_items
        counts = sparse.coo_array((np.ones(len(pairs)), (item_P, target_W[window_P])), shape=(n_items, n_items)).tocsr()
        from_h = np.bincount(item_P, minlength=n_items)
        to_t = np.bincount(target_W, minlength=n_items)
        rows, columns = counts.nonzero()
        counts.data /= np.sqrt(from_h[rows] * to_t[columns])
        self._similarity = counts
        return self

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        if self._similarity is None:
            raise ScoringError("item_knn_directed: not fitted; call fit(histories, targets, n_items) first")
        _same_rows(histories, candidates)
        n_items = self._similarity.shape[0]
        seen, history_lengths = _joined(histories, n_items, "histories")
        slate, slate_lengths = _joined(candidates, n_items, "candidates")
        starts = np.append(0, np.cumsum(history_lengths))
        ends = np.append(0, np.cumsum(slate_lengths))
        scores = np.zeros(len(slate))
        for start in range(0, len(histories), _ROWS):
            end = min(start + _ROWS, len(histories))
            owner = np.repeat(np.arange(end - start), history_lengths[start:end])
            items = seen[starts[start] : starts[end]]
            taste = sparse.coo_array((np.ones(len(items)), (owner, items)), shape=(end - start, n_items)).tocsr()
            reached = (taste @ self._similarity).tocsr()
            reached.sort_indices()  # lets scipy look the pairs up by bisection
            rows = np.repeat(np.arange(end - start), slate_lengths[start:end])
            shown = slate[ends[start] : ends[end]]
            if len(shown):
                scores[ends[start] : ends[end]] = np.asarray(reached[rows, shown]).reshape(-1)
        return _split(scores, slate_lengths)
