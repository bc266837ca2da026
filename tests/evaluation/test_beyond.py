"""Width, popularity, buckets and calibration: by hand, and the jackknife against the variance of a mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from sirius_rec.errors import DataError
from sirius_rec.evaluation.beyond import BUCKETS, GROUPS, TrainCounts, beyond_accuracy, gini
from sirius_rec.evaluation.tables import ScoreTable

SLATES = "test-uniform-4-s0"


def test_gini_by_hand() -> None:
    """[1, 3]: (−1·1 + 1·3) / (2·4) = 1/4; one of four has all: 3/4."""
    assert gini(np.array([3, 1])) == pytest.approx(0.25)
    assert gini(np.array([0, 0, 7, 0])) == pytest.approx(0.75)
    assert gini(np.array([2, 2, 2])) == pytest.approx(0)
    assert np.isnan(gini(np.zeros(3)))


def test_gini_is_half_the_relative_mean_difference() -> None:
    x = np.random.default_rng(0).integers(0, 9, 30)
    assert gini(x) == pytest.approx(np.abs(x[:, None] - x[None]).mean() / (2 * x.mean()))


def test_buckets_hold_a_third_of_the_interactions_each() -> None:
    """Of 18: 6 | 3 + 3 | 2 + 2 + 1 + 1, and one that nobody had."""
    buckets = TrainCounts(np.array([1, 3, 6, 2, 0, 3, 2, 1]), 9).buckets()
    assert [BUCKETS[b] for b in buckets] == ["tail", "middle", "head", "tail", "unseen", "middle", "tail", "tail"]


def examples(n: int, history: list[int] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {"row_id": np.arange(n), "user_id": [f"u{r // 2}" for r in range(n)],
         "history": [history or [0, 1]] * n, "target": np.arange(n) % 4}
    )  # fmt: skip


def table(scores: Any, method: str = "dpo", seed: int = 0, slates: str = SLATES) -> ScoreTable:
    n = len(scores)
    frame = pl.DataFrame(
        {"row_id": np.arange(n), "candidates": [[0, 1, 2, 3]] * n, "scores": np.asarray(scores).tolist()},
        schema_overrides={"candidates": pl.List(pl.Int32), "scores": pl.List(pl.Float64)},
    )
    return ScoreTable(method, method.upper(), seed, slates, "best", frame.sample(fraction=1.0, shuffle=True, seed=1))


METHODS = {"dpo": {"probabilities": True}, "sft": {"probabilities": True}, "ease": {"language_model": True}}
POPULAR = TrainCounts(np.array([8, 4, 2, 1, 0, 0, 0, 0]), 15)


def beyond(*tables: ScoreTable, n: int = 80, baseline: str = "sft") -> dict[str, Any]:
    return beyond_accuracy(tables, examples(n), POPULAR, methods=METHODS, baseline=baseline)


def test_all_for_the_most_popular_by_hand() -> None:
    [row] = beyond(table([[9.0, 0, 0, 0]] * 80))["rows"]
    assert row["k"] == 1 and row["n"] == 80
    assert row["coverage"]["mean"] == 1 / 8 and row["gini"]["mean"] == pytest.approx(7 / 8)
    assert row["novelty"]["mean"] == pytest.approx(-np.log2(9 / 16))
    assert row["popularity_lift"]["mean"] == pytest.approx(8 / 6 - 1)  # histories are of 8 and 4
    assert row["coverage"]["low"] == row["coverage"]["high"] == 1 / 8
    hits = {bucket["name"]: (bucket["n"], bucket["mean"]) for bucket in row["buckets"]}
    assert hits == {"head": (20, 1.0), "middle": (20, 0.0), "tail": (40, 0.0)}
    # targets go round by fours and a user has two rows: 20 users in each of the first two buckets, 20 in the tail
    for bucket in row["buckets"]:
        exact = stats.binomtest(round(20 * bucket["mean"]), 20).proportion_ci(0.95, method="exact")
        assert (bucket["low"], bucket["high"]) == pytest.approx((exact.low, exact.high))


def test_everything_once_is_wide() -> None:
    [row] = beyond(table([np.eye(4)[r % 4] for r in range(80)]))["rows"]
    assert row["coverage"]["mean"] == 1 / 2 and row["gini"]["mean"] == pytest.approx(1 / 2)
    assert row["novelty"]["mean"] == pytest.approx(np.mean(-np.log2(np.array([9, 5, 3, 2]) / 16)))
    assert all(bucket["mean"] == 1 for bucket in row["buckets"])


def test_lists_of_ten_where_the_catalogue_is_ranked() -> None:
    [row] = beyond(table([[9.0, 8, -np.inf, -np.inf]] * 80, slates="test-full-8-s0"))["rows"]
    assert row["k"] == 10 and row["coverage"]["mean"] == 4 / 8 and row["calibration"] is None
    [row] = beyond(table([[9.0, 8, 1, 2]] * 80, slates="test-retrieved_ease-4-s0"))["rows"]
    assert row["k"] == 10


def test_calibration_by_hand() -> None:
    """Sure of 3/4 each time and right in half of the rows: off by 1/4 in every bin. Probabilities of 1/4: right."""
    odds = np.log(np.array([9.0, 1, 1, 1]))  # 3/4 for the first
    place = [r % 4 if r % 8 < 4 else (r + 1) % 4 for r in range(80)]
    [row] = beyond(table([np.roll(odds, p) for p in place]))["rows"]
    assert row["calibration"]["mean"] == pytest.approx(0.25)
    assert sum(b["n"] for b in row["calibration"]["bins"][0]) == 80
    assert all(b["confidence"] == pytest.approx(0.75) for b in row["calibration"]["bins"][0])
    [row] = beyond(table([[0.0] * 4] * 80))["rows"]
    assert row["calibration"]["mean"] == pytest.approx(0)
    [row] = beyond(table([[0.0] * 4] * 80, "ease"))["rows"]
    assert row["calibration"] is None  # its scores are no log-probs


def test_rows_whose_target_was_not_retrieved_say_nothing_of_calibration() -> None:
    """The softmax is right of what it can know: 3/4 sure, right in 3/4 of the rows whose target was found."""
    odds = np.log(np.array([9.0, 1, 1, 1]))
    place = [(r + (r // 4 % 4 == 3)) % 4 for r in range(160)]
    scores = [np.roll(odds, p) for p in place]
    lost = examples(160).with_columns(pl.when(pl.col("row_id") >= 80).then(7).otherwise("target").alias("target"))
    slates = "test-retrieved_ease-4-s0"
    for given in (examples(160), lost):
        [row] = beyond_accuracy([table(scores, slates=slates)], given, POPULAR, methods=METHODS, baseline="x")["rows"]
        assert row["calibration"]["mean"] == pytest.approx(0)
        assert sum(b["n"] for b in row["calibration"]["bins"][0]) == (160 if given is not lost else 80)
    lost = lost.with_columns(target=7)
    [row] = beyond_accuracy([table(scores, slates=slates)], lost, POPULAR, methods=METHODS, baseline="x")["rows"]
    assert row["calibration"] is None


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    """Of 20 groups with equally many users the standard error of a mean is that of the groups' means."""
    rng = np.random.default_rng(3)
    scores = np.where(rng.random((800, 1)) < 0.3, 1.0, -1.0) * np.eye(4)[np.arange(800) % 4]
    [row] = beyond(table(scores), n=800)["rows"]
    head = next(b for b in row["buckets"] if b["name"] == "head")
    assert head["low"] < head["mean"] < head["high"]
    # 200 rows of the head bucket, hits of variance p (1 − p): by another route, within the noise of 20 groups
    wide = 2 * 2.093 * np.sqrt(head["mean"] * (1 - head["mean"]) / 200)
    assert (head["high"] - head["low"]) == pytest.approx(wide, rel=0.5)


