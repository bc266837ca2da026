"""UCSD Goodreads (Wan & McAuley 2018): who shelved, read and rated which book.

Two forms: `goodreads_interactions_GENRE.json.gz` with dates, and `goodreads_interactions.csv`, which covers all genres
and has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl

from sirius_rec.data.sources.catalogue import MissingTitles
from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.delimited import delimited
from sirius_rec.data.sources.dumps import Dump, Fields, date_text, file_in
from sirius_rec.data.sources.events import TIME, Ties
from sirius_rec.data.sources.files import check_choice, file_note, require_file
from sirius_rec.data.sources.lines import MAX_MALFORMED, Account, keep, only_one
from sirius_rec.data.sources.literals import parse_json
from sirius_rec.data.sources.span import Moment, TimeSpan
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions

DateField = Literal["date_added", "read_at", "read_at_or_date_added"]
Undated = Literal["error", "oldest_first", "newest_first", "shuffle"]

_DATE = "%a %b %d %H:%M:%S %z %Y"  # Fri Apr 19 08:15:15 -0700 2013


def load(
    path: Path,
    *,
    seed: int = 0,
    books: Path | str | None = None,
    book_ids: Path | str | None = None,
    min_rating: float | None = 5,
    min_user: int = 20,
    date: DateField = "date_added",
    undated: Undated = "error",
    missing_titles: MissingTitles = "drop",
    min_time: Moment = None,
    max_time: Moment = None,
    ties: Ties = "shuffle",
    max_malformed: float = MAX_MALFORMED,
    advance: Advance | None = None,
) -> Interactions:
    """Read interactions and books; by default what the paper keeps (E.1): ratings of 5, users with at least 20 such.

    Args:
        path: the interactions file (JSON lines or CSV, plain or gzip), or a folder with one of them.
        seed: of the order inside ties.
        books: `goodreads_books*.json[.gz]`, for the titles; default the one beside the interactions.
        book_ids: `book_id_map.csv`, the CSV's book numbers → the ids in the books file; default beside the CSV. Without
            it, item ids are the CSV's own numbers, which no books file knows.
        min_rating: interactions rated lower are dropped, 0 being "not rated"; null keeps all.
        min_user: users with fewer of the interactions kept are dropped.
        date: which field is the time; interactions in which it is empty are dropped.
        undated: the CSV has no dates. 'oldest_first' and 'newest_first' take the rows of a user to be in that order
            (the file does not say which it is), 'shuffle' a random one. Timestamps are then positions, not times.
        missing_titles: books without a title are an 'error', 'drop'ped, or shown by their 'id'.
        min_time, max_time: events before or after are dropped and counted, as if they had never happened; a date (UTC)
            or seconds since 1970.
        ties: interactions of one user and second in a seeded random order ('shuffle'), or as in the 'file'.
        max_malformed: the share of malformed lines above which the run stops.
        advance: called as bytes are read.

    A repeated (user, book) pair keeps its first interaction.

    Raises:
        ConfigError: an option is not what it may be.
        DataError: a file is missing or broken, has too many malformed lines, or nothing is left.
    """
    check_choice("date", date, DateField)
    check_choice("undated", undated, Undated)
    span = TimeSpan.of(min_time, max_time)
    if min_user < 1:
        raise ConfigError(f"min_user={min_user} is not at least 1")
    shelved = file_in(Path(path), _EVENTS, "interactions file")
    folder = shelved.parent
    titles_path = Path(books) if books is not None else only_one(folder, _BOOKS, "books file", optional=True)
    if titles_path is None and missing_titles != "id":
        raise DataError(f"{folder}: no books file for the titles ({_BOOKS[0]}); name it with option books, or set "
                        "missing_titles: id")  # fmt: skip
    if titles_path is not None:
        require_file(titles_path, "books file")
    is_csv, map_path = ".csv" in shelved.suffixes[-2:], None
    if is_csv and span:
        raise ConfigError("min_time, max_time: the CSV has no dates; leave them out, or give the JSON with dates")
    if is_csv and undated == "shuffle":
        ties = "shuffle"
    dump = Dump(shelved, titles_path, "interactions", "book", seed, missing_titles, ties, max_malformed, advance, span)
    if is_csv:
        frames = dump.rated(_csv_frames(shelved, dump.account, undated, advance), min_rating)
        if (map_path := _map_of_books(folder, book_ids)) is not None:
            frames = _with_ids(frames, _book_ids(map_path, max_malformed, advance), dump.account)
    else:
        frames = dump.rated(dump.frames(parse_json, _fields(date)), min_rating)
    names = ("title", "title_without_series")
    loaded = dump.interactions(
        frames,
        lambda wanted: dump.titles(parse_json, "book_id", names, wanted) if titles_path else ({}, []),
        min_user=min_user,
    )
    events, notes = loaded.events, loaded.notes
    if is_csv:
        events = events.with_columns(pl.int_range(pl.len()).over(USER_ID).alias(TIMESTAMP))
    if map_path is not None:
        notes["files"].insert(1, file_note(map_path))
    if is_csv:
        notes.pop("times")
    last = {"time": f"none: positions, rows taken as {undated}" if is_csv else date, "ties": notes.pop("ties")}
    return Interactions(events, loaded.items, {**notes, **last})


_EVENTS = ("goodreads_interactions*.json.gz", "goodreads_interactions*.json", "goodreads_interactions*.csv*")
_BOOKS = ("goodreads_books*.json.gz", "goodreads_books*.json")


def _fields(date: DateField) -> Fields:
    names = (date,) if date != "read_at_or_date_added" else ("read_at", "date_added")
    example = "Fri Apr 19 08:15:15 -0700 2013"
    return Fields(USER_ID, "book_id", date, lambda record: date_text(record, *names, example=example), _seconds, RATING)


def _seconds(texts: pl.Series) -> pl.Series:
    return texts.str.to_datetime(_DATE, strict=False, time_unit="ms").dt.epoch("ms") // 1000


def _csv_frames(path: Path, account: Account, undated: Undated, advance: Advance | None) -> Iterator[pl.DataFrame]:
    if undated == "error":
        raise DataError(
            f"{path}: the CSV form has no dates; set undated to oldest_first, newest_first or shuffle, or use the JSON "
            "files of a genre"
        )
    wanted = {USER_ID: pl.Int64, "book_id": pl.Int64, RATING: pl.Int64}
    position = {"oldest_first": pl.col(ROW), "newest_first": -pl.col(ROW)}.get(undated, pl.lit(0, pl.Int64))
    for frame in delimited(path, wanted, account, advance=advance):
        yield frame.select(
            ROW,
            pl.col(USER_ID).cast(pl.String),
            pl.col("book_id").cast(pl.String).alias(ITEM_ID),
            RATING,
            position.alias(TIME),
        )


def _map_of_books(folder: Path, given: Path | str | None) -> Path | None:
    if given is not None:
        return Path(given)
    return only_one(folder, ("book_id_map.csv*",), "map of books", optional=True)


def _book_ids(path: Path, max_malformed: float, advance: Advance | None) -> pl.DataFrame:
    account = Account(require_file(path, "map of books"))
    wanted = {"book_id_csv": pl.Int64, "book_id": pl.Int64}
    parts = list(delimited(path, wanted, account, advance=advance))
    account.check(max_malformed)
    if not parts:
        raise DataError(f"{path}: no lines; book_id_csv,book_id are expected")
    table = pl.concat(parts).select(pl.all().exclude(ROW).cast(pl.String))
    return table.unique("book_id_csv", keep="first", maintain_order=True)


def _with_ids(frames: Iterator[pl.DataFrame], ids: pl.DataFrame, account: Account) -> Iterator[pl.DataFrame]:
    for frame in frames:
        mapped = frame.join(ids, left_on=ITEM_ID, right_on="book_id_csv", how="left", maintain_order="left")
        mapped = keep(mapped, pl.col("book_id").is_not_null(), "book not in the map of books", account)
        yield mapped.with_columns(pl.col("book_id").alias(ITEM_ID)).drop("book_id")
