"""Ranking metrics: hand values, and a naive average over every order of the tied candidates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirius_rec.errors import DataError
from sirius_rec.evaluation.metrics import CATALOGUE_METRICS, flatten, per_example, target_positions, true_reward

scores_and_place = st.lists(st.integers(-2, 2), min_size=1, max_size=6).flatmap(
    lambda scores: st.tuples(st.just(scores), st.integers(0, len(scores) - 1))
)


def naive(scores, place):
    """Mean over all permutations that sort the scores downwards, ties in any order."""
    n, found = len(scores), []
    for order in itertools.permutations(range(n)):
        if all(scores[order[i]] >= scores[order[i + 1]] for i in range(n - 1)):
            rank = order.index(place) + 1
            found.append(
                {f"hr@{k}": float(rank <= k) for k in (1, 5, 10)}
                | {f"ndcg@{k}": (rank <= k) / math.log2(1 + rank) for k in (1, 5, 10)}
                | {"mrr": 1 / rank, "rank": float(rank), "chance": 1 / n}
            )
    return {key: np.mean([entry[key] for entry in found]) for key in found[0]}


@given(st.lists(scores_and_place, min_size=1, max_size=4))
def test_ragged_rows_equal_the_mean_over_tie_orders(rows):
    got = per_example([np.array(scores, float) for scores, _ in rows], [place for _, place in rows])
    for index, (scores, place) in enumerate(rows):
        for key, value in naive(scores, place).items():
            assert got[key][index] == pytest.approx(value, abs=1e-12), key


def test_hand_values():
    # ranks 1, 3 and 6: NDCG 1/log2(2), 1/log2(4) = 1/2, 1/log2(7)
    scores = np.array([[9.0, 1, 2, 3, 4, 5], [8, 9, 10, 1, 2, 3], [0, 9, 8, 7, 6, 5]])
    got = per_example(scores, [0, 0, 0])
    assert got["rank"].to_list() == [1, 3, 6]
    assert got["hr@1"].to_list() == [1, 0, 0]
    assert got["hr@5"].to_list() == [1, 1, 0]
    assert got["ndcg@5"].to_list() == [1, 0.5, 0]
    assert got["ndcg@10"].to_list() == [1, 0.5, 1 / math.log2(7)]
    assert got["mrr"].to_list() == [1, 1 / 3, 1 / 6]


@pytest.mark.parametrize("n", [1, 3, 7, 20, 100])
def test_constant_scores_are_exactly_chance(n):
    got = per_example(np.zeros((2, n)), [0, n - 1])
    assert got["hr@1"].to_list() == [1 / n, 1 / n]
    assert got["hr@10"].to_list() == [min(10, n) / n] * 2
    assert got["rank"].to_list() == [(n + 1) / 2] * 2


def test_list_columns_and_infinities():
    column = pl.Series([[float("-inf"), 0.0], [1.0, 2.0, 3.0]], dtype=pl.List(pl.Float32))
    assert per_example(column, [1, 0])["rank"].to_list() == [1, 3]


@given(st.permutations(range(6)))
def test_candidate_order_does_not_matter(order):
    scores = np.array([3.0, 1, 1, 0, 2, 1])
    place = list(order).index(2)
    assert per_example([scores[list(order)]], [place]).equals(per_example([scores], [2]))


def test_nan_names_its_row():
    with pytest.raises(DataError, match="row_id 42, candidate 1 is NaN"):
        per_example([[1.0, 2.0], [0.0, float("nan"), 1.0]], [0, 0], row_ids=[41, 42])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0], []], "row 1 is empty"),
        ([["a"]], "not all values are numbers"),
        (pl.Series([[1.0], [None]], dtype=pl.List(pl.Float64)), "row 1 holds a null"),
        (pl.Series([[1.0], []], dtype=pl.List(pl.Float64)), "row 1 is empty"),
        (pl.Series([[1.0], None], dtype=pl.List(pl.Float64)), "row 1 is missing"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        flatten(values, "scores")


def test_positions_outside_their_slate():
    with pytest.raises(DataError, match="row 1 has 2"):
        per_example([[1.0, 2, 3], [1.0, 2]], [2, 2])


def test_target_positions():
    assert target_positions(pl.Series([[4, 9], [1, 2, 3]]), [9, 1]).tolist() == [1, 0]
    with pytest.raises(DataError, match="row_id 8 holds its target 5 0 times"):
        target_positions([[5], [1, 2]], [5, 5], row_ids=[7, 8])
    with pytest.raises(DataError, match="2 times"):
        target_positions([[5, 5]], [5])


def test_true_reward_by_hand():
    # utilities 0, 1, 5: mean 2, max 5; top choices worth 5, 0, and the tie of 1 and 5 worth 3
    utilities = [[0.0, 1, 5]] * 3
    got = true_reward([[0.0, 1, 2], [2.0, 1, 0], [0.0, 1, 1]], utilities)
    np.testing.assert_allclose(got, [1, -2 / 3, 1 / 3])


def test_true_reward_of_constant_scores_is_zero_and_of_the_truth_one():
    utilities = np.random.default_rng(0).normal(size=(50, 7))
    np.testing.assert_allclose(true_reward(np.zeros((50, 7)), utilities), 0, atol=1e-12)
    np.testing.assert_allclose(true_reward(utilities, utilities), 1)


def test_true_reward_refuses_what_it_cannot_scale():
    with pytest.raises(DataError, match="row 0 has one utility"):
        true_reward([[1.0, 2.0]], [[3.0, 3.0]])
    with pytest.raises(DataError, match="not the same number"):
        true_reward([[1.0, 2.0]], [[3.0]])


def test_one_list_is_no_table_of_scores():
    with pytest.raises(DataError, match="every row must be one list of numbers"):
        per_example(np.array([0.1, 0.2]), [0])


def test_the_first_missing_row_is_named_and_no_rows_have_no_metrics():
    with pytest.raises(DataError, match="row 1 is missing"):
        per_example(pl.Series([[0.1], None, [0.2], None], dtype=pl.List(pl.Float64)), [0, 0, 0, 0])
    assert per_example([], []).is_empty() and len(target_positions([], [])) == 0


def test_metrics_of_the_whole_catalogue_by_hand():
    """150 items; the target at rank 3, at rank 60, at rank 101, and among 50 items on the 101st to 150th score."""
    scores = np.tile(-np.arange(150.0), (4, 1))
    scores[3, 100:] = -np.inf
    found = per_example(scores, [2, 59, 100, 120], catalogue=True)
    assert found["hr@10"].to_list() == [1, 0, 0, 0]
    assert found["hr@50"].to_list() == [1, 0, 0, 0]
    assert found["hr@100"].to_list() == [1, 1, 0, 0]
    assert found["ndcg@100"].to_list() == pytest.approx([1 / 2, 1 / np.log2(61), 0, 0])
    assert found["ndcg@20"].to_list() == pytest.approx([1 / 2, 0, 0, 0])
    assert found["mrr@100"].to_list() == pytest.approx([1 / 3, 1 / 60, 0, 0])
    # beyond the list, the reciprocal rank is an expectation over what is not known, and no metric of a catalogue
    assert found["mrr"][3] == pytest.approx(np.mean(1 / np.arange(101, 151)))
    assert "mrr" not in CATALOGUE_METRICS and set(CATALOGUE_METRICS) < set(found.columns)


def test_a_slate_without_its_target_is_a_miss():
    positions = target_positions([[7, 3], [4, 5]], [3, 9], may_lack=True)
    assert positions.tolist() == [1, -1]
    found = per_example([[0.1, 0.9], [0.9, 0.1]], positions)
    assert found.select("hr@1", "hr@10", "ndcg@10", "mrr").rows() == [(1, 1, 1, 1), (0, 0, 0, 0)]
    assert found["rank"].to_list() == [1, 3] and found["chance"].to_list() == [0.5, 0]
    with pytest.raises(DataError, match="holds its target 9 0 times"):
        target_positions([[7, 3], [4, 5]], [3, 9])
    with pytest.raises(DataError, match="holds its target 4 2 times"):
        target_positions([[4, 4]], [4], may_lack=True)
    with pytest.raises(DataError, match="has -2"):
        per_example([[0.1, 0.9]], [-2])
