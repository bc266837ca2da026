"""Slate protocols: distributions, independence from targets, and the published slates repeated exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from sirius_rec.data.options import SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.protocols import CoOccurrence, hard_slates, legacy_slates, popularity_slates, train_counts
from sirius_rec.data.slates import interacted_items
from sirius_rec.data.store import full_slates
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.recipes.configuration import parse_config
from sirius_rec.schema import SlateName

SCHEMA = {"user_id": pl.String, "history": pl.List(pl.Int32), "target": pl.Int32}


def frame(rows: list[tuple[str | None, list[int], int]]) -> pl.DataFrame:
    made = pl.DataFrame(rows, schema=SCHEMA, orient="row").with_row_index("row_id")
    return made.with_columns(pl.col("row_id").cast(pl.Int64))


def table(slates: pl.DataFrame) -> np.ndarray:
    return np.array(slates["candidates"].to_list())


def popular(rows: pl.DataFrame, counts: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    name = SlateName("test", "popularity", size, seed)
    return table(popularity_slates(rows, interacted_items(rows), counts, name=name, fingerprint="f"))


def check_valid(rows: pl.DataFrame, got: np.ndarray) -> None:
    for history, target, slate in zip(rows["history"].to_list(), rows["target"].to_list(), got.tolist(), strict=True):
        assert slate.count(target) == 1
        assert len(set(slate)) == len(slate)
        assert not (set(slate) - {target}) & set(history)


def test_popularity_draws_in_proportion_to_count_plus_one() -> None:
    """One negative of 5 free items with counts 0, 1, 3, 7, 0: shares 1, 2, 4, 8, 1 of 16."""
    rows = frame([(None, [0], 1)] * 16_000)
    counts = np.array([50, 90, 0, 1, 3, 7, 0])
    got = popular(rows, counts, 2)
    check_valid(rows[:50], got[:50])
    negative = got.sum(axis=1) - 1
    observed = np.bincount(negative, minlength=7)[2:]
    assert stats.chisquare(observed, np.array([1, 2, 4, 8, 1]) * 1000).pvalue > 1e-3


def test_popularity_without_replacement_matches_one_after_another_in_both_ways_of_drawing() -> None:
    """Pairs of 3 items with weights 1, 1, 2: P({a, b}) = 2 · 1/4 · 1/3 = 1/6; the crowded way, by keys."""
    crowded = popular(frame([(None, [0], 1)] * 12_000), np.array([0, 0, 0, 0, 1]), 3)
    without = (crowded == 4).any(axis=1)
    assert stats.binomtest(int((~without).sum()), 12_000, 1 / 6).pvalue > 1e-3
    # the same three weights as a small part of many: the way of rejection; chance of an item twice as heavy doubles
    roomy = popular(frame([(None, [0], 1)] * 4_000), np.array([0, 0, *([0] * 300), *([1] * 300)]), 11)
    heavy = (roomy >= 302).sum()
    assert heavy / (4_000 * 10) == pytest.approx(2 / 3, abs=0.01)


def test_popularity_place_and_independence() -> None:
    rows = frame([(None, [0], 1)] * 4_000)
    counts = np.arange(40)
    got = popular(rows, counts, 8)
    assert stats.chisquare(np.bincount((got == 1).argmax(axis=1), minlength=8)).pvalue > 1e-4
    assert np.array_equal(popular(rows[::7], counts, 8), got[::7]), "a row does not depend on the rows beside it"
    assert not np.array_equal(popular(rows, counts, 8, seed=1), got)
    swapped = frame([(None, [1], 0)] * 4_000)
    assert np.array_equal(np.where(popular(swapped, counts, 8) == 0, -1, 0), np.where(got == 1, -1, 0))


def test_train_counts_are_users_not_windows() -> None:
    rows = frame([("u", [0, 1], 2), ("u", [1, 2], 3), ("v", [1], 0), (None, [3], 1), (None, [3], 1)])
    assert train_counts(rows, 5).tolist() == [2, 4, 1, 3, 0]


def test_co_occurrence_is_the_cosine_of_user_sets() -> None:
    """Users {0,1}, {0,1}, {0,2}: cos(0,1) = 2/√6, cos(0,2) = 1/√3, cos(1,2) = 0."""
    near = CoOccurrence(frame([("u", [0], 1), ("v", [1], 0), ("w", [0], 2)]), 4)
    got = near.nearness(pl.Series([[1], [0, 1]], dtype=pl.List(pl.Int32)))
    assert got[0] == pytest.approx([2 / np.sqrt(6), 1, 0, 0])
    assert got[1] == pytest.approx([1 + 2 / np.sqrt(6), 2 / np.sqrt(6) + 1, 1 / np.sqrt(3), 0])


def clustered(n_users: int, seed: int) -> pl.DataFrame:
    """Users who choose 5 of 6 items in one of 40 clusters."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str | None, list[int], int]] = []
    for user in range(n_users):
        own = (rng.choice(6, 5, replace=False) + 6 * rng.integers(40)).tolist()
        rows.append((f"u{seed}-{user}", own[:-1], own[-1]))
    return frame(rows)


