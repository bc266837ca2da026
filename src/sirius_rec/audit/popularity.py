"""How popular negatives are, and of which category: a legitimate signal, unless the negatives were chosen by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sirius_rec.audit.alike import Interacted, redrawn_alike, redrawn_uniformly
from sirius_rec.audit.evidence import Evidence, compared, flip_p, groupings, monte_carlo_p
from sirius_rec.audit.learned import class_scores
from sirius_rec.audit.negatives import negatives_of
from sirius_rec.audit.slates import NONE, Floats, Int, SlateSet, expected_hits

_BINS = 8  # bands between quantiles of targets, and of negatives
_ROUNDS = 10
UNPOPULAR_LEAK: Final = 0.10
"""Least excess of `unpopular_negatives` called a leak: items that users interacted with outside of the files are
popular too, and no negatives; that alone has been worth 0.04 on MovieLens-100K."""
CATEGORY_LEAK: Final = 0.05
"""The same for `category`, for the same reason."""


@dataclass(frozen=True)
class Counts:
    """How often items were interacted with in `learn`: in all, or before a row's time where both sides have times.

    own: the rows' own groups where `learn` is the audited file itself; a group's own interactions are not counted.
    """

    total_I: Floats
    own: Interacted | None = None
    keys: Int | None = None
    times: Floats | None = None

    def of(self, slates: SlateSet, item_RC: Int) -> Floats:
        """float64[R, C]: 0 for padding and for items beyond the catalogue."""
        inside = (item_RC != NONE) & (item_RC < len(self.total_I))
        item_RC = np.where(inside, item_RC, 0)
        if self.keys is not None and self.times is not None:
            step = len(self.times) + 1
            now_R = np.searchsorted(self.times, slates.time_R)
            low = np.searchsorted(self.keys, item_RC * step)
            count_RC = (np.searchsorted(self.keys, item_RC * step + now_R[:, None]) - low).astype(np.float64)
        else:
            count_RC = self.total_I[item_RC]
        if self.own is not None:
            count_RC = count_RC - self.own.has(slates.group_R[:, None], item_RC)
        return np.where(inside, count_RC, 0.0)


def counts_before(slates: SlateSet, learn: SlateSet, counts_I: Floats) -> Counts:
    """Targets of `learn` earlier than each row, where every row of both has a time; else the counts given."""
    if not (np.isfinite(slates.time_R).all() and np.isfinite(learn.time_R).all()):
        return Counts(counts_I)
    times = np.unique(learn.time_R)
    keys = np.sort(learn.target_R * (len(times) + 1) + np.searchsorted(times, learn.time_R))
    return Counts(counts_I, keys=keys, times=times)


def popularity_band(slates: SlateSet, counts: Counts, source: str, seed: int) -> Evidence:
    """The candidate whose band of popularity targets prefer, learned from the other half of the rows.

    Control: the same with a preference that never falls as popularity rises, which is what taste looks like. Negatives
    that are all popular, or all from the middle, leave others to be targets. Items that nobody had are a band of their
    own, with any preference: new ones may be popular (`cold_targets`).
    """
    count_RC = counts.of(slates, slates.candidates_RC)
    is_target_RC = slates.candidates_RC == slates.target_R[:, None]
    kinds = [count_RC[slates.valid_RC & (count_RC > 0) & kind] for kind in (is_target_RC, ~is_target_RC)]
    quantiles = [np.quantile(kind, np.arange(1, _BINS) / _BINS) for kind in kinds if kind.size]
    edges = np.unique(np.concatenate([*quantiles, [0.0]]))
    class_RC = np.where(count_RC > 0, 1 + np.searchsorted(edges, count_RC, side="left"), 0)
    hits, control = (
        expected_hits(
            class_scores(slates, class_RC, slates.position_R, rising=rising), slates.position_R, slates.valid_RC
        )
        for rising in (False, True)
    )
    rows = np.arange(slates.n_rows)
    evidence = Evidence("popularity_band", "channel", "", hits, rows, control, learned_from=source)
    evidence.p = flip_p(hits - control, groupings(slates, rows), seed)
    evidence.why = f"the band of popularity that targets prefer {compared(evidence, 'more popular always better')}"
    return evidence


def cold_targets(
    slates: SlateSet, counts: Counts, n_items: int, catalogued: bool, known: Interacted, source: str, seed: int
) -> Evidence:
    """The candidate that nobody had, or one that somebody had, whichever targets are more often than candidates.

    Learned from the other half of the rows. Control: the same with negatives drawn uniformly from the catalogue, of
    which as many are cold as there are cold items. Negatives from train items alone leave cold ones to be targets.
    """
    rng = np.random.default_rng([seed, 28])

    def hits(candidates_RC: Int) -> Floats:
        class_RC = (counts.of(slates, candidates_RC) > 0).astype(np.int64)
        return expected_hits(class_scores(slates, class_RC, slates.position_R), slates.position_R, slates.valid_RC)

    rows, observed = np.arange(slates.n_rows), hits(slates.candidates_RC)
    unseen = 0 if catalogued else _unseen(slates, counts)
    drawn = [hits(redrawn_uniformly(slates, n_items, unseen, known, rng)) for _ in range(_ROUNDS)]
    control = np.mean(drawn, axis=0)
    evidence = Evidence("cold_targets", "channel", "", observed, rows, control, learned_from=source)
    evidence.p = flip_p(observed - control, groupings(slates, rows), seed)
    how = compared(evidence, "negatives drawn uniformly from the catalogue")
    evidence.why = f"whether anyone in {source} had the candidate {how}"
    return evidence


def unpopular_negatives(
    slates: SlateSet, counts: Counts, n_items: int, catalogued: bool, known: Interacted, source: str, seed: int
) -> Evidence:
    """The most popular candidate, by what had happened before the row where times are known.

    Control: the same with negatives drawn uniformly from the catalogue, without what the user interacted with. Honest
    negatives are as popular as these or more; where they are less, as with items that nobody had yet, popularity is no
    taste. catalogued: whether the n_items are all there are; else unseen ones are estimated (Chao 1984).
    """
    rng = np.random.default_rng([seed, 24])
    unseen = 0 if catalogued else _unseen(slates, counts)

    def hits(candidates_RC: Int) -> Floats:
        return expected_hits(counts.of(slates, candidates_RC), slates.position_R, slates.valid_RC)

    rows, total, sums = np.arange(slates.n_rows), np.zeros(slates.n_rows), np.empty(_ROUNDS)
    for k in range(_ROUNDS):
        drawn = hits(redrawn_uniformly(slates, n_items, unseen, known, rng))
        total += drawn
        sums[k] = drawn.sum()
    evidence = Evidence(
        "unpopular_negatives", "channel", "", hits(slates.candidates_RC), rows, total / _ROUNDS,
        leak_at=UNPOPULAR_LEAK, mention_at=UNPOPULAR_LEAK / 2, learned_from=source,
    )  # fmt: skip
    assert evidence.control_R is not None
    evidence.p = max(
        monte_carlo_p(evidence.hits_R, evidence.control_R, sums),
        flip_p(evidence.hits_R - evidence.control_R, groupings(slates, rows), seed),
    )
    evidence.why = f"the most popular candidate {compared(evidence, 'negatives drawn uniformly from the catalogue')}"
    return evidence


def _unseen(slates: SlateSet, counts: Counts) -> int:
    """Items nobody interacted with that no slate happens to hold: f1² / (2 f2), f1 of them seen once and f2 twice."""
    _, item = negatives_of(slates)
    times_I = np.bincount(item, minlength=len(counts.total_I))
    cold = times_I[(counts.total_I == 0) & (times_I > 0)]
    once, twice = int((cold == 1).sum()), int((cold == 2).sum())
    return once * (once - 1) // (2 * (twice + 1))


def category(slates: SlateSet, category_I: Int, class_I: Int, known: Interacted, seed: int) -> Evidence | None:
    """The candidate whose category has the share of the history that targets' categories have; None without histories.

    Learned from the other half of the rows. Control: the same with every negative replaced by an item of like
    popularity, whatever its category.
    """
    if not slates.history_RH.shape[1] or len(np.unique(category_I[category_I >= 0])) < 2:
        return None
    of_RH = np.where(slates.history_RH != NONE, category_I[np.maximum(slates.history_RH, 0)], -1)
    length_R = np.maximum((of_RH >= 0).sum(axis=1), 1)
    rng = np.random.default_rng([seed, 25])

    def hits(candidates_RC: Int) -> Floats:
        mine_RC = np.where(candidates_RC != NONE, category_I[np.maximum(candidates_RC, 0)], -2)
        same_RC = np.zeros(mine_RC.shape)
        for back in range(of_RH.shape[1]):
            same_RC += (mine_RC == of_RH[:, back][:, None]) & (mine_RC >= 0)
        class_RC = np.ceil(3 * same_RC / length_R[:, None]).astype(np.int64)
        score_RC = class_scores(slates, class_RC, slates.position_R)
        return expected_hits(score_RC, slates.position_R, slates.valid_RC)

    rows, total, sums = np.arange(slates.n_rows), np.zeros(slates.n_rows), np.empty(_ROUNDS)
    for k in range(_ROUNDS):
        drawn = hits(redrawn_alike(slates, class_I, known, rng))
        total += drawn
        sums[k] = drawn.sum()
    evidence = Evidence(
        "category", "channel", "", hits(slates.candidates_RC), rows, total / _ROUNDS,
        leak_at=CATEGORY_LEAK, mention_at=CATEGORY_LEAK / 2,
    )  # fmt: skip
    assert evidence.control_R is not None
    evidence.p = max(
        monte_carlo_p(evidence.hits_R, evidence.control_R, sums),
        flip_p(evidence.hits_R - evidence.control_R, groupings(slates, rows), seed),
    )
    evidence.why = (
        f"the candidate whose category fits the history as targets' do "
        f"{compared(evidence, 'negatives of like popularity and any category')}"
    )
    return evidence
