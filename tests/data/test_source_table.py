"""The `table` source: what it reads, and what it says about bad input."""

from __future__ import annotations

import gzip
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sirius_rec.data.options import Sharding, SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sources.table import load
from sirius_rec.errors import ConfigError, DataError

ITEMS = "item_id,title\na,Red\nb,Blue\nc,Green\n"
EVENTS = "user_id,item_id,timestamp\nu,b,20\nu,a,10\nv,c,5\n"


def write(folder: Path, events: str = EVENTS, items: str = ITEMS) -> Path:
    (folder / "interactions.csv").write_text(events, encoding="utf-8")
    (folder / "items.csv").write_text(items, encoding="utf-8")
    return folder


def test_users_in_order_of_appearance_and_events_in_time_order(tmp_path: Path) -> None:
    loaded = load(write(tmp_path))
    assert loaded.events.rows() == [("u", "a", 10), ("u", "b", 20), ("v", "c", 5)]
    assert loaded.items.rows() == [("a", "Red"), ("b", "Blue"), ("c", "Green")]
    assert [Path(f["path"]).name for f in loaded.notes["files"]] == ["interactions.csv", "items.csv"]


def test_gzip_parquet_and_mapped_columns_read_the_same(tmp_path: Path) -> None:
    expected = load(write(tmp_path)).events
    other = tmp_path / "other"
    other.mkdir()
    (other / "log.csv.gz").write_bytes(gzip.compress(EVENTS.replace("user_id", "who").encode()))
    got = load(other / "log.csv.gz", items=tmp_path / "items.csv", columns={"user_id": "who"})
    assert got.events.equals(expected)
    pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["b", "a", "c"], "timestamp": [20, 10, 5]}).write_parquet(
        other / "interactions.parquet"
    )
    assert load(other, items=tmp_path / "items.csv").events.equals(expected)


def test_repeated_pairs_keep_the_first_in_time_and_ties_follow_the_option(tmp_path: Path) -> None:
    events = "user_id,item_id,timestamp\nu,a,30\nu,c,20\nu,b,20\nu,a,10\n"
    loaded = load(write(tmp_path, events), ties="file")
    assert loaded.events.rows() == [("u", "a", 10), ("u", "c", 20), ("u", "b", 20)]
    assert loaded.notes["repeated_pairs_dropped"] == 1
    assert loaded.notes["ties"] == {"broken_by": "order in the file", "groups": 1, "rows": 2}
    orders = [load(tmp_path, seed=seed) for seed in range(12)]
    assert {tuple(order.events["item_id"]) for order in orders} == {("a", "b", "c"), ("a", "c", "b")}
    assert orders[3].notes["ties"] == {"broken_by": "seeded shuffle, seed 3", "groups": 1, "rows": 2}
    with pytest.raises(ConfigError, match="ties='random' is not one of shuffle, file"):
        load(tmp_path, ties="random")  # type: ignore[arg-type]


def test_unknown_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match="no column 'user' to map; did you mean 'user_id'"):
        load(tmp_path, columns={"user": "who"})
    with pytest.raises(ConfigError, match="option columns: there is no column 'x' to map; it maps user_id, item_id"):
        load(tmp_path, columns={"x": "who"})
    with pytest.raises(ConfigError, match="item_columns: there is no column 'titel' to map; did you mean 'title'"):
        load(tmp_path, item_columns={"titel": "name"})


@pytest.mark.parametrize(
    ("times", "seconds", "unit"),
    [
        (("1395273600", "1395273601", "0"), [1395273600, 1395273601, 0], "s"),
        (("1395273600999", "1395273601000", "1395273602000"), [1395273600, 1395273601, 1395273602], "ms"),
        (("1395273600999001", "1395273601000000"), [1395273600, 1395273601], "us"),
        (("1395273600999000001", "1395273601000000000"), [1395273600, 1395273601], "ns"),
        (("253402300799000", "100000000000"), [253402300799, 100000000], "ms"),
        (("1970-01-02", "1970-01-01T00:00:07Z", "1970-01-01 01:00:00+01:00"), [86400, 7, 0], "iso"),
    ],
)
def test_timestamp_units_are_told_apart(tmp_path: Path, times: tuple[str, ...], seconds: list[int], unit: str) -> None:
    rows = "".join(f"u{k},a,{time}\n" for k, time in enumerate(times))
    loaded = load(write(tmp_path, f"user_id,item_id,timestamp\n{rows}"))
    assert loaded.events["timestamp"].to_list() == seconds
    assert loaded.notes["timestamp_unit"] == unit