def test_hard_negatives_are_near_and_do_not_give_the_target_away() -> None:
    train, test = clustered(600, 0), clustered(400, 1)
    # half of the targets come from another cluster, so that targets stand near and far
    rng = np.random.default_rng(2)
    far = pl.Series([int(rng.integers(240)) if k % 2 else t for k, t in enumerate(test["target"])], dtype=pl.Int32)
    test = test.with_columns(target=far).filter(~pl.col("history").list.contains(pl.col("target")))
    train_far = pl.Series(
        [int(rng.integers(240)) if k % 2 else t for k, t in enumerate(train["target"])], dtype=pl.Int32
    )
    train = train.with_columns(target=train_far).filter(~pl.col("history").list.contains(pl.col("target")))
    name = SlateName("test", "hard", 5, 0)
    own, of_train = interacted_items(test), interacted_items(train)
    got = table(hard_slates(test, own, train, of_train, n_items=240, name=name, fingerprint="f"))
    check_valid(test, got)
    scores = CoOccurrence(train, 240).nearness(test["history"])
    shown = np.take_along_axis(scores, got, axis=1)
    target = got == test["target"].to_numpy()[:, None]
    assert shown[~target].mean() > 3 * scores.mean(), "nearer than a uniform negative"
    farthest = (shown == shown.min(axis=1, keepdims=True)) & target
    ties = (shown == shown.min(axis=1, keepdims=True)).sum(axis=1)
    assert (farthest.any(axis=1) / ties).mean() < 0.35, "chance 0.2; nearest negatives would give 0.5 and more"


def test_legacy_is_a_function_of_target_and_history() -> None:
    """By the published recipe, written naively."""
    import random

    rows = frame([(None, [3, 7, 3], 5), (None, [0, 49], 5), (None, [], 49)])
    got = table(legacy_slates(rows, n_items=50, name=SlateName("test", "sdpo-legacy", 6, 0)))
    for history, target, slate in zip(rows["history"].to_list(), rows["target"].to_list(), got.tolist(), strict=True):
        random.seed(target)
        expected = [*random.sample([i for i in range(50) if i not in history and i != target], 5), target]
        random.seed(target)
        random.shuffle(expected)
        assert slate == expected
    with pytest.raises(DataError, match="only 46 items are outside its history"):
        legacy_slates(rows[:1].with_columns(history=pl.lit([3, 7, 8], dtype=pl.List(pl.Int32))), n_items=50,
                      name=SlateName("test", "sdpo-legacy", 60, 0))  # fmt: skip


