"""Floors against hand values and a dense closed form."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.errors import ConfigError, DataError, ScoringError
from sirius_rec.evaluation.metrics import hit_rate, rank_bounds, target_positions
from sirius_rec.rankers import trivial
from sirius_rec.rankers.trivial import DirectedItemKNN, ItemKNN, Popularity, RandomRanker

N = 9


def arrays(rows):
    return [np.array(row, dtype=np.int32) for row in rows]


TRAIN = arrays([[0, 1, 1], [0, 1, 2], [2, 3], [0]])


def test_popularity_counts_interactions():
    scores = Popularity().fit(TRAIN, N).score(arrays([[5], []]), arrays([[1, 0, 8], [3]]))
    assert [row.tolist() for row in scores] == [[3, 3, 0], [1]]


def test_item_knn_by_hand():
    # users of 0: {0, 1, 3}, of 1: {0, 1}, of 2: {1, 2}, of 3: {2}
    scores = ItemKNN().fit(TRAIN, N).score(arrays([[0], [0, 3], [1], []]), arrays([[1, 2, 8], [2], [1], [0, 1]]))
    assert scores[0] == pytest.approx([2 / np.sqrt(6), 1 / np.sqrt(6), 0])
    assert scores[1] == pytest.approx([1 / np.sqrt(6) + 1 / np.sqrt(2)])
    assert scores[2].tolist() == [0]  # an item is no neighbour of itself
    assert scores[3].tolist() == [0, 0]
    shrunk = ItemKNN(shrinkage=10).fit(TRAIN, N).score(arrays([[0]]), arrays([[1]]))
    assert shrunk[0] == pytest.approx([2 / (np.sqrt(6) + 10)])


def dense(sequences, histories, candidates, shrinkage, n_items=N):
    users = np.zeros((len(sequences), n_items))
    for user, row in enumerate(sequences):
        users[user, row] = 1
    size = np.sqrt(users.sum(axis=0))
    scale = np.outer(size, size) + shrinkage
    similarity = np.divide(users.T @ users, scale, out=np.zeros_like(scale), where=scale > 0)
    np.fill_diagonal(similarity, 0)
    return [similarity[np.ix_(h, c)].sum(axis=0) for h, c in zip(histories, candidates, strict=True)]


item_rows = st.lists(st.lists(st.integers(0, N - 1), max_size=6), min_size=1, max_size=6)


@settings(max_examples=60)
@given(item_rows, item_rows, st.sampled_from([0.0, 2.5]), st.integers(0, 5))
def test_item_knn_equals_the_dense_form_in_any_blocks(train, rows, shrinkage, salt):
    histories, sequences = arrays(rows), arrays(train)
    candidates = arrays([np.random.default_rng(salt + i).permutation(N)[: 1 + i] for i in range(len(rows))])
    expected = dense(sequences, histories, candidates, shrinkage)
    ranker = ItemKNN(shrinkage).fit(sequences, N)
    whole = ranker.score(histories, candidates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trivial, "_PAIRS", 4)
        patch.setattr(trivial, "_ROWS", 2)
        parts = ranker.score(histories, candidates)
    single = [ranker.score([h], [c])[0] for h, c in zip(histories, candidates, strict=True)]
    for got, same, alone, wanted in zip(whole, parts, single, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-12)
        assert got.tolist() == same.tolist() == alone.tolist()


def test_random_is_seeded_and_shaped():
    histories, candidates = arrays([[0], [1]]), arrays([[1, 2], [3]])
    one, two = (RandomRanker(seed).fit(TRAIN, N).score(histories, candidates) for seed in (1, 2))
    assert [len(row) for row in one] == [2, 1]
    assert one[0].tolist() == RandomRanker(1).score(histories, candidates)[0].tolist() != two[0].tolist()


def test_large_catalogue_stays_sparse():
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 400_000, size=20) for _ in range(2_000)]
    scores = ItemKNN().fit(train, 400_000).score([row[:10] for row in train], [row[10:] for row in train])
    assert all((row > 0).all() for row in scores[:50])


@pytest.mark.parametrize("ranker", [Popularity(), ItemKNN()])
def test_bad_input(ranker):
    with pytest.raises(ScoringError, match="not fitted"):
        type(ranker)().score(TRAIN, TRAIN)
    with pytest.raises(DataError, match="sequences: row 1 holds item 9"):
        ranker.fit(arrays([[0], [9]]), N)
    ranker.fit(TRAIN, N)
    with pytest.raises(DataError, match="candidates: row 0 holds item -1"):
        ranker.score(arrays([[0]]), arrays([[-1]]))
    with pytest.raises(ScoringError, match="1 histories for 2 slates"):
        ranker.score(arrays([[0]]), arrays([[0], [1]]))


def test_directed_item_knn_by_hand():
    # windows {0} → 1, {0, 2} → 1, {2} → 3: n_0 = 2, n_2 = 2, n_1 = 2, n_3 = 1; the repeated 2 counts once
    ranker = DirectedItemKNN().fit(arrays([[0], [0, 2, 2], [2]]), [1, 1, 3], N)
    histories = arrays([[0], [2], [2, 0], [2, 2], [1], []])
    scores = ranker.score(histories, arrays([[1, 3], [1, 3], [1, 3], [3], [0, 2], [1]]))
    assert scores[0] == pytest.approx([2 / 2, 0])
    assert scores[1] == pytest.approx([1 / 2, 1 / np.sqrt(2)])
    assert scores[2] == pytest.approx([1 + 1 / 2, 1 / np.sqrt(2)])
    assert scores[3] == pytest.approx([2 / np.sqrt(2)])
    assert scores[4].tolist() == [0, 0]  # 1 came after 0, never before it: the direction counts
    assert scores[5].tolist() == [0]


def dense_directed(histories, targets, n_items=N):
    inside, after = np.zeros((len(histories), n_items)), np.zeros((len(histories), n_items))
    for window, (history, target) in enumerate(zip(histories, targets, strict=True)):
        inside[window, history] = 1
        after[window, target] = 1
    scale = np.sqrt(np.outer(inside.sum(axis=0), after.sum(axis=0)))
    return np.divide(inside.T @ after, scale, out=np.zeros_like(scale), where=scale > 0)


@settings(max_examples=60)
@given(item_rows, item_rows, st.integers(0, 5))
def test_directed_item_knn_equals_the_dense_form_in_any_blocks(train, rows, salt):
    rng = np.random.default_rng(salt)
    windows, targets, histories = arrays(train), rng.integers(0, N, size=len(train)), arrays(rows)
    candidates = arrays([rng.permutation(N)[: 1 + i] for i in range(len(rows))])
    similarity = dense_directed(windows, targets)
    ranker = DirectedItemKNN().fit(windows, targets, N)
    whole = ranker.score(histories, candidates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trivial, "_ROWS", 2)
        parts = ranker.score(histories, candidates)
    for got, same, history, slate in zip(whole, parts, histories, candidates, strict=True):
        np.testing.assert_allclose(got, similarity[np.ix_(history, slate)].sum(axis=0), atol=1e-12)
        assert got.tolist() == same.tolist()


def test_directed_item_knn_bad_input():
    with pytest.raises(ScoringError, match="item_knn_directed: not fitted"):
        DirectedItemKNN().score(TRAIN, TRAIN)
    with pytest.raises(ScoringError, match="4 histories for 1 targets"):
        DirectedItemKNN().fit(TRAIN, [0], N)
    with pytest.raises(DataError, match="targets: row 1 holds item 9"):
        DirectedItemKNN().fit(arrays([[0], [1]]), [0, 9], N)


def test_directed_large_catalogue_stays_sparse():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 400_000, size=10) for _ in range(2_000)]
    targets = rng.integers(0, 400_000, size=2_000)
    scores = DirectedItemKNN().fit(rows, targets, 400_000).score(rows, [np.array([t]) for t in targets])
    assert min(row[0] for row in scores) > 1


def test_bad_shrinkage():
    with pytest.raises(ConfigError, match="shrinkage"):
        ItemKNN(-1)


def test_real_lastfm(shared_data):
    """Popularity's HR@1 on S-DPO's 2,495 test rows; item-kNN equals the dense cosine on the first 300 of them."""
    train = pl.read_csv(shared_data / "lastfm" / "train_interactions.csv")
    sequences = [np.array(items) for items in train.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]]
    rows = pl.read_ndjson(shared_data / "lastfm" / "sdpo_slates.jsonl").filter(pl.col("split") == "test")
    histories, candidates = ([np.array(row) for row in rows[name]] for name in ("history", "candidates"))
    # the published windows start at a history of three items, so a user's first three items are never targets
    popular = Popularity().fit([items[3:] for items in sequences], 4606).score(histories, candidates)
    hits = hit_rate(*rank_bounds(popular, target_positions(candidates, rows["target"].to_numpy())), 1)
    assert len(hits) == 2_495
    assert hits.mean() == pytest.approx(0.2639, abs=5e-4)
    expected = dense(sequences, histories[:300], candidates[:300], 0.0, n_items=4606)
    got = ItemKNN().fit(sequences, 4606).score(histories[:300], candidates[:300])
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(expected), atol=1e-12)


def test_directed_item_knn_on_real_lastfm(shared_data):
    """The strongest floor without a model: HR@1 about 0.67 on the published slates, whose places it does not know."""
    rows = pl.read_ndjson(shared_data / "lastfm" / "windows.jsonl.gz").filter(pl.col("split") == "train")
    test = pl.read_ndjson(shared_data / "lastfm" / "sdpo_slates.jsonl").filter(pl.col("split") == "test")
    ranker = DirectedItemKNN().fit([np.array(row) for row in rows["history"]], rows["target"].to_numpy(), 4606)
    histories, candidates = ([np.array(row) for row in test[name]] for name in ("history", "candidates"))
    scores = ranker.score(histories, candidates)
    hits = hit_rate(*rank_bounds(scores, target_positions(candidates, test["target"].to_numpy())), 1)
    assert len(hits) == 2_495
    assert hits.mean() == pytest.approx(0.67, abs=0.02)
