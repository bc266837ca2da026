"""Amazon reviews, with and without metadata."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.data.sources.amazon import load
from sirius_rec.errors import ConfigError, DataError

DAY = 86_400


def review(user: str, item: str, day: int, stars: float = 5.0) -> dict[str, Any]:
    return {"reviewerID": user, "asin": item, "overall": stars, "unixReviewTime": day * DAY, "reviewText": "ok"}


ROWS = [review("A", "B2", 3), review("A", "B1", 1), review("C", "B1", 2, 1.0), review("A", "B2", 9)]


def write(folder: Path, meta: str | None = None, rows: list[Any] = ROWS) -> Path:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    (folder / "reviews_Toys_5.json").write_text(text)
    if meta is not None:
        (folder / "meta_Toys.json.gz").write_bytes(gzip.compress(meta.encode()))
    return folder


def test_with_metadata_in_python_literals(tmp_path: Path) -> None:
    first = "{'asin': 'B1', 'title': \"Bear's Tea &amp; Cake\", 'price': 3.5, 'related': {'also': ('B2',)}}"
    write(tmp_path, f"{first}\n{{'asin': 'B2'}}\n{{'asin': 'B9', 'title': 'Unseen'}}\n")
    loaded = load(tmp_path)
    assert loaded.events.rows() == [("A", "B1", DAY), ("C", "B1", 2 * DAY)]
    assert loaded.items.rows() == [("B1", "Bear's Tea & Cake")]
    assert loaded.notes["lines"][0]["dropped"] == {"product without title": 1, "user had the product before": 1}
    assert loaded.notes["lines"][1]["dropped"] == {"without events": 1}
    shown = load(tmp_path, missing_titles="id", min_rating=2)
    assert shown.items.rows() == [("B1", "Bear's Tea & Cake"), ("B2", "B2")]
    assert shown.notes["lines"][0]["dropped"] == {"rating below 2": 1, "user had the product before": 1}
    assert "caution" not in shown.notes


def test_without_metadata_ids_stand_in_and_the_notes_say_so(tmp_path: Path) -> None:
    loaded = load(write(tmp_path) / "reviews_Toys_5.json")
    assert loaded.items.rows() == [("B1", "B1"), ("B2", "B2")]
    assert loaded.notes["caution"] == "no metadata file: product ids (ASINs) stand in for titles"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({**ROWS[0], "unixReviewTime": 10**15}, "unixReviewTime 1e[+]15 lies outside the years 1 to 9999"),
        ({**ROWS[0], "overall": None}, "field 'overall' holds None"),
        ({**ROWS[0], "asin": {"x": 1}}, "field 'asin' holds"),
        ("{" * 3000, "neither JSON nor a Python literal"),
    ],
    ids=range(4),
)
def test_bad_lines_are_named(tmp_path: Path, bad: Any, why: str) -> None:
    with pytest.raises(DataError, match=rf"reviews_Toys_5.json, line 5: {why}"):
        load(write(tmp_path, rows=[*ROWS, bad]))


def test_musical_instruments_against_the_raw_lines(shared_data: Path) -> None:
    path = shared_data / "raw_samples" / "amazon" / "reviews_Musical_Instruments_5.json.gz"
    loaded = load(path)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        raw = [json.loads(line) for line in stream]
    expected = {(r["reviewerID"], r["asin"], r["unixReviewTime"]) for r in raw}
    assert set(loaded.events.iter_rows()) == expected
    assert (loaded.events.height, loaded.events["user_id"].n_unique(), loaded.items.height) == (10_261, 1429, 900)
    assert loaded.events["user_id"][0] == "A2IBPI20UZIR0U"
    for _, mine in loaded.events.group_by("user_id"):
        assert mine["timestamp"].is_sorted()


def of_2023(folder: Path, suffix: str) -> Path:
    """Three products whose variants have an asin of their own, at times in milliseconds."""
    rows = [("A", "P2", "B7", 3.0, 3 * DAY), ("A", "P1", "B1", 5.0, DAY), ("C", "P1", "B9", 5.0, 2 * DAY)]
    if suffix == "csv":
        lines = [f"{user},{parent},{stars},{time * 1000 + 928}" for user, parent, _, stars, time in rows]
        (folder / "All_Beauty.csv").write_text("\n".join(["user_id,parent_asin,rating,timestamp", *lines]))
        (folder / "meta_All_Beauty.jsonl").write_text('{"parent_asin": "P1", "title": "Salt"}\n')
        return folder
    records = [
        {"rating": stars, "title": "good", "asin": asin, "parent_asin": parent, "user_id": user,
         "timestamp": time * 1000 + 928}
        for user, parent, asin, stars, time in rows
    ]  # fmt: skip
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / f"All_Beauty.{suffix}").write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    (folder / f"meta_All_Beauty.{suffix}").write_bytes(
        (gzip.compress if suffix.endswith("gz") else bytes)(b'{"parent_asin": "P1", "title": "Salt"}\n')
    )
    return folder


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv"])
def test_the_release_of_2023_in_each_of_its_forms(tmp_path: Path, suffix: str) -> None:
    of_2023(tmp_path, suffix)
    for path in (tmp_path, tmp_path / f"All_Beauty.{suffix}"):
        loaded = load(path, missing_titles="id")
        assert loaded.events.rows() == [("A", "P1", DAY), ("A", "P2", 3 * DAY), ("C", "P1", 2 * DAY)]
        assert loaded.items.rows() == [("P1", "Salt"), ("P2", "P2")]
    strict = load(tmp_path, min_rating=4)
    assert strict.notes["lines"][0]["dropped"] == {"rating below 4": 1} and strict.items["title"].to_list() == ["Salt"]


def test_ratings_of_2023_that_do_not_parse_are_malformed(tmp_path: Path) -> None:
    text = "user_id,parent_asin,rating,timestamp\nA,P1,5,1000\nA,P2,x,1000\n,P2,5,1000\nA,P3,5,soon\nA,P4,nan,1000\n"
    (tmp_path / "X.csv").write_text(text)
    loaded = load(tmp_path / "X.csv", max_malformed=0.9)
    account = loaded.notes["lines"][0]
    assert (account["read"], account["kept"], account["dropped"]) == (5, 1, {"without user_id": 1})
    assert sorted(bad["line"] for bad in account["malformed"]["first"]) == [3, 5, 6]


def test_a_later_title_fills_an_empty_one_and_entities_escaped_twice_are_read(tmp_path: Path) -> None:
    meta = (
        '{"asin": "B1", "title": ""}\n{"asin": "B1", "title": "Salt &amp;amp; Pepper"}\n{"asin": "B2", "title": "C"}\n'
    )
    meta += '{"asin": "B2", "title": "Later"}\n'
    loaded = load(write(tmp_path, meta))
    assert dict(loaded.items.rows()) == {"B1": "Salt & Pepper", "B2": "C"}


def test_fields_of_the_metadata_stay_with_the_catalogue(tmp_path: Path) -> None:
    """Lists become text, entities are read, and the record with the title is the one that counts."""
    meta = [
        {
            "asin": "B1",
            "title": "Bear",
            "categories": [["Toys", "Games &amp; Co"], ["Toys"]],
            "price": 3.5,
            "brand": " ",
        },
        {"asin": "B2", "brand": "Nobody"},
        {"asin": "B2", "title": "Ball", "brand": "Acme", "price": None, "categories": []},
    ]
    write(tmp_path, "".join(f"{row!r}\n" for row in meta))
    loaded = load(tmp_path, fields=["brand", "categories", "price"])
    assert loaded.items.columns == ["item_id", "title", "brand", "categories", "price"]
    assert loaded.items.rows() == [("B1", "Bear", None, "Toys, Games & Co", "3.5"), ("B2", "Ball", "Acme", None, None)]
    assert load(tmp_path).items.columns == ["item_id", "title"]
    with pytest.raises(ConfigError, match=r"no item of .*meta_Toys.json.gz has 'store'; leave it out"):
        load(tmp_path, fields=["store"])
    (tmp_path / "meta_Toys.json.gz").unlink()
    with pytest.raises(ConfigError, match="option fields: there is no metadata file"):
        load(tmp_path, fields=["brand"])
