"""Every parser on truncated, shuffled, binary and mis-encoded lines: a `SiriusError` or an account that adds up.

The account is checked against lines counted here, and the events against those of the undamaged lines alone, so that
nothing is lost or made up unseen.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sirius_rec.data.sources import amazon, goodreads, lastfm, movielens, sdpo, steam, table, windows
from sirius_rec.data.sources.lines import blocks
from sirius_rec.errors import SiriusError

DATES = ["2017-12-17", "2016-02-29", "2011-01-01"]
STAMPS = ["Fri Apr 19 08:15:15 -0700 2013", "Thu Aug 17 15:15:28 -0700 2017"]
ROUNDS = 25


def steam_lines(rng: random.Random) -> list[bytes]:
    return [
        repr({"username": f"u{rng.randrange(9)}é", "product_id": str(rng.randrange(9)), "date": rng.choice(DATES),
              "text": 'it\'s "it" \\ \n'}).encode()
        for _ in range(60)
    ]  # fmt: skip


def goodreads_lines(rng: random.Random) -> list[bytes]:
    return [
        json.dumps({"user_id": f"u{rng.randrange(9)}", "book_id": str(rng.randrange(9)), "rating": rng.randrange(4, 6),
                    "date_added": rng.choice(STAMPS), "read_at": ""}).encode()
        for _ in range(60)
    ]  # fmt: skip


def amazon_lines(rng: random.Random) -> list[bytes]:
    return [
        json.dumps({"reviewerID": f"u{rng.randrange(9)}", "asin": str(rng.randrange(9)), "overall": 5.0,
                    "unixReviewTime": 86_400 * rng.randrange(9)}).encode()
        for _ in range(60)
    ]  # fmt: skip


def rating_lines(separator: str) -> Callable[[random.Random], list[bytes]]:
    def make(rng: random.Random) -> list[bytes]:
        return [
            separator.join(map(str, (rng.randrange(9), rng.randrange(9), 4, rng.randrange(900)))).encode()
            for _ in range(60)
        ]

    return make


def tag_lines(rng: random.Random) -> list[bytes]:
    return [
        "\t".join(map(str, (rng.randrange(9), rng.randrange(9), 4, 1000 * rng.randrange(900)))).encode()
        for _ in range(60)
    ]


def damage(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """Some lines cut, shuffled, replaced by noise, or written in another encoding."""
    lines = list(lines)
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(lines))
        line = lines[at]
        kind = rng.randrange(7)
        if kind == 0:
            lines[at] = line[: rng.randrange(len(line) + 1)]
        elif kind == 1:
            letters = list(line)
            rng.shuffle(letters)
            lines[at] = bytes(letters)
        elif kind == 2:
            lines[at] = rng.randbytes(rng.randrange(1, 60)).replace(b"\n", b"")
        elif kind == 3:
            lines[at] = line.decode("utf-8", "replace").encode(rng.choice(["utf-16", "latin-1", "cp037"]), "replace")
            lines[at] = lines[at].replace(b"\n", b"")
        elif kind == 4:
            lines[at] = line + line
        elif kind == 5:
            lines[at] = b"" if rng.random() < 0.5 else b" \t \r"
        else:
            lines[at] = rng.choice(
                [b"null", b"[]", b"{}", b'"x"', b"\x00", b"1e999", b'{"user_id": 1e400}', b"{" * 500]
            )
    return lines


Case = tuple[Callable[..., Any], str, Callable[[random.Random], list[bytes]], bytes, Mapping[str, bytes], Any]
FOLDERS: dict[str, Case] = {
    "steam": (
        steam.load, "steam_reviews.json", steam_lines, b"",
        {"steam_games.json": b"\n".join(repr({"id": str(k), "title": f"T{k}"}).encode() for k in range(9))},
        {"games_share": 1.0},
    ),
    "goodreads": (
        goodreads.load, "goodreads_interactions_x.json", goodreads_lines, b"",
        {"goodreads_books_x.json": b"\n".join(json.dumps({"book_id": k, "title": f"T{k}"}).encode() for k in range(9))},
        {"min_user": 2},
    ),
    "goodreads-csv": (
        goodreads.load, "goodreads_interactions.csv", rating_lines(","), b"user_id,book_id,rating,x\n",
        {}, {"min_user": 2, "min_rating": 3, "missing_titles": "id", "undated": "newest_first"},
    ),
    "amazon": (amazon.load, "reviews_X_5.json", amazon_lines, b"", {}, {}),
    "movielens-100k": (
        movielens.load, "u.data", rating_lines("\t"), b"", {"u.item": b"\n".join(b"%d|T|x" % k for k in range(9))}, {},
    ),
    "movielens-1m": (
        movielens.load, "ratings.dat", rating_lines("::"), b"",
        {"movies.dat": b"\n".join(b"%d::T\xe9::x" % k for k in range(9))}, {},
    ),
    "lastfm": (
        lastfm.load, "user_taggedartists-timestamps.dat", tag_lines, b"userID\tartistID\ttagID\ttimestamp\r\n",
        {"artists.dat": b"id\tname\n" + b"\n".join(b"%d\tT" % k for k in range(9))}, {"min_year": 1970},
    ),
    "movielens-csv": (
        movielens.load, "ratings.csv", rating_lines(","), b"userId,movieId,rating,timestamp\n",
        {"movies.csv": b"movieId,title,genres\n" + b"\n".join(b"%d,T,x" % k for k in range(9))}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_counts_add_up(name: str, tmp_path: Path) -> None:
    load, file, make, header, others, options = FOLDERS[name]
    for other, content in others.items():
        (tmp_path / other).write_bytes(content)
    path = tmp_path / file
    for seed in range(ROUNDS):
        rng = random.Random(f"{name} {seed}")
        whole = make(rng)
        lines = damage(whole, rng)
        content = header + b"\n".join(lines) + (b"\n" if rng.random() < 0.5 else b"")
        path.write_bytes(gzip.compress(content) if seed % 2 else content)
        loaded = load(tmp_path, max_malformed=0.999, seed=seed, **options)
        account = loaded.notes["lines"][0]
        assert account["read"] == account["kept"] + account["malformed"]["count"] + sum(account["dropped"].values())
        assert account["kept"] == loaded.events.height
        # every line that is not blank is accounted for; what counts as blank is at most white space
        text = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
        blank_to_text = sum(1 for line in text if not line.decode("utf-8", "replace").strip())
        assert len(text) - blank_to_text <= account["read"] <= len(text)
        # the undamaged lines alone give the same events, but for those that damage made up or moved
        sound = [line for line, before in zip(lines, whole, strict=True) if line == before]
        path.write_bytes(header + b"\n".join(sound))
        clean = load(tmp_path, seed=seed, **options)
        lost = set(clean.events["item_id"]) - set(loaded.events["item_id"])
        assert not lost
        pairs = [set(frame.select("user_id", "item_id").iter_rows()) for frame in (clean.events, loaded.events)]
        assert pairs[0] <= pairs[1]


@pytest.mark.parametrize("name", FOLDERS)
def test_archives_that_break_off_or_hold_noise(name: str, tmp_path: Path) -> None:
    load, file, make, header, others, options = FOLDERS[name]
    for other, content in others.items():
        (tmp_path / other).write_bytes(content)
    for seed in range(12):
        rng = random.Random(f"{name} {seed}")
        packed = bytearray(gzip.compress(header + b"\n".join(make(rng))))
        if seed % 3 == 0:
            del packed[rng.randrange(3, len(packed)) :]
        elif seed % 3 == 1:
            packed[rng.randrange(2, len(packed))] ^= 1 << rng.randrange(8)
        else:
            packed = bytearray(rng.randbytes(400))
        (tmp_path / file).write_bytes(bytes(packed))
        try:
            loaded = load(tmp_path, max_malformed=0.999, **options)
        except SiriusError as error:
            assert "\n" not in str(error)
        else:  # a changed header byte of gzip may not matter
            assert loaded.notes["lines"][0]["read"] == 60
            assert len(list(blocks(tmp_path / file))) >= 1


def test_the_table_and_windows_sources_end_in_one_line(tmp_path: Path) -> None:
    """They stop at the first fault, so a damaged file is either read whole or refused with its place."""
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{k},T{k}\n" for k in range(9)), encoding="utf-8")
    refused = 0
    for seed in range(4 * ROUNDS):
        rng = random.Random(seed)
        rows = [b"user_id,item_id,timestamp"]
        rows += [b"%d,%d,%d" % (rng.randrange(9), rng.randrange(9), rng.randrange(900)) for _ in range(30)]
        (tmp_path / "interactions.csv").write_bytes(b"\n".join(damage(rows, rng)))
        try:
            loaded = table.load(tmp_path)
        except SiriusError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            notes = loaded.notes
            assert notes["events_read"] == loaded.events.height + notes["repeated_pairs_dropped"]
        lines = [json.dumps({"history": ["1", "2"], "target": "3", "split": "train"}).encode() for _ in range(20)]
        (tmp_path / "windows.jsonl").write_bytes(b"\n".join(damage(lines, rng)))
        try:
            got = windows.load(tmp_path)
        except SiriusError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert got.rows.height == got.notes["rows_read"]
        tolerant = windows.load(tmp_path, max_malformed=0.999).notes["lines"][0]
        assert tolerant["read"] == tolerant["kept"] + tolerant["malformed"]["count"]
    assert refused > ROUNDS


def test_sdpo_files(tmp_path: Path) -> None:
    row = {"historyList": "A::B", "itemList": ["C", "D", "É"], "trueSelection": "D"}
    content = json.dumps([row] * 12, indent=4, ensure_ascii=False).encode()
    refused = 0
    for seed in range(6 * ROUNDS):
        rng = random.Random(seed)
        lines = damage(content.split(b"\n"), rng) if seed % 2 else [content[: rng.randrange(len(content))]]
        (tmp_path / "x-train.json").write_bytes(b"\n".join(lines))
        try:
            loaded = sdpo.load(tmp_path, max_malformed=0.99)
        except SiriusError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            account = loaded.notes["lines"][0]
            assert account["read"] == account["kept"] + account["malformed"]["count"]
            assert loaded.rows.height == account["kept"]
    assert refused > ROUNDS


def test_dates_far_away_in_a_parquet_table(tmp_path: Path) -> None:
    """A day near the year 5 million, which polars itself cannot turn into text or microseconds."""
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n", encoding="utf-8")
    frame = pl.DataFrame({"user_id": ["u", "v"], "item_id": ["a", "a"], "timestamp": [0, 1_825_000_000]})
    frame.with_columns(pl.col("timestamp").cast(pl.Int32).cast(pl.Date)).write_parquet(
        tmp_path / "interactions.parquet"
    )
    with pytest.raises(SiriusError, match=r"interactions.parquet, row 2: date lies outside .* about the year 49986..;"):
        table.load(tmp_path)
    for unit in ("ms", "us", "ns"):
        times = frame.with_columns(pl.Series("timestamp", [1_500_000_000, 7]).cast(pl.Int64))
        per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        exact = (pl.col("timestamp") * per_second).cast(pl.Datetime(unit, "Europe/Madrid"))  # type: ignore[arg-type]
        times.with_columns(exact).write_parquet(tmp_path / "interactions.parquet")
        assert table.load(tmp_path).events["timestamp"].to_list() == [1_500_000_000, 7]
