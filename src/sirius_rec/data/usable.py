"""What of a source cannot be used: refused with its place, or dropped and counted, by one option for all sources."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import polars as pl

from sirius_rec.data.options import Unusable
from sirius_rec.data.sources import source_of
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, HISTORY, ITEM_ID, TARGET, TITLE, Examples, Interactions

# options of sources whose value 'drop' is what `unusable: drop` asks for
_DROPPABLE = ("bad_rows", "missing_titles", "unknown_items")


def source_options(source: str, options: Mapping[str, Any], unusable: Unusable) -> dict[str, Any]:
    """The options of a source, `~` in paths expanded.

    With `drop`, options that could refuse a row or item drop it, unless they were given.
    """
    known = inspect.signature(source_of(source)).parameters
    hints = get_type_hints(source_of(source))
    options = {
        name: str(Path(value).expanduser()) if isinstance(value, str) and Path in get_args(hints.get(name)) else value
        for name, value in options.items()
    }
    dropping = {name: "drop" for name in _DROPPABLE if name in known} if unusable == "drop" else {}
    return {**dropping, **options}


def short_titles(loaded: Interactions | Examples, max_title: int | None, unusable: Unusable) -> Interactions | Examples:
    """What a source handed over, without items whose title has more than `max_title` characters.

    Events of such items are dropped; so are ready-made rows that hold one, since a slate or window has no gaps. The
    notes count all of it.

    Raises:
        DataError: there is such an item and `unusable` is 'refuse', or nothing is left.
    """
    long = long_titles(loaded.items, max_title, unusable)
    if not long.height:
        return loaded
    items = loaded.items.join(long, on=ITEM_ID, how="anti", maintain_order="left")
    ids = long[ITEM_ID].implode()
    if isinstance(loaded, Interactions):
        table, rows, what = "events", loaded.events, ~pl.col(ITEM_ID).is_in(ids)
    else:
        held = [~pl.col(TARGET).is_in(ids)] + [
            ~pl.col(name).list.eval(pl.element().is_in(ids)).list.any()
            for name in (HISTORY, CANDIDATES)
            if name in loaded.rows.columns
        ]
        table, rows, what = "rows", loaded.rows, pl.all_horizontal(column.fill_null(True) for column in held)
    left = rows.filter(what)
    counts = long_title_notes(long, max_title, table, rows.height, left.height, items.height)
    notes = {**loaded.notes, "long_titles_dropped": counts}
    if isinstance(loaded, Interactions):
        return replace(loaded, items=items, notes=notes, events=left)
    return replace(loaded, items=items, notes=notes, rows=left)


def long_titles(items: pl.DataFrame, max_title: int | None, unusable: Unusable) -> pl.DataFrame:
    """item_id, length of the items whose title has more than `max_title` characters; a `DataError` if refused."""
    length = pl.col(TITLE).str.len_chars()
    long = items.filter(length > (max_title or 0) if max_title is not None else pl.lit(False))
    long = long.select(ITEM_ID, length.alias("length"))
    if long.height and unusable == "refuse":
        item, characters = long.row(0)
        more = f"; {long.height:,} such items" if long.height > 1 else ""
        raise DataError(
            f"item {item!r}: its title has {characters:,} characters, data.max_title is {max_title:,}{more}; shorten "
            "it, or set data.unusable: drop"
        )
    return long


def long_title_notes(
    long: pl.DataFrame, max_title: int | None, table: str, n_rows: int, n_left: int, n_items_left: int
) -> dict[str, Any]:
    """How many items with long titles, and events or rows with them, were dropped; a `DataError` if nothing is left."""
    if not n_left or not n_items_left:
        raise DataError(f"data.max_title {max_title}: nothing is left of {n_rows:,} {table}; raise it")
    item, characters = long.row(0)
    return {"items": long.height, table: n_rows - n_left, "first": {ITEM_ID: item, "characters": characters}}
