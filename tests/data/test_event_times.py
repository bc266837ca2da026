"""Times that cannot be are told, and can be dropped in every source with times."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from sirius_rec.data.sources import SOURCES
from sirius_rec.data.sources.span import TimeSpan, time_lines, time_notes
from sirius_rec.errors import ConfigError, DataError

DAY = 86_400
START = 1_600_000_000


def test_outliers_are_counted_and_the_options_named() -> None:
    good = START + np.arange(20) * DAY
    assert "others" not in time_notes(good)
    notes = time_notes(np.r_[good, 9, 18, 2_524_636_800])
    assert (notes["early"], notes["late"], notes["first"]) == (2, 1, "1970-01-01T00:00:09Z")
    caution = time_lines(notes)[1]
    assert "3 events lie years apart" in caution and "min_time=2020-09-13 data.options.max_time=2020-10-03" in caution
    halves = time_notes(np.r_[good, good + 5 * 366 * DAY])  # a long pause, not a placeholder
    assert "others" not in halves
    many = time_notes(np.r_[good, np.zeros(9)])
    assert many["early"] == 9  # 1970, though it is nearly a third


def test_the_year_16_is_written_with_four_digits() -> None:
    moment = datetime(16, 12, 31, 8, tzinfo=UTC).timestamp()
    assert time_notes(np.array([moment]))["first"] == "0016-12-31T08:00:00Z"


def test_moments_are_dates_texts_or_seconds() -> None:
    for value in (date(2005, 1, 31), "2005-01-31", "2005-01-31T01:00:00+01:00", 1_107_129_600):
        assert TimeSpan.of(value, None).least == 1_107_129_600
    with pytest.raises(ConfigError, match="min_time='soon' is neither a date"):
        TimeSpan.of("soon", None)
    with pytest.raises(ConfigError, match="is after max_time"):
        TimeSpan.of(5, 4)


def test_windows_with_a_time_outside_are_dropped(tmp_path: Path) -> None:
    rows = [{"history": ["1"], "target": "2", "split": "train", "timestamp": time} for time in (9, START, START + DAY)]
    rows.append({"history": ["1"], "target": "2", "split": "train"})
    (tmp_path / "windows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "items.csv").write_text("item_id,title\n1,A\n2,B\n")
    loaded = SOURCES["windows"](tmp_path, seed=0, min_time="2005-01-01")
    assert loaded.rows["timestamp"].to_list() == [START, START + DAY, None]
    assert loaded.notes["lines"][0]["dropped"] == {"outside min_time and max_time": 1}
    assert loaded.notes["times"]["first"] == "2020-09-13T12:26:40Z"


def files(folder: Path, source: str) -> None:
    """Two users and three items; the first user's event of item 1 has a placeholder, and then its real time."""
    events = [("7", "1", 9), ("7", "1", START), ("7", "2", START + DAY), ("8", "3", START + 2 * DAY), ("8", "1", START)]
    if source == "table":
        rows = "".join(f"{user},{item},{time}\n" for user, item, time in events)
        (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
        (folder / "items.csv").write_text("item_id,title\n1,A\n2,B\n3,C\n")
    elif source == "movielens":
        rows = "".join(f"{user},{item},5,{time}\n" for user, item, time in events)
        (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{rows}")
        (folder / "movies.csv").write_text("movieId,title\n1,A\n2,B\n3,C\n")
    elif source == "lastfm":
        rows = "".join(f"{user}\t{item}\t1\t{time * 1000}\n" for user, item, time in events)
        (folder / "user_taggedartists-timestamps.dat").write_text(f"userID\tartistID\ttagID\ttimestamp\n{rows}")
        (folder / "artists.dat").write_text("id\tname\n1\tA\n2\tB\n3\tC\n")
    elif source == "amazon":
        lines = [{"reviewerID": u, "asin": i, "overall": 5, "unixReviewTime": t} for u, i, t in events]
        (folder / "reviews_X.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        meta = [{"asin": number, "title": title} for number, title in zip("123", "ABC", strict=True)]
        (folder / "meta_X.json").write_text("".join(json.dumps(line) + "\n" for line in meta))
    else:
        day = {9: "1970-01-01", START: "2020-09-13", START + DAY: "2020-09-14", START + 2 * DAY: "2020-09-15"}
        lines = [{"username": u, "product_id": i, "date": day[t]} for u, i, t in events]
        (folder / "steam_reviews.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        games = [{"id": number, "title": title} for number, title in zip("123", "ABC", strict=True)]
        (folder / "steam_games.json").write_text("".join(json.dumps(line) + "\n" for line in games))


@pytest.mark.parametrize("source", ["table", "movielens", "lastfm", "amazon", "steam"])
def test_every_source_drops_and_counts_events_outside(tmp_path: Path, source: str) -> None:
    files(tmp_path, source)
    options = {"lastfm": {"min_year": 1}, "steam": {"games_share": 1.0}}.get(source, {})
    placeholder = SOURCES[source](tmp_path, seed=0, **options)
    assert placeholder.notes["times"]["first"].startswith("1970-01-01")
    loaded = SOURCES[source](tmp_path, seed=0, min_time="2005-01-01", max_time=date(2020, 9, 15), **options)
    first = loaded.events.row(0)
    # the placeholder never happened: the real event is no repetition of it
    assert first[:2] == ("7", "1") and first[2] >= START - DAY
    assert loaded.notes["lines"][0]["dropped"].get("outside min_time and max_time", 0) == (
        1 if source == "steam" else 2
    )
    with pytest.raises(DataError):
        SOURCES[source](tmp_path, seed=0, min_time="2030-01-01", **options)
