"""Events and items as two tables (CSV, CSV.gz or Parquet)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.events import TIME, EventLog, Ties
from sirius_rec.data.sources.files import (
    ROW,
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
from sirius_rec.data.sources.timestamps import Unit, to_seconds
from sirius_rec.errors import DataError
from sirius_rec.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions


def load(
    path: Path,
    *,
    seed: int = 0,
    items: Path | str | None = None,
    columns: dict[str, str] | None = None,
    item_columns: dict[str, str] | None = None,
    timestamp_unit: Unit = "auto",
    min_rating: float | None = None,
    missing_titles: OnFault = "error",
    unknown_items: OnFault = "error",
    ties: Ties = "shuffle",
) -> Interactions:
    """Read user_id, item_id, timestamp[, rating] and item_id, title.

    Args:
        path: the events file, or a folder that holds `interactions.*` and `items.*`.
        seed: of the order inside ties.
        items: the items file; default `items.*` beside the events.
        columns, item_columns: our column name → the file's.
        timestamp_unit: see `timestamps.to_seconds`.
        min_rating: rows rated lower are dropped and counted, as if they had never happened: such an item may become a
            negative for that user.
        missing_titles, unknown_items: 'drop' drops and counts items without a title, and events of unlisted items.
        ties: rows of equal user and time in a seeded random order ('shuffle'), or as they stand in the 'file'. A file
            sorted by item id inside a day tells the next item by its id if its order is kept.

    A repeated (user, item) pair keeps its first event in time; the others are counted in the notes.

    Raises:
        ConfigError: an option holds what it may not.
        DataError: naming file, line and value of the first fault, and how many rows have it.
    """
    check_choice("missing_titles", missing_titles, OnFault)
    check_choice("unknown_items", unknown_items, OnFault)
    check_choice("timestamp_unit", timestamp_unit, Unit)
    check_choice("ties", ties, Ties)
    check_names("columns", columns or {}, (USER_ID, ITEM_ID, TIMESTAMP, RATING))
    path = Path(path)
    events_path = find_table(path, "interactions") if path.is_dir() else require_file(path, "events file")
    items_path = Path(items) if items is not None else find_table(events_path.parent, "items")
    catalogue, untitled, notes = load_items(items_path, dict(item_columns or {}), missing_titles)

    events, unit = _read_events(events_path, dict(columns or {}), timestamp_unit, min_rating is not None)
    counts: dict[str, Any] = {"events_read": events.height}
    if min_rating is not None:
        events = events.filter(pl.col(RATING) >= min_rating)
        counts["events_below_min_rating_dropped"] = counts["events_read"] - events.height
    events, counts["events_of_untitled_items_dropped"] = _drop(events, pl.col(ITEM_ID).is_in(untitled))
    unknown = ~pl.col(ITEM_ID).is_in(catalogue[ITEM_ID].implode())
    if unknown_items == "error" and (bad := events.filter(unknown)).height:
        raise first_bad(
            bad, events_path, ITEM_ID, f"item is not in {items_path}:", "add it, or set unknown_items: drop"
        )
    events, counts["events_of_unknown_items_dropped"] = _drop(events, unknown)
    log = EventLog()
    log.add(events)
    if not len(log):
        raise DataError(f"{events_path}: no events left; read {counts['events_read']}, dropped: {counts}")
    del events
    ordered = log.finish(ties=ties, seed=seed)
    all_notes: dict[str, Any] = {
        "files": [file_note(events_path), file_note(items_path)],
        "timestamp_unit": unit,
        **notes,
        **counts,
        "repeated_pairs_dropped": ordered.repeated,
        "ties": ordered.ties,
    }
    return Interactions(ordered.events, catalogue, all_notes)


def _drop(events: pl.DataFrame, condition: pl.Expr) -> tuple[pl.DataFrame, int]:
    kept = events.filter(~condition)
    return kept, events.height - kept.height


def _read_events(path: Path, columns: dict[str, str], unit: Unit, rated: bool) -> tuple[pl.DataFrame, str]:
    names = {USER_ID: USER_ID, ITEM_ID: ITEM_ID, TIMESTAMP: TIMESTAMP, **({RATING: RATING} if rated else {})}
    names |= {ours: theirs for ours, theirs in columns.items() if ours in names}
    raw = read_table(path)
    require_columns(raw, path, names, "columns")
    frame = raw.select(ROW, *(pl.col(theirs).alias(ours) for ours, theirs in names.items()))
    frame = frame.with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String).str.strip_chars())
    for column in (USER_ID, ITEM_ID, TIMESTAMP):
        empty = pl.col(column).is_null()  # polars panics when it turns a date of the year 5 million into text
        if frame.schema[column] == pl.String:
            empty |= pl.col(column).str.strip_chars() == ""
        if (bad := frame.filter(empty)).height:
            raise first_bad(bad.with_columns(pl.lit(None).alias(column)), path, column, f"empty {column}", "fill it in")
    if rated:
        rating = frame[RATING].cast(pl.Float64, strict=False)
        if (bad := frame.filter(~rating.is_finite().fill_null(False))).height:
            raise first_bad(bad, path, RATING, "rating is not a number:", "mend it, or leave min_rating out")
        frame = frame.with_columns(rating)
    exact, found = to_seconds(frame, path, unit)
    return frame.with_columns(exact.alias(TIME)).drop(TIMESTAMP), found
