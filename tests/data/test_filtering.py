"""k-core and minimum sequence length."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirius_rec.data.filtering import FilterStep, filter_events, k_core, min_sequence
from sirius_rec.errors import DataError


def events(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")


def test_two_core_cascades() -> None:
    """c has one event; without it w has one; without w's event on b, b has one, then v has one, then a has one."""
    pairs = [("u", "a"), ("u", "d"), ("x", "d"), ("x", "e"), ("y", "e"), ("y", "d")]
    cascade = [("v", "a"), ("v", "b"), ("w", "b"), ("w", "c")]
    kept, steps = k_core(events(pairs + cascade), min_item=2, min_user=2)
    assert kept.rows() == [("x", "d"), ("x", "e"), ("y", "e"), ("y", "d")]
    assert steps == [
        FilterStep("min_item=2", users=0, items=1, events=1),  # c
        FilterStep("min_user=2", users=1, items=0, events=1),  # w
        FilterStep("min_item=2", users=0, items=1, events=1),  # b
        FilterStep("min_user=2", users=1, items=0, events=1),  # v
        FilterStep("min_item=2", users=0, items=1, events=1),  # a
        FilterStep("min_user=2", users=1, items=0, events=1),  # u
    ]


def test_min_sequence_is_one_pass() -> None:
    kept, steps = min_sequence(events([("u", "a"), ("u", "b"), ("v", "a")]), 2)
    assert kept.rows() == [("u", "a"), ("u", "b")]
    assert steps == [FilterStep("min_sequence=2", users=1, items=0, events=1)]


def test_ones_change_nothing() -> None:
    frame = events([("u", "a"), ("v", "b")])
    kept, steps = filter_events(frame)
    assert kept.equals(frame) and steps == []


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"min_item=3, .* leave none of 2 events"):
        filter_events(events([("u", "a"), ("v", "b")]), min_item=3)


@given(
    st.sets(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdef")), max_size=36),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_core_equals_naive_peeling(pairs: set[tuple[str, str]], min_item: int, min_user: int) -> None:
    """Peel one violating event at a time; the k-core does not depend on the order of peeling."""
    left = sorted(pairs)
    while bad := [
        (u, i) for u, i in left if sum(v == u for v, _ in left) < min_user or sum(j == i for _, j in left) < min_item
    ]:
        left.remove(bad[-1])
    kept, steps = k_core(events(sorted(pairs)), min_item=min_item, min_user=min_user)
    assert kept.rows() == left
    assert sum(step.events for step in steps) == len(pairs) - len(left)
