"""From hits to verdicts: controls, p-values, intervals, Holm's adjustment, and what is called a leak.

A probe reads off the slates something that the user's taste has no part in. Each is compared, row by row, with its
*control*: the same probe on data in which only the suspected channel has been cut (slots shuffled, negatives dealt
to other targets, the anchor taken from elsewhere in the history). What is left of its HR@1 above the control came
through that channel; popularity and other honest signals are in both and cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from scipy import stats

from sirius_rec.audit.slates import Floats, Int, SlateSet
from sirius_rec.evaluation.intervals import GroupBootstrap, Interval, holm, sign_flip_p

ALPHA: Final = 0.005
"""Family-wise level: P(any false alarm among the probes that must be at chance) on honest slates."""
MIN_EFFECT: Final = 0.02
"""Least HR@1 above the control that is called a leak; differences of this order are published as progress."""
SLIGHT: Final = 0.005
"""Least HR@1 above the control that is mentioned (caution) when significant."""

CLEAN, CAUTION, LEAK = "clean", "caution", "leak"
_ORDER = (CLEAN, CAUTION, LEAK)
_WIDEST = 200_000  # rows above which rows of one target are not resampled as well


@dataclass
class Evidence:
    """One probe's outcome on the rows it applies to.

    kind: `channel` (must be at its control in an honest protocol), `baseline` (legitimate signal: never a leak), or
        `check` (the verdict comes with the evidence).
    hits_R: expected hits on the applicable rows; empty where there is nothing to guess. rows_R: which rows these are.
    control_R: expected hits of the control on the same rows. p: of "no better than the control", one-sided.
    effect: what decides instead of the excess of the hits, where those understate the channel.
    leak_at, mention_at, at_most: least effect called a leak and a caution, and the worst verdict the probe may give.
    learned_from: what the probe learned from. facts: extra keys for JSON.
    """

    name: str
    kind: str
    why: str
    hits_R: Floats = field(default_factory=lambda: np.empty(0))
    rows_R: Int = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    control_R: Floats | None = None
    p: float | None = None
    effect: float | None = None
    leak_at: float = MIN_EFFECT
    mention_at: float = SLIGHT
    at_most: str = LEAK
    verdict: str = CLEAN
    learned_from: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def hr1(self) -> float | None:
        return float(self.hits_R.mean()) if self.hits_R.size else None

    @property
    def excess(self) -> float | None:
        """HR@1 above the control."""
        if self.control_R is None or not self.hits_R.size:
            return None
        return float((self.hits_R - self.control_R).mean())


def worst(verdicts: Sequence[str]) -> str:
    """The worst of some verdicts; clean where there is none.

    >>> worst(["clean", "caution"])
    'caution'
    """
    return max(verdicts, key=_ORDER.index, default=CLEAN)


def monte_carlo_p(hits_R: Floats, control_R: Floats, sums_K: Floats) -> float:
    """P(a control's total reaches the observed one), from K control totals.

    The larger of two: a t test with the controls' own spread (rows may hang together), and the exact binomial tail
    with the controls' mean (few hits are skewed, and the spread of a few controls is itself uncertain).
    """
    total, n, rounds = float(hits_R.sum()), len(hits_R), len(sums_K)
    mean = float(control_R.mean())
    spread = float(np.std(sums_K, ddof=1)) * np.sqrt(1 + 1 / rounds)
    excess = total - n * mean
    if excess <= 1e-9:
        return 1.0
    normal = float(stats.t.sf(excess / spread, rounds - 1)) if spread > 0 else 0.0
    return max(normal, float(stats.binom.sf(np.ceil(total - 1e-9) - 1, n, min(mean, 1.0))))


def flip_p(excess_R: Floats, groups: Sequence[Int], seed: int) -> float:
    """One-sided p of "mean excess is 0", whole groups' signs flipped; the largest over the groupings given."""
    if not excess_R.size or excess_R.sum() <= 0:
        return 1.0
    largest = 0.0
    for group in groups:
        codes = np.unique(group, return_inverse=True)[1]
        largest = max(largest, sign_flip_p(np.bincount(codes, weights=excess_R).astype(np.float64), seed=seed) / 2)
    return largest


def compared(evidence: Evidence, control: str) -> str:
    """Hits against the control, in words."""
    assert evidence.hr1 is not None and evidence.control_R is not None
    return f"is right in {evidence.hr1:.1%} of rows, {evidence.control_R.mean():.1%} with {control}"


def groupings(slates: SlateSet, rows: Int) -> list[Int]:
    """How rows may hang together: rows of one user (or run of windows), and rows of one target."""
    return [slates.group_R[rows], slates.target_R[rows]]


def bootstraps(slates: SlateSet, rows: Int, seed: int) -> list[GroupBootstrap]:
    """Cluster bootstraps by user and by target; by user alone where there are very many rows."""
    groups = groupings(slates, rows)[: 1 if len(rows) > _WIDEST else None]
    return [GroupBootstrap(len(rows), group, resamples=1000, seed=seed) for group in groups]


def interval(values_R: Floats, plans: Sequence[GroupBootstrap]) -> Interval:
    """The wider of the cluster bootstraps given."""
    found = [made for plan in plans if np.isfinite((made := plan.intervals(values_R)[0]).low)]
    if not found:
        return Interval(float(values_R.mean()), np.nan, np.nan)
    return max(found, key=lambda one: one.high - one.low)


def judge(found: Sequence[Evidence], alpha: float = ALPHA) -> None:
    """Set the verdict of every channel: Holm over all of them, then the size of the effect; never a milder one."""
    channels = [one for one in found if one.kind == "channel" and one.p is not None]
    for one, adjusted in zip(channels, holm([c.p for c in channels if c.p is not None]), strict=True):
        one.facts["p_holm"] = adjusted
        effect = one.effect if one.effect is not None else one.excess or 0.0
        if adjusted < alpha and effect >= one.mention_at:
            reached = LEAK if effect >= one.leak_at else CAUTION
            one.verdict = worst([one.verdict, min(reached, one.at_most, key=_ORDER.index)])
