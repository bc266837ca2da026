"""Every problem of a source's files at once, and the configuration that would read them (`sirius prepare --check`)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.request import check_options
from sirius_rec.data.sources import SOURCES
from sirius_rec.data.sources.csv_records import ROW, Dialect, headerless
from sirius_rec.data.sources.csv_table import Table
from sirius_rec.data.sources.files import events_files, find_table, id_text, place, read_table
from sirius_rec.data.sources.span import TIME, bounds, time_notes
from sirius_rec.data.sources.timestamps import PER_SECOND, to_seconds
from sirius_rec.data.statistics import read_lines
from sirius_rec.data.titles import collapse_whitespace
from sirius_rec.data.usable import source_options
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.remote import Place, fetched, located
from sirius_rec.schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID

# names that people give to our columns, without case and punctuation
_ALIASES: dict[str, tuple[str, ...]] = {
    USER_ID: ("userid", "user", "uid", "customerid", "customer", "visitorid", "reviewerid", "sessionid", "memberid"),
    ITEM_ID: ("itemid", "item", "iid", "productid", "product", "sku", "parentasin", "asin", "movieid", "bookid",
              "articleid", "trackid", "artistid", "isbn", "id"),
    TIMESTAMP: ("timestamp", "time", "ts", "datetime", "date", "eventtime", "createdat", "unixreviewtime", "unixtime"),
    RATING: ("rating", "overall", "stars", "score"),
    TITLE: ("title", "name", "itemname", "productname", "producttitle", "movietitle", "booktitle", "label"),
}  # fmt: skip
_KINDS = ("event", "eventtype", "action", "behavior", "behaviour", "type", "interaction", "status")
_PASSED_OVER = ("impression", "impressions", "exposure", "exposures")
_CLICKED = ("clicked", "click", "isclick", "isclicked")  # columns of 0 and 1
_LONG_TITLE = 300  # characters; the longest honest ones, of products, stay below
_ZONE = r"(?:[Zz]|[+-]\d\d:?\d\d)$"


@dataclass
class Check:
    """problems: what stops `prepare`, or should be known. options: source options with which it reads the files.

    remarks: what was found and needs no decision. data: further keys of the data section.
    """

    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def check_lines(source: str, input: Place | None, options: Mapping[str, Any], *fetching: Any) -> tuple[list[str], bool]:
    """Lines to print about the files of a source, and whether there is any problem.

    fetching: `say` and `advance` of `remote.fetched`.

    Raises:
        ConfigError: the source is unknown, or needs an input.
    """
    if source not in SOURCES:
        raise ConfigError(f"source {source!r} is unknown; use one of {', '.join(SOURCES)}")
    path = None if input is None else fetched(located(input), *fetching)
    if source == "table":
        if path is None:
            raise ConfigError("source 'table' needs an input; name its file or folder")
        check = _check_table(path, source_options(source, options, "refuse"))
    else:
        check = Check()
    lines = [*check.remarks, *(f"problem: {text}" for text in check.problems)]
    given = {**options, **check.options}
    unusable: dict[str, Any] = {"unusable": "drop"} if check.problems or source != "table" else {}
    check_options(source, given)
    trial = source_options(source, given, "drop")
    if "max_malformed" in inspect.signature(SOURCES[source]).parameters:
        trial.setdefault("max_malformed", 0.99)
    try:
        loaded = SOURCES[source](path, seed=0, **trial)
    except DataError as error:
        return [*lines, f"problem: {error}"], True
    malformed = sum(account["malformed"]["count"] for account in loaded.notes.get("lines", []))
    section = {"source": source, "input": None if input is None else str(input), **unusable, **check.data}
    lines += ["a configuration that reads these files:", "  data:"]
    lines += [f"    {key}: {_yaml(value)}" for key, value in section.items()]
    lines += ["    options:", *(f"      {key}: {_yaml(value)}" for key, value in given.items())] if given else []
    lines += ["with it:", *(f"  {line}" for line in read_lines(loaded.notes))]
    return lines, bool(check.problems) or malformed > 0


def _yaml(value: Any) -> str:
    """A value for a line of YAML; JSON is YAML, and text that needs no quotes goes without."""
    if isinstance(value, str) and re.fullmatch(r"[\w./~-]*[A-Za-z_/~][\w./~-]*", value):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _check_table(path: Path, options: Mapping[str, Any]) -> Check:
    check = Check()
    events_path, files = events_files(path)
    items_path = Path(options["items"]) if options.get("items") else find_table(events_path.parent, "items")
    items = _read(check, items_path, (ITEM_ID, TITLE), "item_", options)
    listed = None if items is None else _items(check, items_path, items)
    for file in files:
        events = _read(check, file, (USER_ID, ITEM_ID, TIMESTAMP), "", options)
        if events is not None:
            _events(check, file, events, listed, options)
    return check


def _read(
    check: Check, path: Path, wanted: tuple[str, ...], prefix: str, options: Mapping[str, Any]
) -> pl.DataFrame | None:
    """A file with our names for its columns, or None where it cannot be read any further."""
    names = options.get(f"{prefix}names")
    dialect = Dialect(options.get(f"{prefix}separator"), names, options.get(f"{prefix}encoding"))
    given = dict(options.get(f"{prefix}columns") or {})
    try:
        table = read_table(path, dialect, [given.get(name, name) for name in wanted])
        header = [name for name in table.frame.columns if name != ROW]
        if path.suffix != ".parquet" and names is None and headerless(header):
            names = _guessed_names(len(header), wanted)
            check.problems.append(
                f"{path}, line 1: looks like data ({', '.join(header)}); the names below are a guess from their number"
            )
            if names is None:
                return None
            check.options[f"{prefix}names"] = names
            table = read_table(path, Dialect(dialect.separator, names, dialect.encoding), wanted)
    except DataError as error:
        check.problems.append(str(error))
        return None
    check.remarks += _format(path, table)
    return _named(check, path, table.frame, wanted, prefix, given)


def _guessed_names(width: int, wanted: tuple[str, ...]) -> list[str] | None:
    if width == len(wanted):
        return list(wanted)
    return [USER_ID, ITEM_ID, RATING, TIMESTAMP] if USER_ID in wanted and width == len(wanted) + 1 else None


def _format(path: Path, table: Table) -> Iterator[str]:
    notes = table.notes
    if path.suffix == ".parquet":
        yield f"{path}: Parquet, {notes['records']:,} rows"
        return
    lines = f"{notes['lines']:,} lines = {int(notes['header'])} header + {notes['records']:,} rows"
    lines += f" + {notes['blank']:,} blank" if notes["blank"] else ""
    if inside := notes.get("inside_quoted_fields"):
        lines += f" + {inside:,} inside quoted fields"
    escaped = notes.get("quotes_escaped_by_backslash")
    more = f", {escaped:,} quotes escaped by a backslash" if escaped else ""
    yield f"{path}: separated by {notes['separator']}, {notes['encoding']}{more}; {lines}"


def _named(
    check: Check, path: Path, frame: pl.DataFrame, wanted: tuple[str, ...], prefix: str, given: dict[str, str]
) -> pl.DataFrame | None:
    columns, mapped = {}, {}
    for name in wanted:
        theirs = given.get(name, name)
        if theirs not in frame.columns:
            plain = {re.sub(r"[\W_]", "", column).lower(): column for column in frame.columns if column != ROW}
            theirs = next((plain[alias] for alias in _ALIASES[name] if alias in plain), "")
            has = ", ".join(column for column in frame.columns if column != ROW)
            lacks = f"no column {name!r}"
            if name in given:
                lacks = f"option {prefix}columns: no column {given[name]!r} for {name}"
            if not theirs:
                check.problems.append(f"{path}: {lacks} (has: {has}); map it with option {prefix}columns")
                return None
            check.problems.append(f"{path}: {lacks}; {theirs!r} is taken for it (has: {has})")
            mapped[name] = theirs
        columns[name] = theirs
    if mapped:
        check.options[f"{prefix}columns"] = {**given, **mapped}
    others = [column for column in frame.columns if column not in (ROW, *columns.values())]
    return frame.select(
        ROW, *(pl.col(theirs).alias(ours) for ours, theirs in columns.items()),
        *(pl.col(column).alias(f"other {column}") for column in others),
    )  # fmt: skip


def _first(check: Check, path: Path, bad: pl.DataFrame, what: str) -> None:
    if bad.height:
        check.problems.append(
            f"{path}: {bad.height:,} {what}, the first in {place(path, bad[ROW][0]).rpartition(', ')[2]}"
        )


def _items(check: Check, path: Path, frame: pl.DataFrame) -> pl.Series:
    """Ids of the items that have a title."""
    ids = id_text(frame[ITEM_ID]).fill_null("")
    titles, _ = collapse_whitespace(frame[TITLE].cast(pl.String).fill_null(""))
    frame = frame.with_columns(ids.alias(ITEM_ID), titles.alias(TITLE))
    _first(check, path, frame.filter(pl.col(ITEM_ID) == ""), "items without an id")
    titled = frame.filter(pl.col(ITEM_ID) != "")
    _first(check, path, titled.filter(~pl.col(ITEM_ID).is_first_distinct()), "items listed a second time")
    _first(check, path, titled.filter(pl.col(TITLE) == ""), "items without a title")
    titled = titled.filter(pl.col(TITLE) != "")
    long = titled.filter(pl.col(TITLE).str.len_chars() > _LONG_TITLE)
    _first(check, path, long, f"titles longer than {_LONG_TITLE} characters")
    if long.height:
        check.data["max_title"] = _LONG_TITLE
    if twins := titled.filter(pl.col(TITLE).is_duplicated()).height:
        check.remarks.append(f"{path}: {twins:,} items share their title with another; a number will tell them apart")
    return titled[ITEM_ID]


def _events(
    check: Check, path: Path, frame: pl.DataFrame, listed: pl.Series | None, options: Mapping[str, Any]
) -> None:
    frame = frame.with_columns(id_text(frame[USER_ID]), id_text(frame[ITEM_ID]))
    for column in (USER_ID, ITEM_ID):
        _first(check, path, frame.filter(pl.col(column).fill_null("") == ""), f"rows without {column}")
    seconds, unit = to_seconds(frame, path, options.get("timestamp_unit", "auto"), bad="null")
    frame = frame.with_columns(seconds.alias(TIME))
    _first(check, path, frame.filter(pl.col(TIME).is_null()), f"times that do not parse as {unit}")
    if unit == "iso":
        check.remarks += _zones(path, frame)
    elif unit in PER_SECOND and frame[TIME].null_count() and options.get("timestamp_unit", "auto") == "auto":
        check.options["timestamp_unit"] = unit
    times = time_notes(frame[TIME].drop_nulls().to_numpy())
    if times["first"] is not None:
        check.remarks.append(f"{path}: event times {times['first']} to {times['last']} ({unit})")
    if "others" in times:
        asked = options.get("min_time"), options.get("max_time")
        if asked == (None, None):
            count = times["early"] + times["late"]
            check.problems.append(f"{path}: {count:,} events lie years apart from all others")
            check.options |= bounds(times)
    if listed is not None:
        unknown = frame.filter((pl.col(ITEM_ID).fill_null("") != "") & ~pl.col(ITEM_ID).is_in(listed.implode()))
        what = f"events of {unknown[ITEM_ID].n_unique():,} items that are not listed with a title"
        _first(check, path, unknown, what)
    if repeats := frame.height - frame.select(USER_ID, ITEM_ID).n_unique():
        check.remarks.append(
            f"{path}: {repeats:,} repeated pairs of user and item: the first in time stays, all with keep_repeats: true"
        )
    _kinds(check, path, frame, options)


def _zones(path: Path, frame: pl.DataFrame) -> Iterator[str]:
    if frame.schema[TIMESTAMP] != pl.String:
        return
    zoned = frame[TIMESTAMP].str.strip_chars().str.contains(_ZONE).fill_null(False) & frame[TIME].is_not_null()
    count, bare = int(zoned.sum()), int((~zoned & frame[TIME].is_not_null()).sum())
    if count and bare:
        yield f"{path}: {count:,} times have a time zone, {bare:,} have none and are taken as UTC"


def _kinds(check: Check, path: Path, frame: pl.DataFrame, options: Mapping[str, Any]) -> None:
    """What kinds of rows there are; impressions among them are no events."""
    for column in frame.columns:
        name = column.removeprefix("other ")
        plain = re.sub(r"[\W_]", "", name).lower()
        if name == column or plain not in (*_KINDS, *_CLICKED) or not 0 < frame[column].n_unique() <= 12:
            continue
        counts = dict(frame[column].drop_nulls().cast(pl.String).str.strip_chars().value_counts(sort=True).rows())
        values = ", ".join(f"{value} {count:,}" for value, count in counts.items())
        shown = [value for value in counts if value.lower() in _PASSED_OVER]
        if plain in _CLICKED:
            shown = [value for value in counts if value.lower() in ("0", "0.0", "false")]
        events = [value for value in counts if value not in shown]
        if shown and not events and not options.get("where"):
            check.problems.append(f"{path}: column {name!r} has {values}: only what was shown, and no events")
        if not shown or not events or options.get("where"):
            if plain in _KINDS and events:
                check.remarks.append(
                    f"{path}: column {name!r} has {values}; choose with where: {{{name}: {events[0]}}}"
                )
            continue
        check.problems.append(
            f"{path}: column {name!r} has {values}: what was shown and passed over is no event; below it is taken for "
            "impressions, the negatives of slates of protocol impressions"
        )
        check.options |= {"where": {name: _one(events)}, "impressions": {name: _one(shown)}}


def _one(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values
