"""results.json: hand-made tables, byte-for-byte repeatability, and refusals."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import polars as pl
import pytest

from sirius_rec.errors import DataError, RunError
from sirius_rec.evaluation.intervals import paired_test
from sirius_rec.evaluation.results import build_results, clean, decision, read_results, write_results
from sirius_rec.evaluation.tables import ScoreTable

SLATES = "test-uniform-4-s0"
ROWS = 30


def examples():
    return pl.DataFrame(
        {"row_id": np.arange(ROWS), "user_id": [f"u{row // 2}" for row in range(ROWS)], "target": np.arange(ROWS) % 4}
    )


def table(method, seed=0, *, wins, checkpoint="last", rows=ROWS, slates=SLATES):
    """The target of row r comes first where wins(r), else last."""
    scores = [[(10.0 if wins(row) else -10.0) if item == row % 4 else item for item in range(4)] for row in range(rows)]
    frame = pl.DataFrame(
        {"row_id": np.arange(rows), "candidates": [[0, 1, 2, 3]] * rows, "scores": scores},
        schema_overrides={"candidates": pl.List(pl.Int32), "scores": pl.List(pl.Float64)},
    ).sample(fraction=1.0, shuffle=True, seed=seed)
    return ScoreTable(method, method.upper(), seed, slates, checkpoint, frame)


def some_tables():
    return [
        table("sft_continued", 0, wins=lambda r: r % 3 == 0),
        table("sft_continued", 1, wins=lambda r: r % 3 == 1),
        table("dpo", 0, wins=lambda r: r % 2 == 0),
        table("dpo", 1, wins=lambda r: r % 5 != 0),
        table("dpo_sirius", 0, wins=lambda r: r % 5 != 0),
        table("popularity", 0, wins=lambda r: r == 0),
    ]


def facts(role="arm", random=True, base=None, **more):
    return {"role": role, "random": random, "base": base, **more}


METHODS = {
    "popularity": facts("trivial", random=False),
    "ease": facts("baseline", random=False),
    "sft": facts("sft"),
    "sft_continued": facts(),
    "dpo": facts(comparison="pairwise"),
    "dpo_sirius": facts(base="dpo"),
    "simpo": facts(),
}


def build(tables=None, **changes):
    given = {"examples": examples(), "baseline": "sft_continued", "methods": METHODS} | changes
    return build_results(some_tables() if tables is None else tables, **given)


def test_rows_and_summary_by_hand():
    results = build()
    rows = {(row["method"], row["seed"]): row for row in results["rows"]}
    assert len(rows) == 6
    assert rows["dpo", 0]["hr@1"] == 0.5 and rows["dpo", 1]["hr@1"] == 0.8
    assert rows["dpo", 0]["mrr"] == 0.625  # half rank 1, half rank 4
    assert rows["dpo", 0]["ndcg@5"] == pytest.approx((1 + 1 / math.log2(5)) / 2, rel=1e-9)
    assert (rows["dpo", 0]["chance"], rows["dpo", 0]["n"], rows["dpo", 0]["label"]) == (0.25, ROWS, "DPO")
    # every user holds one even and one odd row, so HR@1 of dpo seed 0 is 0.5 in every resample
    assert rows["dpo", 0]["hr@1_low"] == rows["dpo", 0]["hr@1_high"] == 0.5
    assert rows["dpo", 0]["true_reward"] is None and rows["dpo", 0]["n_generated"] is None
    summary = {row["method"]: row for row in results["summary"]}
    assert summary["dpo"]["seeds"] == [0, 1]
    assert summary["dpo"]["hr@1"] == 0.65
    assert summary["dpo"]["hr@1_seed_sd"] == pytest.approx(0.3 / math.sqrt(2), rel=1e-9)
    assert summary["dpo_sirius"]["hr@1_seed_sd"] is None
    assert summary["dpo"]["hr@1_low"] < 0.55 and summary["dpo"]["hr@1_high"] > 0.75


def test_paired_tests():
    results = build()
    pairs = {(test["method"], test["against"]): test for test in results["paired"]}
    assert set(pairs) == {("dpo", "sft_continued"), ("dpo_sirius", "sft_continued"), ("dpo_sirius", "dpo")}
    test = pairs["dpo_sirius", "dpo"]
    assert test["seeds"] == [0]
    assert test["difference"] == pytest.approx(0.3)
    a, b = ([float(wins(r)) for r in range(ROWS)] for wins in (lambda r: r % 5 != 0, lambda r: r % 2 == 0))
    alone = paired_test(a, b, examples()["user_id"].to_numpy())
    assert (test["low"], test["high"], test["p"]) == pytest.approx((alone.low, alone.high, alone.p))
    assert all(test["p_holm"] >= test["p"] for test in results["paired"])
    assert results["curves"] == {} and results["notes"]
    given = {"config": {"a": 1}, "environment": {"b": 2}, "data": {"c": 3}, "curves": {"dpo": {"0": []}}}
    assert {key: build(**given)[key] for key in given} == given


def test_a_method_without_seeds_stands_against_every_seed():
    """EASE has one table, DPO two: both seeds of DPO are paired with it."""
    tables = [table("dpo", seed=s, wins=lambda r, s=s: r % 5 != s) for s in (0, 1)]
    tables.append(table("ease", wins=lambda r: r % 2 == 0))
    (test,) = build(tables, baseline="ease")["paired"]
    assert test["seeds"] == [0, 1] and test["difference"] == pytest.approx(0.3)
    (floor,) = build([*tables[:2], table("popularity", wins=lambda r: r % 2 == 0)], baseline="popularity")["paired"]
    assert {**floor, "against": "ease"} == test


def test_a_method_without_seeds_is_tested_over_every_seed_of_the_baseline():
    tables = [table("sft", seed, wins=lambda r, seed=seed: r % (seed + 2) == 0) for seed in (0, 1, 2)]
    tables.append(table("ease", 0, wins=lambda r: r % 3 != 0))
    (test,) = build(tables, baseline="sft")["paired"]
    rows = {(row["method"], row["seed"]): row["hr@1"] for row in build(tables, baseline="sft")["rows"]}
    assert test["seeds"] == [0, 1, 2] and not test["one_seed"]
    assert test["difference"] == pytest.approx(rows["ease", 0] - np.mean([rows["sft", seed] for seed in (0, 1, 2)]))


def test_one_seed_of_a_trained_method_gets_no_verdict():
    """However clear the difference: nothing is known about other seeds. Formulas have none, so theirs stands."""
    good, poor = table("dpo", wins=lambda r: True), table("sft", wins=lambda r: False)
    (test,) = build([good, poor], baseline="sft")["paired"]
    assert test["p_holm"] < 0.05 and test["low"] > 0 and test["seeds"] == [0]
    assert decision(test) == "on these seeds only"
    (formulas,) = build([good, poor], baseline="sft", methods={"dpo": facts(random=False), "sft": facts(random=False)})[
        "paired"
    ]
    assert decision(formulas) == "better"
    again = [table(t.method, seed=1, wins=lambda r, t=t: t.method == "dpo") for t in (good, poor)]
    (two,) = build([good, poor, *again], baseline="sft")["paired"]
    assert two["seeds"] == [0, 1] and decision(two) == "better"


def test_seeds_that_differ_more_than_users_get_no_verdict():
    """Three seeds of +0.6, +0.2 and +0.3 on 15 users: clear on these seeds; t of two seeds' freedom says no more."""
    wins = [lambda r: r % 5 < 3, lambda r: r % 5 < 1, lambda r: r % 10 < 3]
    tables = [table("dpo", seed, wins=won) for seed, won in enumerate(wins)]
    tables += [table("sft", seed, wins=lambda r: False) for seed in range(3)]
    (test,) = build(tables, baseline="sft")["paired"]
    assert test["p_holm_these_seeds"] < 0.001 < 0.05 < test["p_holm"] and test["low"] < 0
    assert decision(test) == "on these seeds only"
    steady = [table("dpo", seed, wins=lambda r: r % 5 < 2) for seed in range(3)] + tables[3:]
    (test,) = build(steady, baseline="sft")["paired"]
    assert decision(test) == "better"
    assert decision({**test, "difference": -test["difference"]}) == "worse"


