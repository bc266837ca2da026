"""Where targets stand in their slates: must be anywhere, whatever the item, the user or the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from sirius_rec.audit.evidence import Evidence, compared, monte_carlo_p
from sirius_rec.audit.slates import NONE, Floats, Hits, Int, SlateSet, expected_hits, joined, rounds_for, shuffles

_NOISE = 3.0  # standard deviations within which a preferred slot is taken for noise
_HABIT = 1e-3  # p above which slots that come back are taken for noise
_ROUNDS = 200
_WEAK = 100  # what the p-value of pairs is multiplied by, that of hits by 1.01: no verdict on pairs hangs by a thread
_ROWS = 30_000  # rows whose slots are compared; a seeded choice above
HOMES: Final = {
    "slot_of_the_user": "rows of one user",
    "slot_after_the_last_item": "rows after one last history item",
}


def _against_shuffles(evidence: Evidence, slates: SlateSet, hits: Hits, seed: int, *, habit: bool = True) -> Evidence:
    """Fill in hits, and the control with every slate in random order, which without a habit is the same."""
    evidence.rows_R = np.arange(slates.n_rows)
    evidence.hits_R = hits(slates.candidates_RC, slates.position_R)
    if not habit:
        evidence.control_R, evidence.p = evidence.hits_R, 1.0
        return evidence
    rounds = rounds_for(slates)
    total_R, sums = np.zeros(slates.n_rows), np.empty(rounds)
    for k, (candidates_RC, position_R) in enumerate(shuffles(slates, rounds, seed)):
        drawn = hits(candidates_RC, position_R)
        total_R += drawn
        sums[k] = drawn.sum()
    evidence.control_R = total_R / rounds
    evidence.p = monte_carlo_p(evidence.hits_R, evidence.control_R, sums)
    return evidence


def position_marginal(slates: SlateSet, learn: SlateSet | None, seed: int) -> Evidence:
    """The slot that targets stand in most often; learned from other files, or from the other half of this one.

    Slots whose count lies within three standard deviations of an even share count as equal: noise is no hint.
    """
    half_R = slates.group_R % 2
    width = slates.candidates_RC.shape[1]

    def hits(candidates_RC: Int, position_R: Int) -> Floats:
        score_RC = np.zeros(candidates_RC.shape)
        if learn is not None:
            score_RC += _slot_scores(learn.position_R, learn.size_R, width)
        else:
            for half in (0, 1):
                other = half_R != half
                score_RC[half_R == half] = _slot_scores(position_R[other], slates.size_R[other], width)
        return expected_hits(score_RC, position_R, candidates_RC != NONE)

    evidence = Evidence("position_marginal", "channel", "", learned_from=_source(learn))
    _against_shuffles(evidence, slates, hits, seed)
    evidence.why = f"the slot that targets prefer {compared(evidence, 'slates in random order')}"
    return evidence


def _slot_scores(position_R: Int, size_R: Int, width: int) -> Floats:
    """float64[width]: standard deviations of each slot's count above an even share, 0 where below three."""
    counts = np.bincount(position_R, minlength=width)[:width]
    sizes, rows = np.unique(size_R, return_counts=True)
    inside = np.arange(width)[:, None] < sizes[None, :]
    expected = (inside * (rows / np.maximum(sizes, 1))).sum(axis=1)
    excess = (counts - expected) / np.sqrt(np.maximum(expected, 1e-12))
    return np.where((excess > _NOISE) & (expected > 0), excess, 0.0)


