"""When reward hacking sets in: the first interim evaluation with a margin that still rises and a real fall of HR@1."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import DataError

ALPHA = 0.05
FLIPS = 10_000
_BLOCK = 8_000_000  # entries of a block of resampled statistics held at once


@dataclass(frozen=True)
class Onset:
    """step: where hacking set in, None if nowhere. The rest describes that evaluation, else the last one.

    peak_step: that of the highest HR@1 before it. fall: HR@1 at the peak minus HR@1 then. p: of that fall,
    one-sided, corrected for every pair of evaluations that could have been compared. margin_rise: since the peak, in
    rewards. looks: how many evaluations there were, whose pairs p is corrected for.
    """

    step: int | None
    peak_step: int
    fall: float
    p: float
    margin_rise: float
    looks: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def find_onset(
    steps_T: npt.ArrayLike,
    hits_TR: npt.ArrayLike,
    margin_T: npt.ArrayLike,
    groups_R: Any = None,
    *,
    alpha: float = ALPHA,
    flips: int = FLIPS,
    seed: int = 0,
) -> Onset:
    """The first interim evaluation t with HR@1 significantly below its earlier peak and a margin above the peak's.

    steps_T: increasing. hits_TR: [T, R], 1 where row r's target ranked first (means over seeds are welcome).
    margin_T: mean reward margin on sampled pairs (β · nats). groups_R: users; their rows are flipped together.

    Testing at every evaluation and picking the highest one both invite chance. So all pairs s < t are tested
    together: T_st = Σ_g D_g / √Σ_g D_g² with D_g the fall summed over the rows of user g, against the distribution of
    max_st T_st when whole users change sign (Westfall and Young's single step). A fall found at any of them is then a
    false alarm with probability alpha at most where HR@1 never moves. That holds for rows that had no part in choosing
    where training starts: the best SFT epoch on these very rows has a flattered HR@1, which falls a little whatever
    comes, and false alarms are 10 % instead of 5 %.

    Raises DataError for fewer than two evaluations, shapes that do not fit, or a value that is not finite.
    """
    steps, hits, margin = (np.asarray(a, dtype=np.float64) for a in (steps_T, hits_TR, margin_T))
    evaluations = len(steps)
    if evaluations < 2:
        raise DataError(f"onset: {evaluations} evaluation; it takes at least two to see a fall")
    if hits.ndim != 2 or len(hits) != evaluations or margin.shape != (evaluations,) or hits.shape[1] == 0:
        raise DataError(
            f"onset: {evaluations} steps, hits {hits.shape}, margins {margin.shape}: give one row of each per step"
        )
    if not (np.isfinite(hits).all() and np.isfinite(margin).all()):
        raise DataError("onset: hits and margins must be finite; the run diverged or its log is cut")
    if (np.diff(steps) <= 0).any():
        raise DataError("onset: steps must increase")
    first, later = np.triu_indices(evaluations, 1)
    p_TT = np.ones((evaluations, evaluations))
    p_TT[first, later] = _adjusted(hits, first, later, groups_R, flips, seed)
    mean = hits.mean(axis=1)
    chosen, onset = evaluations - 1, None
    for t in range(1, evaluations):
        peak = int(np.argmax(mean[:t]))
        if p_TT[peak, t] <= alpha and margin[t] > margin[peak]:
            chosen, onset = t, int(steps[t])
            break
    peak = int(np.argmax(mean[:chosen]))
    return Onset(
        onset,
        int(steps[peak]),
        float(mean[peak] - mean[chosen]),
        float(p_TT[peak, chosen]),
        float(margin[chosen] - margin[peak]),
        evaluations,
    )


def _adjusted(
    hits_TR: np.ndarray, first_P: np.ndarray, later_P: np.ndarray, groups_R: Any, flips: int, seed: int
) -> npt.NDArray[np.float64]:
    """One-sided p per pair of evaluations, adjusted over all pairs."""
    rows = hits_TR.shape[1]
    labels = np.arange(rows) if groups_R is None else np.asarray(groups_R)
    if labels.shape != (rows,):
        raise DataError(f"onset: {labels.size} groups for {rows} rows; give one per row")
    codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    sums_TG = np.stack([np.bincount(codes, weights=row) for row in hits_TR])
    fall_PG = sums_TG[first_P] - sums_TG[later_P]
    scale_P = np.sqrt((fall_PG**2).sum(axis=1))
    fall_PG = fall_PG[:, fall_PG.any(axis=0)] / np.where(scale_P > 0, scale_P, 1.0)[:, None]
    observed_P = fall_PG.sum(axis=1)
    rng = np.random.default_rng([seed, 3])
    # Totals that equal the observed one up to rounding count as reaching it.
    reach_P, count_P = observed_P - 1e-9, np.zeros(len(observed_P))
    block = max(1, _BLOCK // max(fall_PG.size, 1))
    for start in range(0, flips, block):
        signs = rng.integers(0, 2, size=(min(block, flips - start), fall_PG.shape[1])) * 2.0 - 1.0
        greatest = (signs @ fall_PG.T).max(axis=1)
        count_P += (greatest[:, None] >= reach_P).sum(axis=0)
    return np.asarray((1 + count_P) / (1 + flips))