def test_ids_that_are_floats_in_parquet_are_whole_numbers(tmp_path: Path) -> None:
    events = {"user_id": [1.0, 1.0, 2.5], "item_id": [24.0, 7.0, 7.0], "timestamp": [1, 2, 3]}
    pl.DataFrame(events).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item_id": [24, 7], "title": ["A", "B"]}).write_parquet(tmp_path / "items.parquet")
    assert load(tmp_path).events.rows() == [("1", "24", 1), ("1", "7", 2), ("2.5", "7", 3)]
    pl.DataFrame({**events, "user_id": [1.0, float("nan"), None]}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match="row 2: empty user_id; 2 such rows"):
        load(tmp_path)


def test_the_reason_is_told_where_pandas_wrote_ids_as_floats(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n24,A\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,24.0,1\n")
    with pytest.raises(DataError, match=r"items.csv: '24.0'; '24' is: write this file's ids as whole numbers"):
        load(tmp_path)
    (tmp_path / "items.csv").write_text("item_id,title\n24.0,A\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,24,1\n")
    with pytest.raises(DataError, match=r"'24.0' is: write that file's ids as whole numbers"):
        load(tmp_path)


def test_milliseconds_order_events_of_one_second(tmp_path: Path) -> None:
    events = "user_id,item_id,timestamp\nu,b,1395273600900\nu,a,1395273600100\n"
    assert load(write(tmp_path, events)).events["item_id"].to_list() == ["a", "b"]


def test_min_rating(tmp_path: Path) -> None:
    events = "user_id,item_id,timestamp,rating\nu,a,1,5\nu,b,2,2.5\n"
    loaded = load(write(tmp_path, events), min_rating=3)
    assert loaded.events["item_id"].to_list() == ["a"]
    assert loaded.notes["events_below_min_rating_dropped"] == 1


def test_drop_options_count_what_they_drop(tmp_path: Path) -> None:
    events = EVENTS + "v,d,6\nv,e,7\n"
    items = ITEMS + 'd,"  "\n'
    loaded = load(write(tmp_path, events, items), missing_titles="drop", unknown_items="drop")
    assert loaded.events["item_id"].to_list() == ["a", "b", "c"]
    assert loaded.items["item_id"].to_list() == ["a", "b", "c"]
    assert loaded.notes["items_without_title_dropped"] == 1
    assert loaded.notes["events_of_untitled_items_dropped"] == 1
    assert loaded.notes["events_of_unknown_items_dropped"] == 1


def test_titles_are_stripped_and_made_one_line(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, items='item_id,title\na," Red\n  Fish "\nb,Blue\nc,Green\n'))
    assert loaded.items["title"].to_list() == ["Red Fish", "Blue", "Green"]
    assert loaded.notes["titles_collapsed"] == 1


