"""Preference models against finite differences, closed forms and the paper's Example 1 (METHOD 6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from sirius_rec.theory.preference import BRADLEY_TERRY, MODELS, PreferenceModel

is_insensitive, log_sensitivity = BRADLEY_TERRY.is_insensitive, BRADLEY_TERRY.log_sensitivity
log_slope, preference = BRADLEY_TERRY.log_slope, BRADLEY_TERRY.p

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
    assert np.exp(log_slope(np.float64(x))) == pytest.approx(p * (1 - p), rel=1e-9)


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
    assert float(preference(np.float64(-6.0 - r_k))) == pytest.approx(p_ik, abs=5e-4)
    assert float(np.exp(log_sensitivity(-6.0, -6.5, r_k))) == pytest.approx(derivative, abs=5e-4)


@pytest.mark.parametrize("x", [-700.0, 700.0, -1e4, 1e4])
def test_stable_far_out(x: float) -> None:
    assert 0.0 <= float(preference(np.float64(x))) <= 1.0
    # σ'(x) = e^−|x| up to a factor that rounds to 1 here.
    assert float(log_slope(np.float64(x))) == pytest.approx(-abs(x))
    assert float(log_sensitivity(0.0, -x, x)) == pytest.approx(0.0, abs=1e-9)


def test_preference_of_700_is_not_rounded_to_zero() -> None:
    assert float(preference(np.float64(-700.0))) == pytest.approx(np.exp(-700.0), rel=1e-9)


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


# A third model, given by p, p′ and p⁻¹ alone: Student's t with 3 degrees of freedom, whose p′ has heavy tails.
STUDENT = PreferenceModel("Student t(3)", stats.t(3).cdf, stats.t(3).logpdf, stats.t(3).ppf)
EVERY = [*MODELS.values(), STUDENT]
every_model = pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)


@every_model
def test_parts_of_a_model_fit_together(model: PreferenceModel) -> None:
    model.check()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"p": lambda x: expit(x) ** 2}, "is not 1 − p"),
        ({"inverse": lambda p: p}, "does not undo"),
        ({"log_slope": lambda x: -np.abs(x)}, "not the logarithm"),
    ],
)
def test_check_finds_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BRADLEY_TERRY, **changed).check()


def test_check_finds_a_slope_that_rises() -> None:
    """Half of each of two bumps at ±3: a valid model, but its p′ does not fall with |x|."""
    x = np.linspace(-40, 40, 400_001)
    p = (expit(4 * (x - 3)) + expit(4 * (x + 3))) / 2
    bumps = PreferenceModel(
        "two bumps",
        lambda d: (expit(4 * (d - 3)) + expit(4 * (d + 3))) / 2,
        lambda d: np.logaddexp(log_slope(4 * (d - 3)), log_slope(4 * (d + 3))) + np.log(2),
        lambda q: np.interp(q, p, x),
    )
    with pytest.raises(ValueError, match="does not fall"):
        bumps.check()


@every_model
@given(a=REWARD, b=REWARD, c=REWARD)
def test_proposition_2(model: PreferenceModel, a: float, b: float, c: float) -> None:
    """p_ik is a function of p_ij and p_jk alone (Eq. 8)."""
    a, b, c = a / 3, b / 3, c / 3  # so that no probability rounds to 1
    p_ij, p_jk, p_ik = model.p(np.array([a - b, b - c, a - c]))
    assert float(model.decompose(p_ij, p_jk)) == pytest.approx(float(p_ik), rel=1e-6)


@every_model
@given(a=st.floats(0.02, 0.98), b=st.floats(0.02, 0.98))
def test_both_coordinate_systems_measure_the_same(model: PreferenceModel, a: float, b: float) -> None:
    """The point (p_ij, p_kj) is the point (p_ij, p_ik) with p_ik = p(p⁻¹(p_ij) + p⁻¹(1 − p_kj))."""
    p_ik = model.decompose(a, 1 - b)
    assert float(model.sensitivity_ij_kj(a, b)) == pytest.approx(float(model.sensitivity_ij_ik(a, p_ik)), rel=1e-6)


@given(x=st.floats(0.01, 0.99), y=st.floats(0.01, 0.99))
def test_equation_10(x: float, y: float) -> None:
    wanted = y * (1 - y) / (x + y - 2 * x * y) ** 2
    assert float(BRADLEY_TERRY.sensitivity_ij_kj(x, y)) == pytest.approx(wanted, rel=1e-9)


@every_model
@given(t=st.floats(0.0, 6.0))
def test_width_inverts_the_slope(model: PreferenceModel, t: float) -> None:
    slope = model.log_slope(np.array([t]))
    np.testing.assert_allclose(model.log_slope(model.width_at(slope)), slope, atol=1e-9)


def test_width_is_stable_far_out_and_zero_above_the_peak() -> None:
    assert float(BRADLEY_TERRY.width_at(np.array(-700.0))) == pytest.approx(700.0)
    np.testing.assert_array_equal(BRADLEY_TERRY.width_at([0.0, 5.0]), [0.0, 0.0])


def test_the_gradient_of_a_pair_does_not_reach_a_third_logit() -> None:
    """Proposition 1 with Eq. 16: log σ(z_i − z_j) has slope ±(1 − p_ij) in z_i, z_j and none in z_k."""
    z = np.array([0.3, -0.4, 1.1])

    def loss(logits: np.ndarray) -> float:
        log_pi = logits - np.logaddexp.reduce(logits)
        return float(np.log(preference(log_pi[0] - log_pi[1])))

    steps = 1e-6 * np.eye(3)
    measured = [(loss(z + step) - loss(z - step)) / 2e-6 for step in steps]
    p_ij = float(expit(0.7))
    assert measured == pytest.approx([1 - p_ij, p_ij - 1, 0.0], abs=1e-8)
