"""UCSD Steam reviews and games."""

from __future__ import annotations

import ast
import gzip
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.data.sources.steam import _sample, load
from sirius_rec.errors import ConfigError, DataError

GAMES = [
    {"id": "10", "title": "Half &amp; Life", "app_name": "HL"},
    {"id": "20", "app_name": "Portal\u2122"},
    {"id": "30"},
    {"title": "No id"},
    {"id": "20", "title": "Repeated"},
    {"id": "40", "title": "Rust"},
]
REVIEWS = [
    {"username": "ann", "product_id": "20", "date": "2017-12-17", "text": 'it\'s "good"\n', "early_access": False},
    {"username": "ann", "product_id": "10", "date": "2017-12-16", "hours": 0.1},
    {"username": "bob\U0001f40f", "product_id": "10", "date": "2017-01-01", "user_id": "765"},
    {"username": "ann", "product_id": "10", "date": "2018-01-01"},
    {"username": "ann", "product_id": "30", "date": "2018-01-01"},
    {"username": "ann", "product_id": "99", "date": "2018-01-01"},
    {"product_id": "10", "date": "2018-01-01"},
    {"username": "cec", "product_id": "10"},
]


def as_literal(record: dict[str, Any]) -> str:
    """As Python 2 printed it: u before text, escapes instead of characters."""
    return "{" + ", ".join(f"u{k!r}: {'u' if isinstance(v, str) else ''}{v!a}" for k, v in record.items()) + "}"


def write(folder: Path, reviews: list[dict[str, Any] | str] | None = None) -> Path:
    lines = [line if isinstance(line, str) else as_literal(line) for line in reviews or REVIEWS]
    (folder / "steam_reviews.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "steam_games.json").write_text("\n".join(map(as_literal, GAMES)) + "\n", encoding="utf-8")
    return folder


DAY = 86_400


def test_by_hand(tmp_path: Path) -> None:
    loaded = load(write(tmp_path), games_share=1)
    assert loaded.events.rows() == [
        ("ann", "10", 17_516 * DAY),  # 2017-12-16
        ("ann", "20", 17_517 * DAY),
        ("bob\U0001f40f", "10", 17_167 * DAY),
    ]
    assert loaded.items.rows() == [("10", "Half & Life"), ("20", "Portal\u2122")]
    reviews, games = loaded.notes["lines"]
    assert (reviews["read"], reviews["kept"]) == (8, 3)
    assert reviews["dropped"] == {
        "game not in the games file": 1,
        "game without title": 1,
        "user had the game before": 1,
        "without date": 1,
        "without username": 1,
    }
    assert games["dropped"] == {"repeated id": 1, "without id": 1}
    assert loaded.notes["items_without_title"] == {"count": 1, "done": "dropped"}
    assert loaded.notes["titles_with_html_entities"] == 1
    assert load(tmp_path, games_share=1, user="user_id").events["user_id"].to_list() == ["765"]
    with pytest.raises(DataError, match=r"no title for 1 of 3 items with events, for example item '30'"):
        load(tmp_path, games_share=1, missing_titles="error")
    assert load(tmp_path, games_share=1, missing_titles="id").items.rows()[2] == ("30", "30")


def test_the_sample_of_games_is_seeded_and_of_the_stated_size(tmp_path: Path) -> None:
    write(tmp_path)
    samples = []
    for seed in range(12):
        try:
            loaded = load(tmp_path, games_share=0.5, seed=seed)
        except DataError as error:
            # games 30 and 40: one has no title, the other no reviews
            assert "no reviews left of 8" in str(error) or "none of 1 items" in str(error)
            continue
        assert loaded.notes["games"] == {"listed": 4, "sampled": 2, "share": 0.5, "seed": seed}
        assert load(tmp_path, games_share=0.5, seed=seed).events.equals(loaded.events)
        samples.append(tuple(loaded.items["item_id"]))
    assert {("10",), ("20",), ("10", "20")} >= set(samples) and len(set(samples)) > 1
    with pytest.raises(ConfigError, match="games_share=0 is not above 0"):
        load(tmp_path, games_share=0)


def test_the_sample_does_not_depend_on_the_order_of_the_games_file() -> None:
    titles = {str(k): f"Game {k}" for k in range(40)}
    backwards = dict(reversed(titles.items()))
    assert _sample(titles, 0.3, 5) == _sample(backwards, 0.3, 5)


def test_code_in_a_line_is_not_run_and_bad_lines_are_named(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bad = f"{{'username': open({str(mark)!r}, 'w'), 'product_id': '10', 'date': '2017-01-01'}}"
    write(tmp_path, [*REVIEWS, bad, {"username": "d", "product_id": "10", "date": "last week"}])
    with pytest.raises(
        DataError, match=r"steam_reviews.json.gz, line 9: neither JSON nor a Python literal .*; 2 of 10"
    ):
        load(tmp_path, games_share=1)
    loaded = load(tmp_path, games_share=1, max_malformed=0.5)
    assert loaded.notes["lines"][0]["malformed"]["first"][1] == {
        "line": 10,
        "why": "date does not parse: 'last week'",
    }
    assert not mark.exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no reviews file found"):
        load(tmp_path)
    write(tmp_path)
    (tmp_path / "steam_games.json").unlink()
    with pytest.raises(DataError, match="no games file found"):
        load(tmp_path)


def test_samples_against_the_raw_lines(shared_data: Path) -> None:
    """Users, games and days of all 1,000 reviews, and all titles, by `ast.literal_eval` on the raw files."""
    folder = shared_data / "raw_samples" / "steam"
    loaded = load(folder, games_share=1)
    text = (folder / "steam_reviews.rendered.json").read_text(encoding="utf-8")
    raw = [ast.literal_eval(line) for line in text.split("\n") if line]
    assert len(raw) == 1000 == loaded.notes["lines"][0]["read"]
    pairs = {(r["username"].strip(), r["product_id"]) for r in raw}
    assert {(user, item) for user, item, _ in loaded.events.iter_rows()} <= pairs
    assert loaded.events.height == loaded.notes["lines"][0]["kept"]
    first_day = min(r["date"] for r in raw if r["username"] == "Cyderine916")
    assert first_day == "2018-01-04"
    assert loaded.events.filter(user_id="Cyderine916").rows() == [("Cyderine916", "35140", 17_535 * DAY)]
    with gzip.open(folder / "steam_games.json.gz", "rt", encoding="utf-8") as stream:
        wanted = {item for item, _ in loaded.items.iter_rows()}
        titles = {}
        for line in stream:
            if any(f"u'{item}'" in line for item in wanted):
                game = ast.literal_eval(line)
                titles.setdefault(game.get("id"), game.get("title") or game.get("app_name"))
    assert all(titles[item] == title for item, title in loaded.items.iter_rows())
    assert dict(loaded.items.iter_rows())["35140"] == "Batman: Arkham Asylum Game of the Year Edition"
