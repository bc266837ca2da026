"""Timestamps of event tables: integers in seconds or milliseconds, or ISO-8601 text."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl

from sirius_rec.data.sources.csv_table import ROW
from sirius_rec.data.sources.files import first_bad, place
from sirius_rec.errors import DataError
from sirius_rec.schema import TIMESTAMP

Unit = Literal["auto", "s", "ms", "iso"]

# 1e11 s is the year 5138, 1e11 ms is 1973-03-03: no event of a real data set is on the wrong side of it.
MILLISECONDS_FROM = 1e11
_NUMBER = r"^\s*-?\d+(\.\d*)?\s*$"
# The years 1 to 9999, which is also what ISO-8601 text can say; a number outside is in some other unit.
EARLIEST, LATEST = -62_135_596_800, 253_402_300_799
_FIX = "give integer seconds, milliseconds or ISO-8601 text"


def to_seconds(
    frame: pl.DataFrame, path: Path, unit: Unit, bad: Literal["error", "null"] = "error"
) -> tuple[pl.Series, str]:
    """Exact times of `frame`'s timestamp column as float64 seconds since 1970 UTC, and the unit that was found.

    `unit='auto'`: a column whose first value is a number is in milliseconds if every absolute value is at least 1e11,
    in seconds if every one is below; otherwise it is ISO-8601 text (text without an offset is taken as UTC).
    `bad='null'`: values that do not parse become null; the unit is that of most values.

    Raises:
        DataError: a value does not parse or lies outside the years 1 to 9999, or numbers lie on both sides of 1e11 and
            `unit` does not settle it.
    """
    column = frame[TIMESTAMP]
    if bad == "null":
        return _lenient(column, unit)
    if column.dtype.is_temporal():
        return _from_dates(frame, path, column), column.dtype.base_type().__name__
    text = column.cast(pl.String)
    numeric = text.str.contains(_NUMBER).fill_null(False)
    if column.dtype.is_float():
        numeric = column.is_finite().fill_null(False)
    if unit == "auto":
        unit = _detect(frame, path, column, numeric)
    if unit == "iso":
        return _parse_iso(frame, path, text), unit
    if not numeric.all():
        raise first_bad(frame.filter(~numeric), path, TIMESTAMP, "timestamp does not parse:", _FIX)
    values = _numbers(column)
    seconds = (values / 1000 if unit == "ms" else values).alias(TIMESTAMP)
    if not (inside := seconds.is_between(EARLIEST, LATEST)).all():
        reason = f"timestamp taken as {unit} lies outside the years 1 to 9999:"
        raise first_bad(frame.filter(~inside), path, TIMESTAMP, reason, _FIX)
    return seconds, unit


def _lenient(column: pl.Series, unit: Unit) -> tuple[pl.Series, str]:
    """Seconds, null where a value does not parse, lies outside the years 1 to 9999, or is in another unit than most."""
    if column.dtype.is_temporal():
        numbers = column.to_physical().cast(pl.Float64)
        scale = getattr(column.dtype, "time_unit", None)
        seconds = numbers / _PER_SECOND[scale] if scale else numbers * 86_400
        found: str = column.dtype.base_type().__name__
    else:
        text = column.cast(pl.String).str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        numbers = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
        # 20140321 and 1395273600 are numbers, whatever ISO's basic form says
        moments = _moments(text if unit == "iso" else pl.select(pl.when(numbers.is_null()).then(text)).to_series())
        large = numbers.filter(numbers.abs() >= MILLISECONDS_FROM).len()
        if unit == "auto":
            counts: list[tuple[int, Unit]] = [
                (moments.drop_nulls().len(), "iso"), (large, "ms"), (numbers.drop_nulls().len() - large, "s")
            ]  # fmt: skip
            unit = max(counts)[1]
            fits = (numbers.abs() >= MILLISECONDS_FROM) == (unit == "ms")
            numbers = pl.select(pl.when(fits).then(numbers)).to_series()
        seconds, found = (moments if unit == "iso" else numbers / 1000 if unit == "ms" else numbers), unit
    inside = seconds.is_between(EARLIEST, LATEST)
    return pl.select(pl.when(inside).then(seconds)).to_series().alias(TIMESTAMP), found


_PER_SECOND = {"ms": 1e3, "us": 1e6, "ns": 1e9}


def _from_dates(frame: pl.DataFrame, path: Path, column: pl.Series) -> pl.Series:
    """From a Parquet date or time column. Read as numbers: polars' own conversions fail on years beyond 9999."""
    if column.null_count():
        raise first_bad(frame.filter(column.is_null()), path, TIMESTAMP, "empty timestamp", _FIX)
    numbers = column.to_physical().cast(pl.Float64)
    unit = getattr(column.dtype, "time_unit", None)
    seconds = (numbers / _PER_SECOND[unit] if unit else numbers * 86_400).alias(TIMESTAMP)
    if not (inside := seconds.is_between(EARLIEST, LATEST)).all():
        years = frame.filter(~inside).with_columns((1970 + seconds.filter(~inside) / 31_556_952).floor().cast(pl.Int64))
        raise first_bad(years, path, TIMESTAMP, "date lies outside the years 1 to 9999, about the year", "mend it")
    return seconds


def _numbers(column: pl.Series) -> pl.Series:
    if not column.dtype.is_numeric():
        column = column.cast(pl.String).str.strip_chars()
    return column.cast(pl.Float64)


def _detect(frame: pl.DataFrame, path: Path, column: pl.Series, numeric: pl.Series) -> Unit:
    if not column.len() or not numeric[0]:
        return "iso"
    large = _numbers(column.filter(numeric)).abs() >= MILLISECONDS_FROM
    if large.all():
        return "ms"
    if not large.any():
        return "s"
    rows = frame.filter(numeric)
    first_small, first_large = rows.filter(~large), rows.filter(large)
    row_s, value_s = first_small.select(ROW, TIMESTAMP).row(0)
    row_l, value_l = first_large.select(ROW, TIMESTAMP).row(0)
    raise DataError(
        f"{place(path, max(row_s, row_l))}: timestamps {value_s} and {value_l} cannot be in one unit; set "
        "timestamp_unit to s or ms"
    )


def _parse_iso(frame: pl.DataFrame, path: Path, text: pl.Series) -> pl.Series:
    parsed = _moments(text)
    if parsed.null_count():
        raise first_bad(frame.filter(parsed.is_null()), path, TIMESTAMP, "timestamp does not parse:", _FIX)
    return parsed


def _moments(text: pl.Series) -> pl.Series:
    """Seconds of ISO-8601 texts, null where one is none."""
    seconds: dict[str, float | None] = {}
    for value in text.drop_nulls().unique():
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            seconds[value] = None
            continue
        seconds[value] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    values = [None if value is None else seconds[value] for value in text]
    return pl.Series(TIMESTAMP, values, dtype=pl.Float64)