@pytest.mark.parametrize(
    ("difference", "low", "high", "words"),
    [
        (0.1, 0.05, 0.15, "better"), (-0.1, -0.15, -0.05, "worse"), (-0.1, -0.2, 0.0, "on these seeds only"),
        (0.1, 0.0, 0.2, "on these seeds only"), (0.1, -0.1, 0.3, "on these seeds only"),
        (0.1, None, None, "on these seeds only"),
    ],
)  # fmt: skip
def test_a_verdict_needs_an_interval_off_zero(difference, low, high, words):
    test = {"p_holm": 0.01, "p_holm_these_seeds": 0.01, "one_seed": False, "seeded": True}
    test |= {"difference": difference, "low": low, "high": high}
    assert decision(test) == words
    assert decision({**test, "p_holm": 0.05, "p_holm_these_seeds": 0.05}) == "no clear difference"


def test_intervals_of_shares_end_at_0_and_1():
    """Two seeds of HR@1 0.5 and 0.8 leave an interval of t 12.7; beyond 0 and 1 there is nothing."""
    summary = {row["method"]: row for row in build()["summary"]}
    assert (summary["dpo"]["hr@1_low"], summary["dpo"]["hr@1_high"]) == (0.0, 1.0)


def test_a_share_of_all_or_none_is_no_point():
    """15 users: 1 − 0.025^(1/15) away; in the row of one seed, in the summary, and for what was generated."""
    reach = 1 - 0.025 ** (1 / 15)
    tables = [table("dpo", seed, wins=lambda r: False) for seed in (0, 1)]
    made = build(tables, generation=[generation(row_id=list(range(30)), valid=[1] * 30, hit=[0] * 30)])
    for row in (*made["rows"], *made["summary"]):
        assert (row["hr@1_low"], row["hr@1_high"]) == pytest.approx((0, reach))
        assert row["hr@5_low"] == row["hr@5"] == 1  # of four candidates: by definition
    assert (made["rows"][0]["valid_ratio_low"], made["rows"][0]["valid_ratio_high"]) == pytest.approx((1 - reach, 1))