def position_per_target(
    slates: SlateSet, learn: SlateSet | None, seed: int, popularity: Floats | None = None, same: Agreement | None = None
) -> Evidence:
    """Each item's home slot: where it stood when it was the target, elsewhere.

    score(c in slot p) = (n_cp + 1/C) / (n_c + 1), n_cp the learning rows with target c in slot p: a candidate at home
    is likely, one that was never a target less so, one away from home hardly. Without another file the other rows of
    this one teach (a row never teaches itself). Where rows of one target share a slot no more often than chance has it
    (`agreement`), homes are noise and all candidates tie. popularity: breaks ties, per item. same: that agreement,
    where it is known.

    The p-value is the smaller of two, in a weighted Bonferroni: of the hits, and of all pairs of rows of one target in
    all files, which finds weak habits. The effect is that of knowing every home, where that is more than the hits show.
    """
    source = learn if learn is not None else slates
    width = max(slates.candidates_RC.shape[1], source.candidates_RC.shape[1])
    targets = np.unique(source.target_R)
    number_I = np.full(1 + int(max(slates.candidates_RC.max(), targets.max())), len(targets))
    number_I[targets] = np.arange(len(targets))  # a row of the table per known target, and one for all other items
    tie_I = np.zeros(len(number_I)) if popularity is None else popularity / (1e6 * (popularity.max() + 1))
    taught = None if learn is None else _home_counts(number_I[learn.target_R], learn.position_R, width, len(targets))
    everything = slates if learn is None else joined([learn, slates])
    same = same or agreement(everything.target_R, everything, seed)
    repeated, steady = _repeated(everything)
    row = np.arange(slates.n_rows)

    def hits(candidates_RC: Int, position_R: Int) -> Floats:
        item_RC = np.maximum(candidates_RC, 0)
        score_RC = tie_I[item_RC]
        if same.habit:
            table_TP = taught
            if table_TP is None:
                table_TP = _home_counts(number_I[slates.target_R], position_R, width, len(targets))
            code_RC = number_I[item_RC]
            here_RC = table_TP[code_RC, np.arange(code_RC.shape[1])[None, :]]
            total_RC = table_TP.sum(axis=1)[code_RC]
            if taught is None:
                here_RC[row, position_R] -= 1
                total_RC[row, position_R] -= 1
            score_RC = score_RC + (here_RC + 1.0 / code_RC.shape[1]) / (total_RC + 1.0)
        return expected_hits(score_RC, position_R, candidates_RC != NONE)

    name = "position_per_target" if popularity is None else "popularity_among_ties"
    evidence = Evidence(name, "channel", "", learned_from=_source(learn))
    _against_shuffles(evidence, slates, hits, seed, habit=same.habit)
    what = "each item's home slot" + ("" if popularity is None else ", ties by popularity,")
    evidence.why = f"{what} {compared(evidence, 'slates in random order')}"
    evidence.facts |= {"repeated_targets": repeated, "repeated_targets_in_one_slot": steady}
    habit = "" if same.habit else ": no home slots"
    evidence.why += f"; {steady:,} of {repeated:,} repeated targets keep one slot{habit}"
    if popularity is None:
        same.join(evidence)
    return evidence


def position_per_key(
    name: str, key_R: Int, key_L: Int, slates: SlateSet, learn: SlateSet | None, seed: int
) -> Evidence:
    """The slot in which targets of rows with the same key stand, in these files: of one user, or one last history item.

    Args:
        name: of `HOMES`. key_R, key_L: the keys of the rows here and of the learning rows, from 0; -1 for none.
    """
    width = max(slates.candidates_RC.shape[1], 0 if learn is None else learn.candidates_RC.shape[1])
    n_keys = 1 + int(max(key_R.max(initial=-1), key_L.max(initial=-1)))
    everything = slates if learn is None else joined([learn, slates])
    same = agreement(np.concatenate([key_L, key_R]), everything, seed)
    known = key_L >= 0
    taught = np.zeros((n_keys + 1, width))
    if learn is not None:
        taught += _home_counts(key_L[known], learn.position_R[known], width, n_keys)
    keyed_R = np.where(key_R >= 0, key_R, n_keys)
    row = np.arange(slates.n_rows)

    def hits(candidates_RC: Int, position_R: Int) -> Floats:
        score_RC = np.zeros(candidates_RC.shape)
        if same.habit:
            table_KP: Floats = taught + _home_counts(keyed_R, position_R, width, n_keys)
            slot_C = np.arange(candidates_RC.shape[1])
            score_RC += table_KP[keyed_R[:, None], slot_C[None, :]]
            score_RC[row, position_R] -= 1  # a row does not teach itself
            score_RC[key_R < 0] = 0.0
        return expected_hits(score_RC, position_R, candidates_RC != NONE)

    evidence = Evidence(name, "channel", "", learned_from=_source(learn))
    _against_shuffles(evidence, slates, hits, seed, habit=same.habit)
    habit = "" if same.habit else ": no home slots"
    evidence.why = f"the slot of targets in {HOMES[name]} {compared(evidence, 'slates in random order')}{habit}"
    same.join(evidence)
    return evidence


def keys(name: str, slates: SlateSet, learn: SlateSet | None) -> tuple[Int, Int] | None:
    """(int64[R], int64[L]) for `position_per_key`, rows here and learning rows; None where no row has such a key."""
    if name == "slot_after_the_last_item":
        key_R = slates.last_R
        return None if (key_R < 0).all() else (key_R, np.empty(0, dtype=np.int64) if learn is None else learn.last_R)
    if learn is None or not (slates.users and learn.users):
        return slates.group_R, np.full(0 if learn is None else learn.n_rows, NONE, dtype=np.int64)
    code = np.unique(np.concatenate([slates.user_R, learn.user_R]), return_inverse=True)[1].astype(np.int64)
    return code[: slates.n_rows], code[slates.n_rows :]