HEAD = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("events", "items", "message"),
    [
        ("user_id,item_id\nu,a\n", ITEMS, r"interactions.csv: no column 'timestamp' \(has: user_id, item_id\)"),
        (HEAD + "u,a,1\nu,b,1,x\n", ITEMS, "interactions.csv, line 3: 4 fields, the header has 3"),
        (HEAD + "u,a,1\nu,b\n", ITEMS, "interactions.csv, line 3: empty timestamp"),
        (HEAD + "u,a,1\n,b,2\n", ITEMS, "interactions.csv, line 3: empty user_id"),
        (HEAD + "u,a,1\n\nu,b,soon\nu,c,x\n", ITEMS, "line 4: timestamp does not parse: 'soon'; 2 such rows"),
        (HEAD + "u,a,2010-01-01\nu,b,2010-13-01\n", ITEMS, "line 3: timestamp does not parse: '2010-13-01'"),
        (HEAD + "u,a,1395273600\nu,b,1395273600000\n", ITEMS, "line 3: timestamps .* set timestamp_unit"),
        (HEAD + "u,a,1\nu,z,2\n", ITEMS, "interactions.csv, line 3: item is not in .*: 'z'; .*unknown_items"),
        (EVENTS, 'item_id,title\na,"Red\nFish"\nb," "\n', "items.csv, line 4: empty title of item 'b'.*missing_titles"),
        (EVENTS, "item_id,title\na,Red\na,Blue\n", "items.csv, line 3: item_id occurs a second time: 'a'"),
        (EVENTS, "item_id,name\na,Red\n", "items.csv: no column 'title'"),
        (f"{HEAD}u,a,1\nu,b,{'9' * 26}\n", ITEMS, "line 3: timestamps 1 and 9+ cannot be in one unit"),
        (f"{HEAD}u,a,{'9' * 26}\nu,b,{'9' * 26}\n", ITEMS, "line 2: .* outside the years 1 to 9999: '9{26}'; 2 such"),
        (f"{HEAD}u,a,{'9' * 400}\n", ITEMS, "interactions.csv, line 2: timestamp taken as ns lies outside"),
        (f"{HEAD}u,a,{10**22}\n", ITEMS, f"line 2: .* outside the years 1 to 9999: '{10**22}'"),
        (HEAD + 'u,a,1\nu,"b,2\nv,a,3\n', ITEMS, "interactions.csv, line 3: a quoted field .* is not closed"),
        (HEAD + 'u,a,1\nu,b",2\n', ITEMS, "interactions.csv, line 3: a quote stands alone inside a field"),
        ('user_id,item_id,"timestamp\nu,a,1\n', ITEMS, "interactions.csv, line 1: a quoted field .* is not closed"),
        (EVENTS, 'item_id,title\na,Red\nb,"Blue\nc,Green\n', "items.csv, line 3: a quoted field .* is not closed"),
        (EVENTS, 'item_id,title\na,Red\nb,"Blue\nc,"Green"\n', "items.csv, line 3: a quoted field .* is not closed"),
        ("", ITEMS, "interactions.csv: the file is empty"),
        (HEAD, ITEMS, "interactions.csv: no events left of 0; dropped: none$"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, events: str, items: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path, events, items))
    assert "\n" not in str(caught.value)


def test_bad_files_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of interactions.parquet, interactions.csv"):
        load(tmp_path)
    write(tmp_path)
    with pytest.raises(ConfigError, match="unknown_items='ignore' is not one of error, drop"):
        load(tmp_path, unknown_items="ignore")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no column 'rating'"):
        load(tmp_path, min_rating=3)
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(EVENTS.encode())[:-9])
    with pytest.raises(DataError, match=r"broken.csv.gz: "):
        load(tmp_path / "broken.csv.gz")
    (tmp_path / "latin.csv").write_bytes(HEAD.encode() + b"\x81,a,1\n")
    with pytest.raises(DataError, match=r"latin.csv, line 2: not UTF-8 text .* option encoding"):
        load(tmp_path / "latin.csv")


def test_movielens(shared_data: Path) -> None:
    loaded = load(shared_data / "movielens_100k")
    assert loaded.events.height == 100_000
    assert loaded.events["user_id"].n_unique() == 943
    assert loaded.items.height == 1682
    good = load(shared_data / "movielens_100k", min_rating=4)
    assert good.events.height == 55_375  # published count of ratings 4 and 5


def test_steam_needs_the_option_for_its_untitled_items(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"164 such rows; .*missing_titles: drop"):
        load(shared_data / "steam_reviews_au")
    loaded = load(shared_data / "steam_reviews_au", missing_titles="drop")
    assert loaded.items.height == 3682 - 164
    assert loaded.events.height + loaded.notes["events_of_untitled_items_dropped"] == 48_011


def test_times_at_the_ends_of_the_calendar_are_read(tmp_path: Path) -> None:
    """The years 1 and 9999 begin and end at these seconds; one beyond is refused."""
    first, last = -62_135_596_800, 253_402_300_799
    events = f"{HEAD}u,a,{first}\nu,b,{last}\n"
    assert load(write(tmp_path, events), timestamp_unit="s").events["timestamp"].to_list() == [first, last]
    for beyond in (first - 1, last + 1):
        with pytest.raises(DataError, match="line 2: timestamp taken as s lies outside"):
            load(write(tmp_path, f"{HEAD}u,a,{beyond}\n"), timestamp_unit="s")


