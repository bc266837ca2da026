"""Bradley–Terry against finite differences and the paper's Example 1 (METHOD 6)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from sirius_rec.theory.bradley_terry import is_insensitive, log_sensitivity, log_slope, preference

REWARD = st.floats(-8, 8, allow_nan=False)


def test_preference_is_the_sigmoid() -> None:
    x = np.linspace(-30, 30, 61)
    np.testing.assert_allclose(preference(x), expit(x), rtol=1e-12)


@given(REWARD, REWARD, REWARD)
def test_sensitivity_is_the_ratio_of_finite_differences(r_i: float, r_j: float, r_k: float) -> None:
    """Moving r_i by h moves p_ik and p_ij; the ratio of the two is ∂p_ik/∂p_ij (Eq. 15)."""
    h = 1e-4
    d_ik = expit(r_i + h - r_k) - expit(r_i - h - r_k)
    d_ij = expit(r_i + h - r_j) - expit(r_i - h - r_j)
    assert np.exp(log_sensitivity(r_i, r_j, r_k)) == pytest.approx(d_ik / d_ij, rel=1e-5)


@given(REWARD)
def test_slope_is_p_times_one_minus_p(x: float) -> None:
    p = expit(x)
    assert np.exp(log_slope(x)) == pytest.approx(p * (1 - p), rel=1e-9)


@pytest.mark.parametrize(
    ("r_k", "p_ik", "derivative"),
    [
        # σ(−2) = 1/(1 + e²) = 0.1192; σ'(−2)/σ'(0.5) = 0.10499/0.23500 = 0.4468. The paper prints 0.04 and 0.19 …
        (-4.0, 0.119, 0.447),
        # … which belong to r_k = −3: σ(−3) = 0.0474; 0.04518/0.23500 = 0.1922.
        (-3.0, 0.047, 0.192),
    ],
)
def test_example_1(r_k: float, p_ik: float, derivative: float) -> None:
    assert float(preference(-6.0 - r_k)) == pytest.approx(p_ik, abs=5e-4)
    assert float(np.exp(log_sensitivity(-6.0, -6.5, r_k))) == pytest.approx(derivative, abs=5e-4)


@pytest.mark.parametrize("x", [-700.0, 700.0, -1e4, 1e4])
def test_stable_far_out(x: float) -> None:
    assert 0.0 <= float(preference(x)) <= 1.0
    # σ'(x) = e^−|x| up to a factor that rounds to 1 here.
    assert float(log_slope(x)) == pytest.approx(-abs(x))
    assert float(log_sensitivity(0.0, -x, x)) == pytest.approx(0.0, abs=1e-9)


def test_preference_of_700_is_not_rounded_to_zero() -> None:
    assert float(preference(-700.0)) == pytest.approx(np.exp(-700.0), rel=1e-9)


def test_is_insensitive_is_strict_and_broadcasts() -> None:
    # r_j = r_k: the derivative is exactly 1, which is not below 1.
    assert not is_insensitive(0.3, -1.0, -1.0, 1.0)
    inside = is_insensitive(np.zeros((2, 1)), 0.0, np.array([0.0, 1.0, 6.0]), 0.5)
    # σ'(0)/σ'(0) = 1; σ'(−1)/σ'(0) = 0.1966/0.25 = 0.786; σ'(−6)/σ'(0) = 0.00247/0.25 = 0.0099
    np.testing.assert_array_equal(inside, [[False, False, True]] * 2)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan")])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be positive"):
        is_insensitive(0.0, 0.0, 0.0, epsilon)


@given(REWARD, REWARD, REWARD)
def test_misordered_below_an_anchor_never_lies_in_the_region(a: float, b: float, c: float) -> None:
    """METHOD 6: r_i < r_k < r_0 gives |∂p_ik/∂p_i0| > 1, so no ε < 1 can catch it (section 4.2)."""
    r_i, r_k, r_0 = sorted((a, b, c))
    assert not is_insensitive(r_i, r_0, r_k, 0.999)
