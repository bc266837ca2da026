"""What Python code hands over, a source of one's own or frames: made into what `schema` says of it, or refused.

The sources of this package hand over nothing else; what they return is not gone through again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.fingerprint import combined_fingerprint, table_fingerprint
from sirius_rec.data.sources.events import count_ties, tie_notes
from sirius_rec.data.sources.files import field_texts, id_text, short_list
from sirius_rec.data.sources.span import time_notes
from sirius_rec.data.sources.timestamps import EARLIEST, LATEST, PER_SECOND
from sirius_rec.data.titles import collapse_whitespace
from sirius_rec.errors import DataError, first_line
from sirius_rec.schema import (
    CANDIDATES,
    HISTORY,
    ITEM,
    ITEM_ID,
    SPLIT,
    SPLITS,
    TARGET,
    TIMESTAMP,
    TITLE,
    USER_ID,
    Examples,
    Interactions,
)


def checked(loaded: object, where: str) -> Interactions | Examples:
    """`check_interactions` or `check_examples`; a `DataError` for anything else. where: what handed it over."""
    if isinstance(loaded, Interactions):
        return check_interactions(loaded, where)
    if isinstance(loaded, Examples):
        return check_examples(loaded, where)
    raise DataError(f"{where}: {type(loaded).__name__} is neither Interactions nor Examples (sirius_rec.schema)")


def content_fingerprint(loaded: Interactions | Examples) -> str:
    """Hex SHA-256 over the tables of what was handed over, whatever its notes."""
    rows = loaded.events if isinstance(loaded, Interactions) else loaded.rows
    tables = {"items": loaded.items, "rows": rows}
    if isinstance(loaded, Interactions) and loaded.impressions is not None:
        tables["impressions"] = loaded.impressions
    return combined_fingerprint({name: table_fingerprint(table) for name, table in tables.items()})


def check_interactions(loaded: Interactions, where: str) -> Interactions:
    """The same as `schema.Interactions` has it; of polars frames, lazy ones, or frames of pandas.

    Ids become text (whole floats without their .0), datetimes whole seconds (without a zone they are UTC), titles tidy.
    A user's events are brought together, users in the order of their first ones; time order is not made, since a table
    out of order may also be one whose times are wrong.

    Raises:
        DataError: a column is missing or of another type; an id, time or title is empty; an item is listed twice or not
            at all; a user's events are out of order; a user has an item twice, and `repeats` does not allow it.
    """
    items, at = _items(loaded.items, f"{where}: items"), f"{where}: events"
    given = _frame(loaded.events, at, (USER_ID, ITEM_ID, TIMESTAMP))
    user, item = _ids(given[USER_ID], at), _ids(given[ITEM_ID], at)
    moment_E, seconds = _times(given[TIMESTAMP], at)
    _check_known(item, items, at)
    user_E = user.cast(pl.Enum(user.unique(maintain_order=True))).to_physical().cast(pl.Int32).to_numpy()
    events = pl.DataFrame({USER_ID: user, ITEM_ID: item, TIMESTAMP: seconds})
    order = None
    if (np.diff(user_E) < 0).any():  # numbered as they appear: users are interleaved
        order = np.argsort(user_E, kind="stable")
        events, user_E, moment_E = events[order], user_E[order], moment_E[order]
    back = np.r_[False, (np.diff(user_E) == 0) & (np.diff(moment_E) < 0)]
    if back.any():
        at_k, before = (int(k if order is None else order[k]) for k in (back.argmax(), back.argmax() - 1))
        raise DataError(
            f"{at}[{at_k}]: timestamp {given[TIMESTAMP][at_k]} of user {user[at_k]!r} stands behind "
            f"{given[TIMESTAMP][before]} ({back.sum():,} such rows), so that histories would hold later events; give "
            "events.sort('timestamp', maintain_order=True)"
        )
    if not loaded.repeats:
        fix = "events.unique(['user_id', 'item_id'], keep='first', maintain_order=True), or set repeats=True"
        twice = pl.select(~pl.struct(user, item).is_first_distinct()).to_series()
        _refuse(twice, at, lambda row: f"user {user[row]!r} has item {item[row]!r} a second time", f"give {fix}")
    notes = {
        "times": time_notes(events[TIMESTAMP].to_numpy()),
        "ties": tie_notes("file", 0, *count_ties(user_E, moment_E)),
        **_notes(loaded.notes, where),
    }
    shown = None if loaded.impressions is None else _impressions(loaded.impressions, items, f"{where}: impressions")
    return replace(loaded, events=events, items=items, notes=notes, impressions=shown)


def _impressions(table: Any, items: pl.DataFrame, where: str) -> pl.DataFrame:
    """user_id, item_id, timestamp as `schema.Interactions` has them."""
    given = _frame(table, where, (USER_ID, ITEM_ID, TIMESTAMP))
    user, item = _ids(given[USER_ID], where), _ids(given[ITEM_ID], where)
    _check_known(item, items, where)
    return pl.DataFrame({USER_ID: user, ITEM_ID: item, TIMESTAMP: _times(given[TIMESTAMP], where)[1]})


def check_examples(loaded: Examples, where: str) -> Examples:
    """The same as `schema.Examples` has it; of polars frames, lazy ones, or frames of pandas.

    Raises:
        DataError: as `check_interactions`; or a split is none of `SPLITS`.
    """
    items, at = _items(loaded.items, f"{where}: items"), f"{where}: rows"
    given = _frame(loaded.rows, at, (HISTORY, TARGET, SPLIT))
    columns = {HISTORY: _lists(given[HISTORY], items, at), TARGET: _ids(given[TARGET], at)}
    _check_known(columns[TARGET], items, at)
    columns[SPLIT] = _texts(given[SPLIT], at)
    other = ~columns[SPLIT].is_in(SPLITS).fill_null(False)
    _refuse(other, at, lambda row: f"split {given[SPLIT][row]!r} is unknown", f"use one of {', '.join(SPLITS)}")
    if CANDIDATES in given.columns:
        columns[CANDIDATES] = _lists(given[CANDIDATES], items, at)
    if USER_ID in given.columns:
        columns[USER_ID] = _ids(given[USER_ID], at)
    if TIMESTAMP in given.columns:
        columns[TIMESTAMP] = _times(given[TIMESTAMP], at)[1]
    return replace(loaded, items=items, rows=pl.DataFrame(columns), notes=_notes(loaded.notes, where))


def _frame(table: Any, where: str, names: Sequence[str]) -> pl.DataFrame:
    """A polars frame with rows and these columns."""
    if isinstance(table, pl.LazyFrame):
        table = table.collect()
    elif type(table).__module__.partition(".")[0] == "pandas":
        try:
            table = pl.from_pandas(table)
        except (ImportError, TypeError, ValueError, AttributeError, pl.exceptions.PolarsError) as error:
            said = first_line(error)
            raise DataError(f"{where}: polars cannot take it from pandas ({said}); fix it, or convert it") from error
    if not isinstance(table, pl.DataFrame):
        raise DataError(f"{where}: {type(table).__name__} is no data frame; give one of polars or pandas")
    for name in names:
        if name not in table.columns:
            raise DataError(f"{where}: no column {name!r} (has: {short_list(table.columns)}); rename yours")
    if not table.height:
        raise DataError(f"{where}: there are none")
    return table


def _refuse(bad: pl.Series, where: str, why: Callable[[int], str], fix: str) -> None:
    """Raise a `DataError` for the first row of those that are bad, if any is. why: of a row's number."""
    if bad.any():
        row, count = int(bad.arg_true()[0]), int(bad.sum())
        more = f" ({count:,} such rows)" if count > 1 else ""
        raise DataError(f"{where}[{row}]: {why(row)}{more}; {fix}")


