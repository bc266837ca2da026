"""MovieLens in its layouts."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from sirius_rec.data.sources.movielens import load
from sirius_rec.errors import ConfigError, DataError

RATINGS = [(1, 10, 5, 100), (1, 2, 3, 100), (2, 10, 4, 50), (1, 10, 1, 200), (2, 3, 4, 60)]
MOVIES = {2: "Café, The (1999)", 10: "Toy Story (1995)", 3: "Heat (1995)", 4: "Unrated (2000)"}


def write(folder: Path, layout: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "csv":
        rows = "".join(f"{u},{i},{r}.0,{t}\n" for u, i, r, t in RATINGS)
        (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows, encoding="utf-8")
        titles = "".join(f'{i},"{title}",Drama|War\n' for i, title in MOVIES.items())
        (folder / "movies.csv").write_text("movieId,title,genres\n" + titles, encoding="utf-8")
        return folder
    separator, mark, ratings, movies = {
        "100k": ("\t", "|", "u.data", "u.item"),
        "1m": ("::", "::", "ratings.dat", "movies.dat"),
    }[layout]
    rows = "".join(separator.join(map(str, row)) + "\n" for row in RATINGS)
    (folder / ratings).write_text(rows, encoding="utf-8")
    titles = "".join(f"{i}{mark}{title}{mark}x\n" for i, title in MOVIES.items())
    (folder / movies).write_text(titles, encoding="latin-1")
    return folder


@pytest.mark.parametrize("layout", ["100k", "1m", "csv"])
def test_every_layout_reads_the_same(tmp_path: Path, layout: str) -> None:
    loaded = load(write(tmp_path / "ml", layout), ties="file")
    assert loaded.events.rows() == [("1", "10", 100), ("1", "2", 100), ("2", "10", 50), ("2", "3", 60)]
    assert loaded.items.rows() == [("2", "Café, The (1999)"), ("3", "Heat (1995)"), ("10", "Toy Story (1995)")]
    account = loaded.notes["lines"][0]
    assert (account["read"], account["kept"]) == (5, 4)
    assert account["dropped"] == {"user had the movie before": 1}
    assert loaded.notes["ties"] == {"broken_by": "order in the file", "groups": 1, "rows": 2}
    # one folder up, where an archive was unpacked
    assert load(tmp_path, ties="file").events.equals(loaded.events)


def test_ratings_below_and_unlisted_movies_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, "1m")
    with (tmp_path / "ratings.dat").open("a") as stream:
        stream.write("7::999::5::1\n")
    loaded = load(tmp_path, min_rating=4)
    assert loaded.events["item_id"].to_list() == ["10", "10", "3"]
    dropped = loaded.notes["lines"][0]["dropped"]
    assert dropped == {"movie not in the movies file": 1, "rating below 4": 2}


def test_malformed_lines_are_named_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "1m")
    with (tmp_path / "ratings.dat").open("a") as stream:
        stream.write("7::10::five::1\n\n8::10::5\n")
    with pytest.raises(DataError, match=r"ratings.dat, line 6: rating is 'five'; a number is expected; 2 of 7 lines"):
        load(tmp_path)
    loaded = load(tmp_path, max_malformed=0.3)
    assert loaded.notes["lines"][0]["malformed"] == {
        "count": 2,
        "first": [
            {"line": 6, "why": "rating is 'five'; a number is expected"},
            {"line": 8, "why": "3 fields, 4 are expected"},
        ],
    }


def test_a_rating_that_is_no_number_is_not_above_a_threshold(tmp_path: Path) -> None:
    write(tmp_path, "1m")
    kept = load(tmp_path, min_rating=4).events
    with (tmp_path / "ratings.dat").open("a") as stream:
        stream.write("7::10::nan::5\n")
    loaded = load(tmp_path, min_rating=4, max_malformed=0.3)
    assert loaded.events.equals(kept)
    bad = loaded.notes["lines"][0]["malformed"]["first"]
    assert bad == [{"line": 6, "why": "rating is 'nan'; a number is expected"}]


def test_what_is_no_movielens(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no MovieLens found \(looked for u.data and u.item; ratings.dat"):
        load(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "absent")
    write(tmp_path, "1m")
    write(tmp_path, "csv")
    with pytest.raises(DataError, match="MovieLens in 2 layouts"):
        load(tmp_path)
    (tmp_path / "ratings.dat").unlink()
    (tmp_path / "ratings.csv").write_text("user,movieId,rating,timestamp\n1,10,5,1\n")
    with pytest.raises(DataError, match=r"ratings.csv, line 1: no column 'userId' in the header \(has: 'user, movieId"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="ties='random' is not one of shuffle, file"):
        load(tmp_path, ties="random")  # type: ignore[arg-type]


def test_100k_against_the_raw_files(shared_data: Path) -> None:
    """All (user, movie, second) triples are those of u.data, and some titles are looked up in u.item by hand."""
    folder = shared_data / "movielens_100k"
    loaded = load(folder / "raw")
    raw = {tuple(line.split("\t")) for line in (folder / "raw" / "u.data").read_text().splitlines()}
    assert {(u, i, str(t)) for u, i, t in loaded.events.iter_rows()} == {(u, i, t) for u, i, _, t in raw}
    assert loaded.events.height == 100_000
    titles = dict(loaded.items.iter_rows())
    assert titles["1"] == "Toy Story (1995)" and titles["543"] == "Misérables, Les (1995)"
    assert len(titles) == 1682
    assert loaded.notes["ties"]["rows"] == 75_772
    ties = loaded.events.group_by("user_id", "timestamp", maintain_order=True).agg(pl.col("item_id").cast(pl.Int64))
    pairs = ties.filter(pl.col("item_id").list.len() > 1)["item_id"].list.diff().explode().drop_nulls()
    assert abs((pairs > 0).mean() - 0.5) < 0.01  # type: ignore[operator]
