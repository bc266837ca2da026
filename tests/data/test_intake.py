"""What Python code hands over: frames, and sources added in code. Nothing of it is taken as it is."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import sirius_rec
from sirius_rec.data.intake import check_examples, check_interactions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sources import SOURCES
from sirius_rec.data.store import Dataset
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.schema import Examples, Interactions

OPTIONS: dict[str, Any] = {"window": {"max_history": 3, "min_history": 2}, "slates": {"size": 3}}


def events(users: int = 4, each: int = 5, at: int = 1000) -> pl.DataFrame:
    rows = [(f"u{u}", f"i{(u + k) % 9}", at + 100 * u + k) for u in range(users) for k in range(each)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def items(n: int = 9) -> pl.DataFrame:
    return pl.DataFrame({"item_id": [f"i{k}" for k in range(n)], "title": [f"Title {k}" for k in range(n)]})


def made(loaded: Interactions, out: Path, **options: Any) -> Dataset:
    return prepare(loaded, None, out, **{**OPTIONS, **options})


def rows(dataset: Dataset) -> list[tuple[Any, ...]]:
    """All rows by ids."""
    ids = dataset.items["item_id"]
    found = pl.concat([dataset.examples(split) for split in ("train", "val", "test")]).sort("row_id")
    return [
        (row["user_id"], ids.gather(row["history"]).to_list(), ids[row["target"]], row["timestamp"])
        for row in found.iter_rows(named=True)
    ]


def test_events_out_of_order_are_refused_wherever_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the future would stand in the history."""
    late_first = events().reverse()
    message = r"events\[1\]: timestamp 1303 of user 'u3' stands behind 1304 \(16 such rows\).*events.sort"
    with pytest.raises(DataError, match=message):
        made(Interactions(late_first, items()), tmp_path / "out")
    monkeypatch.setitem(SOURCES, "mine", lambda path=None, *, seed: Interactions(late_first, items()))
    with pytest.raises(DataError, match=rf"source 'mine': {message}"):
        prepare("mine", None, tmp_path / "out", **OPTIONS)
    mended = made(Interactions(late_first.sort("timestamp", maintain_order=True), items()), tmp_path / "out")
    assert rows(mended) == rows(made(Interactions(events(), items()), tmp_path / "other"))


def test_the_row_out_of_order_is_named_among_interleaved_users() -> None:
    frame = pl.DataFrame({"user_id": ["a", "b", "a", "b"], "item_id": ["i0"] * 4, "timestamp": [5, 9, 6, 8]})
    with pytest.raises(DataError, match=r"events\[3\]: timestamp 8 of user 'b' stands behind 9 \(1 such rows\)"):
        check_interactions(Interactions(frame, items()), "x")


def test_interleaved_users_are_brought_together(tmp_path: Path) -> None:
    by_time = events().sort(pl.col("timestamp") % 100, maintain_order=True)
    assert by_time["user_id"][:4].to_list() == ["u0", "u1", "u2", "u3"]
    got = check_interactions(Interactions(by_time, items()), "x").events
    assert got.equals(events())


def test_numbers_as_ids_and_floats_with_a_gap_beside_them(tmp_path: Path) -> None:
    plain = events().with_columns(pl.col("user_id").str.slice(1).cast(pl.Int64), pl.col("item_id").str.slice(1))
    catalogue = items().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int32))
    floats = plain.with_columns(pl.col("user_id", "item_id").cast(pl.Float64))
    dataset = made(Interactions(floats, catalogue), tmp_path / "out")
    assert rows(dataset) == rows(made(Interactions(plain, catalogue), tmp_path / "other"))
    assert dataset.examples("train")["user_id"].unique().is_in(["0", "1", "2", "3"]).all()


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_datetimes_become_whole_seconds_and_zones_are_heeded(unit: Any) -> None:
    moments = [datetime(2020, 1, 1, 12, 0, 0, 999_000), datetime(1969, 12, 31, 23, 59, 59, 500_000)]
    for zone, hours in ((None, 0), ("UTC", 0), ("Europe/Berlin", -1)):
        times = pl.Series("timestamp", moments, dtype=pl.Datetime(unit)).dt.replace_time_zone(zone)
        frame = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["i0", "i1"], "timestamp": times})
        got = check_interactions(Interactions(frame, items()), "x").events["timestamp"]
        assert got.dtype == pl.Int64
        assert got.to_list() == [1_577_880_000 + hours * 3600, -1 + hours * 3600]
    zoned = datetime(2020, 1, 1, 13, tzinfo=timezone(timedelta(hours=1)))
    assert zoned.astimezone(UTC).timestamp() == 1_577_880_000  # what the numbers above were derived from


