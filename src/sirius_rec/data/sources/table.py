"""Events and items as two tables (CSV, CSV.gz or Parquet)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.files import (
    ROW,
    OnFault,
    check_choice,
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
) -> Interactions:
    """Read user_id, item_id, timestamp[, rating] and item_id, title.

    Args:
        path: the events file, or a folder that holds `interactions.*` and `items.*`.
        seed: not used; rows of equal user and time keep the file's order.
        items: the items file; default `items.*` beside the events.
        columns, item_columns: our column name → the file's.
        timestamp_unit: see `timestamps.to_seconds`.
        min_rating: rows rated lower are dropped and counted, as if they had never happened: such an item may become a
            negative for that user.
        missing_titles, unknown_items: 'drop' drops and counts items without a title, and events of unlisted items.

    A repeated (user, item) pair keeps its first event in time; the others are counted in the notes.

    Raises:
        DataError: naming file, line and value of the first fault, and how many rows have it.
    """
    check_choice("missing_titles", missing_titles, OnFault)
    check_choice("unknown_items", unknown_items, OnFault)
    check_choice("timestamp_unit", timestamp_unit, Unit)
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
    unknown = ~pl.col(ITEM_ID).is_in(catalogue[ITEM_ID].to_list())
    if unknown_items == "error" and (bad := events.filter(unknown)).height:
        raise first_bad(
            bad, events_path, ITEM_ID, f"item is not in {items_path}:", "add it, or set unknown_items: drop"
        )
    events, counts["events_of_unknown_items_dropped"] = _drop(events, unknown)
    events = in_time_order(events)
    events, counts["repeated_pairs_dropped"] = _drop(events, ~pl.struct(USER_ID, ITEM_ID).is_first_distinct())
    if not events.height:
        raise DataError(f"{events_path}: no events left; read {counts['events_read']}, dropped: {counts}")
    all_notes: dict[str, Any] = {
        "files": [file_note(events_path), file_note(items_path)],
        "timestamp_unit": unit,
        **notes,
        **counts,
        "ties": _ties(events),
    }
    return Interactions(events.select(USER_ID, ITEM_ID, TIMESTAMP), catalogue, all_notes)


def _ties(events: pl.DataFrame) -> dict[str, Any]:
    tied = events.filter(pl.struct(USER_ID, "__time__").is_duplicated())
    groups = tied.select(USER_ID, "__time__").n_unique() if tied.height else 0
    return {"broken_by": "order in the file", "groups": groups, "rows": tied.height}


def _drop(events: pl.DataFrame, condition: pl.Expr) -> tuple[pl.DataFrame, int]:
    kept = events.filter(~condition)
    return kept, events.height - kept.height


def in_time_order(events: pl.DataFrame) -> pl.DataFrame:
    """Users in order of first appearance, each user's rows by exact time `__time__`, ties as they stood."""
    order = events.select(USER_ID).unique(maintain_order=True).with_row_index("__user__")
    return events.join(order, on=USER_ID, how="left").sort("__user__", "__time__", ROW).drop("__user__")


def _read_events(path: Path, columns: dict[str, str], unit: Unit, rated: bool) -> tuple[pl.DataFrame, str]:
    names = {USER_ID: USER_ID, ITEM_ID: ITEM_ID, TIMESTAMP: TIMESTAMP, **({RATING: RATING} if rated else {})}
    names |= {ours: theirs for ours, theirs in columns.items() if ours in names}
    raw = read_table(path)
    require_columns(raw, path, names, "columns")
    frame = raw.select(ROW, *(pl.col(theirs).alias(ours) for ours, theirs in names.items()))
    frame = frame.with_columns(pl.col(USER_ID, ITEM_ID).cast(pl.String).str.strip_chars())
    for column in (USER_ID, ITEM_ID, TIMESTAMP):
        empty = pl.col(column).cast(pl.String).fill_null("").str.strip_chars() == ""
        if (bad := frame.filter(empty)).height:
            raise first_bad(bad.with_columns(pl.lit(None).alias(column)), path, column, f"empty {column}", "fill it in")
    if rated:
        rating = frame[RATING].cast(pl.Float64, strict=False)
        if (bad := frame.filter(~rating.is_finite().fill_null(False))).height:
            raise first_bad(bad, path, RATING, "rating is not a number:", "mend it, or leave min_rating out")
        frame = frame.with_columns(rating)
    exact, found = to_seconds(frame, path, unit)
    return frame.with_columns(exact.alias("__time__"), exact.floor().cast(pl.Int64).alias(TIMESTAMP)), found