@pytest.mark.parametrize(
    ("column", "values", "dtype"),
    [
        ("timestamp", [[1], [2]], "List"),
        ("timestamp", [timedelta(1), timedelta(2)], "Duration"),
        ("timestamp", [time(1), time(2)], "Time"),
        ("user_id", [b"u", b"\xff"], "Binary"),
        ("user_id", [{"name": "u"}, {"name": "v"}], "Struct"),
    ],
)
def test_parquet_columns_that_are_no_plain_values(tmp_path: Path, column: str, values: Any, dtype: str) -> None:
    good = {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1, 2]}
    write(tmp_path)
    pl.DataFrame({**good, column: values}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=rf"log.parquet: column '{column}' has type {dtype}") as caught:
        load(tmp_path / "log.parquet")
    assert "\n" not in str(caught.value)


def test_fields_of_the_items_file_stay_with_the_catalogue(tmp_path: Path) -> None:
    write(tmp_path, items="item_id,title,genre,year\na,Red,  Rock ,1999\nb,Blue,,\nc,Green,Jazz,2001\n")
    assert load(tmp_path, fields=["year", "genre"]).items.rows() == [
        ("a", "Red", "1999", "Rock"), ("b", "Blue", None, None), ("c", "Green", "2001", "Jazz")
    ]  # fmt: skip
    for fields, why in ((["brand"], r"has no column 'brand' \(has: genre, year\)"), (["title"], "a column of its own"),
                        (["year", "year"], "asked for twice")):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            load(tmp_path, fields=fields)


def test_fields_change_no_slates(tmp_path: Path) -> None:
    """A prompt with another column is compared on the same candidates."""
    rows = [f"u{k % 7},i{(k % 7 + 3 * (k // 7)) % 11},{k}" for k in range(60)]
    items = "item_id,title,genre\n" + "".join(f"i{n},Title {n},g{n % 2}\n" for n in range(11))
    write(tmp_path, "user_id,item_id,timestamp\n" + "\n".join(rows) + "\n", items)
    shape = {"window": WindowOptions(max_history=3, min_history=1), "slates": [SlateOptions(size=3)]}
    genre = {"fields": ["genre"]}
    made = [
        prepare("table", tmp_path, tmp_path / name, options=asked, sharding=sharding, **shape)
        for name, asked, sharding in (("a", {}, None), ("b", genre, None), ("c", genre, Sharding(2)))
    ]
    assert made[1].items["genre"].to_list() == [f"g{n % 2}" for n in range(11)]
    assert made[1].fingerprint == made[2].fingerprint != made[0].fingerprint
    for name in made[0].slate_names:
        assert made[1].slates(name).equals(made[0].slates(name))


def test_a_number_is_asked_for_as_a_number(tmp_path: Path) -> None:
    """Whether a file has 5 as text, as a float, or as text of one; a large id has no neighbours, and text is text."""
    write(tmp_path, "user_id,item_id,timestamp,rating\nu,a,1,5\nu,b,2,4.5\nu,c,3,5.0\nv,a,4,x\n", ITEMS)
    assert load(tmp_path, where={"rating": [5, 4.5]}).events.height == 3
    assert load(tmp_path, where={"rating": "5"}).events.height == 1
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": list("abc"), "timestamp": [1, 2, 3]})
    (tmp_path / "interactions.csv").unlink()
    frame.with_columns(rating=pl.Series([5.0, 4.5, None])).write_parquet(tmp_path / "interactions.parquet")
    assert load(tmp_path, where={"rating": 5}).events["item_id"].to_list() == ["a"]
    shop = pl.Series([2**53 + 1, 2**53, 7])
    frame.with_columns(rating=shop).write_parquet(tmp_path / "interactions.parquet")
    assert load(tmp_path, where={"rating": 2**53 + 1}).events["item_id"].to_list() == ["a"]


def test_ids_that_are_written_otherwise_are_shown(tmp_path: Path) -> None:
    """pandas makes floats of whole numbers where some are missing."""
    write(tmp_path, HEAD + "u,7.0,1\nu,8.0,2\n", "item_id,title\n7,Red\n8,Blue\n")
    with pytest.raises(DataError) as caught:
        load(tmp_path, unknown_items="drop")
    assert str(caught.value).endswith(
        "no events left of 2; dropped: item not listed: 2; item ids of events are like '7.0', those of "
        f"{tmp_path / 'items.csv'} like '7'"
    )
