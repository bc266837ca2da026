"""Fusion: weights with a closed form, by brute force, and of rankers that are wrong, silent or unsure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sirius_rec.errors import ScoringError
from sirius_rec.rankers.fusion import FusionRanker, fit_weights
from sirius_rec.rankers.protocol import UNSEEN


def test_one_ranker_of_pairs_by_hand() -> None:
    """The target is 2 above the other candidate in 3 of 4 slates: e^{2w} / (1 + e^{2w}) = 3/4, so w = ln 3 / 2."""
    slates = [np.array([2.0, 0.0])] * 3 + [np.array([0.0, 2.0])]
    weights = fit_weights([slates * 500], [0] * 2000)
    assert weights == pytest.approx([math.log(3) / 2], rel=1e-3)


def test_two_rankers_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(300, 5)), 10 * rng.normal(size=(300, 5))
    utility = 0.8 * one + 0.15 * other
    targets = (utility + rng.gumbel(size=utility.shape)).argmax(axis=1)
    found = fit_weights([list(one), list(other)], targets.tolist())

    def likelihood(a: float, b: float) -> float:
        scores = a * one + b * other
        return float((scores[np.arange(300), targets] - np.log(np.exp(scores).sum(axis=1))).sum())

    grid = [(a, b) for a in np.arange(0.4, 1.3, 0.02) for b in np.arange(0.05, 0.3, 0.005)]
    best = max(grid, key=lambda pair: likelihood(*pair))
    assert found == pytest.approx(best, abs=0.021)
    assert likelihood(*found) >= likelihood(*best) - 0.01


def test_a_ranker_that_is_wrong_or_silent_gets_no_weight() -> None:
    rng = np.random.default_rng(1)
    right = list(rng.normal(size=(100, 4)))
    targets = [int(row.argmax()) for row in right]
    silent = [np.full(4, value) for value in rng.normal(size=100)]  # whose mean is rounded: 1e-17 is no difference
    weights = fit_weights([right, [-row for row in right], [np.full(4, 0.1)] * 100, silent], targets)
    assert weights[0] > 0 and weights[1:].tolist() == [0, 0, 0]
    assert np.isfinite(weights).all()  # although it is always right


def test_what_a_ranker_does_not_know_may_be_lifted_by_another() -> None:
    """Unknown items stand with the last that the ranker knows, in weights and in scores."""
    network = [np.array([6.0, 5.0, UNSEEN])] * 40 + [np.array([UNSEEN, 5.5, 5.0])] * 20
    model = [np.array([0.0, 0.0, 3.0])] * 40 + [np.array([0.0, 1.0, 0.0])] * 20
    targets = [2] * 30 + [0] * 10 + [1] * 20
    weights = fit_weights([network, model], targets)
    assert (weights > 0.01).all()
    known = [np.where(row == UNSEEN, 5.0, row) for row in network]
    assert weights == pytest.approx(fit_weights([known, model], targets), rel=1e-4)

    class Fixed:
        def __init__(self, rows):
            self.rows = rows

        def score(self, histories, candidates):
            return self.rows

    slates = [np.arange(3)] * 60
    scores = FusionRanker([Fixed(network), Fixed(model)], weights.tolist()).score(slates, slates)
    assert scores[0] == pytest.approx([6 * weights[0], 5 * weights[0], 5 * weights[0] + 3 * weights[1]])
    with pytest.raises(AssertionError, match="asked"):
        FusionRanker([Silent()], [1.0]).score(slates, slates)
    assert FusionRanker([Silent()], [0.0]).score(slates[:1], slates[:1])[0].tolist() == [0, 0, 0]


class Silent:
    def score(self, histories, candidates):
        raise AssertionError("asked")


def test_nothing_to_weigh_is_refused() -> None:
    with pytest.raises(ScoringError, match="no slates"):
        fit_weights([[]], [])
    with pytest.raises(ScoringError, match="not a finite number"):
        fit_weights([[np.array([1.0, np.inf])]], [0])
