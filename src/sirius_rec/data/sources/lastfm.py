"""The raw HetRec 2011 Last.fm dump: who tagged which artist, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sirius_rec.data.sources.csv_records import ROW, Dialect
from sirius_rec.data.sources.delimited import delimited
from sirius_rec.data.sources.files import (
    OnFault,
    check_choice,
    file_note,
    place,
    read_table,
    require_columns,
    require_file,
)
from sirius_rec.data.sources.lines import MAX_MALFORMED, Account, check_share
from sirius_rec.data.sources.span import OUTSIDE, Moment, TimeSpan, time_notes
from sirius_rec.data.titles import collapse_whitespace
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, TIMESTAMP, TITLE, USER_ID, Interactions

TAGGINGS = "user_taggedartists-timestamps.dat"
ARTISTS = "artists.dat"


def load(
    path: Path,
    *,
    seed: int = 0,
    artists: Path | str | None = None,
    min_year: int = 2005,
    min_time: Moment = None,
    max_time: Moment = None,
    missing_titles: OnFault = "error",
    max_malformed: float = MAX_MALFORMED,
    advance: Advance | None = None,
) -> Interactions:
    """One interaction per user and artist, at its first tag, in real time order.

    Most timestamps of the dump are whole days, so a user's artists of one day have no order of their own. The dump
    lists them by artist id; keeping that order would let a ranker guess the next item from the ids, so ties (same user,
    same timestamp) are put in a seeded random order. The notes say how many rows that concerns.

    Args:
        path: folder with `user_taggedartists-timestamps.dat[.gz]` (userID, artistID, tagID, timestamp in ms).
        seed: of the order inside ties; the result does not depend on the order of the file's rows.
        artists: `artists.dat` (id, name, …); default in the same folder, else in `../raw`.
        min_year: taggings before that year (UTC) are bad dates of the original; dropped and counted.
        min_time, max_time: taggings before or after are dropped and counted, too; a date (UTC) or seconds since 1970.
        missing_titles: 'drop' drops and counts artists without a name, and their taggings as of artists not listed.
        max_malformed: the share of malformed taggings above which the run stops.
        advance: called as bytes are read.

    Raises:
        ConfigError: min_year is no year from 1 to 9999, or max_malformed no share.
        DataError: a file or column is missing, too many taggings are malformed, or an artist is.
    """
    check_share(max_malformed)
    check_choice("missing_titles", missing_titles, OnFault)
    span = TimeSpan.of(min_time, max_time)
    if not 1 <= min_year <= 9999:
        raise ConfigError(f"min_year={min_year} is not between 1 and 9999")
    folder = Path(path)
    taggings_path = _first_file([folder / TAGGINGS, folder / f"{TAGGINGS}.gz"], TAGGINGS)
    beside = [folder / ARTISTS, folder.parent / "raw" / ARTISTS]
    artists_path = _first_file([Path(artists)] if artists is not None else beside, ARTISTS)
    items, item_notes = _read_artists(artists_path, missing_titles)
    account = Account(taggings_path)
    taggings = _read_taggings(taggings_path, account, advance)
    account.check(max_malformed)

    start = datetime(min_year, 1, 1, tzinfo=UTC).timestamp() * 1000
    dated = taggings.filter(pl.col("ms") >= start)
    late_enough = dated.height
    dated = dated.filter(span.inside(pl.col("ms") / 1000))
    first = dated.group_by("user", "artist").agg(pl.col("ms").min())
    listed = first.filter(pl.col("artist").cast(pl.String).is_in(items[ITEM_ID].to_list()))
    if not listed.height:
        raise DataError(f"{taggings_path}: no tagging since {min_year} of an artist listed in {artists_path}")
    # sorted first, so that the shuffle depends on the events and the seed only
    listed = listed.sort("user", "artist")
    shuffle = pl.Series("tie", np.random.default_rng(seed).permutation(listed.height))
    events = listed.with_columns(shuffle).sort("user", "ms", "tie")
    tied = events.filter(pl.struct("user", "ms").is_duplicated())
    account.drop(f"before {min_year}", taggings.height - late_enough)
    account.drop(OUTSIDE, late_enough - dated.height)
    account.drop("user tagged the artist before", dated.height - first.height)
    account.drop("artist not listed", first.height - listed.height)
    account.kept = listed.height
    notes: dict[str, Any] = {
        "files": [file_note(taggings_path), file_note(artists_path)],
        "lines": [account.note()],
        "taggings_read": taggings.height,
        "taggings_before_min_year_dropped": taggings.height - late_enough,
        "repeated_taggings_merged": dated.height - first.height,
        "events_of_unlisted_artists_dropped": first.height - listed.height,
        "unlisted_artists": first["artist"].n_unique() - listed["artist"].n_unique(),
        **item_notes,
        "times": time_notes(listed["ms"].to_numpy() / 1000),
        "ties": {
            "broken_by": f"seeded shuffle, seed {seed}",
            "groups": tied.select("user", "ms").n_unique() if tied.height else 0,
            "rows": tied.height,
        },
    }
    columns = events.select(
        pl.col("user").cast(pl.String).alias(USER_ID),
        pl.col("artist").cast(pl.String).alias(ITEM_ID),
        (pl.col("ms") // 1000).alias(TIMESTAMP),
    )
    return Interactions(columns, items, notes)


def _first_file(choices: list[Path], what: str) -> Path:
    for choice in choices:
        if choice.is_file():
            return choice
    raise DataError(f"{what} not found (looked for {', '.join(map(str, choices))}); name its folder or file")


def _read_artists(path: Path, missing_titles: OnFault) -> tuple[pl.DataFrame, dict[str, int]]:
    # names hold quotation marks, so fields are never quoted
    raw = read_table(require_file(path, "artists file"), Dialect(separator="\t", quotes=False)).frame
    require_columns(raw, path, {ITEM_ID: "id", TITLE: "name"}, "artists")
    names, collapsed = collapse_whitespace(raw["name"].fill_null(""))
    items = raw.select(pl.col("id").str.strip_chars().alias(ITEM_ID), names.alias(TITLE))
    unnamed = int((items[TITLE] == "").sum())
    if missing_titles == "drop":
        raw, items = raw.filter(items[TITLE] != ""), items.filter(items[TITLE] != "")
    for mask, reason in (
        (items[TITLE] == "", "empty name of artist"),
        (~items[ITEM_ID].is_first_distinct(), "artist occurs a second time:"),
    ):
        if mask.any():
            row = int(mask.arg_true()[0])
            raise DataError(f"{place(path, raw[ROW][row])}: {reason} {items[ITEM_ID][row]!r}; fix the row")
    dropped = {"items_without_title_dropped": unnamed} if missing_titles == "drop" else {}
    return items, {"items_read": items.height + sum(dropped.values()), "titles_collapsed": collapsed, **dropped}


def _read_taggings(path: Path, account: Account, advance: Advance | None) -> pl.DataFrame:
    names = {"user": "userID", "artist": "artistID", "ms": "timestamp"}
    wanted = dict.fromkeys(names.values(), pl.Int64)
    parts = list(delimited(path, wanted, account, separator="\t", advance=advance))
    if not parts:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.Int64))
    return pl.concat(parts).select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
