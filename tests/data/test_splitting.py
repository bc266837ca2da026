"""Split labels: 0 train, 1 val, 2 test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirius_rec.data.splitting import by_time, by_user, largest_remainder, leave_last_out
from sirius_rec.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("total", "counts"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (10, [8, 1, 1]), (14, [11, 2, 1]), (15, [12, 2, 1])]
)
def test_largest_remainder_by_hand(total: int, counts: list[int]) -> None:
    """14: shares 11.2, 1.4, 1.4 → 11, 1, 1 and one left for the first .4; 15: 12, 1.5, 1.5."""
    assert largest_remainder(total, (8, 1, 1)) == counts


@given(st.integers(0, 10_000), st.tuples(*[st.integers(0, 20)] * 3).filter(any))
def test_largest_remainder_adds_up(total: int, ratios: tuple[int, int, int]) -> None:
    counts = largest_remainder(total, ratios)
    assert sum(counts) == total
    assert all(abs(c - total * r / sum(ratios)) < 1 for c, r in zip(counts, ratios, strict=True))


def test_by_user_keeps_users_whole_and_counts_exact() -> None:
    users = np.repeat(np.arange(100), 3)
    labels = by_user(users, seed=1)
    per_user = labels.reshape(100, 3)
    assert (per_user == per_user[:, :1]).all()
    assert np.bincount(per_user[:, 0]).tolist() == [80, 10, 10]
    assert np.array_equal(labels, by_user(users, seed=1))
    assert not np.array_equal(labels, by_user(users, seed=2))


def test_by_time_by_hand() -> None:
    """Ten events: the 8th smallest time is 8, the 9th is 9."""
    assert by_time(np.array([10, 9, 8, 7, 6, 5, 4, 3, 2, 1])).tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_by_time_never_parts_equal_times() -> None:
    times = np.array([1] * 7 + [5, 5, 6, 7])
    # 0.8 of 11 events is 8.8: the 9th is 5; 0.9 is 9.9: the 10th is 6
    assert by_time(times).tolist() == [0] * 9 + [1, 2]
    with pytest.raises(DataError, match="no event falls into val"):
        by_time(np.array([1, 1, 1, 1]))


def test_leave_last_out_by_hand() -> None:
    users = np.array([0, 0, 0, 0, 1, 2, 2])
    assert leave_last_out(users).tolist() == [0, 0, 1, 2, 2, 1, 2]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_leave_last_out_naive(lengths: list[int]) -> None:
    users = np.repeat(np.arange(len(lengths)), lengths)
    expected = [max(0, k - n + 3) for n in lengths for k in range(n)]
    assert leave_last_out(users).tolist() == expected


@pytest.mark.parametrize("ratios", [(8, 1), (0, 0, 0), (8, -1, 1), (0.8, 0.1, 0.1)])
def test_bad_ratios(ratios: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="are not three whole numbers"):
        by_user(np.arange(3), ratios=ratios)


RATIOS = st.tuples(*[st.integers(0, 9)] * 3).filter(any)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), RATIOS, st.integers(0, 3))
def test_by_user_properties(lengths: list[int], ratios: tuple[int, int, int], seed: int) -> None:
    """Each user whole in one split, and as many users in each as the ratios ask for, whatever their events."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    labels = by_user(users, ratios=ratios, seed=seed)
    of_user = [set(labels[users == user].tolist()) for user in range(len(lengths))]
    assert all(len(splits) == 1 for splits in of_user)
    counts = np.bincount([splits.pop() for splits in of_user], minlength=3).tolist()
    assert counts == largest_remainder(len(lengths), ratios)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=40), RATIOS)
def test_by_time_properties(times: list[int], ratios: tuple[int, int, int]) -> None:
    """Later splits hold later events only; a cut lies where the share of events up to it first reaches the ratio."""
    try:
        labels = by_time(np.array(times), ratios=ratios).tolist()
    except DataError:
        return
    for time, label in zip(times, labels, strict=True):
        shares = [sum(ratios[: k + 1]) for k in range(3)]
        # the naive rule: the first split whose share is reached by the events before or at the cut of that split
        ordered = sorted(times)
        cuts = [ordered[-(-len(times) * s // sum(ratios)) - 1] if s else -1000 for s in shares[:2]]
        assert label == sum(time > cut for cut in cuts)