def test_a_target_that_may_be_missing_makes_no_metric_certain():
    """HR@5 of four retrieved candidates is the ceiling, seen on these users alone."""
    slates = "test-retrieved_ease-4-s0"
    lost = examples().with_columns(target=9)
    [row] = build([table("dpo", wins=lambda r: True, slates=slates)], examples=lost)["rows"]
    assert row["ceiling"] == 0 and (row["hr@5_low"], row["hr@5_high"]) == pytest.approx((0, 1 - 0.025 ** (1 / 15)))
    half = examples().with_columns(target=pl.when(pl.col("row_id") < 15).then(9).otherwise("target"))
    made = build([table("dpo", s, wins=lambda r: True, slates=slates) for s in (0, 1)], examples=half)
    [row] = made["summary"]
    assert row["ceiling"] == row["hr@5"] == 0.5 and 0 <= row["hr@5_low"] < 0.5 < row["hr@5_high"] <= 1


def test_missing_baseline_is_noted_and_trivial_baselines_are_not_tested():
    results = build([table("dpo", wins=lambda r: True), table("popularity", wins=lambda r: False)])
    assert results["paired"] == []
    assert any("sft_continued on test-uniform-4-s0, checkpoint last" in note for note in results["notes"])


def test_true_reward_is_aligned_by_row():
    truth = pl.DataFrame({"row_id": np.arange(ROWS), "utility": [[0.0, 0, 0, 4.0]] * ROWS}).reverse()
    results = build([table("dpo", wins=lambda r: r % 4 == 3)], truths={SLATES: truth})
    # r % 4 == 3: item 3 is the target and wins: 1. Otherwise item 3 has the top score of the others: 1 as well.
    assert results["rows"][0]["true_reward"] == results["rows"][0]["true_reward_low"] == 1.0  # no share: no limit
    lost = build([table("dpo", wins=lambda r: True)], truths={SLATES: truth})["rows"][0]
    # top choice is item r % 4: seven rows of thirty are worth 4, (4 - 1) / (4 - 1) = 1; the others (0 - 1) / 3
    assert lost["true_reward"] == pytest.approx((7 - 23 / 3) / 30, rel=1e-8)
    with pytest.raises(DataError, match="row_id 29 is missing"):
        build([table("dpo", wins=lambda r: True)], truths={SLATES: truth.tail(29)})


def generation(**changes):
    entry = {"method": "dpo", "seed": 0, "slates": SLATES, "checkpoint": "last"}
    return entry | {"row_id": [4, 2, 0, 7], "valid": [1, 1, 0, True], "hit": [True, 0, 0, 0]} | changes


def test_generation_counts_all_prompts():
    row = next(r for r in build(generation=[generation()])["rows"] if (r["method"], r["seed"]) == ("dpo", 0))
    assert (row["valid_ratio"], row["hr@1_generated"], row["n_generated"]) == (0.75, 0.25, 4)
    summary = {r["method"]: r for r in build(generation=[generation()])["summary"]}
    assert summary["dpo"]["valid_ratio"] is None  # seed 1 generated nothing
    with pytest.raises(DataError, match="row_id 0 is neither 0 nor 1, or a hit without being valid"):
        build(generation=[generation(hit=[1, 0, 1, 0])])
    with pytest.raises(DataError, match="row_id 4 is neither 0 nor 1, or a hit without being valid"):
        build(generation=[generation(valid=[1, 1, 1, 2], hit=[0, 0, 0, 2], row_id=[0, 1, 2, 4])])
    with pytest.raises(DataError, match="row_id 2 is neither 0 nor 1, or a hit without being valid"):
        build(generation=[generation(valid=[1, 2, 1, 1])])
    with pytest.raises(DataError, match=f"generation: simpo, seed 0, {SLATES}, last has no score table"):
        build(generation=[generation(method="simpo")])