@dataclass(frozen=True)
class Agreement:
    """Pairs of rows with one key: how many share their slot, by chance how many, p, and q̂, the share of rows at home.

    Two rows at the same home agree; others by chance e. So the share that agrees is q² + (1 − q²) e.
    """

    pairs: int
    shared: float
    by_chance: float
    p: float
    at_home: float
    size: float

    @property
    def habit(self) -> bool:
        return self.p < _HABIT

    def join(self, evidence: Evidence) -> None:
        """Take the pairs into an evidence of hits: p of the two, and the effect that knowing every home would have."""
        assert evidence.p is not None
        attainable = self.at_home * (1 - 1 / self.size)
        evidence.p = min(1.0, evidence.p * _WEAK / (_WEAK - 1), _WEAK * self.p)
        if self.habit:
            evidence.effect = max(attainable, evidence.excess or 0.0)
            evidence.why += f"; about {self.at_home:.0%} of rows keep a home slot"
        evidence.facts |= {"pairs": self.pairs, "pairs_in_one_slot": self.shared, "pairs_by_chance": self.by_chance}


def agreement(key_R: Int, rows: SlateSet, seed: int) -> Agreement:
    """Do rows with one key (-1: none) put their targets into one slot?

    The p-value compares all pairs with those of `_ROUNDS` shuffles of slots among rows of slates of one size, by a
    Pearson III fit (such sums of squares are skewed). Slots that all targets prefer are in both.
    """
    rng = np.random.default_rng([seed, 26])
    chosen = _distinct(rows)
    chosen = chosen[key_R[chosen] >= 0]
    if len(chosen) > _ROWS:
        chosen = np.sort(rng.permutation(chosen)[:_ROWS])
    key = np.unique(key_R[chosen], return_inverse=True)[1]
    counts = np.bincount(key)
    chosen, key = chosen[counts[key] > 1], key[counts[key] > 1]
    position, size = rows.position_R[chosen], rows.size_R[chosen]
    mean_size = float(rows.size_R.mean())
    pairs = int((counts * (counts - 1) // 2).sum())
    if not pairs:
        return Agreement(0, 0.0, 0.0, 1.0, 0.0, mean_size)
    width = int(position.max()) + 1
    one_size = bool((size == size[0]).all())
    by_size = np.argsort(size, kind="stable")

    def agreeing(places: Int) -> float:
        cells = np.bincount(key * width + places).astype(np.float64)
        return float((cells * (cells - 1)).sum() / 2)

    drawn = np.empty(_ROUNDS)
    for k in range(_ROUNDS):
        dealt = rng.permutation(position)
        if not one_size:  # slots of one size change places among themselves
            dealt[by_size] = position[np.lexsort((rng.random(len(size)), size))]
        drawn[k] = agreeing(dealt)
    observed, mean, spread = agreeing(position), float(drawn.mean()), float(drawn.std(ddof=1))
    if spread == 0:
        p = 1.0 if observed <= mean else 0.0
    else:
        # at least that of χ² with a slot less than all of each key; a few keys with most rows have more
        skew = max(float(stats.skew(drawn)), float(np.sqrt(8 / (len(np.unique(key)) * max(width - 1, 1)))))
        p = float(stats.pearson3.sf((observed - mean) / (spread * np.sqrt(1 + 1 / _ROUNDS)), skew))
    chance = min(mean / pairs, 1 - 1e-9)
    at_home = float(np.sqrt(max(0.0, observed / pairs - chance) / (1 - chance)))
    return Agreement(pairs, observed / pairs, chance, p, at_home, mean_size)


def _distinct(rows: SlateSet) -> Int:
    """Rows without those that repeat a history and a slate, as files of several epochs do."""
    whole = np.ascontiguousarray(np.hstack([rows.history_RH, rows.candidates_RC, rows.target_R[:, None]]))
    keys = whole.view(np.dtype((np.void, whole.dtype.itemsize * whole.shape[1]))).ravel()
    return np.sort(np.unique(keys, return_index=True)[1]).astype(np.int64)


def _repeated(rows: SlateSet) -> tuple[int, int]:
    """(targets with at least two rows, those of them that always stand in one slot)."""
    order = np.argsort(rows.target_R, kind="stable")
    position = rows.position_R[order]
    _, first, counts = np.unique(rows.target_R[order], return_index=True, return_counts=True)
    same = np.minimum.reduceat(position, first) == np.maximum.reduceat(position, first)
    return int((counts > 1).sum()), int(((counts > 1) & same).sum())


def _source(learn: SlateSet | None) -> str:
    return learn.where if learn is not None else "other rows of this file"


def _home_counts(target_R: Int, position_R: Int, width: int, n_targets: int) -> Floats:
    """float64[n_targets + 1, width]: rows with each target in each slot; the last line stays zero."""
    size = (n_targets + 1) * width
    return np.bincount(target_R * width + position_R, minlength=size).astype(np.float64).reshape(-1, width)
