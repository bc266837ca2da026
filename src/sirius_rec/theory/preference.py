"""Pairwise preference models (Definition 1) and their sensitivity (Eq. 15), in float64 and in logarithms.

For rewards r_i (positive), r_j (sampled negative), r_k (unsampled negative): p_ij = p(r_i − r_j). All functions are
vectorised, broadcast their arguments, and stay finite where probabilities and slopes underflow (differences of ±700
and more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class PreferenceModel:
    """A model given by p, log p′ and p⁻¹: strictly increasing, p(−x) = 1 − p(x).

    p, log_slope: float64 of any shape → the same shape. inverse: probabilities in (0, 1) → differences.
    half_width: log s → the t ≥ 0 with log p′(t) = log s, for models whose p′ falls with |x|; without it, it is found by
    bisection (`check` says whether p′ falls).
    """

    name: str
    p: Function
    log_slope: Function
    inverse: Function
    half_width: Function | None = None

    def decompose(self, p_ij: npt.ArrayLike, p_jk: npt.ArrayLike) -> Array:
        """p_ik from p_ij and p_jk, Eq. 8 (Proposition 2)."""
        return self.p(self.inverse(_array(p_ij)) + self.inverse(_array(p_jk)))

    def log_sensitivity(self, r_i: npt.ArrayLike, r_j: npt.ArrayLike, r_k: npt.ArrayLike) -> Array:
        """log |∂p_ik/∂p_ij| = log p′(r_i − r_k) − log p′(r_i − r_j), Eq. 15: what moving r_i does to both."""
        r_i = _array(r_i)
        return self.log_slope(r_i - _array(r_k)) - self.log_slope(r_i - _array(r_j))

    def sensitivity_ij_ik(self, p_ij: npt.ArrayLike, p_ik: npt.ArrayLike) -> Array:
        """|∂p_ik/∂p_ij| at the point (p_ij, p_ik), Eq. 15."""
        slopes = [self.log_slope(self.inverse(_array(p))) for p in (p_ik, p_ij)]
        return np.exp(slopes[0] - slopes[1])

    def sensitivity_ij_kj(self, p_ij: npt.ArrayLike, p_kj: npt.ArrayLike) -> Array:
        """|∂p_ik/∂p_ij| at the point (p_ij, p_kj); Eq. 10 for Bradley–Terry."""
        x_ij, x_kj = self.inverse(_array(p_ij)), self.inverse(_array(p_kj))
        return np.exp(self.log_slope(x_ij - x_kj) - self.log_slope(x_ij))

    def is_insensitive(
        self, r_i: npt.ArrayLike, r_j: npt.ArrayLike, r_k: npt.ArrayLike, epsilon: float
    ) -> npt.NDArray[np.bool_]:
        """Whether (i, j, k) lies in Ω_ε(p_ik, p_ij): |∂p_ik/∂p_ij| < ε (Definition 2). ε > 0.

        >>> bool(BRADLEY_TERRY.is_insensitive(-6, -6.5, -4, 0.2)), bool(BRADLEY_TERRY.is_insensitive(-6, -6.5, -3, 0.2))
        (False, True)
        """
        return np.asarray(self.log_sensitivity(r_i, r_j, r_k) < np.log(_positive(epsilon)))

    def width_at(self, log_slope: npt.ArrayLike) -> Array:
        """t ≥ 0 with log p′(t) = log_slope, so that log p′(x) < log_slope for |x| > t; 0 where even p′(0) is smaller.

        Assumes that p′ falls with |x|.
        """
        wanted = _array(log_slope)
        peak = float(self.log_slope(np.zeros(1))[0])
        inside = np.minimum(wanted, peak)
        if self.half_width is not None:
            return self.half_width(inside)
        low, high = np.zeros_like(inside), np.ones_like(inside)
        while (short := self.log_slope(high) > inside).any():
            high = np.where(short, 2 * high, high)
        for _ in range(200):
            middle = 0.5 * (low + high)
            above = self.log_slope(middle) > inside
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return 0.5 * (low + high)

    def check(self) -> None:
        """ValueError if p is not symmetric, p⁻¹ does not invert it, log p′ is not its slope, or p′ does not fall."""
        x = np.linspace(-6, 6, 241)
        p = self.p(x)
        if not np.allclose(p + self.p(-x), 1.0, atol=1e-9):
            raise ValueError(f"{self.name}: p(−x) is not 1 − p(x)")
        if not np.allclose(self.inverse(p), x, atol=1e-6):
            raise ValueError(f"{self.name}: inverse does not undo p")
        slope = (self.p(x + 1e-5) - self.p(x - 1e-5)) / 2e-5
        if not np.allclose(np.exp(self.log_slope(x)), slope, rtol=1e-4, atol=1e-9):
            raise ValueError(f"{self.name}: log_slope is not the logarithm of p's derivative")
        if (np.diff(self.log_slope(x[x >= 0])) > 0).any():
            raise ValueError(f"{self.name}: p′ does not fall with |x|, which regions and anchors here assume")


def _array(x: npt.ArrayLike) -> Array:
    return np.asarray(x, dtype=np.float64)


def _positive(epsilon: float) -> float:
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    return epsilon


def _logistic_log_slope(x: Array) -> Array:
    """log σ′(x) = −|x| − 2 log(1 + e^−|x|), with one exponential."""
    size = np.abs(_array(x))
    return np.asarray(-size - 2.0 * np.log1p(np.exp(-size)))


def _logistic_half_width(log_slope: Array) -> Array:
    """σ′(t) = s has 1 − σ(t) = 2s / (1 + √(1 − 4s)); t = log σ − log(1 − σ), which does not cancel for small s."""
    root = np.sqrt(np.maximum(0.0, -np.expm1(np.log(4.0) + log_slope)))
    return np.asarray(2.0 * np.log1p(root) - np.log(4.0) - log_slope)


_LOG_ROOT_TWO_PI = 0.5 * float(np.log(2 * np.pi))

BRADLEY_TERRY = PreferenceModel(
    "Bradley–Terry", special.expit, _logistic_log_slope, special.logit, _logistic_half_width
)
THURSTONE = PreferenceModel(
    "Thurstone",
    special.ndtr,
    lambda x: -0.5 * x * x - _LOG_ROOT_TWO_PI,
    special.ndtri,
    lambda log_slope: np.sqrt(np.maximum(0.0, -2.0 * (log_slope + _LOG_ROOT_TWO_PI))),
)
MODELS = {"bradley_terry": BRADLEY_TERRY, "thurstone": THURSTONE}
