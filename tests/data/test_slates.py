"""Frozen slates: uniform, leak-free, reproducible."""

from __future__ import annotations

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sirius_rec.data.slates import (
    ExcludedItems,
    draws,
    interacted_items,
    past_items,
    row_states,
    slates_from_examples,
    uniform_slates,
)
from sirius_rec.errors import DataError
from sirius_rec.schema import SlateName


def examples(rows: list[tuple[str | None, list[int], int]]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "history": pl.List(pl.Int32), "target": pl.Int32}
    return (
        pl.DataFrame(rows, schema=schema, orient="row")
        .with_row_index("row_id")
        .with_columns(pl.col("row_id").cast(pl.Int64))
    )


def table(slates: pl.DataFrame) -> np.ndarray:
    return np.array(slates["candidates"].to_list())


def many_rows(n: int, n_items: int, seed: int = 0) -> pl.DataFrame:
    """Rows of a single history item and a target, without users."""
    rng = np.random.default_rng(seed)
    pairs = [rng.choice(n_items, 2, replace=False) for _ in range(n)]
    return examples([(None, [int(a)], int(b)) for a, b in pairs])


def make(
    rows: pl.DataFrame, n_items: int, size: int, seed: int = 0, split: str = "test", fingerprint: str = "f"
) -> np.ndarray:
    name = SlateName(split, "uniform", size, seed)
    return table(uniform_slates(rows, interacted_items(rows), n_items=n_items, name=name, fingerprint=fingerprint))


