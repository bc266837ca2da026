"""Windows of history and next item, and titles."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sirius_rec.data.titles import distinct_titles
from sirius_rec.data.windows import sliding_windows


@given(st.lists(st.lists(st.integers(0, 1000), max_size=8), max_size=6), st.integers(1, 5), st.integers(0, 5))
def test_equals_naive_loop(sequences: list[list[int]], max_history: int, min_history: int) -> None:
    min_history = min(min_history, max_history)
    sequences = [s for s in sequences if s]
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences]).astype(np.int64)
    items = np.array([i for s in sequences for i in s], dtype=np.int64)
    got = sliding_windows(users, items, max_history=max_history, min_history=min_history)
    expected = [(s[max(0, k - max_history) : k], s[k]) for s in sequences for k in range(len(s)) if k >= min_history]
    assert list(zip(got.history.to_list(), items[got.position_R].tolist(), strict=True)) == expected


def test_default_needs_eleven_events() -> None:
    users = np.repeat([0, 1], [11, 10])
    windows = sliding_windows(users, np.arange(21))
    assert windows.position_R.tolist() == [10]
    assert windows.history.to_list() == [list(range(10))]


@given(st.lists(st.sampled_from(["A", "A (2)", "A (3)", "B", "B (2)"]), max_size=12))
def test_titles_become_distinct_and_first_holders_keep_theirs(titles: list[str]) -> None:
    distinct, renamed = distinct_titles(titles)
    assert len(set(distinct)) == len(titles)
    for position, (before, after) in enumerate(zip(titles, distinct, strict=True)):
        assert (position in renamed) == (before in titles[:position]) == (before != after)
        assert after.startswith(before)