def _items(table: Any, where: str) -> pl.DataFrame:
    """item_id, title, and further columns as text of one line."""
    given = _frame(table, where, (ITEM_ID, TITLE))
    if ITEM in given.columns:
        raise DataError(f"{where}: {ITEM!r} is what this package calls a column of its own; rename yours")
    ids = _ids(given[ITEM_ID], where)
    titles, _ = collapse_whitespace(_texts(given[TITLE], where).fill_null(""))
    twice = ~ids.is_first_distinct()
    _refuse(twice, where, lambda row: f"item_id {ids[row]!r} occurs a second time", "keep one row per item")
    fix = "give it one, or leave the item and its events out"
    _refuse(titles == "", where, lambda row: f"empty title of item {ids[row]!r}", fix)
    fields = [field_texts(_texts(column, where)) for column in given.drop(ITEM_ID, TITLE).get_columns()]
    return pl.DataFrame([ids, titles, *fields])


def _texts(column: pl.Series, where: str) -> pl.Series:
    """A column of text or numbers as text, without white space around it."""
    dtype = column.dtype
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise DataError(f"{where}: column {column.name!r} has type {dtype}; text or numbers are expected, convert it")
    return id_text(column)


def _ids(column: pl.Series, where: str) -> pl.Series:
    ids = _texts(column, where)
    fix = "fill it in, or leave such rows out"
    _refuse(ids.fill_null("") == "", where, lambda row: f"empty {column.name}", fix)
    return ids