def test_few_users_are_no_more_than_they_are() -> None:
    """Four users: the interval of a mean is Student's with three degrees of freedom. One user: none."""
    right_U = [4, 3, 3, 2]  # of each user's five rows of the head
    scores = [np.eye(4)[0 if r % 4 == 0 and r % 20 // 4 < right_U[r // 20] else 1] for r in range(80)]
    rows = examples(80).with_columns(user_id=pl.Series([f"u{r // 20}" for r in range(80)]))
    [row] = beyond_accuracy([table(scores)], rows, POPULAR, methods=METHODS, baseline="sft")["rows"]
    head = next(b for b in row["buckets"] if b["name"] == "head")
    mean_U = np.array(right_U) / 5
    low, high = stats.t.interval(0.95, 3, loc=mean_U.mean(), scale=stats.sem(mean_U))
    assert 0 < low < high < 1  # neither end is cut away
    assert (head["mean"], head["low"], head["high"]) == pytest.approx((mean_U.mean(), low, high))
    rows = rows.with_columns(user_id=pl.lit("u0"))
    found = beyond_accuracy([table(scores), table(scores, "sft")], rows, POPULAR, methods=METHODS, baseline="sft")
    assert all(np.isnan(bucket["low"]) and np.isnan(bucket["high"]) for bucket in found["rows"][0]["buckets"])
    assert all(np.isnan(test["low"]) for test in found["tests"])


def test_a_bucket_of_few_users_is_no_more_than_they_are() -> None:
    """Of forty users three have targets in the tail: Student's interval with two degrees of freedom, not nineteen."""
    right_U = [3, 2, 1]  # of four rows each
    rows = examples(160).with_columns(
        user_id=pl.Series([f"u{r // 4:02}" for r in range(160)]),
        target=pl.Series([2 if r < 12 else r % 2 for r in range(160)]),
    )
    scores = [np.eye(4)[2 if r < 12 and r % 4 < right_U[r // 4] else 3] for r in range(160)]
    [row] = beyond_accuracy([table(scores)], rows, POPULAR, methods=METHODS, baseline="sft", seed=1)["rows"]
    tail = next(b for b in row["buckets"] if b["name"] == "tail")
    mean_U = np.array(right_U) / 4
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem(mean_U))
    assert (tail["n"], tail["mean"]) == (12, 0.5)
    assert (tail["low"], tail["high"]) == pytest.approx((max(low, 0), min(high, 1)))
    alone = rows.with_columns(target=pl.Series([2 if r < 4 else r % 2 for r in range(160)]))
    [row] = beyond_accuracy([table(scores)], alone, POPULAR, methods=METHODS, baseline="sft")["rows"]
    assert np.isnan(next(b for b in row["buckets"] if b["name"] == "tail")["low"])


def test_without_any_history_there_is_no_lift() -> None:
    rows = examples(80).with_columns(history=pl.Series([[]] * 80, dtype=pl.List(pl.Int64)))
    tables = [table([np.roll([9.0, 3, 1, 0], r) for r in range(80)]), table([[9.0, 0, 0, 0]] * 80, "sft")]
    found = beyond_accuracy(tables, rows, POPULAR, methods=METHODS, baseline="sft")
    assert all(np.isnan(row["popularity_lift"]["mean"]) for row in found["rows"])
    assert {test["metric"] for test in found["tests"]} == {"coverage", "gini", "novelty"}


def test_seeds_are_averaged_and_their_spread_is_said() -> None:
    [row] = beyond(table([[9.0, 0, 0, 0]] * 80, seed=0), table([np.eye(4)[r % 4] for r in range(80)], seed=1))["rows"]
    assert row["seeds"] == [0, 1] and row["coverage"]["mean"] == pytest.approx((1 / 8 + 1 / 2) / 2)
    assert row["coverage"]["seed_sd"] == pytest.approx(np.std([1 / 8, 1 / 2], ddof=1))


def test_a_narrower_method_is_found_and_an_equal_one_is_not() -> None:
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(80, 4)), rng.normal(size=(80, 4)) + np.array([6.0, 0, 0, 0])
    tests = beyond(table(wide, "sft"), table(narrow, "dpo"), table(wide, "ease"))["tests"]
    by = {(t["method"], t["metric"]): t for t in tests}
    assert by["dpo", "gini"]["mean"] > 0 and by["dpo", "gini"]["p_holm"] < 0.01
    assert by["dpo", "novelty"]["mean"] < 0 and by["dpo", "novelty"]["high"] < 0
    assert by["ease", "gini"]["mean"] == 0 and by["ease", "gini"]["p"] == 1
    assert all(t["against"] == "sft" for t in tests) and len(tests) == 8
    assert beyond(table(wide, "dpo"))["tests"] == []


def test_rows_without_history_or_user() -> None:
    rows = examples(80).with_columns(
        history=pl.Series([[]] * 40 + [[2]] * 40, dtype=pl.List(pl.Int64)), user_id=pl.lit(None, dtype=pl.String)
    )
    found = beyond_accuracy([table([[9.0, 0, 0, 0]] * 80)], rows, POPULAR, methods=METHODS, baseline="sft")
    assert found["rows"][0]["popularity_lift"]["mean"] == pytest.approx(8 / 2 - 1)
    with pytest.raises(DataError, match="not among the examples"):
        beyond_accuracy([table([[9.0, 0, 0, 0]] * 80)], rows[:79], POPULAR, methods=METHODS, baseline="sft")
    assert GROUPS == 20
