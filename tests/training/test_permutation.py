"""An order that is computed: a bijection, another one for another seed, without a preference."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from sirius_rec.training.permutation import Permutation


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 255, 256, 257, 4097])
def test_every_number_has_one_place(n: int) -> None:
    assert sorted(Permutation(n, [3])(np.arange(n)).tolist()) == list(range(n))


def test_places_are_computed_alone() -> None:
    order = Permutation(1000, [1, 2])
    whole = order(np.arange(1000))
    assert order(np.array([7, 999, 0])).tolist() == whole[[7, 999, 0]].tolist()
    assert Permutation(1000, [1, 2])(np.arange(1000)).tolist() == whole.tolist()
    assert Permutation(1000, [1, 3])(np.arange(1000)).tolist() != whole.tolist()


def test_all_orders_of_four_come_equally_often() -> None:
    """χ² of 24 orders in 6,000 seeds: 23 degrees of freedom, 49.7 at p = 0.001."""
    drawn = [tuple(Permutation(4, [seed])(np.arange(4)).tolist()) for seed in range(6000)]
    counts = np.array([drawn.count(order) for order in permutations(range(4))])
    assert ((counts - 250) ** 2 / 250).sum() < 49.7


def test_neighbours_are_torn_apart() -> None:
    """Rank correlation of place and number, and of a number and the next one, in an order of ten thousand."""
    order = Permutation(10_000, [5])(np.arange(10_000))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04
