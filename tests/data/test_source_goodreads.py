"""UCSD Goodreads, JSON lines of a genre and the CSV of all."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sirius_rec.data.sources.goodreads import load
from sirius_rec.errors import DataError

BOOKS = [
    {"book_id": "1", "title": "Red"},
    {"book_id": "2", "title": "", "title_without_series": "Blue"},
    {"book_id": "3", "title": ""},
]


def shelf(user: str, book: str, rating: int, added: str, read: str = "") -> dict[str, Any]:
    return {"user_id": user, "book_id": book, "is_read": True, "rating": rating, "date_added": added, "read_at": read}


ROWS = [
    shelf("u", "1", 5, "Fri Apr 19 08:15:15 -0700 2013", "Mon Jan 01 00:00:00 -0800 2007"),
    shelf("u", "2", 5, "Fri Apr 19 08:15:14 -0700 2013"),
    shelf("u", "3", 5, "Fri Apr 19 08:15:16 -0700 2013"),
    shelf("u", "1", 5, "Fri Apr 19 15:15:00 +0000 2013"),
    shelf("u", "2", 4, "Fri Apr 19 08:15:15 -0700 2013"),
    shelf("v", "1", 5, "Fri Apr 19 08:15:15 -0700 2013"),
    shelf("w", "1", 5, ""),
]
AT = 1_366_384_515  # Fri Apr 19 15:15:15 UTC 2013


def write(folder: Path, rows: list[Any] = ROWS) -> Path:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    (folder / "goodreads_interactions_poetry.json.gz").write_bytes(gzip.compress(text.encode()))
    books = "".join(f"{json.dumps(book)}\n" for book in BOOKS)
    (folder / "goodreads_books_poetry.json.gz").write_bytes(gzip.compress(books.encode()))
    return folder


def test_json_by_hand(tmp_path: Path) -> None:
    loaded = load(write(tmp_path), min_user=2)
    # of the repeated pair the earlier one, 15:15:00 UTC, stays
    assert loaded.events.rows() == [("u", "1", AT - 15), ("u", "2", AT - 1)]
    assert loaded.items.rows() == [("1", "Red"), ("2", "Blue")]
    interactions, books = loaded.notes["lines"]
    assert (interactions["read"], interactions["kept"], books["read"]) == (7, 2, 3)
    assert interactions["dropped"] == {
        "book without title": 1,
        "rating below 5": 1,
        "user had the book before": 1,
        "user with fewer than 2": 1,
        "without date_added": 1,
    }
    assert load(tmp_path, min_user=1, date="read_at").events.rows() == [("u", "1", 1_167_638_400)]
    both = load(tmp_path, min_user=1, date="read_at_or_date_added", min_rating=None)
    assert both.events.row(0) == ("u", "1", 1_167_638_400)
    with pytest.raises(DataError, match="no interactions left of 7; dropped"):
        load(tmp_path)  # nobody has 20


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (shelf("u", "1", 5, "2013-04-19"), "date does not parse: '2013-04-19'"),
        (shelf("u", "1", 5, "Mon Apr 19 08:15:15 -0700 2013"), "date does not parse"),  # it was a Friday
        (shelf("u", "1", "many", "Fri Apr 19 08:15:15 -0700 2013"), "field 'rating' holds 'many'"),  # type: ignore[arg-type]
        (json.dumps(ROWS[0])[:40], "not JSON"),
        ("[1, 2]", "not a record of named fields but list"),
        ({**ROWS[0], "user_id": ["u"]}, r"field 'user_id' holds \['u'\]; ids are text or integers"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: Any, why: str) -> None:
    write(tmp_path, [*ROWS, bad])
    with pytest.raises(DataError, match=rf"poetry.json.gz, line 8: {why}.*; 1 of 8 lines are malformed \(12.50%\)"):
        load(tmp_path, min_user=1)
    assert load(tmp_path, min_user=1, max_malformed=0.2).notes["lines"][0]["malformed"]["count"] == 1


def write_csv(folder: Path) -> Path:
    rows = "".join(f"{u},{b},1,{r},0\n" for u, b, r in [(0, 7, 5), (0, 5, 5), (0, 6, 2), (0, 4, 5), (1, 7, 5)])
    (folder / "goodreads_interactions.csv").write_text("user_id,book_id,is_read,rating,is_reviewed\n" + rows)
    (folder / "book_id_map.csv").write_text("book_id_csv,book_id\n4,1\n5,2\n7,3\n")
    books = "".join(f"{json.dumps(book)}\n" for book in [*BOOKS[:2], {"book_id": 3, "title": "Green"}])
    (folder / "goodreads_books.json").write_text(books)
    return folder


def test_csv_by_hand(tmp_path: Path) -> None:
    write_csv(tmp_path)
    with pytest.raises(DataError, match="the CSV form has no dates; set undated to oldest_first, newest_first"):
        load(tmp_path)
    loaded = load(tmp_path, min_user=2, undated="newest_first")
    assert loaded.events.rows() == [("0", "1", 0), ("0", "2", 1), ("0", "3", 2)]
    assert loaded.items["title"].to_list() == ["Red", "Blue", "Green"]
    assert loaded.notes["time"] == "none: positions, rows taken as newest_first"
    assert loaded.notes["lines"][0]["dropped"] == {"rating below 5": 1, "user with fewer than 2": 1}
    oldest = load(tmp_path, min_user=1, undated="oldest_first", min_rating=None)
    assert oldest.events["item_id"].to_list() == ["3", "2", "1", "3"]
    assert oldest.notes["lines"][0]["dropped"] == {"book not in the map of books": 1}
    shuffled = {tuple(load(tmp_path, undated="shuffle", min_user=2, seed=s).events["item_id"]) for s in range(12)}
    assert len(shuffled) > 3
    (tmp_path / "book_id_map.csv").unlink()
    (tmp_path / "goodreads_books.json").unlink()
    with pytest.raises(DataError, match="no books file for the titles"):
        load(tmp_path, undated="shuffle")
    by_id = load(tmp_path, undated="oldest_first", min_user=1, missing_titles="id")
    assert by_id.items["title"].to_list() == ["4", "5", "7"]


def test_real_lines(shared_data: Path) -> None:
    """The one verbatim line of interactions and of books that there is: another book each."""
    folder = shared_data / "raw_samples" / "goodreads"
    loaded = load(
        folder / "goodreads_interactions_poetry.1line.json",
        books=folder / "goodreads_books_poetry.1line.json",
        min_rating=None,
        min_user=1,
    )
    raw = json.loads((folder / "goodreads_interactions_poetry.1line.json").read_text())
    assert loaded.events.rows() == [(raw["user_id"], raw["book_id"], AT)]
    book = json.loads((folder / "goodreads_books_poetry.1line.json").read_text())
    assert loaded.items.rows() == [(book["book_id"], book["title"])]


def test_real_csv_against_the_csv_module(shared_data: Path) -> None:
    """Users with at least 20 ratings of 5, counted line by line."""
    path = shared_data / "raw_samples" / "goodreads" / "goodreads_interactions.head200001.csv.gz"
    books = path.parent / "goodreads_books_poetry.1line.json"
    loaded = load(path, books=books, undated="newest_first", missing_titles="id")
    with gzip.open(path, "rt", newline="") as stream:
        liked: dict[str, list[str]] = {}
        for row in csv.DictReader(stream):
            if row["rating"] == "5":
                liked.setdefault(row["user_id"], []).append(row["book_id"])
    expected = {user: books[::-1] for user, books in liked.items() if len(books) >= 20}
    got = loaded.events.group_by("user_id", maintain_order=True).agg("item_id")
    assert dict(got.iter_rows()) == expected
    assert loaded.events.select(pl.col("timestamp").diff().over("user_id").drop_nulls().unique()).item() == 1
    assert loaded.notes["lines"][0]["read"] == 200_000