def test_splitmix_reference_values() -> None:
    """First outputs of splitmix64 started at 0 (published test vector)."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draws(np.zeros(1, dtype=np.uint64), 0, 3)[0].tolist() == expected


def test_row_streams_are_pinned() -> None:
    """The same on any machine: a change of these numbers changes every published slate."""
    assert row_states("key", np.array([0, 1])).tolist() == [17469231361921562828, 6195841237200540160]


def excluded_lists(excluded: ExcludedItems) -> list[list[int]]:
    return [
        excluded.item[a:b].tolist() for a, b in zip(excluded.start_R.tolist(), excluded.stop_R.tolist(), strict=True)
    ]


def test_past_items_are_those_of_earlier_rows_and_the_rows_own() -> None:
    """Rows of one time do not say which came first; rows without a user or a time stand alone."""
    rows = examples(
        [("u", [1, 2], 3), ("u", [2, 3], 6), ("u", [3], 7), ("u", [3], 8), ("v", [9], 4), (None, [4], 5), ("u", [1], 9)]
    ).with_columns(timestamp=pl.Series([10, 20, 30, 30, 5, 1, None], dtype=pl.Int64))
    got = excluded_lists(past_items(rows))
    assert got == [[1, 2, 3], [1, 2, 3, 6], [1, 2, 3, 6, 7], [1, 2, 3, 6, 8], [4, 9], [4, 5], [1, 9]]


def test_interacted_items_are_per_user_over_all_rows() -> None:
    rows = examples([("u", [1, 2], 3), (None, [4], 5), ("u", [2, 3], 6), (None, [4], 7)])
    got = excluded_lists(interacted_items(rows))
    assert got == [[1, 2, 3, 6], [4, 5], [1, 2, 3, 6], [4, 7]]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["u", "v", None]), st.sets(st.integers(0, 29), min_size=1, max_size=6)),
        min_size=1,
        max_size=8,
    ),
    st.integers(2, 9),
    st.integers(0, 3),
)
def test_slate_properties(rows: list[tuple[str | None, set[int]]], size: int, seed: int) -> None:
    """Target once, no repeats, no interacted item among the negatives, also when few items are free."""
    frame = examples([(user, sorted(items)[1:], min(items)) for user, items in rows])
    excluded = interacted_items(frame)
    free = 30 - max(excluded.count_R)
    size = min(size, free + 1)
    got = make(frame, 30, size, seed) if size > 1 else np.empty((0, 0))
    for r, slate in enumerate(got.tolist()):
        target = frame["target"][r]
        own = set(excluded_lists(excluded)[r])
        assert slate.count(target) == 1
        assert len(set(slate)) == size
        assert set(slate) & own == {target}


def test_every_free_item_is_used_when_the_slate_takes_all() -> None:
    got = make(many_rows(50, 12), 12, 11)
    assert all(len(set(row)) == 11 for row in got.tolist())


def test_same_seed_same_slates_and_anything_else_other_slates() -> None:
    rows = many_rows(200, 500)
    base = make(rows, 500, 20)
    assert np.array_equal(base, make(rows, 500, 20))
    for other in ({"seed": 1}, {"split": "val"}, {"fingerprint": "g"}):
        assert (make(rows, 500, 20, **other) == base).mean() < 0.1


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    rows = many_rows(300, 60)
    whole = make(rows, 60, 20)
    some = rows.gather_every(7)
    assert np.array_equal(make(some, 60, 20), whole[::7])


def test_negatives_and_place_do_not_depend_on_the_target() -> None:
    """With the same excluded items, swapping the target against a history item changes only its own slot."""
    one, two = examples([(None, [1, 2], 3)] * 40), examples([(None, [3, 2], 1)] * 40)
    a, b = make(one, 100, 10), make(two, 100, 10)
    assert np.array_equal(a == 3, b == 1)
    assert np.array_equal(np.where(a == 3, -1, a), np.where(b == 1, -1, b))


def test_negatives_do_not_recur_with_their_target() -> None:
    """Two rows of one target share as many negatives as chance has it: hypergeometric mean 19·19/497."""
    rows = examples([(None, [1, 2], 3)] * 2000)
    got = make(rows, 500, 20)
    shared = [len(set(got[k]) & set(got[k + 1])) - 1 for k in range(0, 2000, 2)]
    expected = 19 * 19 / 497
    variance = 19 * (19 / 497) * (1 - 19 / 497) * (497 - 19) / 496
    assert abs(np.mean(shared) - expected) < 4 * np.sqrt(variance / len(shared))


@pytest.mark.parametrize("n_items", [200, 24])
def test_place_and_negatives_are_uniform(n_items: int) -> None:
    """Chi-square on 20,000 rows; 24 items of which 22 are free take the crowded path (12 slots, 11 negatives)."""
    rows = examples([(None, [0], 1)] * 20_000)
    got = make(rows, n_items, 12)
    place = np.bincount((got == 1).argmax(axis=1), minlength=12)
    assert stats.chisquare(place).pvalue > 1e-4
    counts = np.bincount(got.ravel(), minlength=n_items)
    assert counts[0] == 0 and counts[1] == 20_000
    assert stats.chisquare(counts[2:]).pvalue > 1e-4
    first_slot = np.bincount(got[:, 0][got[:, 0] != 1], minlength=n_items)[2:]
    assert stats.chisquare(first_slot).pvalue > 1e-4


def test_too_large_a_size_names_row_and_numbers() -> None:
    rows = examples([(None, [0], 1), (None, [0, 2, 3], 1)])
    with pytest.raises(
        DataError, match=r"slates test-uniform-8-s0: row 1 needs 7 negatives, but its user leaves only 6 of 10"
    ):
        make(rows, 10, 8)


def test_given_slates() -> None:
    rows = examples([(None, [0], 1), (None, [0], 2)]).with_columns(candidates=pl.Series([[1, 5], [6, 2]]))
    name = SlateName("test", "given", 2, 0)
    assert table(slates_from_examples(rows, name=name)).tolist() == [[1, 5], [6, 2]]
    with pytest.raises(DataError, match="row 0 has 2 candidates, not 20"):
        slates_from_examples(rows, name=SlateName("test", "given", 20, 0))
    with pytest.raises(DataError, match="brings no candidates"):
        slates_from_examples(rows.drop("candidates"), name=name)
    missing = rows.with_columns(candidates=pl.Series([[1, 5], None]))
    with pytest.raises(DataError, match="row 1 has no candidates"):
        slates_from_examples(missing, name=name)


def test_a_hundred_thousand_slates_of_a_hundred_are_quick() -> None:
    n, n_items = 100_000, 4_600
    rows = pl.DataFrame({"row_id": np.arange(n), "target": np.zeros(n, dtype=np.int32)})
    excluded = ExcludedItems(np.arange(40), np.zeros(n, dtype=np.int64), np.full(n, 40))
    start = time.perf_counter()
    got = uniform_slates(rows, excluded, n_items=n_items, name=SlateName("test", "uniform", 100, 0), fingerprint="f")
    assert time.perf_counter() - start < 15  # about 3 s alone on one core; room for a busy machine
    assert got["candidates"].list.n_unique().min() == 100


def test_slates_are_pinned_however_few_items_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rejection (27 and 20 items free), without (18 and 14), in parts of any size: the same slates for ever."""
    rows = examples([(None, list(range(n)), n) for n in (2, 9, 11, 15)])
    got = make(rows, 30, 11).tolist()
    assert got == [
        [2, 23, 9, 7, 4, 25, 24, 8, 26, 10, 18],
        [10, 27, 29, 16, 9, 15, 22, 13, 23, 28, 18],
        [25, 18, 29, 15, 24, 19, 27, 14, 16, 23, 11],
        [19, 17, 28, 29, 22, 15, 26, 20, 21, 23, 24],
    ]
    monkeypatch.setattr("sirius_rec.data.slates._CELLS", 1)
    assert make(rows, 30, 11).tolist() == got


def test_the_first_row_without_a_slate_is_named() -> None:
    rows = pl.DataFrame({"row_id": [3, 5, 8], "candidates": [[1, 2], None, None]})
    with pytest.raises(DataError, match="row 5 has no candidates"):
        slates_from_examples(rows, name=SlateName("test", "given", 2, 0))