def test_order_is_told_by_the_exact_time_not_by_its_second() -> None:
    times = [datetime(2020, 1, 1, 12, 0, 0, 900_000), datetime(2020, 1, 1, 12, 0, 0, 100_000)]
    frame = pl.DataFrame({"user_id": ["a", "a"], "item_id": ["i0", "i1"], "timestamp": times})
    with pytest.raises(DataError, match="stands behind"):
        check_interactions(Interactions(frame, items()), "x")


def test_titles_are_tidied_and_other_columns_are_text() -> None:
    catalogue = pl.DataFrame(
        {"item_id": ["i0", " i1"], "title": ["  Two\n lines ", "Cafe\u0301"], "price": [2.5, None]}
    )
    got = check_interactions(Interactions(events(1, 2), catalogue), "x").items
    assert got.rows() == [("i0", "Two lines", "2.5"), ("i1", "Café", None)]


@pytest.mark.parametrize(
    ("change", "catalogue", "message"),
    [
        ({}, {"title": pl.lit(None, pl.String)}, r"items\[0\]: empty title of item 'i0' \(9 such rows\); give it one"),
        ({}, {"title": pl.lit(" \u200b ")}, r"items\[0\]: empty title of item 'i0'"),
        ({}, {"item_id": pl.lit("i0")}, r"items\[1\]: item_id 'i0' occurs a second time"),
        ({}, {"item": pl.lit(1)}, "items: 'item' is what this package calls a column of its own"),
        ({}, {"tags": pl.lit([1])}, r"items: column 'tags' has type List"),
        ({"item_id": pl.lit("new")}, {}, r"events: item 'new' is not among the items \(20 such entries\)"),
        ({"user_id": pl.lit(None, pl.String)}, {}, r"events\[0\]: empty user_id \(20 such rows\)"),
        ({"user_id": pl.lit(float("nan"))}, {}, r"events\[0\]: empty user_id"),
        ({"user_id": pl.lit(True)}, {}, "column 'user_id' has type Boolean"),
        ({"timestamp": pl.lit("2020-01-01")}, {}, "column 'timestamp' has type String; whole seconds .* or datetimes"),
        ({"timestamp": pl.col("timestamp") + 0.5}, {}, r"events\[0\]: timestamp 1000.5 is no whole second"),
        ({"timestamp": pl.lit(float("nan"))}, {}, "is no whole second"),
        ({"timestamp": pl.lit(None, pl.Int64)}, {}, r"events\[0\]: empty timestamp"),
        (
            {"timestamp": pl.lit(1_600_000_000_000)},
            {},
            r"years 1 to 9999 \(20 such rows\); .*divide milliseconds by",
        ),
        ({"timestamp": pl.lit(2**64 - 1, pl.UInt64)}, {}, "timestamp 18446744073709551615 lies outside"),
    ],
)
def test_each_fault_is_one_line(change: dict[str, pl.Expr], catalogue: dict[str, pl.Expr], message: str) -> None:
    handed = Interactions(events().with_columns(**change), items().with_columns(**catalogue))
    with pytest.raises(DataError, match=message) as caught:
        check_interactions(handed, "source 'mine'")
    assert str(caught.value).startswith("source 'mine': ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ((events(), items()), "tuple is neither Interactions nor Examples"),
        (Interactions([1], items()), "events: list is no data frame"),  # type: ignore[arg-type]
        (Interactions(events().drop("timestamp"), items()), r"no column 'timestamp' \(has: user_id, item_id\)"),
        (Interactions(events().clear(), items()), "events: there are none"),
        (Interactions(events(), items(), {"path": Path("x")}), "notes must be a dict that JSON can hold"),
        (Interactions(events(), items(), {"files": ["x.csv"]}), "file_note"),
    ],
)
def test_what_is_no_such_thing_is_refused(
    loaded: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "mine", lambda path=None, *, seed: loaded)
    with pytest.raises(DataError, match=message):
        prepare("mine", None, tmp_path / "out", **OPTIONS)


