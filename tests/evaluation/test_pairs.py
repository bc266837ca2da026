"""benchmarks/pairs.py: which seeds of two methods stand against each other."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

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
