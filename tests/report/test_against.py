"""Paired tests against any baseline: the configured one's numbers again, floors too, by hand where small."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.results import build_results
from sirius_rec.report.against import check_baseline, paired_against

ROWS = 24


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    users = [f"u{row // 3}" if row < 20 else None for row in range(ROWS)]
    targets = rng.integers(0, 3, ROWS)
    return pl.DataFrame({"row_id": range(ROWS), "user_id": users, "target": targets})


@pytest.fixture
def tables(make_table):
    rng = np.random.default_rng(1)
    methods = [("sft", 0), ("sft", 1), ("dpo", 0), ("dpo", 1), ("dpo_sirius", 0), ("dpo_sirius", 1), ("random", 0)]
    return [make_table(method, rng.normal(size=(ROWS, 3)), seed) for method, seed in methods]


def test_the_configured_baseline_again(tables, examples):
    """The same tests as results.json, rows without users included."""
    wanted = build_results(tables, examples=examples, baseline="sft")["paired"]
    found = paired_against(tables[::-1], examples, "sft")
    pairs = [(t["method"], t["against"]) for t in found]
    assert pairs == [("dpo", "sft"), ("dpo_sirius", "sft"), ("dpo_sirius", "dpo")]
    by = {(t["method"], t["against"]): t for t in wanted}
    for test in found:
        known = by[test["method"], test["against"]]
        for key in ("difference", "low", "high", "p", "p_holm"):
            assert test[key] == pytest.approx(known[key], rel=1e-9), key
        assert (test["seeds"], test["n"], test["slates"]) == (known["seeds"], known["n"], known["slates"])


def test_a_floor_stands_against_every_seed(make_table):
    """Target 0 in 4 rows. The floor hits rows 0, 1; seed 0 hits all, seed 1 hits row 0: (4 + 1)/8 − 2/4 = 0.125."""
    hit, miss = [1, 0, 0], [0, 1, 0]
    tables = [
        make_table("popularity", [hit, hit, miss, miss]),
        make_table("dpo", [hit] * 4, seed=0),
        make_table("dpo", [hit, miss, miss, miss], seed=1),
    ]
    examples = pl.DataFrame({"row_id": range(4), "user_id": list("abcd"), "target": [0] * 4})
    (test,) = paired_against(tables, examples, "popularity")
    assert (test["method"], test["against"], test["seeds"]) == ("dpo", "popularity", [0, 1])
    assert test["difference"] == pytest.approx(0.125)
    # user differences of seed means: 0, −0.5, 0.5, 0.5; of 8 patterns of three signs |sum| ≥ 0.5 in all
    assert test["p"] == 1.0


def test_an_unknown_baseline(results):
    with pytest.raises(ConfigError, match="'ppo' was not scored: choose one of dpo, dpo_sirius, popularity, sft_cont"):
        check_baseline(results, "ppo")
    check_baseline(results, "popularity")
