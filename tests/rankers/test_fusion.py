"""Fusion: weights with a closed form, by brute force, and of rankers that are wrong, silent or unsure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sirius_rec.errors import ScoringError
from sirius_rec.rankers.fusion import Cold, FusionRanker, above_level, fit_apart, fit_weights, told_apart
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


class Fixed:
    def __init__(self, rows):
        self.rows = rows

    def score(self, histories, candidates):
        return self.rows


def test_cold_items_by_brute_force() -> None:
    """The network tells the other targets, the text the cold ones; weights of the likelihood itself."""
    rng = np.random.default_rng(0)
    cold = rng.random((400, 5)) < 0.3
    cold[:, 0], cold[:, 1] = False, True
    network, text = rng.normal(size=(400, 5)), 3 * rng.normal(size=(400, 5))

    def utility(warm, own, offset):
        return np.where(cold, own * text + offset, warm * network)

    targets = (utility(1.2, 0.3, -0.7) + rng.gumbel(size=cold.shape)).argmax(axis=1)

    def likelihood(*weights):
        scores = utility(*weights)
        return float((scores[np.arange(400), targets] - np.log(np.exp(scores).sum(axis=1))).sum())

    grid = [(a, b, c) for a in np.arange(0.9, 1.6, 0.05) for b in np.arange(0.15, 0.45, 0.02)
            for c in np.arange(-1.2, -0.2, 0.05)]  # fmt: skip
    best = max(grid, key=lambda at: likelihood(*at))
    warm, own, offset = fit_apart([list(network), list(text)], targets.tolist(), list(cold))
    assert (warm[0], own[1], offset) == pytest.approx(best, abs=0.06)
    assert warm[1] == pytest.approx(0, abs=0.05) and own[0] == pytest.approx(0, abs=0.2), "each is silent elsewhere"
    assert min(*warm, *own) >= 0


class Catalogue:
    """A score for each user (the only item of the history) and item."""

    def __init__(self, scores_UI):
        self.scores_UI = scores_UI

    def score(self, histories, candidates):
        return [self.scores_UI[history[0], slate] for history, slate in zip(histories, candidates, strict=True)]


def test_the_level_of_a_network_is_its_own_and_not_the_slates() -> None:
    """Warm items count from the mean of all warm ones (there are few here), cold ones from the offset, in any slate."""
    rng = np.random.default_rng(1)
    network, text = rng.normal(2, 1, size=(3, 40)), rng.normal(-9, 2, size=(3, 40))
    network[:, 7], items_I = UNSEEN, np.arange(40) % 4 == 0
    cold = Cold(items_I, [0.3, 0.5], -2.0, [True, False])
    ranker = FusionRanker([Catalogue(network), Catalogue(text)], [1.5, 0.25], cold)
    known = np.where(
        network == UNSEEN, np.where(items_I | (network == UNSEEN), np.inf, network).min(1)[:, None], network
    )
    above = known - known[:, ~items_I].mean(axis=1, keepdims=True)
    wanted = np.where(items_I, 0.3 * above + 0.5 * text - 2.0, 1.5 * above + 0.25 * text)
    histories = [np.array([user]) for user in (2, 0, 1)]
    slates = [np.arange(40), np.array([5]), np.array([8, 7, 9])]
    for history, slate, found in zip(histories, slates, ranker.score(histories, slates), strict=True):
        assert found == pytest.approx(wanted[history[0], slate])


def test_reference_items_are_warm_and_few() -> None:
    items_I, asked = np.arange(2000) % 2 == 0, []

    class Listening:
        def score(self, histories, candidates):
            asked.extend(candidates)
            return [np.zeros(len(slate)) for slate in candidates]

    Cold(items_I, [1.0], 0.0, [True]).levels(Listening(), [np.array([0])] * 2)
    assert [len(set(slate)) for slate in asked] == [256, 256] and (asked[0] == asked[1]).all()
    assert not items_I[asked[0]].any()


def test_a_part_that_says_nothing_of_either_kind_is_not_asked() -> None:
    items, cold = np.arange(3), Cold(np.array([False, True, False]), [0.5, 0.0], 0.25, [False, True])
    ranker = FusionRanker([Fixed([np.array([1.0, 5.0, 3.0])]), Silent()], [0.0, 0.0], cold)
    assert ranker.score([items], [items])[0] == pytest.approx([0, 0.25 + 0.5 * 5, 0])


def test_without_a_cold_target_nothing_says_what_cold_items_are_worth() -> None:
    with pytest.raises(ScoringError, match=r"hold some out \(data\.hold_out\.cold_items\)"):
        fit_apart([[np.array([1.0, 0.0])]], [0], [np.array([False, True])])


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_weights_of_cold_items_do_not_depend_on_the_unit(unit: float) -> None:
    """What is above its level may be far below 0, and is known all the same."""
    rng = np.random.default_rng(3)
    cold = rng.random((200, 5)) < 0.4
    cold[:, 0], cold[:, 1] = False, True
    scores = rng.normal(size=(200, 5))
    targets = (np.where(cold, 0.5 * scores - 1, 1.5 * scores) + rng.gumbel(size=cold.shape)).argmax(axis=1).tolist()
    warm, own, offset = fit_apart([list(scores)], targets, list(cold))
    found = fit_apart([list(scores * unit)], targets, list(cold))
    assert (found[0] * unit, found[1] * unit) == (pytest.approx(warm, rel=1e-3), pytest.approx(own, rel=1e-3))
    assert found[2] == pytest.approx(offset, rel=1e-3)


def test_unknown_items_stand_with_the_last_reference_item() -> None:
    rows = above_level([np.array([UNSEEN, 3.0])], [np.array([1.0, UNSEEN, 5.0, 2.0])])
    assert rows[0] == pytest.approx([1 - 9 / 4, 3 - 9 / 4])
    assert above_level([np.array([-12.0, -20.0])], None)[0].tolist() == [-12, -20]


def test_a_part_that_says_the_same_of_all_cold_items_tells_none_apart() -> None:
    mask = [np.array([True, False, True])]
    level, telling = [np.array([-0.3, 2.0, -0.3])], [np.array([1.0, 2.0, 1.5])]
    assert not told_apart([level, telling], [51.4, 0.0], mask)
    assert told_apart([level, telling], [51.4, 0.1], mask)
    assert not told_apart([telling], [1.0], [np.array([True, False, False])])
