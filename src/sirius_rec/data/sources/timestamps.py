"""Timestamps of event tables: integers in seconds, milliseconds, microseconds or nanoseconds, or ISO-8601 text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl

from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.files import bad_row, place
from sirius_rec.errors import DataError
from sirius_rec.schema import TIMESTAMP

Unit = Literal["auto", "s", "ms", "us", "ns", "iso"]

_NUMBER = r"^\s*-?\d+(\.\d*)?\s*$"
# The years 1 to 9999, which is also what ISO-8601 text can say; a number outside is in some other unit.
EARLIEST, LATEST = -62_135_596_800, 253_402_300_799
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
# From which absolute value on a number is taken to be in a unit. 1e11 s is the year 5138, 1e11 ms is 1973-03-03: no
# event of a real data set is on the wrong side of it. Beyond the year 9999 in ms begins us, with 1978; so does ns.
_FROM = {"s": 0.0, "ms": 1e11, "us": LATEST * 1e3 + 1, "ns": LATEST * 1e6 + 1}
_TO = dict(zip(_FROM, [*list(_FROM.values())[1:], float("inf")], strict=True))
_FIX = "give whole seconds, milli-, micro- or nanoseconds, or ISO-8601 text"


_BY_COUNT = ("s", "ms", "iso", "us", "ns")  # of units that are as frequent, the first


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
    value is a number. firsts: for each unit the first number that is taken to be in it, in the column's order.
    counts: of values that are ISO-8601 text, and in each unit (looked for where bad values may be dropped).
    """

    types: dict[str, Path] = field(default_factory=dict)
    starts_numeric: bool | None = None
    firsts: Mapping[str, Seen] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, later: Evidence) -> Evidence:
        return Evidence(
            later.types | self.types,
            later.starts_numeric if self.starts_numeric is None else self.starts_numeric,
            {**self.firsts, **{unit: seen for unit, seen in later.firsts.items() if unit not in self.firsts}},
            {unit: self.counts.get(unit, 0) + later.counts.get(unit, 0) for unit in _BY_COUNT},
        )

    def unit(self, asked: Unit, bad: Literal["error", "null"] = "error") -> str:
        """The unit of the whole column, or the name of its date type.

        Raises:
            DataError: numbers in several units where the unit is not given; files of different types.
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
            return max(_BY_COUNT, key=lambda unit: self.counts.get(unit, 0))
        if not self.starts_numeric:
            return "iso"
        if len(self.firsts) > 1:
            last = list(self.firsts.values())[1]
            fine, coarse = sorted(list(self.firsts)[:2], key=list(PER_SECOND).index)
            raise DataError(
                f"{place(last.path, last.row)}: timestamps {self.firsts[fine].value} and {self.firsts[coarse].value} "
                f"cannot be in one unit; set timestamp_unit to {fine} or {coarse}"
            )
        return next(iter(self.firsts), "s")


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
        counts = {unit: int(_in_unit(numbers, unit).sum()) for unit in PER_SECOND}
        counts["iso"] = moments.drop_nulls().len()
        return Evidence(found.types, counts=counts)
    numeric, numbers = _strictly_numeric(column)
    most = numbers.abs().max() or 0
    units = [unit for unit, least in _FROM.items() if least <= most]  # type: ignore[operator]
    seen = [(unit, _first(frame, path, _in_unit(numbers, unit) & numeric)) for unit in units]
    firsts = sorted(((unit, first) for unit, first in seen if first), key=lambda one: one[1].row)
    return Evidence(found.types, bool(numeric[0]), dict(firsts))


def _in_unit(numbers: pl.Series, unit: str) -> pl.Series:
    """Which numbers are taken to be in a unit; null where there is none."""
    return numbers.abs().is_between(_FROM[unit], _TO[unit], closed="left" if unit != "ns" else "both")


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
    seconds = (values / PER_SECOND[found]).alias(TIMESTAMP)
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

    `unit='auto'`: a column whose first value is a number is in seconds if every absolute value is below 1e11, else
    in the first of milli-, micro- and nanoseconds in which all lie before the year 10000; otherwise it is ISO-8601
    text (without an offset it is taken as UTC).
    `bad='null'`: values that do not parse become null; the unit is that of most values.

    Raises:
        DataError: a value does not parse or lies outside the years 1 to 9999, or numbers look like several units and
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
        seconds = numbers / PER_SECOND[scale] if scale else numbers * 86_400
    elif found == "iso":
        # 20140321 and 1395273600 are numbers, whatever ISO's basic form says, unless the unit is given
        text = column.cast(pl.String).str.strip_chars()
        seconds = _moments(text if asked == "iso" else _where_not_numeric(column))
    else:
        numbers = _numbers(column)
        if asked == "auto":
            numbers = pl.select(pl.when(_in_unit(numbers, found)).then(numbers)).to_series()
        seconds = numbers / PER_SECOND[found]
    inside = seconds.is_between(EARLIEST, LATEST)
    return pl.select(pl.when(inside).then(seconds)).to_series().alias(TIMESTAMP)


def _from_dates(frame: pl.DataFrame, column: pl.Series) -> tuple[pl.Series, list[BadTimes]]:
    """From a Parquet date or time column. Read as numbers: polars' own conversions fail on years beyond 9999."""
    numbers = column.to_physical().cast(pl.Float64)
    unit = getattr(column.dtype, "time_unit", None)
    seconds = (numbers / PER_SECOND[unit] if unit else numbers * 86_400).alias(TIMESTAMP)
    empty, inside = column.is_null(), seconds.is_between(EARLIEST, LATEST).fill_null(False)
    faults: list[BadTimes] = []
    if empty.any():
        faults.append(BadTimes(frame.filter(empty).select(ROW, pl.lit(None).alias(TIMESTAMP)), "empty timestamp"))
    if (outside := ~empty & ~inside).any():
        years = (1970 + seconds.filter(outside) / 31_556_952).floor().cast(pl.Int64)
        rows = frame.filter(outside).select(ROW, years.alias(TIMESTAMP))
        faults.append(BadTimes(rows, "date lies outside the years 1 to 9999, about the year", "fix it"))
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
