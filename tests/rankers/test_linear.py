"""Recency and Markov by hand; EASE against the closed-form ridge regression of each item on the others."""

from __future__ import annotations

import numpy as np
import pytest

from sirius_rec.errors import ConfigError, DataError, ScoringError
from sirius_rec.rankers.linear import EASE, L2_STEPS, Markov, Recency, best_ease

SEQUENCES = [np.array(s) for s in ([0, 1, 2], [0, 1, 3], [3, 0, 1], [4])]


def test_recency() -> None:
    ranker = Recency().fit(np.array([1, 2, 1, 3]), [10, 50, 30, 20], 5)
    (scores,) = ranker.score([np.array([0])], [np.arange(5)])
    assert scores[2] > scores[1] > scores[3] > scores[0] == scores[4]
    assert scores.tolist() == [9.0, 30.0, 50.0, 20.0, 9.0]


def test_recency_needs_times() -> None:
    with pytest.raises(DataError, match="every train row needs its timestamp"):
        Recency().fit(np.array([1]), [float("nan")], 3)


def test_markov_by_hand() -> None:
    """0 → 1 three times, 1 → 2 and 1 → 3 once, 3 → 0 once; ends of sequences lead nowhere. 10 events in all."""
    ranker = Markov().fit(SEQUENCES, 6)
    popularity = np.array([3, 3, 1, 2, 1, 0]) / 11
    after_0, after_4, none = ranker.score([np.array([2, 0]), np.array([4]), np.array([], int)], [np.arange(6)] * 3)
    assert after_0.tolist() == pytest.approx((popularity + np.array([0, 3, 0, 0, 0, 0])).tolist())
    assert after_4.tolist() == none.tolist() == pytest.approx(popularity.tolist())
    empty = np.array([], int)
    padded = Markov().fit([empty, *SEQUENCES[:1], empty, *SEQUENCES[1:], empty], 6)
    for history in range(6):
        asked = [np.array([history])], [np.arange(6)]
        assert padded.score(*asked)[0].tolist() == ranker.score(*asked)[0].tolist()
    (after_1,) = ranker.score([np.array([1])], [np.array([5, 3, 2])])
    assert after_1.tolist() == pytest.approx([0, 1 + 2 / 11, 1 + 1 / 11])


@pytest.mark.parametrize("l2", [0.5, 20.0])
def test_ease_is_ridge_regression_without_the_item_itself(l2: float) -> None:
    """Column j of B: weights of the ridge regression of item j's column on the other columns (Steck's problem)."""
    rng = np.random.default_rng(0)
    x = (rng.random((40, 7)) < 0.4).astype(float)
    sequences = [rng.permutation(np.flatnonzero(row)) for row in x]
    ranker = EASE(l2).fit(sequences, 7)
    assert ranker.weights_II is not None
    for j in range(7):
        others = np.delete(np.arange(7), j)
        a = x[:, others]
        wanted = np.linalg.solve(a.T @ a + l2 * np.eye(6), a.T @ x[:, j])
        np.testing.assert_allclose(ranker.weights_II[others, j], wanted, atol=1e-10)
        assert ranker.weights_II[j, j] == 0.0
    history, slate = np.array([2, 5, 2]), np.array([0, 1, 6])
    (scores,) = ranker.score([history], [slate])
    np.testing.assert_allclose(scores, [sum(ranker.weights_II[h, c] for h in (2, 5)) for c in slate])
    (empty,) = ranker.score([np.array([], int)], [slate])
    assert empty.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("best", [300.0, 3_000.0, 10.0, 30_000.0, 1.0])
def test_the_best_l2_is_climbed_to(best: float) -> None:
    """From 300 to wherever the top is, and one step beyond; what comes is EASE with that λ."""
    asked: list[float] = []

    def quality(ranker: EASE) -> float:
        asked.append(ranker.l2)
        return -abs(np.log(ranker.l2 / best))

    ranker = best_ease(SEQUENCES, 6, quality)
    assert ranker.l2 == best and len(set(asked)) == len(asked)
    steps = L2_STEPS.index
    assert len(asked) <= abs(steps(best) - steps(300.0)) + 3
    np.testing.assert_array_equal(ranker.weights_II, EASE(best).fit(SEQUENCES, 6).weights_II)


def test_of_equal_l2_the_first_is_taken() -> None:
    asked: list[float] = []
    ranker = best_ease(SEQUENCES, 6, lambda ranker: asked.append(ranker.l2) or 0.5)
    assert ranker.l2 == 300.0 and asked == [300.0, 1_000.0, 100.0]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="ease l2: 0"):
        EASE(0)
    with pytest.raises(ConfigError, match="20001 items"):
        EASE().fit(SEQUENCES, 20_001)
    for ranker in (Recency(), Markov(), EASE()):
        with pytest.raises(ScoringError, match="not fitted"):
            ranker.score([np.array([0])], [np.array([0, 1])])
    with pytest.raises(DataError, match="row 0 holds item 9"):
        Markov().fit(SEQUENCES, 6).score([np.array([9])], [np.array([0, 1])])
