"""Events and items as two tables (CSV or another delimited text, plain or gzip, or Parquet)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.csv_table import ROW, Dialect
from sirius_rec.data.sources.events import TIME, EventLog, Ties
from sirius_rec.data.sources.files import (
    OnFault,
    check_choice,
    check_names,
    file_note,
    find_table,
    first_bad,
    load_items,
    read_table,
    require_columns,
    require_file,
)
from sirius_rec.data.sources.lines import Account, keep
from sirius_rec.data.sources.span import OUTSIDE, Moment, TimeSpan
from sirius_rec.data.sources.timestamps import Unit, to_seconds
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions

_EVENTS = (USER_ID, ITEM_ID, TIMESTAMP, RATING)
Where = dict[str, str | int | float | bool | list[str | int | float | bool]]


def load(
    path: Path,
    *,
    seed: int = 0,
    items: Path | str | None = None,
    columns: dict[str, str] | None = None,
    item_columns: dict[str, str] | None = None,
    separator: str | None = None,
    names: list[str] | None = None,
    encoding: str | None = None,
    item_separator: str | None = None,
    item_names: list[str] | None = None,
    item_encoding: str | None = None,
    where: Where | None = None,
    timestamp_unit: Unit = "auto",
    min_rating: float | None = None,
    min_time: Moment = None,
    max_time: Moment = None,
    keep_repeats: bool = False,
    bad_rows: OnFault = "error",
    missing_titles: OnFault = "error",
    unknown_items: OnFault = "error",
    ties: Ties = "shuffle",
) -> Interactions:
    """Read user_id, item_id, timestamp[, rating] and item_id, title.

    Args:
        path: the events file, or a folder that holds `interactions.*` and `items.*` (or RecBole's .inter and .item).
        seed: of the order inside ties.
        items: the items file; default `items.*` beside the events.
        columns, item_columns: our column name → the file's.
        separator, encoding: of the events file; null finds out and says what was found: commas, tabs, semicolons or
            bars; UTF-8, UTF-16 with its mark, else cp1252. RecBole's headers (`user_id:token`) lose their types.
        names: of all columns, in their order, for a file without a header line.
        item_separator, item_names, item_encoding: the same for the items file.
        where: column of the file → the value, or list of values, that a row must have; the others are dropped and
            counted (`where: {event: purchase}`).
        timestamp_unit: see `timestamps.to_seconds`.
        min_rating: rows rated lower are dropped and counted, as if they had never happened: such an item may become a
            negative for that user.
        min_time, max_time: events before or after are dropped and counted, likewise; a date (UTC) or seconds since
            1970.
        keep_repeats: a repeated (user, item) pair stays, where customers buy things again; otherwise it keeps its first
            event in time, and the others are counted in the notes.
        bad_rows: 'drop' drops and counts rows with an empty id, or a time or rating that does not parse, and repeated
            rows of an item (the first with a title stays).
        missing_titles, unknown_items: 'drop' drops and counts items without a title, and events of unlisted items.
        ties: rows of equal user and time in a seeded random order ('shuffle'), or as they stand in the 'file'. A file
            sorted by item id inside a day tells the next item by its id if its order is kept.

    Raises:
        ConfigError: an option holds what it may not.
        DataError: naming file, line and value of the first fault, and how many rows have it.
    """
    check_choice("bad_rows", bad_rows, OnFault)
    check_choice("missing_titles", missing_titles, OnFault)
    check_choice("unknown_items", unknown_items, OnFault)
    check_choice("timestamp_unit", timestamp_unit, Unit)
    check_choice("ties", ties, Ties)
    check_names("columns", columns or {}, _EVENTS)
    span = TimeSpan.of(min_time, max_time)
    path = Path(path)
    events_path = find_table(path, "interactions") if path.is_dir() else require_file(path, "events file")
    items_path = Path(items) if items is not None else find_table(events_path.parent, "items")
    of_items = Dialect(item_separator, item_names, item_encoding)
    catalogue, untitled, notes = load_items(items_path, dict(item_columns or {}), missing_titles, of_items, bad_rows)

    reader = _Reader(events_path, Account(events_path), Dialect(separator, names, encoding), bad_rows)
    events, unit = reader.events(dict(columns or {}), dict(where or {}), timestamp_unit, rated=min_rating is not None)
    account = reader.account
    first_id = (item_columns or {}).get(ITEM_ID)
    if first_id is not None and (events[ITEM_ID] == first_id).any():
        raise DataError(
            f"{items_path}, line 1: {first_id!r} is the id of an item that has events, not the name of a column; the "
            "header line is missing: add one, or name all columns in their order with option item_names"
        )
    counts: dict[str, Any] = {"events_read": account.read}
    if min_rating is not None:
        before = events.height
        events = keep(events, pl.col(RATING) >= min_rating, f"rating below {min_rating:g}", account)
        counts["events_below_min_rating_dropped"] = before - events.height
    before = events.height
    events = keep(events, ~pl.col(ITEM_ID).is_in(untitled), "item without title", account)
    counts["events_of_untitled_items_dropped"] = before - events.height
    known = pl.col(ITEM_ID).is_in(catalogue[ITEM_ID].implode())
    if unknown_items == "error" and (bad := events.filter(~known)).height:
        raise first_bad(
            bad, events_path, ITEM_ID, f"item is not in {items_path}:", "add it, or set unknown_items: drop"
        )
    before = events.height
    events = keep(events, known, "item not listed", account)
    counts["events_of_unknown_items_dropped"] = before - events.height
    log = EventLog(span)
    log.add(events)
    account.drop(OUTSIDE, log.outside)
    if not len(log):
        raise DataError(f"{events_path}: no events left; read {account.read}, dropped: {dict(account.dropped)}")
    del events
    ordered = log.finish(ties=ties, seed=seed, keep_repeats=keep_repeats)
    account.drop("user had the item before", ordered.repeated)
    account.kept = ordered.events.height
    all_notes: dict[str, Any] = {
        "files": [file_note(events_path), file_note(items_path)],
        "lines": [account.note()],
        "events_format": reader.format,
        "timestamp_unit": unit,
        **notes,
        **counts,
        "repeated_pairs_dropped": ordered.repeated,
        "times": ordered.times,
        "ties": ordered.ties,
    }
    return Interactions(ordered.events, catalogue, all_notes)


@dataclass
class _Reader:
    """Reads the events file; what it drops goes to the account."""

    path: Path
    account: Account
    dialect: Dialect
    bad_rows: OnFault

    def events(
        self, columns: dict[str, str], where: Mapping[str, Any], unit: Unit, *, rated: bool
    ) -> tuple[pl.DataFrame, str]:
        """user_id, item_id, `TIME`[, rating], and the unit of the times."""
        names = {USER_ID: USER_ID, ITEM_ID: ITEM_ID, TIMESTAMP: TIMESTAMP, **({RATING: RATING} if rated else {})}
        names |= {ours: theirs for ours, theirs in columns.items() if ours in names}
        table = read_table(self.path, self.dialect, names.values())
        self.format = table.notes
        require_columns(table.frame, self.path, names, "columns")
        self.account.read = table.frame.height
        raw = self._where(table.frame, where)
        frame = raw.select(ROW, *(pl.col(theirs).alias(ours) for ours, theirs in names.items()))
        frame = frame.with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String).str.strip_chars())
        for column in (USER_ID, ITEM_ID, TIMESTAMP):
            empty = pl.col(column).is_null()  # polars panics when it turns a date of the year 5 million into text
            if frame.schema[column] == pl.String:
                empty |= pl.col(column).str.strip_chars() == ""
            frame = self._reject(frame, empty, column, f"empty {column}", "fill it in", show=False)
        if rated:
            frame = frame.with_columns(frame[RATING].cast(pl.Float64, strict=False).alias("__rating__"))
            unrated = ~pl.col("__rating__").is_finite().fill_null(False)
            frame = self._reject(
                frame, unrated, RATING, "rating is not a number:", "correct it, or leave min_rating out"
            )
            frame = frame.with_columns(pl.col("__rating__").alias(RATING)).drop("__rating__")
        if self.bad_rows == "drop":
            exact, found = to_seconds(frame, self.path, unit, bad="null")
            frame = frame.with_columns(exact.alias(TIME))
            frame = keep(frame, pl.col(TIME).is_not_null(), "timestamp does not parse", self.account)
            return frame.drop(TIMESTAMP), found
        exact, found = to_seconds(frame, self.path, unit)
        return frame.with_columns(exact.alias(TIME)).drop(TIMESTAMP), found

    def _reject(
        self, frame: pl.DataFrame, condition: pl.Expr, column: str, reason: str, fix: str, *, show: bool = True
    ) -> pl.DataFrame:
        if self.bad_rows == "drop":
            return keep(frame, ~condition, reason.rstrip(":"), self.account)
        if (bad := frame.filter(condition)).height:
            bad = bad if show else bad.with_columns(pl.lit(None).alias(column))
            raise first_bad(bad, self.path, column, reason, f"{fix}, or set bad_rows: drop")
        return frame

    def _where(self, frame: pl.DataFrame, where: Mapping[str, Any]) -> pl.DataFrame:
        for column, value in where.items():
            if column not in frame.columns:
                has = ", ".join(name for name in frame.columns if name != ROW)
                raise ConfigError(f"where: {self.path} has no column {column!r} (has: {has})")
            wanted = [_as_text(one) for one in (value if isinstance(value, list) else [value])]
            texts = pl.col(column).cast(pl.String).str.strip_chars()
            frame = keep(frame, texts.is_in(wanted), f"{column} is not {' or '.join(wanted)}", self.account)
        return frame


def _as_text(value: object) -> str:
    """As a file has it: YAML reads `true` and 1 as other things than text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