def test_windows_from_code_are_checked_too(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"history": [[1, 2], [3, 4]], "target": [0, 5], "split": ["train", "test"], "candidates": [[0, 7], [5, 6]]}
    )
    catalogue = items().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int64))
    slates = {"protocol": "given", "size": 2}
    dataset = prepare(Examples(catalogue, frame), None, tmp_path / "out", **{**OPTIONS, "slates": slates})
    assert list(dataset.titled("test-given-2-s0")) == [(["Title 3", "Title 4"], "Title 5", ["Title 5", "Title 6"])]
    for change, message in (
        ({"split": pl.lit("dev")}, r"rows\[0\]: split 'dev' is unknown \(2 such rows\); use one of train, val, test"),
        ({"target": pl.lit(99)}, "item '99' is not among the items"),
        ({"history": pl.lit([99])}, "item '99' is not among the items"),
        ({"history": pl.lit([0.5])}, "lists of ids, text or whole numbers, are expected"),
        ({"history": pl.lit(None, pl.List(pl.Int64))}, r"rows\[0\]: empty history"),
    ):
        with pytest.raises(DataError, match=message):
            check_examples(Examples(catalogue, frame.with_columns(**change)), "x")


def test_pandas_frames_lazy_frames_and_interactions_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    expected = made(Interactions(events(), items()), tmp_path / "polars")
    frame = events().to_pandas()
    frame["timestamp"] = frame["timestamp"].astype("datetime64[s]")
    for name, handed in (
        ("pandas", Interactions(frame, items().to_pandas())),
        ("lazy", Interactions(events().lazy(), items().lazy())),  # type: ignore[arg-type]
    ):
        assert made(handed, tmp_path / name).fingerprint == expected.fingerprint
    frame["item_id"] = [{}, 1] * 10
    with pytest.raises(DataError, match="events: polars cannot take it from pandas"):
        made(Interactions(frame, items().to_pandas()), tmp_path / "mixed")


def test_frames_are_named_and_read_no_input(table: Path, tmp_path: Path) -> None:
    dataset = sirius_rec.prepare(sirius_rec.Interactions(events(), items()), None, tmp_path / "out", **OPTIONS)
    assert dataset.info["recipe"]["source"] == dataset.info["source"]["name"] == "frames"
    assert sirius_rec.open_dataset(tmp_path / "out").fingerprint == dataset.fingerprint
    with pytest.raises(ConfigError, match="source 'frames' has no option 'ties'; it has none"):
        made(Interactions(events(), items()), tmp_path / "o2", options={"ties": "file"})
    with pytest.raises(ConfigError, match="source 'frames' reads no input"):
        prepare(Interactions(events(), items()), table, tmp_path / "o2", **OPTIONS)
    with pytest.raises(ConfigError, match="source 'frames': give prepare"):
        prepare("frames", None, tmp_path / "o2", **OPTIONS)
    taken = prepare("frames", None, tmp_path / "o3", prepared=tmp_path / "out", **OPTIONS)  # as a configuration says it
    assert taken.fingerprint == dataset.fingerprint


def test_other_frames_are_not_the_dataset_made_before(tmp_path: Path) -> None:
    first = made(Interactions(events(), items()), tmp_path / "out")
    assert made(Interactions(events(), items()), tmp_path / "out").fingerprint == first.fingerprint
    with pytest.raises(RunError, match="source frames hands over other events, rows or items than when it was"):
        made(Interactions(events(at=2000), items()), tmp_path / "out")


def test_a_changed_file_or_loader_of_a_source_in_code_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log.csv"
    events().write_csv(file)
    monkeypatch.setitem(SOURCES, "mine", lambda path, *, seed: Interactions(pl.read_csv(path), items()))
    first = prepare("mine", file, tmp_path / "out", **OPTIONS)
    assert prepare("mine", file, tmp_path / "out", **OPTIONS).fingerprint == first.fingerprint
    events(at=5000).write_csv(file)
    with pytest.raises(RunError, match="source mine hands over other events"):
        prepare("mine", file, tmp_path / "out", **OPTIONS)
    events().write_csv(file)
    monkeypatch.setitem(SOURCES, "mine", lambda path, *, seed: Interactions(pl.read_csv(path)[5:], items()))
    with pytest.raises(RunError, match="source mine hands over other events"):
        prepare("mine", file, tmp_path / "out", **OPTIONS)
    file.unlink()  # as with the files of any other source: what is gone has not changed
    assert prepare("mine", file, tmp_path / "out", **OPTIONS).fingerprint == first.fingerprint


def test_a_source_that_names_its_files_is_not_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sirius_rec.data.sources.files import file_note

    calls = []

    def load(path: Path, *, seed: int) -> Interactions:
        calls.append(path)
        return Interactions(pl.read_csv(path), items(), {"files": [file_note(path)]})

    events().write_csv(file := tmp_path / "log.csv")
    monkeypatch.setitem(SOURCES, "mine", load)
    for _ in range(2):
        prepare("mine", file, tmp_path / "out", **OPTIONS)
    assert len(calls) == 1
    events(at=5000).write_csv(file)
    with pytest.raises(RunError, match=r"log\.csv has changed"):
        prepare("mine", file, tmp_path / "out", **OPTIONS)


