"""What candidates of a class are worth, learned from the other half of the rows."""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression

from sirius_rec.audit.slates import Floats, Int, SlateSet

_NOISE = 3.0  # standard deviations within which a class is taken for no hint


def class_scores(slates: SlateSet, class_RC: Int, position_R: Int, *, rising: bool = False) -> Floats:
    """float64[R, C]: log of how often a candidate's class is the target's, over how often a blind guess has it.

    Learned from the groups of the other half. A class within three standard deviations of a blind guess is worth 0.
    class_RC: numbers from 0; what padding holds is not looked at. rising: let the worth never fall from a class to the
    next (isotonic regression); class 0 is free of that.
    """
    n_classes = int(class_RC.max(initial=0)) + 1
    half_R = slates.group_R % 2
    row, width = np.arange(slates.n_rows), class_RC.shape[1]
    share_RK = np.zeros((slates.n_rows, n_classes))
    valid_RC = slates.valid_RC
    for column in range(width):
        share_RK[row, class_RC[:, column]] += valid_RC[:, column]
    share_RK /= slates.size_R[:, None]
    target_R = class_RC[row, position_R]
    score_RC = np.zeros(class_RC.shape)
    for half in (0, 1):
        other = half_R != half
        hits_K = np.bincount(target_R[other], minlength=n_classes).astype(np.float64)
        blind_K = share_RK[other].sum(axis=0)
        spread_K = np.sqrt((share_RK[other] * (1 - share_RK[other])).sum(axis=0))
        worth_K = np.log((hits_K + 0.5) / (blind_K + 0.5))
        if rising:
            if n_classes > 1:
                worth_K[1:] = isotonic_regression(worth_K[1:], weights=blind_K[1:] + 0.5).x
        else:
            worth_K[np.abs(hits_K - blind_K) <= _NOISE * np.maximum(spread_K, 1e-9)] = 0.0
        score_RC[half_R == half] = worth_K[class_RC[half_R == half]]
    return score_RC
