"""Several rankers as one: a weighted sum of their scores, the weights from held-out slates.

Given a slate, the probability that candidate i is the answer is modelled as softmax_i(Σ_m w_m s_m(i)), the conditional
logit of McFadden (1974); its log-likelihood is concave in the weights, so there is one best and nothing to search for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from sirius_rec.errors import ScoringError
from sirius_rec.rankers.protocol import UNSEEN, Items

Floats = npt.NDArray[np.float64]
_RIDGE = (
    1e-3  # of a whole set of slates, on weights of scores with variance 1: a ranker that is always right stays finite
)


def fit_weights(scores_RC: Sequence[Sequence[npt.NDArray[Any]]], positions_R: Sequence[int]) -> Floats:
    """One weight ≥ 0 for each ranker, in 1 / (unit of its score): none is turned upside down.

    scores_RC: of each ranker one array per slate. positions_R: where the target stands in each slate. A ranker whose
    scores never differ within a slate gets 0.

    Raises:
        ScoringError: no slates, or scores that are not finite.
    """
    if not scores_RC or not len(positions_R):
        raise ScoringError("fusion: no slates to choose weights on")
    centred = []  # within a slate only differences matter
    for ranker in scores_RC:
        rows = [known(row) for row in ranker]
        if not all(np.isfinite(row).all() for row in rows):
            raise ScoringError("fusion: a score is not a finite number; it cannot be weighed")
        centred.append([row - row.mean() for row in rows])
    scale_M = np.array([np.sqrt(np.mean(np.concatenate(rows) ** 2)) for rows in centred])
    size_M = np.array([max(float(np.abs(known(row)).max()) for row in ranker) for ranker in scores_RC])
    used = np.flatnonzero(scale_M > 1e-12 * size_M)  # less is rounding
    weights_M = np.zeros(len(centred))
    if not used.size:
        return weights_M
    slates = [np.stack([centred[m][r] / scale_M[m] for m in used], axis=1) for r in range(len(positions_R))]

    def loss(weights: Floats) -> tuple[float, Floats]:
        value, gradient = _RIDGE * float(weights @ weights), 2 * _RIDGE * weights
        for features_CM, target in zip(slates, positions_R, strict=True):
            utility_C = features_CM @ weights
            highest = utility_C.max()
            odds_C = np.exp(utility_C - highest)
            total = odds_C.sum()
            value += float(highest + np.log(total) - utility_C[target])
            gradient = gradient + odds_C @ features_CM / total - features_CM[target]
        return value, gradient

    bounds = [(0, None)] * used.size
    best = optimize.minimize(loss, np.zeros(used.size), jac=True, method="L-BFGS-B", bounds=bounds)
    weights_M[used] = best.x / scale_M[used]
    return weights_M


def known(scores_C: npt.NDArray[Any]) -> Floats:
    """Items that a ranker knows nothing of stand with the last of those that it knows: others may still lift them."""
    row = np.asarray(scores_C, dtype=np.float64)
    unknown = row <= UNSEEN
    if unknown.all():
        return np.zeros_like(row)
    return np.where(unknown, row[~unknown].min(), row) if unknown.any() else row


class FusionRanker:
    """Scores are Σ_m w_m s_m, log-odds of being the answer as `fit_weights` models it. What has weight 0 is not asked.

    progress: gets the rows just done by all of them.
    """

    def __init__(self, rankers: Sequence[Any], weights: Sequence[float]) -> None:
        self.rankers, self.weights = rankers, weights
        self.progress: Callable[[int], None] | None = None

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        totals = self.fused([partial(ranker.score, histories, candidates) for ranker in self.rankers])
        if self.progress:
            self.progress(len(candidates))
        return totals or [np.zeros(len(slate)) for slate in candidates]

    def fused(self, parts: Sequence[Callable[[], Sequence[npt.NDArray[Any]]]]) -> list[Floats]:
        """The weighted sum of what each ranker's part gives; empty where none has a weight."""
        totals: list[Floats] = []
        for part, weight in zip(parts, self.weights, strict=True):
            if weight:
                scored = [weight * known(scores) for scores in part()]
                totals = [t + s for t, s in zip(totals, scored, strict=True)] if totals else scored
        return totals