def _lists(column: pl.Series, items: pl.DataFrame, where: str) -> pl.Series:
    """A column of lists of listed items' ids."""
    inner = getattr(column.dtype, "inner", None)
    if inner is None or not (inner.is_integer() or inner in (pl.String, pl.Null)):
        raise DataError(
            f"{where}: column {column.name!r} has type {column.dtype}; lists of ids, text or whole numbers, are "
            "expected, convert it"
        )
    _refuse(column.is_null(), where, lambda row: f"empty {column.name}", "give a list, [] where it holds nothing")
    lists = column.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars())
    _check_known(lists.filter(lists.list.len() > 0).explode().fill_null(""), items, where)
    return lists


def _times(column: pl.Series, where: str) -> tuple[npt.NDArray[np.int64], pl.Series]:
    """(int64 moments, in the unit of the column; int64 seconds since 1970)."""
    dtype = column.dtype
    if not (dtype.is_numeric() or dtype in (pl.Date, pl.Datetime)):
        raise DataError(
            f"{where}: column {TIMESTAMP!r} has type {dtype}; whole seconds since 1970 (UTC) or datetimes are "
            "expected, convert it"
        )
    _refuse(column.is_null(), where, lambda row: f"empty {TIMESTAMP}", "fill it in, or leave such rows out")
    if dtype.is_float():
        broken = ~(column.is_finite() & (column == column.floor()))
        fix = "sort by it, then round it down"
        _refuse(broken, where, lambda row: f"timestamp {column[row]} is no whole second", fix)
    moments = column.to_physical().cast(pl.Int64, strict=False).fill_null(np.iinfo(np.int64).max)
    unit = getattr(dtype, "time_unit", None)
    seconds = moments * 86_400 if dtype == pl.Date else moments // int(PER_SECOND[unit or "s"])
    _refuse(
        ~seconds.is_between(EARLIEST, LATEST),
        where,
        lambda row: f"timestamp {(column if dtype.is_numeric() else seconds)[row]} lies outside the years 1 to 9999",
        "whole seconds since 1970 are expected: divide milliseconds by 1,000",
    )
    return moments.to_numpy(), seconds.alias(TIMESTAMP)


def _check_known(ids: pl.Series, items: pl.DataFrame, where: str) -> None:
    known = ids.is_in(items[ITEM_ID].implode())
    if not known.all():
        unknown = ids.filter(~known)
        more = f" ({unknown.len():,} such entries)" if unknown.len() > 1 else ""
        raise DataError(f"{where}: item {unknown[0]!r} is not among the items{more}; add it there, or leave it out")


def _notes(notes: Any, where: str) -> dict[str, Any]:
    """Notes that dataset.json can hold, files among them as `files.file_note` describes them."""
    try:
        if not all({"path", "sha256"} <= set(file) for file in dict(notes).get("files", [])):
            raise TypeError("files are descriptions as sirius_rec.data.sources.files.file_note makes them")
        return dict(json.loads(json.dumps(notes)))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: notes must be a dict that JSON can hold ({error}); fix them") from error
