"""Timestamps of event tables: integers in seconds or milliseconds, or ISO-8601 text."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl

from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.files import bad_row, place
from sirius_rec.errors import DataError
from sirius_rec.schema import TIMESTAMP

Unit = Literal["auto", "s", "ms", "iso"]

# 1e11 s is the year 5138, 1e11 ms is 1973-03-03: no event of a real data set is on the wrong side of it.
MILLISECONDS_FROM = 1e11
_NUMBER = r"^\s*-?\d+(\.\d*)?\s*$"
# The years 1 to 9999, which is also what ISO-8601 text can say; a number outside is in some other unit.
EARLIEST, LATEST = -62_135_596_800, 253_402_300_799
_FIX = "give integer seconds, milliseconds or ISO-8601 text"


@dataclass(frozen=True)
class Seen:
    """A value, and where it stands."""

    path: Path
    row: int
    value: object


@dataclass(frozen=True)
class Evidence:
    """What timestamps say about their unit. That of parts of a column, added in order, is that of the whole column.

    types: of the column, a date type's name or "", each with a file that has it. starts_numeric: whether the first
    value is a number. small, large: the first number on each side of 1e11; large_last: which of them came second.
    counts: of values that are ISO-8601 text, milliseconds and seconds (looked for where bad values may be dropped).
    """

    types: dict[str, Path] = field(default_factory=dict)
    starts_numeric: bool | None = None
    small: Seen | None = None
    large: Seen | None = None
    large_last: bool = False
    counts: tuple[int, int, int] = (0, 0, 0)

    def __add__(self, later: Evidence) -> Evidence:
        if self.small and self.large:
            large_last = self.large_last
        else:
            large_last = bool(self.small) or (not self.large and later.large_last)
        a, b, c = (one + other for one, other in zip(self.counts, later.counts, strict=True))
        return Evidence(
            later.types | self.types,
            later.starts_numeric if self.starts_numeric is None else self.starts_numeric,
            self.small or later.small,
            self.large or later.large,
            large_last,
            (a, b, c),
        )

    def unit(self, asked: Unit, bad: Literal["error", "null"] = "error") -> str:
        """The unit of the whole column, or the name of its date type.

        Raises:
            DataError: numbers on both sides of 1e11 where the unit is not given; files of different types.
        """
        if len(self.types) > 1 and any(self.types):
            (one, here), (other, there) = list(self.types.items())[:2]
            words = [name or "text or numbers" for name in (one, other)]
            raise DataError(
                f"{here}: column {TIMESTAMP!r} holds {words[0]}, and in {there.name} {words[1]}; write it alike in all"
            )
        if temporal := next(iter(self.types), ""):
            return temporal
        if asked != "auto":
            return asked
        if bad == "null":
            units: tuple[Unit, ...] = ("iso", "ms", "s")
            return max(zip(self.counts, units, strict=True))[1]
        if not self.starts_numeric:
            return "iso"
        if self.small and self.large:
            last = self.large if self.large_last else self.small
            raise DataError(
                f"{place(last.path, last.row)}: timestamps {self.small.value} and {self.large.value} cannot be in one "
                "unit; set timestamp_unit to s or ms"
            )
        return "ms" if self.large else "s"


def evidence(frame: pl.DataFrame, path: Path, unit: Unit, bad: Literal["error", "null"] = "error") -> Evidence:
    """Of one part of a file: `ROW` and the timestamp column."""
    column = frame[TIMESTAMP]
    if not column.len():
        return Evidence()
    if column.dtype.is_temporal():
        return Evidence({column.dtype.base_type().__name__: path})
    found = Evidence({"": path})
    if unit != "auto":
        return found
    if bad == "null":
        numbers, moments = _numbers(column), _moments(_where_not_numeric(column))
        large = numbers.filter(numbers.abs() >= MILLISECONDS_FROM).len()
        counts = (moments.drop_nulls().len(), large, numbers.drop_nulls().len() - large)
        return Evidence(found.types, counts=counts)
    numeric, numbers = _strictly_numeric(column)
    sides = numbers.abs() >= MILLISECONDS_FROM
    small, large_ = (_first(frame, path, side & numeric) for side in (~sides, sides))
    last = bool(small and large_ and large_.row > small.row)
    return Evidence(found.types, bool(numeric[0]), small, large_, last)


def _first(frame: pl.DataFrame, path: Path, condition: pl.Series) -> Seen | None:
    at = condition.fill_null(False).arg_max()
    if at is None or not condition[at]:
        return None
    return Seen(path, *frame.select(ROW, TIMESTAMP).row(at))


@dataclass(frozen=True)
class BadTimes:
    """Rows whose time cannot be used: `ROW` and, to be shown, the timestamp; and why."""

    rows: pl.DataFrame
    reason: str
    fix: str = _FIX


def parsed(
    frame: pl.DataFrame, asked: Unit, found: str, bad: Literal["error", "null"] = "error"
) -> tuple[pl.Series, list[BadTimes]]:
    """float64 seconds since 1970 UTC, null where a time is bad, and the bad ones (none where they may be dropped).

    found: what `Evidence.unit` says of the whole column.
    """
    column = frame[TIMESTAMP]
    if bad == "null":
        return _lenient(column, asked, found), []
    if column.dtype.is_temporal():
        return _from_dates(frame, column)
    if found == "iso":
        seconds = _moments(column.cast(pl.String))
        return seconds, _bad(frame, seconds.is_null(), "timestamp does not parse:")
    numeric, values = _strictly_numeric(column)
    seconds = (values / 1000 if found == "ms" else values).alias(TIMESTAMP)
    inside = seconds.is_between(EARLIEST, LATEST).fill_null(False)
    faults = _bad(frame, ~numeric, "timestamp does not parse:")
    faults += _bad(frame, numeric & ~inside, f"timestamp taken as {found} lies outside the years 1 to 9999:")
    return pl.select(pl.when(numeric & inside).then(seconds)).to_series().alias(TIMESTAMP), faults


def _bad(frame: pl.DataFrame, condition: pl.Series, reason: str) -> list[BadTimes]:
    return [BadTimes(frame.filter(condition).select(ROW, TIMESTAMP), reason)] if condition.any() else []


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
    found = evidence(frame, path, unit, bad).unit(unit, bad)
    seconds, faults = parsed(frame, unit, found, bad)
    for fault in faults:
        row, value = fault.rows.row(0)
        raise bad_row(path, row, value, fault.rows.height, fault.reason, fault.fix)
    return seconds, found


def _lenient(column: pl.Series, asked: Unit, found: str) -> pl.Series:
    """Seconds, null where a value does not parse, lies outside the years 1 to 9999, or is in another unit than most."""
    if column.dtype.is_temporal():
        numbers = column.to_physical().cast(pl.Float64)
        scale = getattr(column.dtype, "time_unit", None)
        seconds = numbers / _PER_SECOND[scale] if scale else numbers * 86_400
    elif found == "iso":
        # 20140321 and 1395273600 are numbers, whatever ISO's basic form says, unless the unit is given
        text = column.cast(pl.String).str.strip_chars()
        seconds = _moments(text if asked == "iso" else _where_not_numeric(column))
    else:
        numbers = _numbers(column)
        if asked == "auto":
            fits = (numbers.abs() >= MILLISECONDS_FROM) == (found == "ms")
            numbers = pl.select(pl.when(fits).then(numbers)).to_series()
        seconds = numbers / 1000 if found == "ms" else numbers
    inside = seconds.is_between(EARLIEST, LATEST)
    return pl.select(pl.when(inside).then(seconds)).to_series().alias(TIMESTAMP)


_PER_SECOND = {"ms": 1e3, "us": 1e6, "ns": 1e9}


def _from_dates(frame: pl.DataFrame, column: pl.Series) -> tuple[pl.Series, list[BadTimes]]:
    """From a Parquet date or time column. Read as numbers: polars' own conversions fail on years beyond 9999."""
    numbers = column.to_physical().cast(pl.Float64)
    unit = getattr(column.dtype, "time_unit", None)
    seconds = (numbers / _PER_SECOND[unit] if unit else numbers * 86_400).alias(TIMESTAMP)
    empty, inside = column.is_null(), seconds.is_between(EARLIEST, LATEST).fill_null(False)
    faults: list[BadTimes] = []
    if empty.any():
        faults.append(BadTimes(frame.filter(empty).select(ROW, pl.lit(None).alias(TIMESTAMP)), "empty timestamp"))
    if (outside := ~empty & ~inside).any():
        years = (1970 + seconds.filter(outside) / 31_556_952).floor().cast(pl.Int64)
        rows = frame.filter(outside).select(ROW, years.alias(TIMESTAMP))
        faults.append(BadTimes(rows, "date lies outside the years 1 to 9999, about the year", "mend it"))
    return pl.select(pl.when(inside).then(seconds)).to_series().alias(TIMESTAMP), faults


def _strictly_numeric(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Which values are plain numbers, and float64 values of these."""
    if column.dtype.is_integer():
        return column.is_not_null(), column.cast(pl.Float64)
    if column.dtype.is_float():
        return column.is_finite().fill_null(False), column.cast(pl.Float64)
    text = column.cast(pl.String)
    whole = text.cast(pl.Int64, strict=False)
    if not whole.null_count() and not text.str.starts_with("+").any():  # nearly every file, at a tenth of the cost
        return pl.repeat(True, text.len(), eager=True), whole.cast(pl.Float64)
    numeric = text.str.contains(_NUMBER).fill_null(False)
    return numeric, text.str.strip_chars().cast(pl.Float64, strict=False)


def _numbers(column: pl.Series) -> pl.Series:
    """float64 of whatever reads as a finite number, else null."""
    if not column.dtype.is_numeric():
        column = column.cast(pl.String).str.strip_chars()
    numbers = column.cast(pl.Float64, strict=False)
    return pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()


def _where_not_numeric(column: pl.Series) -> pl.Series:
    """Stripped text of what is no number, else null."""
    text = column.cast(pl.String).str.strip_chars()
    return pl.select(pl.when(_numbers(column).is_null()).then(text)).to_series()


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
