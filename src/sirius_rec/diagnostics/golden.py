"""Golden reward against the distance from the reference: R(d) = d (α − β log d), by least squares (Figure 4)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL = 0.95
_NEAREST = 1e-4  # √nats: the distance between two scorings of one model in float32 is smaller
_REACH = 10.0  # times the largest distance: beyond it a peak is the fit's own
_LEAST = 4  # two parameters, and at least two degrees of freedom for their intervals


@dataclass(frozen=True)
class GoldenFit:
    """R(d) − R(0) = d (α − β log d), d = √KL in √nats. Intervals are t intervals of the least-squares fit.

    peak_d = exp(α/β − 1) and peak_gain = β·peak_d where β > 0 and the peak is within ten times the largest distance,
    None otherwise; peak_inside: whether the data reach it.
    r2: share of the variance of the gains around their mean that the curve explains (negative: worse than the mean).
    residual: root mean square deviation. failed: why nothing was fitted, else None.
    """

    n: int
    alpha: float | None = None
    alpha_low: float | None = None
    alpha_high: float | None = None
    beta: float | None = None
    beta_low: float | None = None
    beta_high: float | None = None
    peak_d: float | None = None
    peak_gain: float | None = None
    peak_inside: bool | None = None
    r2: float | None = None
    residual: float | None = None
    failed: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def gain(self, d: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The fitted R(d) − R(0)."""
        if self.alpha is None or self.beta is None:
            raise ValueError(f"nothing was fitted: {self.failed}")
        return np.asarray(_features(np.asarray(d, dtype=np.float64)) @ [self.alpha, self.beta])


def _features(d: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n, 2]: d and −d log d, both 0 at d = 0."""
    return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=-1)


def fit_golden(d: npt.ArrayLike, gain: npt.ArrayLike, level: float = LEVEL) -> GoldenFit:
    """Fit gains of the golden reward (HR@1 minus HR@1 of the reference) at distances d ≥ 0 = √KL(π_θ‖π_ref).

    Points at d = 0 carry nothing (the curve is 0 there) and are left out, and with them those up to d = 1e-4, which is
    rounding. Points of one run over epochs are not independent; the intervals take them as if they were, and are
    therefore too narrow rather than too wide.
    `failed` says why there is no fit: fewer than four points, distances that hardly differ, values not finite.
    """
    x, y = np.asarray(d, dtype=np.float64).ravel(), np.asarray(gain, dtype=np.float64).ravel()
    if x.shape != y.shape:
        raise ValueError(f"{x.size} distances and {y.size} gains: give one of each per point")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return GoldenFit(0, failed="a distance or a gain is not a finite number")
    if (x < 0).any():
        return GoldenFit(0, failed="a distance is negative")
    x, y = x[x > _NEAREST], y[x > _NEAREST]
    n = len(x)
    if n < _LEAST:
        return GoldenFit(n, failed=f"{n} points away from the reference; at least {_LEAST} are needed")
    if x.max() < 1.05 * x.min():
        return GoldenFit(n, failed=f"all distances lie between {x.min():.3g} and {x.max():.3g}: nothing to bend")
    features = _features(x)
    (alpha, beta), _, rank, _ = np.linalg.lstsq(features, y, rcond=None)
    if rank < 2:
        return GoldenFit(n, failed="the distances do not determine two parameters")
    error = y - features @ [alpha, beta]
    variance = float(error @ error) / (n - 2)
    spread = np.sqrt(variance * np.diag(np.linalg.inv(features.T @ features)))
    reach = float(stats.t.ppf((1 + level) / 2, n - 2)) * spread
    total = float(((y - y.mean()) ** 2).sum())
    peak_d = peak_gain = inside = None
    if beta > 0 and alpha / beta - 1 <= math.log(_REACH * x.max()):
        peak_d = math.exp(alpha / beta - 1)
        peak_gain, inside = float(beta * peak_d), bool(x.min() <= peak_d <= x.max())
    return GoldenFit(
        n,
        float(alpha), float(alpha - reach[0]), float(alpha + reach[0]),
        float(beta), float(beta - reach[1]), float(beta + reach[1]),
        peak_d, peak_gain, inside,
        1 - float(error @ error) / total if total > 0 else None,
        float(np.sqrt(np.mean(error**2))),
    )  # fmt: skip
