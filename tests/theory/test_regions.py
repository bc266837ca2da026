"""Areas against Monte Carlo and hand-derived values, Theorem 1 and Theorem 2 by sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sirius_rec.theory.preference import BRADLEY_TERRY, MODELS, THURSTONE, PreferenceModel
from sirius_rec.theory.regions import (
    COORDINATES,
    Coordinates,
    area,
    closed_form_area,
    guaranteed_anchor,
    insensitive_bounds,
    monte_carlo_area,
    quadrature_area,
)

STUDENT = PreferenceModel("Student t(3)", stats.t(3).cdf, stats.t(3).logpdf, stats.t(3).ppf)
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
both_squares = pytest.mark.parametrize("coordinates", COORDINATES)


@pytest.mark.parametrize(
    ("epsilon", "coordinates", "wanted"),
    [
        # Proposition 3: 1 − ½ ln(⅓) − ln((1+√½)/(1−√½))/(2√½) = 1 + 0.54931 − 1.24645
        (0.5, "p_ij,p_kj", 0.30286),
        (0.99, "p_ij,p_kj", 0.63835),
        # ½ − ½/(2√½) artanh √½ = 0.5 − 0.35355 · 0.88137
        (0.5, "p_ij,p_ik", 0.18839),
        (0.99, "p_ij,p_ik", 0.48496),
    ],
)
def test_areas_by_hand(epsilon: float, coordinates: Coordinates, wanted: float) -> None:
    assert closed_form_area(epsilon, coordinates) == pytest.approx(wanted, abs=1e-5)


@both_squares
@pytest.mark.parametrize("epsilon", [1e-9, 1e-5, 0.9e-4, 1.1e-4, 1e-3, 0.1, 0.5, 0.9, 0.999999])
def test_closed_form_is_the_quadrature(epsilon: float, coordinates: Coordinates) -> None:
    assert closed_form_area(epsilon, coordinates) == pytest.approx(quadrature_area(epsilon, coordinates), rel=1e-7)


@both_squares
@every_model
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 0.99, 1.7])
def test_monte_carlo_agrees(epsilon: float, coordinates: Coordinates, model: PreferenceModel) -> None:
    """Straight from Eq. 15 at random points: within 4.5 standard errors (a false alarm once in 150,000)."""
    estimate = monte_carlo_area(epsilon, coordinates, model, points=200_000, seed=3)
    assert abs(estimate.value - area(epsilon, coordinates, model)) < 4.5 * estimate.stderr


def test_a_model_without_a_closed_half_width() -> None:
    estimate = monte_carlo_area(0.5, "p_ij,p_kj", STUDENT, points=50_000, seed=1)
    assert abs(estimate.value - area(0.5, "p_ij,p_kj", STUDENT)) < 4.5 * estimate.stderr


@both_squares
@every_model
def test_area_grows_with_epsilon_from_0_to_1(coordinates: Coordinates, model: PreferenceModel) -> None:
    areas = [area(e, coordinates, model) for e in (1e-8, 0.01, 0.1, 0.5, 0.9, 0.999, 1.01, 2.0, 50.0, 1e6)]
    assert (np.diff(areas) > 0).all()
    assert areas[0] < 1e-5 and areas[-1] > 0.99


def test_monte_carlo_is_seeded_and_states_its_error() -> None:
    first, second = (monte_carlo_area(0.5, "p_ij,p_ik", points=40_000, seed=s) for s in (7, 7))
    assert first == second
    assert first.stderr == pytest.approx(np.sqrt(0.1884 * 0.8116 / 40_000), rel=0.05)
    assert monte_carlo_area(0.5, "p_ij,p_ik", points=40_000, seed=9) != first


@every_model
@given(p_ij=st.floats(0.01, 0.99), epsilon=st.floats(0.01, 3.0), p_ik=st.floats(0.001, 0.999))
def test_theorem_1(model: PreferenceModel, p_ij: float, epsilon: float, p_ik: float) -> None:
    """Insensitive exactly outside [M_1, M_2]."""
    low, high = (float(m) for m in insensitive_bounds(p_ij, epsilon, model))
    assert 0 < low <= high < 1
    if min(abs(p_ik - low), abs(p_ik - high)) > 1e-9:
        inside = float(model.sensitivity_ij_ik(p_ij, p_ik)) < epsilon
        assert inside == (p_ik < low or p_ik > high)


@every_model
@given(
    r_i=st.floats(-5, 5),
    gap=st.floats(0, 6),
    epsilon=st.floats(0.01, 20.0),
    share=st.floats(0, 1),
    above=st.floats(1e-6, 10),
)
def test_theorem_2(model: PreferenceModel, r_i: float, gap: float, epsilon: float, share: float, above: float) -> None:
    """Every anchor above the guaranteed one keeps every r_k in [r_i, N] out of the region along p_i0."""
    anchor = float(guaranteed_anchor(r_i, r_i + gap, epsilon, model))
    r_k = r_i + share * gap
    assert np.exp(float(model.log_sensitivity(r_i, anchor + above, r_k))) > epsilon * (1 - 1e-9)


def test_the_guaranteed_anchor_is_the_least() -> None:
    """Just below it, r_k = N lies inside the region."""
    anchor = float(guaranteed_anchor(0.0, 4.0, 0.5))
    assert BRADLEY_TERRY.is_insensitive(0.0, anchor - 1e-6, 4.0, 0.5)
    assert not BRADLEY_TERRY.is_insensitive(0.0, anchor + 1e-6, 4.0, 0.5)


@every_model
@given(r_i=st.floats(-5, 5), gap=st.floats(0, 6), epsilon=st.floats(0.001, 0.999))
def test_an_anchor_at_the_bound_serves_every_epsilon_below_1(
    model: PreferenceModel, r_i: float, gap: float, epsilon: float
) -> None:
    assert float(guaranteed_anchor(r_i, r_i + gap, epsilon, model)) <= r_i + gap + 1e-6


def test_no_anchor_serves_every_epsilon() -> None:
    assert float(guaranteed_anchor(0.0, 1.0, 1e6)) > 10 > float(guaranteed_anchor(0.0, 1.0, 0.5))


def test_negatives_of_one_positive_are_not_independent() -> None:
    """D.1 takes f(ε)^t for the chance to be insensitive to t negatives; with p_ik shared it is larger (Jensen)."""
    rng = np.random.default_rng(0)
    r_i, r_k = rng.normal(0, 2, (2, 20_000, 1))
    r_j = rng.normal(0, 2, (20_000, 3))
    inside = BRADLEY_TERRY.is_insensitive(r_i, r_j, r_k, 0.5)
    assert inside.all(1).mean() > 1.5 * inside.mean() ** 3


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="epsilon must be positive"):
        area(0.0, "p_ij,p_kj", THURSTONE)
    with pytest.raises(ValueError, match="closed form"):
        closed_form_area(1.0, "p_ij,p_kj")
    for function in (closed_form_area, quadrature_area):
        with pytest.raises(ValueError, match="coordinates 'p_ij' are unknown"):
            function(0.5, "p_ij")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="upper bound"):
        guaranteed_anchor(1.0, 0.0, 0.5)