def small_source(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{k},T{k}\n" for k in range(40)))
    rows = [
        {"history": [f"i{k}", f"i{k + 1}"], "target": f"i{k + 2}", "split": ("train", "val", "test")[k % 3]}
        for k in range(30)
    ]
    path = folder / "windows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prepared_folder_says_what_its_slates_are(tmp_path: Path) -> None:
    protocols = [
        SlateOptions(protocol="uniform", size=5),
        SlateOptions(protocol="popularity", size=5),
        SlateOptions(protocol="hard", size=5),
        SlateOptions(protocol="sdpo-legacy", size=5),
        SlateOptions(protocol="full", splits=("test",)),
    ]
    window = WindowOptions(min_history=2)
    dataset = prepare("windows", small_source(tmp_path / "in"), tmp_path / "out", window=window, slates=protocols)
    described = dataset.info["slates"]
    leaky = [name for name in described if "LEAKY" in name]
    assert leaky == [f"{split}-sdpo-legacy-LEAKY-5-s0" for split in ("train", "val", "test")]
    assert all(described[name]["caution"].startswith("LEAKY: seeded by the target") for name in leaky)
    assert SlateName.parse(leaky[0]) == SlateName("train", "sdpo-legacy", 5, 0)
    assert "not comparable with uniform" in described["test-hard-5-s0"]["caution"]
    full = dataset.slates("test-full-40-s0")
    # the three items of a row's window: its history of two is left out, its target is not
    rows = dataset.examples("test")
    for history, target, slate in zip(rows["history"], rows["target"], full["candidates"].to_list(), strict=True):
        assert slate == sorted(set(range(40)) - set(history)) and target in slate and len(slate) == 38
    assert full["row_id"].equals(rows["row_id"])
    for name in dataset.slate_names:
        assert dataset.slates(name).height == 10


def test_limits_do_not_change_popularity_slates(tmp_path: Path) -> None:
    source, window = small_source(tmp_path / "in"), WindowOptions(min_history=2)
    options = {"window": window, "slates": [SlateOptions(protocol="popularity", size=5)]}
    whole = prepare("windows", source, tmp_path / "a", **options).slates("test-popularity-5-s0")
    part = prepare("windows", source, tmp_path / "b", limits={"train": 3, "test": 4}, **options)
    some = part.slates("test-popularity-5-s0")
    assert some.equals(whole.filter(pl.col("row_id").is_in(some["row_id"].to_list())))


def test_options_are_checked() -> None:
    assert SlateOptions().size == 20 and SlateOptions(protocol="full").size is None
    with pytest.raises(ConfigError, match="size: protocol full takes the whole catalogue: remove size 20"):
        SlateOptions(protocol="full", size=20)
    with pytest.raises(ConfigError, match=r"protocol: must be 'uniform', .*, got 'nearest'"):
        SlateOptions(protocol="nearest")
    sampled = {"protocol": "uniform", "size": 20}
    good = parse_config({"data": {"slates": [sampled, {"protocol": "full", "splits": ["test"]}]}}, "x")
    assert [slate.size for slate in good.data.slates] == [20, None]
    with pytest.raises(ConfigError, match="protocol full takes the whole catalogue: remove size 20"):
        parse_config({"data": {"slates": [sampled, {"protocol": "full", "size": 20, "splits": ["test"]}]}}, "x")
    with pytest.raises(ConfigError, match="protocol full covers train, val: language models train and validate"):
        parse_config({"data": {"slates": [{"protocol": "full"}]}}, "x")


def test_published_slates_are_repeated_exactly(shared_data: Path, tmp_path: Path) -> None:
    """All 2,767 val and 2,495 test slates of S-DPO's files, candidates and order."""
    splits = ("val", "test")
    dataset = prepare(
        "windows",
        shared_data / "lastfm" / "sdpo_slates.jsonl",
        tmp_path / "out",
        window=WindowOptions(min_history=3),
        slates=[SlateOptions(protocol="sdpo-legacy", splits=splits), SlateOptions(protocol="given", splits=splits)],
    )
    titles = np.array(dataset.titles)
    for split, rows in (("val", 2767), ("test", 2495)):
        ours, given = (dataset.slates(f"{split}-{p}-20-s0") for p in ("sdpo-legacy-LEAKY", "given"))
        assert ours.height == rows
        assert (ours["candidates"] == given["candidates"]).all()
        # and the JSON itself; two names are written differently there
        raw = json.loads((shared_data / "lastfm" / "raw" / f"lastfm-{split}.json").read_text())
        renamed = {"Florence and the Machine": "Florence + the Machine", "Plus 44": "+44"}
        published = [[renamed.get(t, t) for t in row["itemList"]] for row in raw]
        assert titles[table(ours)].tolist() == published


def test_reports_say_leaky() -> None:
    from sirius_rec.report.text import slates_in_words

    words = slates_in_words("test-sdpo-legacy-LEAKY-20-s0")
    assert words == (
        "LEAKY, seeded by the target as published: test split, 20 candidates, sdpo-legacy negatives, slate seed 0"
    )
    assert slates_in_words("test-full-4606-s0") == "test split, the whole catalogue of 4,606 items"
    assert slates_in_words("test-uniform-20-s0") == "test split, 20 candidates, uniform negatives, slate seed 0"


def test_the_whole_catalogue_leaves_out_what_the_user_had_met_by_then(tmp_path: Path) -> None:
    """Beyond the shown window, and nothing later."""
    events = "".join(f"u{u},i{(u + 3 * k) % 40},{k}\n" for u in range(20) for k in range(8))
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + events)
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{k},T{k}\n" for k in range(40)))
    window = WindowOptions(max_history=2, min_history=2)
    slates = [SlateOptions(size=5), SlateOptions(protocol="full", splits=("test",))]
    dataset = prepare("table", tmp_path, tmp_path / "out", window=window, slates=slates)
    rows, full = dataset.examples("test"), dataset.slates("test-full-40-s0")
    ids = dataset.items["item_id"].to_list()
    assert rows.height == 12  # two users with six targets each
    for user, when, target, slate in zip(
        rows["user_id"], rows["timestamp"], rows["target"], full["candidates"].to_list(), strict=True
    ):
        before = {f"i{(int(user[1:]) + 3 * k) % 40}" for k in range(when)}
        assert {ids[item] for item in slate} == set(ids) - before and ids[target] not in before


@pytest.mark.parametrize("excluded", [[7], [40], [-1], None])
def test_full_slates_that_exclude_nonsense_are_refused(excluded: list[int] | None) -> None:
    rows = frame([(None, [1, 2], 7)])
    table = pl.DataFrame({"row_id": rows["row_id"], "excluded": pl.Series([excluded], dtype=pl.List(pl.Int32))})
    with pytest.raises(DataError, match="row 0 excludes its target, or unknown items"):
        full_slates(rows, table, 40)
