"""Prepared in shards, a log gives the folder that it gives when held in memory, whatever the number of shards."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sirius_rec.data.options import FilterOptions, Sharding, SlateOptions, SplitOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sharded.work import work_folder
from sirius_rec.data.store import Dataset, open_dataset, parts_of
from sirius_rec.errors import DataError

from .conftest import messy, options

SHARDS = (1, 7, 64)


def small(shards: int) -> Sharding:
    """Pieces of some 100 lines, and parts of some 250 events."""
    return Sharding(shards, block=4000, rows=170, events=250)


def same(log: Path, out: Path, shards: tuple[int, ...] = SHARDS, **asked: Any) -> Dataset:
    """Prepare in memory and in each number of shards, compare all there is, and return the first."""
    expected = prepare("table", log, out / "memory", **options(**asked))
    for count in shards:
        got = prepare("table", log, out / f"shards-{count}", **options(**asked), sharding=small(count))
        assert_same(got, expected)
        assert not work_folder(got.path).exists()
    return expected


def assert_same(got: Dataset, expected: Dataset) -> None:
    assert (got.path / "dataset.json").read_text() == (expected.path / "dataset.json").read_text()
    got.verify()
    for name in expected.info["fingerprints"]:
        frames = [pl.concat(pl.read_parquet(part) for part in parts_of(one.path, name)) for one in (got, expected)]
        assert frames[0].equals(frames[1]) and frames[0].schema == frames[1].schema, name
    for split in ("train", "val", "test"):
        assert got.examples(split).equals(expected.examples(split))
    assert got.all_train_examples().equals(expected.all_train_examples())
    for name in expected.slate_names:
        assert got.slates(name).equals(expected.slates(name))


EVERY = (SlateOptions(size=5), SlateOptions(size=4, protocol="popularity"), SlateOptions(protocol="full", size=None))


MANY = (
    {"split": SplitOptions(seed=3, ratios=(2, 1, 1)), "filter": FilterOptions(min_item=3), "slates": EVERY},
    {"split": SplitOptions(kind="time"), "slates": EVERY, "limits": {"train": 50, "test": 7}},
)
FEW = (
    {"split": SplitOptions(kind="time", ratios=(5, 1, 0))},
    {"split": SplitOptions(kind="leave_last_out"), "slates": (*EVERY, SlateOptions(size=3, protocol="sdpo-legacy"))},
    {"filter": FilterOptions(min_item=12, min_user=10), "slates": (SlateOptions(size=2),)},
    {"filter": FilterOptions(min_user=4, min_sequence=12), "seed": 5},
    {"window": WindowOptions(kind="anchored", max_history=6, min_history=1, step=3)},
    {"window": WindowOptions(max_history=3, min_history=0), "slates": (SlateOptions(size=5, seed=2),)},
    {"options": {"ties": "file", "keep_repeats": True}},
    {"options": {"min_rating": 3, "where": {"event": "buy"}, "min_time": "2011-03-16", "max_time": "2011-03-30"}},
    {"limits": {"val": 9}, "seed": 2},
    {"limits": {"train": 10**6}},
    {"unusable": "drop", "max_title": 12, "filter": FilterOptions(min_item=9)},
    {"unusable": "drop", "slates": (SlateOptions(size=50),), "limits": {"train": 30}},
    {"slates": (SlateOptions(size=9, splits=("test",), exclude="interacted-LEAKY"),),
     "split": SplitOptions(kind="time")},
    {"slates": ()},
)  # fmt: skip


@pytest.mark.parametrize("asked", [MANY[0], pytest.param(MANY[1], marks=pytest.mark.slow)])
def test_any_number_of_shards(log: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    same(log, tmp_path, SHARDS, **asked)


@pytest.mark.parametrize("asked", FEW)
def test_options(log: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    made = same(log, tmp_path, (7,), **asked)
    if "filter" in asked:
        assert made.info["filters"]["steps"]


def test_rows_without_enough_negatives_are_dropped_only_where_others_are_left(log: Path, tmp_path: Path) -> None:
    asked = {"unusable": "drop", "slates": (SlateOptions(size=70),), "split": SplitOptions(kind="leave_last_out")}
    dropped = same(log, tmp_path / "some", (7,), **asked).info["filters"]["rows_without_enough_negatives_dropped"]
    assert dropped > 0
    every = {**asked, "slates": (SlateOptions(size=86),)}
    assert message(log, tmp_path / "a", None, **every) == message(log, tmp_path / "b", small(7), **every)


def message(log: Path, out: Path, sharding: Sharding | None, **asked: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare("table", log, out, **options(**asked), sharding=sharding)
    return str(caught.value)


def forms() -> dict[str, tuple[dict[str, bytes | pl.DataFrame], dict[str, Any]]]:
    """Files of a log, and how to read it, by name."""
    events, _ = messy(1)
    halves = [events[:700], events[700:]]
    quoted = events.with_columns(pl.format('{}, "Ms"', "user_id").alias("user_id"))
    dated = events.with_columns(pl.from_epoch("timestamp"))
    texts = events.cast(pl.String)
    faults = pl.DataFrame(
        [[None, "i1", "5", "3", "buy"], ["u1", "i99", "1300000000", "2", "buy"], ["u1", "i2", "soon", "1", "buy"],
         ["u2", "i3", "1300000000000", "1", "buy"], ["u9", "i3", "1300000009", "x", "view"]],
        schema=texts.schema, orient="row",
    )  # fmt: skip
    faulty = pl.concat([texts[:1200], faults, texts[1200:]])
    packed = {f"interactions/{k}.csv.gz": gzip.compress(half.write_csv().encode()) for k, half in enumerate(halves)}
    turned = halves[0].select(reversed(events.columns))
    return {
        "parquet": ({"interactions.parquet": events}, {}),
        "dates": ({"interactions.parquet": dated}, {}),
        "parts": ({f"interactions/{k}.parquet": half for k, half in enumerate(halves)}, {}),
        "packed": (packed, {}),
        "turned": ({"interactions/a.csv": halves[1].write_csv().encode(),
                    "interactions/b.csv": turned.write_csv().encode()}, {}),
        "quoted": ({"interactions.csv": quoted.write_csv().encode()}, {}),
        "tabs": ({"interactions.tsv": events.write_csv(separator="\t").replace("\n", "\r\n").encode("cp1252")}, {}),
        "wide": ({"interactions.csv": events.write_csv().encode("utf-16")}, {}),
        "millis": ({"interactions.csv": events.with_columns(pl.col("timestamp") * 1000 + 7).write_csv().encode()}, {}),
        "iso": ({"interactions.csv": dated.write_csv(datetime_format="%FT%T").encode()}, {}),
        "faulty": ({"interactions.csv": faulty.write_csv().encode()},
                   {"unusable": "drop", "options": {"min_rating": 2}}),
        "blank": ({"interactions.csv": events.write_csv().replace("\nu1,", "\n\nu1,").encode()}, {}),
    }  # fmt: skip


@pytest.mark.parametrize("name", forms())
def test_forms_of_the_log(tmp_path: Path, name: str) -> None:
    """CSV and Parquet, one file and several, packed, quoted, in other encodings and units, with faults dropped."""
    files, asked = forms()[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (tmp_path / path).write_bytes(content)
        else:
            content.write_parquet(tmp_path / path)
    messy(1)[1].write_csv(tmp_path / "items.csv")
    made = same(tmp_path, tmp_path / "out", (7,), **asked)
    assert made.info["source"]["notes"]["events_read"] == (1505 if name == "faulty" else 1500)


def test_a_unit_that_only_later_times_tell(tmp_path: Path) -> None:
    """The first piece holds bad times only: what they say of the unit is not what all times say."""
    rows = "".join(f"u{k % 3},i{k},{'x' if k < 40 else 1_395_273_600_000 + k}\n" for k in range(80))
    (tmp_path / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{k},T{k}\n" for k in range(80)))
    made = same(tmp_path, tmp_path / "out", (7,), unusable="drop")
    assert made.info["source"]["notes"]["timestamp_unit"] == "ms"


def test_a_small_dataset_is_one_file_per_table_and_a_large_one_folders(log: Path, tmp_path: Path) -> None:
    one = prepare("table", log, tmp_path / "one", **options(), sharding=Sharding(3))
    assert (one.path / "examples.parquet").is_file() and (one.path / "slates/test-uniform-5-s0.parquet").is_file()
    many = prepare("table", log, tmp_path / "many", **options(), sharding=small(3))
    parts = sorted((many.path / "examples.parquet").iterdir())
    assert len(parts) > 3 and pl.read_parquet(many.path / "examples.parquet").equals(
        pl.read_parquet(one.path / "examples.parquet")
    )
    heights = [pl.read_parquet(part).height for part in parts]
    longest = int(pl.read_csv(log / "interactions.csv")["user_id"].value_counts()["count"].max())  # type: ignore[arg-type]
    assert max(heights) <= 250 + longest  # a part holds so many events, and at most one user's more
    parts[2].unlink()
    with pytest.raises(DataError, match="content has changed"):
        open_dataset(many.path).verify()


def test_several_processes(log: Path, tmp_path: Path) -> None:
    expected = prepare("table", log, tmp_path / "memory", **options())
    sharding = Sharding(5, jobs=2, block=5000, events=400)
    assert_same(prepare("table", log, tmp_path / "jobs", **options(), sharding=sharding), expected)


HEAD = "user_id,item_id,timestamp\n"
ITEMS = "item_id,title\na,Red\nb,Blue\nc,Green\nd,Grey\n"
GOOD = "".join(f"u{k},{item},{k}\n" for k in range(9) for item in "abcd")


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (HEAD + GOOD + "u,a,1\nu,b,1,x\n" + GOOD + "u,b,c,d,e\n", {}),
        (HEAD + GOOD + "u,a\n" + GOOD + "v,a\n", {}),
        (HEAD + GOOD + "u,a,soon\n" + GOOD + ",a,5\n", {}),
        (HEAD + GOOD + "u,z,1\n" * 40, {}),
        (HEAD + "u,a,1395273600\n" + GOOD.replace(",8\n", ",1395273600000\n"), {}),
        (HEAD + GOOD.replace(",8\n", ",99999999999999999\n"), {}),
        (HEAD + "u,a,2010-01-01\nu,b,2010-13-01\n" + GOOD, {}),
        (HEAD + GOOD + 'u,"b,2\nv,a,3\n', {}),
        ("user_id,item_id\nu,a\n", {}),
        (HEAD, {}),
        ("", {}),
        (HEAD + GOOD, {"options": {"min_time": 10**9}}),
        (HEAD + GOOD, {"filter": FilterOptions(min_user=5)}),
        (HEAD + GOOD, {"window": WindowOptions(max_history=9, min_history=4)}),
        (HEAD + GOOD, {"max_title": 4}),
        (HEAD + GOOD, {"max_title": 2, "unusable": "drop"}),
        (HEAD + GOOD, {"slates": (SlateOptions(size=3, splits=("val",)), SlateOptions(size=2))}),
        (HEAD + GOOD, {"slates": (SlateOptions(protocol="given"),)}),
        (HEAD + GOOD, {"slates": (SlateOptions(protocol="sdpo-legacy", size=4),)}),
        (HEAD + "".join(f"u{k},{item},5\n" for k in range(9) for item in "abcd"), {"split": SplitOptions(kind="time")}),
        (HEAD + GOOD, {"options": {"item_columns": {"item_id": "a", "title": "Red"}}}),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_in_the_same_words(tmp_path: Path, text: str, asked: dict[str, Any]) -> None:
    (tmp_path / "interactions.csv").write_text(text, encoding="utf-8")
    (tmp_path / "items.csv").write_text(
        ITEMS.partition("\n")[2] if "options" in asked and "item_columns" in asked["options"] else ITEMS
    )
    expected = message(tmp_path, tmp_path / "out", None, **asked)
    assert "\n" not in expected
    for sharding in (Sharding(3, block=40, rows=7, events=9), Sharding(2)):
        assert message(tmp_path, tmp_path / "out", sharding, **asked) == expected
        assert not work_folder(tmp_path / "out").exists()


# --- impressions -----------------------------------------------------------------------------------------------------


def shown_log(folder: Path, *more: str) -> Path:
    """Clicks and impressions of 60 users in milliseconds, of some users who never click, of items that few take."""
    rng = np.random.default_rng(5)
    lines = ["user_id,item_id,timestamp,event"]
    for user in range(75):
        clock = 1_600_000_000_000 + int(rng.integers(0, 10**9))
        for item in rng.permutation(40)[:9].tolist():
            clock += int(rng.integers(0, 4)) * 40_000
            others = rng.integers(0, 48, rng.integers(0, 7)).tolist()
            lines += [f"u{user},{other},{clock - int(rng.integers(0, 9000))},impression" for other in others]
            lines += [f"u{user},{item},{clock},{'click' if user < 60 else 'impression'}"]
    (folder / "interactions.csv").write_text("\n".join([*lines, *more]) + "\n")
    titles = (f"{i},{'long ' * 20 if i == 11 else ''}Title {i}" for i in range(50))
    (folder / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    return folder


SHOWN = {"where": {"event": "click"}, "impressions": {"event": "impression"}}
OF_SHOWN = (SlateOptions(protocol="impressions", size=4), SlateOptions(size=5, splits=("test",)))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"split": SplitOptions(kind="time"), "limits": {"train": 40, "test": 9}, "unusable": "drop", "max_title": 60},
        {"filter": FilterOptions(min_item=4, min_sequence=6), "split": SplitOptions(kind="leave_last_out")},
    ],
)
def test_impressions_in_shards_are_those_in_memory(tmp_path: Path, asked: dict[str, Any]) -> None:
    made = same(shown_log(tmp_path), tmp_path, options=SHOWN, slates=OF_SHOWN, **asked)
    filled = [about["filled_up"]["negatives"] for about in made.info["slates"].values() if "filled_up" in about]
    assert len(filled) == 3 and 0 < sum(filled) < 3 * sum(made.n_rows(split) for split in ("train", "val", "test"))
    assert made.info["filters"]["impressions"]["of_users_or_items_without_events_dropped"] > 0


def test_refused_impressions_are_told_alike(tmp_path: Path) -> None:
    log = shown_log(tmp_path, "u1,3,soon,impression", "u2,4,later,impression")
    said = []
    for sharding in (None, small(3)):
        with pytest.raises(DataError) as told:
            prepare("table", log, tmp_path / "out", **options(options=SHOWN, slates=OF_SHOWN), sharding=sharding)
        said.append(str(told.value))
    assert said[0] == said[1] and "soon" in said[0] and "2 such rows" in said[0]
