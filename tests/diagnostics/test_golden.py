"""The golden-reward fit on planted curves, its intervals, and where it must decline."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from sirius_rec.diagnostics.golden import fit_golden

D = np.array([0.1, 0.3, 0.6, 1.0, 1.5, 2.2])


def curve(d: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    return d * (alpha - beta * np.log(d))


def test_planted_parameters_are_found_exactly() -> None:
    fit = fit_golden(D, curve(D, 0.05, 0.08))
    assert (fit.alpha, fit.beta) == pytest.approx((0.05, 0.08), abs=1e-12)
    # R′ = α − β log d − β = 0 at d = exp(α/β − 1), where R = β d
    assert fit.peak_d == pytest.approx(np.exp(0.05 / 0.08 - 1)) and fit.peak_gain == pytest.approx(0.08 * fit.peak_d)
    assert fit.peak_inside and fit.r2 == pytest.approx(1.0) and fit.residual == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(fit.gain(D), curve(D, 0.05, 0.08))
    assert float(fit.gain(fit.peak_d)) == pytest.approx(fit.peak_gain) and float(fit.gain(0.0)) == 0.0


def test_noise_against_another_optimiser() -> None:
    rng = np.random.default_rng(0)
    gain = curve(D, 0.05, 0.08) + rng.normal(0, 0.004, len(D))
    fit = fit_golden(D, gain)
    (alpha, beta), covariance = optimize.curve_fit(curve, D, gain)
    assert (fit.alpha, fit.beta) == pytest.approx((alpha, beta), abs=1e-6)
    reach = 2.7764 * np.sqrt(np.diag(covariance))  # t quantile 0.975 with 4 degrees of freedom
    assert (fit.alpha_high - fit.alpha, fit.beta - fit.beta_low) == pytest.approx(tuple(reach), rel=1e-3)


def test_intervals_cover() -> None:
    """95 % intervals hold the truth in 300 repetitions about 285 times; fewer than 270 almost never."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        fit = fit_golden(D, curve(D, 0.02, 0.05) + rng.normal(0, 0.01, len(D)))
        held += fit.beta_low <= 0.05 <= fit.beta_high
    assert 270 <= held <= 299


def test_a_curve_without_a_peak_says_so() -> None:
    rising = fit_golden(D, curve(D, 0.05, -0.02))
    assert rising.beta < 0 and rising.peak_d is None and rising.peak_inside is None
    beyond = fit_golden(D, curve(D, 0.05, 0.05 / (1 + np.log(5 * D.max()))))
    assert beyond.peak_d == pytest.approx(5 * D.max()) and beyond.peak_inside is False
    far = fit_golden(D, curve(D, 0.05, 0.05 / (1 + np.log(20 * D.max()))))
    assert far.beta > 0 and far.peak_d is None and far.peak_gain is None  # a peak of the fit, not of the data


@pytest.mark.parametrize(
    ("d", "gain", "why"),
    [
        ([0.0, 0.0, 0.1, 0.2, 0.3], [0] * 5, "3 points away from the reference; at least 4"),
        ([0.5, 0.5, 0.51, 0.52], [0.1] * 4, "nothing to bend"),
        ([0.1, 0.2, np.nan, 0.4], [0.1] * 4, "not a finite number"),
        ([0.1, 0.2, -0.3, 0.4], [0.1] * 4, "negative"),
        ([], [], "0 points"),
    ],
)
def test_what_cannot_be_fitted_is_said(d: list[float], gain: list[float], why: str) -> None:
    fit = fit_golden(d, gain)
    assert fit.failed is not None and why in fit.failed
    assert fit.alpha is None and fit.peak_d is None
    with pytest.raises(ValueError, match="nothing was fitted"):
        fit.gain(1.0)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 distances and 1 gains"):
        fit_golden([1, 2], [1])


def test_the_reference_scored_twice_is_no_point() -> None:
    """Its distance is rounding, which would count as a degree of freedom and as the nearest of all distances."""
    d, gain = [0.5, 1.0, 1.5, 2.0], [0.1, 0.15, 0.15, 0.1]
    assert fit_golden([3e-6, *d], [0.0, *gain]) == fit_golden(d, gain)
