"""Several rankers as one: a weighted sum of their scores, the weights from held-out slates.

Given a slate, the probability that candidate i is the answer is modelled as softmax_i(Σ_m w_m s_m(i)), the conditional
logit of McFadden (1974); its log-likelihood is concave in the weights, so there is one best and nothing to search for.

Whoever learns items from a log knows nothing of those that the log lacks, and a model that reads titles does. With
`cold` these items have weights of their own and an offset: a conditional logit still, of 2M + 1 columns. Now the level
of scores matters, not their differences alone. That of a network or formula is its mean over the same `REFERENCE` warm
items for each history, whatever else is asked for; log-probs of a language model have theirs already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from sirius_rec.errors import ScoringError
from sirius_rec.rankers.protocol import UNSEEN, Items

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# Of a whole set of slates, on weights of scores with variance 1: a ranker that is always right stays finite.
_RIDGE = 1e-3
REFERENCE = 256  # items whose mean score is a ranker's level


@dataclass(frozen=True)
class Cold:
    """Items that training never met, and what they have of their own.

    items_I: which they are. weights: of each ranker, for them. offset: theirs, in nats. levelled: of which rankers
    scores are taken less their mean over the reference items.
    """

    items_I: Bools
    weights: Sequence[float]
    offset: float
    levelled: Sequence[bool]

    def levels(self, ranker: Any, histories: Sequence[Items]) -> Sequence[npt.NDArray[Any]]:
        """The ranker's scores of the reference items for each history: as many warm items, the same for all."""
        warm = np.flatnonzero(~self.items_I)
        reference = np.sort(np.random.default_rng(0).permutation(warm)[:REFERENCE])
        said, ranker.progress = getattr(ranker, "progress", None), None  # rows are counted once
        try:
            return ranker.score(histories, [reference] * len(histories))  # type: ignore[no-any-return]
        finally:
            ranker.progress = said


def fit_weights(scores_RC: Sequence[Sequence[npt.NDArray[Any]]], positions_R: Sequence[int]) -> Floats:
    """One weight ≥ 0 for each ranker, in 1 / (unit of its score): none is turned upside down.

    scores_RC: of each ranker one array per slate. positions_R: where the target stands in each slate. A ranker whose
    scores never differ within a slate gets 0.

    Raises:
        ScoringError: no slates, or scores that are not finite.
    """
    return _fit([[known(row) for row in ranker] for ranker in scores_RC], positions_R)


def _fit(columns_MRC: Sequence[Sequence[Floats]], positions_R: Sequence[int], *, free: int = 0) -> Floats:
    """The weights of columns as they are. free: the last so many may have negative ones."""
    if not columns_MRC or not len(positions_R):
        raise ScoringError("fusion: no slates to choose weights on")
    centred = []  # within a slate only differences matter
    for rows in columns_MRC:
        if not all(np.isfinite(row).all() for row in rows):
            raise ScoringError("fusion: a score is not a finite number; it cannot be weighed")
        centred.append([row - row.mean() for row in rows])
    scale_M = np.array([np.sqrt(np.mean(np.concatenate(rows) ** 2)) for rows in centred])
    size_M = np.array([max(float(np.abs(row).max()) for row in rows) for rows in columns_MRC])
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

    bounds = [(0 if m < len(centred) - free else None, None) for m in used]
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


def above_level(scores_RC: Sequence[npt.NDArray[Any]], levels: Sequence[npt.NDArray[Any]] | None) -> list[Floats]:
    """Scores less their mean over the reference items; unknown items stand with the last of those. levels: the scores
    of the reference items for each row; None leaves scores as they are."""
    if levels is None:
        return [known(row) for row in scores_RC]
    rows = []
    for row, reference in zip(scores_RC, levels, strict=True):
        floor_I, scores = known(reference), np.asarray(row, dtype=np.float64)
        rows.append(np.where(scores <= UNSEEN, floor_I.min(), scores) - floor_I.mean())
    return rows


def fit_apart(
    scores_RC: Sequence[Sequence[npt.NDArray[Any]]], positions_R: Sequence[int], cold_RC: Sequence[Bools]
) -> tuple[Floats, Floats, float]:
    """For each ranker a weight of items that training met and one of cold ones, and the offset of cold ones in nats.

    scores_RC: `above_level`, of each ranker. cold_RC: for each slate whether training never met the candidate.

    Raises:
        ScoringError: as `fit_weights`, and where no target is cold: nothing would say what cold items are worth.
    """
    if not any(cold_C[target] for cold_C, target in zip(cold_RC, positions_R, strict=True)):
        raise ScoringError(
            "fusion: cold: no target of the validation slates is new to training, so nothing says what new items are "
            "worth: hold some out (data.hold_out.cold_items)"
        )
    columns: list[list[Floats]] = []
    for ranker in scores_RC:
        pairs = list(zip(ranker, cold_RC, strict=True))
        columns += [[row * ~cold_C for row, cold_C in pairs], [row * cold_C for row, cold_C in pairs]]
    columns.append([cold_C.astype(np.float64) for cold_C in cold_RC])
    weights = _fit(columns, positions_R, free=1)
    return weights[:-1:2], weights[1:-1:2], float(weights[-1])


def told_apart(above_MRC: Sequence[Sequence[Floats]], weights: Sequence[float], cold_RC: Sequence[Bools]) -> bool:
    """Whether cold items of a slate ever differ in their weighted sum by more than rounding."""
    for row, cold_C in enumerate(cold_RC):
        if cold_C.sum() > 1:
            parts = [weight * above[row][cold_C] for weight, above in zip(weights, above_MRC, strict=True)]
            if np.ptp(np.sum(parts, axis=0)) > 1e-9 * max(float(np.abs(part).max()) for part in parts):
                return True
    return False


class FusionRanker:
    """Scores are Σ_m w_m s_m, log-odds of being the answer as `fit_weights` models it. What has no weight, neither of
    warm nor of cold items, is not asked.

    cold: what items that training never met have of their own. progress: gets the rows just done by all of them.
    """

    def __init__(self, rankers: Sequence[Any], weights: Sequence[float], cold: Cold | None = None) -> None:
        self.rankers, self.weights, self.cold = rankers, weights, cold
        self.progress: Callable[[int], None] | None = None

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        totals = self.fused(
            [partial(ranker.score, histories, candidates) for ranker in self.rankers], histories, candidates
        )
        if self.progress:
            self.progress(len(candidates))
        return totals

    def fused(
        self,
        parts: Sequence[Callable[[], Sequence[npt.NDArray[Any]]]],
        histories: Sequence[Items],
        candidates: Sequence[Items],
    ) -> list[Floats]:
        """The weighted sum of what each ranker's part gives of these slates."""
        totals: list[Floats] = [np.zeros(len(slate)) for slate in candidates]
        if self.cold is None:
            for part, weight in zip(parts, self.weights, strict=True):
                if weight:
                    totals = [total + weight * known(row) for total, row in zip(totals, part(), strict=True)]
            return totals
        masks = [self.cold.items_I[np.asarray(slate)] for slate in candidates]
        totals = [total + self.cold.offset * mask for total, mask in zip(totals, masks, strict=True)]
        asked = zip(parts, self.rankers, self.cold.levelled, self.weights, self.cold.weights, strict=True)
        for part, ranker, levelled, warm, cold in asked:
            if warm or cold:
                levels = self.cold.levels(ranker, histories) if levelled else None
                rows = zip(totals, above_level(part(), levels), masks, strict=True)
                totals = [total + np.where(mask, cold, warm) * row for total, row, mask in rows]
        return totals
