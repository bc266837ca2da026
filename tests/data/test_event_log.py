"""The order of events: by user and time, ties in a seeded random order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from sirius_rec.data.sources.events import TIME, Codebook, EventLog, Ordered, text_hashes

Event = tuple[str, str, int]


def ordered(events: list[Event], *, cut: int = 1000, **options: object) -> Ordered:
    log = EventLog()
    for start in range(0, len(events), cut):
        part = pl.DataFrame(events[start : start + cut], schema=["user_id", "item_id", TIME], orient="row")
        log.add(part.cast({TIME: pl.Int64}))
    return log.finish(**{"ties": "shuffle", "seed": 0, **options})  # type: ignore[arg-type]


EVENTS = st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcdefg"), st.integers(-3, 3)), max_size=30)


@given(EVENTS, st.integers(1, 4), st.integers(1, 7))
def test_equals_naive_order_where_ties_follow_the_file(events: list[Event], min_user: int, cut: int) -> None:
    got = ordered(events, ties="file", min_user=min_user, cut=cut)
    users = list(dict.fromkeys(user for user, _, _ in events))
    expected: list[Event] = []
    repeated = short = 0
    for user in users:
        mine = sorted((event for event in events if event[0] == user), key=lambda event: event[2])
        first = {item: (user, item, time) for _, item, time in reversed(mine)}
        kept = [event for k, event in enumerate(mine) if event[1] not in {e[1] for e in mine[:k]}]
        assert set(kept) == set(first.values())
        repeated += len(mine) - len(kept)
        short += len(kept) if len(kept) < min_user else 0
        expected += kept if len(kept) >= min_user else []
    assert got.events.rows() == expected
    assert (got.repeated, got.of_short_users) == (repeated, short)
    tied = [event for event in expected if sum(e[0] == event[0] and e[2] == event[2] for e in expected) > 1]
    assert got.ties["rows"] == len(tied)
    assert got.ties["groups"] == len({(user, time) for user, _, time in tied})


@given(EVENTS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_a_shuffle_keeps_time_order_and_does_not_depend_on_the_file(
    events: list[Event], rng: object, seed: int
) -> None:
    got = ordered(events, seed=seed).events
    for _, mine in got.group_by("user_id"):
        assert mine["timestamp"].is_sorted()
    again = list(events)
    rng.shuffle(again)  # type: ignore[attr-defined]
    by_user = [frame.sort("user_id", maintain_order=True) for frame in (got, ordered(again, seed=seed, cut=4).events)]
    assert by_user[0].equals(by_user[1])


def test_orders_of_a_tie_are_equally_likely_and_differ_between_users() -> None:
    """Three tied items have 6 orders; 3,000 users: each about 500 times."""
    events = [(f"u{k}", item, 5) for k in range(3000) for item in "abc"]
    got = ordered(events, seed=1).events.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
    counts = got.list.join("").value_counts()["count"].to_numpy()
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5  # chi-square of 5 degrees of freedom, p = 0.001


def next_larger_id_is_right(events: pl.DataFrame, n_items: int, seed: int = 0) -> float:
    """HR@1 of the guesser "the smallest item number above the last one's" on slates of 20."""
    rng = np.random.default_rng(seed)
    right = rows = 0
    for _, mine in events.group_by("user_id", maintain_order=True):
        numbers = [int(item) for item in mine["item_id"]]
        for last, target in pairwise(numbers):
            others = rng.choice(np.setdiff1d(np.arange(n_items), numbers), 19, replace=False)
            above = [item for item in (target, *others) if item > last]
            right += bool(above) and min(above) == target
            rows += 1
    return right / rows


def test_planted_leak_of_a_file_sorted_by_item_id_inside_a_day() -> None:
    """Each user has 4 days of 6 random items; the file lists a day's items by their ids."""
    rng = np.random.default_rng(0)
    events = [
        (f"u{user}", str(item), day)
        for user in range(60)
        for day, items in enumerate(np.split(rng.choice(400, 24, replace=False), 4))
        for item in sorted(items)
    ]
    leaking = next_larger_id_is_right(ordered(events, ties="file").events, 400)
    shuffled = next_larger_id_is_right(ordered(events, ties="shuffle").events, 400)
    assert leaking > 0.2
    # the guesser always names a real candidate, so its chance is a little above 1/20
    assert shuffled < 0.09


def test_times_with_parts_of_a_second_and_far_apart() -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 4, "item_id": list("abcd"), TIME: [5.75, 5.25, -6e10, 2.5e11]})
    log = EventLog()
    log.add(frame)
    got = log.finish(ties="file", seed=0).events
    assert got["item_id"].to_list() == list("cbad")
    assert got["timestamp"].to_list() == [-60_000_000_000, 5, 5, 250_000_000_000]


def test_codebook_numbers_by_first_appearance() -> None:
    book = Codebook()
    assert book.add(pl.Series(["b", "a", "b"])).tolist() == [0, 1, 0]
    assert book.add(pl.Series(["c", "a"])).tolist() == [2, 1]
    assert book.texts().to_list() == ["b", "a", "c"]
    assert len(set(text_hashes(book, "x").tolist()) | set(text_hashes(book, "y").tolist())) == 6


def test_nothing_in_nothing_out() -> None:
    got = ordered([])
    assert got.events.height == 0 and got.ties["rows"] == 0