def test_many_generated_answers():
    """More than 256: Python's small integers are all one object, larger ones are not."""
    users = pl.DataFrame(
        {"row_id": range(300), "user_id": [str(r) for r in range(300)], "target": [r % 4 for r in range(300)]}
    )
    answers = generation(row_id=list(range(300)), valid=[1] * 300, hit=[0] * 300)
    (row,) = build([table("dpo", wins=bool, rows=300)], examples=users, generation=[answers])["rows"]
    assert row["n_generated"] == 300


def test_two_runs_write_the_same_bytes(tmp_path):
    extra = {"config": {"lr": np.float32(0.1), "b": {"z": 1, "a": (1, 2)}}, "curves": {"dpo": {0: [{"epoch": 0}]}}}
    shuffled = some_tables()
    random.Random(1).shuffle(shuffled)
    one = write_results(build(**extra), tmp_path / "a" / "results.json").read_bytes()
    two = write_results(build(shuffled, **extra), tmp_path / "results.json").read_bytes()
    assert one == two
    assert read_results(tmp_path / "results.json") == build(**extra)
    assert json.loads(one)["curves"] == {"dpo": {"0": [{"epoch": 0}]}}


def test_what_methods_are_stands_in_the_results():
    """Of those that were scored; the pairs of variants and bases come from it, not from names."""
    results = build()
    assert results["methods"] == {key: METHODS[key] for key in ("popularity", "sft_continued", "dpo", "dpo_sirius")}
    assert {row["method"]: row["role"] for row in results["summary"]} == {
        "popularity": "trivial", "sft_continued": "arm", "dpo": "arm", "dpo_sirius": "arm",
    }  # fmt: skip
    assert [(t["method"], t["against"]) for t in results["paired"] if t["against_base"]] == [("dpo_sirius", "dpo")]
    unrelated = build(methods=METHODS | {"dpo_sirius": facts()})
    assert not any(test["against_base"] for test in unrelated["paired"])
    with pytest.raises(DataError, match="scores of 'dpo', which is no method of this run"):
        build(methods={key: value for key, value in METHODS.items() if key != "dpo"})


def test_clean():
    assert clean({"b": 1 / 3, "a": [float("nan"), -0.0, np.int64(3), np.True_]}) == {
        "a": [None, 0.0, 3, True],
        "b": 0.3333333333,
    }
    with pytest.raises(DataError, match=r"results\.x\[0\]: a set"):
        clean({"x": [set()]})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "no score tables"),
        ([table("dpo", wins=bool), table("dpo", wins=bool)], "given twice"),
        ([table("dpo", wins=bool), table("simpo", wins=bool, rows=20)], "every method must score the same rows"),
        ([table("dpo", wins=bool, rows=ROWS + 1)], "row_id 30 is not among the examples"),
    ],
)
def test_tables_that_do_not_fit(tables, message):
    with pytest.raises(DataError, match=message):
        build(tables)


def test_other_candidates_and_nan_are_named():
    good = table("dpo", wins=bool)
    swapped = good.frame.with_columns(pl.col("candidates").list.reverse())
    with pytest.raises(DataError, match="row_id 0 has other candidates"):
        build([good, ScoreTable("simpo", "S", 0, SLATES, "last", swapped)])
    broken = good.frame.with_columns(
        pl.when(pl.col("row_id") == 7).then(pl.col("scores").list.eval(pl.element() * float("nan"))).otherwise("scores")
        .alias("scores")
    )  # fmt: skip
    with pytest.raises(DataError, match=r"dpo-s0-.*row_id 7, candidate 0 is NaN"):
        build([ScoreTable("dpo", "D", 0, SLATES, "last", broken)])


def test_users_without_a_name_are_their_own_group():
    unnamed = examples().with_columns(user_id=pl.lit(None, dtype=pl.String))
    row = next(r for r in build(examples=unnamed)["rows"] if (r["method"], r["seed"]) == ("dpo", 0))
    assert row["hr@1_low"] < 0.5 < row["hr@1_high"]
    assert any("no user id" in note for note in build(examples=unnamed)["notes"])


def test_unreadable_results(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(RunError, match="no such file"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(RunError, match="not readable as JSON"):
        read_results(path)
    path.write_text('{"format": 99}')
    with pytest.raises(RunError, match="results format 99"):
        read_results(path)


def test_formulas_differ_or_do_not() -> None:
    """Nothing of methods without seeds holds "on these seeds only"."""
    test = {"low": 0.0, "high": 0.1, "difference": 0.05, "p_holm": 0.03, "p_holm_these_seeds": 0.03, "one_seed": False}
    assert decision({**test, "seeded": False}) == "no clear difference"
    assert decision({**test, "seeded": True}) == "on these seeds only"
