"""ε-insensitive regions: their bounds (Theorem 1), their areas (Proposition 3), and the anchor of Theorem 2.

Areas are shares of the unit square, in one of two coordinate systems:

- "p_ij,p_kj": what Proposition 3 computes. Under independent uniform p_ij and p_kj.
- "p_ij,p_ik": what the paper's text names (its Figure 2). Under independent uniform p_ij and p_ik.

A uniform p is p(X) for an X with density p′, which turns areas into probabilities: with A, B independent of density p′,
the first is P[p′(A − B) < ε p′(A)], the second P[p′(B) < ε p′(A)]. For p′ that falls with |x|, the inner probability
is a difference of p at ±t(A), where p′(t) = ε p′(A), and one integral over p_ij remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sirius_rec.theory.preference import BRADLEY_TERRY, Array, PreferenceModel, _array, _positive

Coordinates = Literal["p_ij,p_kj", "p_ij,p_ik"]
COORDINATES: tuple[Coordinates, ...] = ("p_ij,p_kj", "p_ij,p_ik")
# Midpoints in θ of p = sin²(θ/2): the substitution removes the root singularities at p = 0 and 1.
_NODES = 200_000


def insensitive_bounds(
    p_ij: npt.ArrayLike, epsilon: float, model: PreferenceModel = BRADLEY_TERRY
) -> tuple[Array, Array]:
    """M_1 and M_2 of Theorem 1, the widest: |∂p_ik/∂p_ij| < ε for p_ik below M_1 and above M_2, and nowhere else.

    p_ij in (0, 1), any shape. Both are 1/2 where every p_ik is insensitive, which needs ε > 1.

    >>> low, high = insensitive_bounds(0.5, 0.75)  # q(1 − q) = 0.75 · 0.25 at q = 1/4 and 3/4
    >>> round(float(low), 12), round(float(high), 12)
    (0.25, 0.75)
    """
    x = model.inverse(_array(p_ij))
    t = model.width_at(np.log(_positive(epsilon)) + model.log_slope(x))
    return model.p(-t), model.p(t)


def area(epsilon: float, coordinates: Coordinates, model: PreferenceModel = BRADLEY_TERRY) -> float:
    """Area of Ω_ε(p_ik, p_ij) in the unit square of `coordinates`; ε > 0.

    Closed form for Bradley–Terry and ε < 1 (Proposition 3 in the first coordinates), quadrature otherwise.

    >>> round(area(0.5, "p_ij,p_kj"), 4), round(area(0.5, "p_ij,p_ik"), 4)
    (0.3029, 0.1884)
    """
    if model is BRADLEY_TERRY and _positive(epsilon) < 1:
        return closed_form_area(epsilon, coordinates)
    return quadrature_area(epsilon, coordinates, model)


def closed_form_area(epsilon: float, coordinates: Coordinates) -> float:
    """Bradley–Terry, 0 < ε < 1.

    "p_ij,p_kj": Proposition 3, 1 − ½ ln((1−ε)/(1+ε)) − ln((1+√ε)/(1−√ε)) / (2√ε).
    "p_ij,p_ik": ½ − (1−ε)/(2√ε) artanh √ε. For p_ij = p the insensitive p_ik make up 1 − √(1 − 4εp(1−p)); with
    u = 2p − 1 the area is 1 − ∫₀¹ √(1 − ε + εu²) du.

    >>> [round(closed_form_area(e, c), 4) for c in COORDINATES for e in (0.5, 0.99)]
    [0.3029, 0.6384, 0.1884, 0.485]
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"the closed form holds for 0 < epsilon < 1, got {epsilon}")
    root = float(np.sqrt(epsilon))
    if coordinates == "p_ij,p_kj":
        if epsilon < 1e-4:
            return _small_epsilon(epsilon)
        return float(1 + np.arctanh(epsilon) - np.arctanh(root) / root)
    _known(coordinates)
    return float(0.5 - (1 - epsilon) / (2 * root) * np.arctanh(root))


def _small_epsilon(epsilon: float) -> float:
    """1 + artanh ε − artanh(√ε)/√ε as its series ⅔ε − ⅕ε² + …, where the closed form would cancel."""
    return epsilon * (2 / 3 - epsilon / 5 + epsilon**2 * (1 / 3 - 1 / 7))


def _known(coordinates: str) -> None:
    if coordinates not in COORDINATES:
        raise ValueError(f"coordinates {coordinates!r} are unknown: choose one of {', '.join(map(repr, COORDINATES))}")


def quadrature_area(epsilon: float, coordinates: Coordinates, model: PreferenceModel = BRADLEY_TERRY) -> float:
    """The area by the midpoint rule over p_ij, any model whose p′ falls with |x|; error below 1e-6."""
    _known(coordinates)
    theta = (np.arange(_NODES) + 0.5) * (np.pi / _NODES)
    weight = np.sin(theta) / 2
    a = model.inverse(np.sin(theta / 2) ** 2)
    log_bound = np.log(_positive(epsilon)) + model.log_slope(a)
    t = model.width_at(log_bound)
    # Differences of p in the tails, taken where they do not cancel.
    centre = a if coordinates == "p_ij,p_kj" else np.zeros_like(a)
    outside = model.p(-np.abs(centre) + t) - model.p(-np.abs(centre) - t)
    inside = np.where(log_bound > model.log_slope(np.zeros(1))[0], 1.0, 1.0 - outside)
    return float(weight @ inside * np.pi / _NODES)


@dataclass(frozen=True)
class Estimate:
    """value ± stderr (one standard error)."""

    value: float
    stderr: float


def monte_carlo_area(
    epsilon: float, coordinates: Coordinates, model: PreferenceModel = BRADLEY_TERRY, *, points: int, seed: int = 0
) -> Estimate:
    """The area by uniform random points, straight from the definition (Eq. 15): no assumption on p′."""
    _known(coordinates)
    rng = np.random.default_rng(seed)
    inside = 0
    sensitivity = model.sensitivity_ij_kj if coordinates == "p_ij,p_kj" else model.sensitivity_ij_ik
    block = 1 << 20
    for start in range(0, points, block):
        x, y = rng.random((2, min(block, points - start)))
        inside += int((sensitivity(x, y) < _positive(epsilon)).sum())
    share = inside / points
    return Estimate(share, float(np.sqrt(share * (1 - share) / points)))


def guaranteed_anchor(
    r_i: npt.ArrayLike, bound: npt.ArrayLike, epsilon: float, model: PreferenceModel = BRADLEY_TERRY
) -> Array:
    """The least reward r_0 ≥ r_i such that every anchor above it serves Theorem 2, given rewards below `bound` (N).

    For every r_0 > guaranteed_anchor and every misordered negative, r_i < r_k < N: |∂p_ik/∂p_i0| > ε. From the proof in
    B.4: p′(r_i − r_0) < m / ε with m = min p′ over [r_i − N, 0] = p′(r_i − N).

    For ε < 1 the result is below N: any anchor from N upwards serves every ε < 1 at once, and no single anchor serves
    every ε > 0. (By symmetry an anchor as far below r_i meets the inequality too; it would teach nothing.)

    >>> bool(guaranteed_anchor(-6.0, 0.0, 0.5) < 0.0)
    True
    """
    r_i, bound = np.broadcast_arrays(_array(r_i), _array(bound))
    if (bound < r_i).any():
        raise ValueError(f"an upper bound of rewards cannot lie below r_i: {bound.min()} < {r_i.max()}")
    log_least = model.log_slope(r_i - bound) - np.log(_positive(epsilon))
    return np.asarray(r_i + model.width_at(log_least))
