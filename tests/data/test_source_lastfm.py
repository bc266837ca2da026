"""The raw HetRec Last.fm dump."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from sirius_rec.data.sources.lastfm import load
from sirius_rec.errors import ConfigError, DataError

DAY = 1_200_000_000_000  # January 2008, in ms
TAGS = [
    (2, 5, 1, DAY + 3000),
    (2, 5, 9, DAY + 1000),  # the first tag of (2, 5)
    (2, 4, 1, DAY + 2000),
    (2, 8, 1, DAY),  # not in artists.dat
    (2, 6, 1, -5_000_000),  # 1969
    (10, 6, 1, DAY),
]


def write(folder: Path, tags: list[tuple[object, ...]], artists: str = '4\tFour\r\n5\t"Five\r\n6\tSix\r\n') -> Path:
    text = "userID\tartistID\ttagID\ttimestamp\r\n" + "".join("\t".join(map(str, row)) + "\r\n" for row in tags)
    (folder / "user_taggedartists-timestamps.dat.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "artists.dat").write_bytes(("id\tname\r\n" + artists).encode())
    return folder


def test_first_tag_in_time_order_with_counts(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, TAGS))
    assert loaded.events.rows() == [
        ("2", "5", DAY // 1000 + 1),
        ("2", "4", DAY // 1000 + 2),
        ("10", "6", DAY // 1000),
    ]
    assert loaded.items["title"].to_list() == ["Four", '"Five', "Six"]
    notes = loaded.notes
    assert notes["taggings_read"] == 6
    assert notes["taggings_before_min_year_dropped"] == 1
    assert notes["repeated_taggings_merged"] == 1
    assert notes["events_of_unlisted_artists_dropped"] == notes["unlisted_artists"] == 1
    assert notes["ties"]["rows"] == 0
    account = notes["lines"][0]
    assert (account["read"], account["kept"]) == (6, 3)
    assert account["dropped"] == {"artist not listed": 1, "before 2005": 1, "user tagged the artist before": 1}
    with_a_bad_line = load(write(tmp_path, [*TAGS, (1, 4, "x")]), max_malformed=0.2)
    assert with_a_bad_line.events.equals(loaded.events)
    assert with_a_bad_line.notes["lines"][0]["malformed"]["first"] == [{"line": 8, "why": "3 fields, 4 are expected"}]


def test_ties_are_shuffled_by_the_seed_and_not_by_the_file(tmp_path: Path) -> None:
    artists = "".join(f"{k}\tArtist {k}\r\n" for k in range(20))
    tags = [(1, k, 1, DAY) for k in range(20)]
    loaded = load(write(tmp_path, tags, artists), seed=3)
    backwards = load(write(tmp_path, tags[::-1], artists), seed=3)
    other = load(write(tmp_path, tags, artists), seed=4)
    assert loaded.events.equals(backwards.events)
    assert not loaded.events.equals(other.events)
    assert loaded.events["item_id"].to_list() != [str(k) for k in range(20)]
    assert loaded.notes["ties"] == {"broken_by": "seeded shuffle, seed 3", "groups": 1, "rows": 20}


def test_bad_rows_are_named(tmp_path: Path) -> None:
    for year in (0, 10_000):
        with pytest.raises(ConfigError, match=f"min_year={year} is not between 1 and 9999"):
            load(tmp_path, min_year=year)
    with pytest.raises(DataError, match=r"user_taggedartists-timestamps.dat not found"):
        load(tmp_path)
    with pytest.raises(DataError, match="line 3: timestamp is 'x'; a whole number is expected; 1 of 2 lines"):
        load(write(tmp_path, [*TAGS[:1], (1, 4, 1, "x")]))
    with pytest.raises(DataError, match=r"artists.dat, line 3: artist occurs a second time: '4'"):
        load(write(tmp_path, TAGS, "4\tFour\r\n4\tAgain\r\n"))


def test_real_dump_agrees_with_the_independent_extract(shared_data: Path) -> None:
    """interactions.csv was made by others from the same rows: first tagging day per (user, artist)."""
    folder = shared_data / "hetrec_lastfm"
    loaded = load(folder / "reconstructed")
    theirs = pl.read_csv(folder / "interactions.csv", schema_overrides={"user_id": pl.String, "item_id": pl.String})
    listed = theirs.filter(pl.col("item_id").is_in(loaded.items["item_id"].to_list()))
    assert theirs["item_id"].n_unique() - listed["item_id"].n_unique() == loaded.notes["unlisted_artists"] == 390
    both = listed.join(loaded.events, on=["user_id", "item_id"], how="left", suffix="_ours")
    bad_dates = both.filter(pl.col("timestamp") < 1_104_537_600)
    assert bad_dates.height == 4
    good = both.filter(pl.col("timestamp") >= 1_104_537_600)
    assert good["timestamp_ours"].null_count() == 0
    # known true times carry a time of day; the day itself agrees
    later = good["timestamp_ours"] - good["timestamp"]
    assert later.min() == 0
    assert int(later.max()) < 86_400  # type: ignore[arg-type]
    assert loaded.events.height == good.height + bad_dates["timestamp_ours"].count()
    gaps = loaded.events.select(pl.col("timestamp").diff().over("user_id")).to_series().drop_nulls()
    assert int(gaps.min()) >= 0  # type: ignore[arg-type]