def test_a_source_that_reads_nothing_is_told_how_to_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "mine", lambda path, *, seed: Interactions(events(), items()))
    with pytest.raises(ConfigError, match=r"needs an input; .*, or write load\(path=None"):
        prepare("mine", None, tmp_path / "out", **OPTIONS)
    monkeypatch.setitem(SOURCES, "mine", lambda *, seed: Interactions(events(), items()))
    with pytest.raises(ConfigError, match="source 'mine' has no parameter path; make it load"):
        prepare("mine", None, tmp_path / "out", **OPTIONS)


def test_ties_and_times_of_frames_are_told(tmp_path: Path) -> None:
    tied = events().with_columns(pl.col("timestamp") // 2 * 2)
    notes = made(Interactions(tied, items()), tmp_path / "out").info["source"]["notes"]
    assert notes["ties"] == {"broken_by": "order in the file", "groups": 8, "rows": 16}
    assert notes["times"]["first"] == "1970-01-01T00:16:40Z"


def test_the_way_in_brings_no_torch() -> None:
    code = "import sys, sirius_rec; sirius_rec.prepare; sirius_rec.Interactions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_user_who_has_an_item_twice_is_refused_unless_that_is_meant(tmp_path: Path) -> None:
    """A target that stands in its own history is told from the negatives, which leave out what the user had."""
    again = pl.concat([events(), pl.DataFrame({"user_id": ["u3"], "item_id": ["i6"], "timestamp": [9000]})])
    with pytest.raises(DataError, match=r"events\[20\]: user 'u3' has item 'i6' a second time; give events.unique"):
        made(Interactions(again, items()), tmp_path / "out")
    meant = made(Interactions(again, items(), repeats=True), tmp_path / "meant")
    assert sum(meant.n_rows(split) for split in ("train", "val", "test")) == 4 * 3 + 1
    assert meant.info["filters"]["targets_in_own_history"] == 1


def test_frames_go_by_what_they_hold_whatever_their_notes(tmp_path: Path) -> None:
    notes = {"files": [{"path": "log.csv", "sha256": "0" * 64, "bytes": 1}]}
    made(Interactions(events(), items(), notes), tmp_path / "out")
    made(Interactions(events(), items(), notes), tmp_path / "out")
    with pytest.raises(RunError, match="hands over other events, rows or items"):
        made(Interactions(events(3), items(), notes), tmp_path / "out")
    with pytest.raises(ConfigError, match="frames are prepared themselves; leave one of the two out"):
        made(Interactions(events(3), items()), tmp_path / "new", prepared=tmp_path / "out")


def test_a_run_takes_prepared_frames(tmp_path: Path) -> None:
    made(Interactions(events(), items()), tmp_path / "frames")
    window, slates = "{max_history: 3, min_history: 2}", "[{size: 3}]"
    data = f"{{source: frames, prepared: {tmp_path / 'frames'}, window: {window}, slates: {slates}}}"
    (tmp_path / "c.yaml").write_text(f"data: {data}\narms: []\nmethods: [markov]\n")
    command = [
        sys.executable,
        "-m",
        "sirius_rec",
        "prepare",
        str(tmp_path / "c.yaml"),
        "--out",
        str(tmp_path / "again"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert rows(sirius_rec.open_dataset(tmp_path / "again")) == rows(sirius_rec.open_dataset(tmp_path / "frames"))
    (tmp_path / "c.yaml").write_text("data: {source: frames}\narms: []\nmethods: [markov]\n")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "no source is called 'frames'" in done.stderr


def test_dates_are_the_seconds_of_their_days_and_ties_are_of_the_exact_time(tmp_path: Path) -> None:
    days = events(at=0).with_columns(timestamp=pl.date(1970, 1, 1) + pl.duration(days=pl.col("timestamp")))
    assert check_interactions(Interactions(days, items()), "x").events["timestamp"].to_list() == [
        day * 86_400 for day in events(at=0)["timestamp"]
    ]
    halves = events().with_columns(timestamp=pl.datetime(2020, 1, 1) + pl.duration(milliseconds=pl.int_range(pl.len())))
    assert check_interactions(Interactions(halves, items()), "x").notes["ties"]["groups"] == 0
