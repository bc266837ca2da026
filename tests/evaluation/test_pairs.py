"""benchmarks/pairs.py: which seeds of two methods stand against each other."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from sirius_rec.config import Config
from sirius_rec.evaluation.tables import ScoreTable, write_table

PAIRS = Path(__file__).resolve().parents[2] / "benchmarks" / "pairs.py"


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ((0,), (0, 1, 2), [(0, 0), (0, 1), (0, 2)]),
        ((4, 5, 6), (0,), [(4, 0), (5, 0), (6, 0)]),
        ((5, 6), (4, 5, 6), [(5, 5), (6, 6)]),
        ((0, 1), (0, 1), [(0, 0), (1, 1)]),
    ],
)
def test_seed_with_seed_and_one_with_every(
    a: tuple[int, ...], b: tuple[int, ...], wanted: list[tuple[int, int]]
) -> None:
    side_by_side = runpy.run_path(str(PAIRS))["side_by_side"]
    assert side_by_side({seed: seed for seed in a}, {seed: seed for seed in b}) == wanted


def test_ties_count_in_expectation_and_a_missing_target_is_a_miss(tmp_path: Path) -> None:
    """As in the tables: a pair with popularity, whose scores tie, was off by 0.006 from its own table."""
    frame = pl.DataFrame({"row_id": [0, 1, 2], "candidates": [[5, 6, 7], [5, 6, 7], [5, 6, 7]],
                          "scores": [[1.0, 2.0, 2.0], [3.0, 1.0, 1.0], [1.0, 2.0, 3.0]]})  # fmt: skip
    write_table(ScoreTable("popularity", "Popularity", 0, "test-uniform-3-s0", "best", frame), tmp_path)
    examples = pl.DataFrame({"row_id": [0, 1, 2], "target": [7, 6, 9], "user_id": ["a", "b", "c"]})
    run = SimpleNamespace(
        config=Config(),
        folder=SimpleNamespace(scores=tmp_path),
        dataset=SimpleNamespace(examples=lambda split: examples),
    )
    hits = runpy.run_path(str(PAIRS))["hits"]
    for k, wanted in ((1, [0.5, 0.0, 0.0]), (2, [1.0, 0.5, 0.0]), (3, [1.0, 1.0, 0.0])):
        found, _ = hits(run, "popularity", "test-uniform-3-s0", k)
        assert found[0].tolist() == wanted
