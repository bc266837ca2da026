"""When events happened: the span that is asked for, the range that was found, and outliers in it.

Exporters write 1970, the year 1 or 2050 where they know no time; such an event becomes its user's first or last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.errors import ConfigError

# exact time of an event, seconds since 1970 (int64 or float64); only equality and order are used beyond whole seconds
TIME = "__time__"
Moment = int | str | date | None  # of an option: seconds since 1970, or ISO-8601 text (YAML reads a bare date as one)

_YEAR = 365.25 * 86_400
_APART = 3 * _YEAR  # a gap without any event, longer than shops and sites pause
_FEW = 0.2  # at most this share of all events lies beyond such a gap
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class TimeSpan:
    """Events from `least` to `most` (seconds, both included) are taken; None is no bound."""

    least: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, min_time: Moment, max_time: Moment) -> TimeSpan:
        """Of the options of those names. A date alone stands for its first second in UTC.

        Raises:
            ConfigError: no moment, or an empty span.
        """
        least, most = _seconds("min_time", min_time), _seconds("max_time", max_time)
        if least is not None and most is not None and least > most:
            raise ConfigError(f"min_time {min_time} is after max_time {max_time}")
        return cls(least, most)

    def __bool__(self) -> bool:
        return self.least is not None or self.most is not None

    def holds(self, seconds: float) -> bool:
        """Whether a moment lies in the span."""
        return (self.least is None or seconds >= self.least) and (self.most is None or seconds <= self.most)

    def inside(self, seconds: pl.Expr = pl.col(TIME)) -> pl.Expr:
        """Whether seconds lie in the span; true where they are null."""
        inside = pl.lit(True)
        if self.least is not None:
            inside &= seconds >= self.least
        if self.most is not None:
            inside &= seconds <= self.most
        return inside.fill_null(True)

    def keep(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows in the span."""
        return frame.filter(self.inside()) if self else frame


OUTSIDE = "outside min_time and max_time"


def _seconds(option: str, value: Moment) -> float | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError as error:
        raise ConfigError(f"{option}={value!r} is neither a date such as 2005-01-31 nor seconds since 1970") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True)
class Days:
    """How many events fell on each day, and its first and last of them; all that `time_notes` needs of a log.

    day: int64, ascending. first, last: seconds. count: int64.
    """

    table: pl.DataFrame

    @classmethod
    def of(cls, time: npt.NDArray[Any]) -> Days:
        """Of times in any order."""
        return cls.joined(
            [cls(_by_day(pl.Series(TIME, time), pl.Series(TIME, time), pl.repeat(1, time.size, eager=True)))]
        )

    @classmethod
    def joined(cls, parts: Iterable[Days]) -> Days:
        """Of parts of a log, together."""
        tables = [part.table for part in parts]
        if not tables:
            return cls.of(np.empty(0))
        table = pl.concat(tables, how="vertical_relaxed")
        return cls(_by_day(table["first"], table["last"], table["count"]).sort("day"))

    def notes(self) -> dict[str, Any]:
        """As `time_notes`."""
        first, last, count = (self.table[name].to_numpy() for name in ("first", "last", "count"))
        size = int(count.sum())
        if not size:
            return {"first": None, "last": None}
        notes: dict[str, Any] = {"first": iso(first[0]), "last": iso(last[-1])}
        gaps = np.flatnonzero(first[1:] - last[:-1] > _APART)  # behind these days
        until = count.cumsum()
        most = int(_FEW * size)
        early = max((at for at in gaps if until[at] <= most), default=-1)
        late = min((at for at in gaps if size - until[at] <= most), default=len(count) - 1)
        if early == -1 and late == len(count) - 1 and gaps.size:
            at = gaps[0]  # placeholders may be many; then all lie together, in a time that cannot be
            early = at if last[at] < _YEAR and until[at] < size / 2 else -1
        n_early, n_late = int(until[early]) if early >= 0 else 0, int(size - until[late])
        if n_early or n_late:
            others = {"first": iso(first[early + 1]), "last": iso(last[late])}
            notes |= {"early": n_early, "late": n_late, "others": others}
        return notes


def _by_day(first: pl.Series, last: pl.Series, count: pl.Series) -> pl.DataFrame:
    frame = pl.DataFrame({"first": first, "last": last, "count": count})
    day = (pl.col("first") / 86_400).floor().cast(pl.Int64).alias("day")
    return frame.group_by(day).agg(pl.col("first").min(), pl.col("last").max(), pl.col("count").sum().cast(pl.Int64))


def time_notes(time: npt.NDArray[Any]) -> dict[str, Any]:
    """First and last moment, and the outliers: a fifth of the events or fewer, years before or after all the others."""
    return Days.of(time).notes()


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO-8601 text in UTC.

    >>> iso(1_600_000_000)
    '2020-09-13T12:26:40Z'
    """
    return (_EPOCH + timedelta(seconds=int(np.floor(seconds)))).replace(tzinfo=None).isoformat() + "Z"


def bounds(times: Mapping[str, Any]) -> dict[str, str]:
    """The options min_time and max_time, as dates, that drop the outliers of `time_notes` and nothing else."""
    options = {}
    if times.get("early"):
        options["min_time"] = times["others"]["first"][:10]
    if times.get("late"):
        last = datetime.fromisoformat(times["others"]["last"])
        options["max_time"] = (last.date() + timedelta(days=1)).isoformat()
    return options


def time_lines(times: Mapping[str, Any]) -> list[str]:
    """The range of event times, and a caution about outliers, to be printed."""
    if not times.get("first"):
        return []
    lines = [f"event times: {times['first']} to {times['last']}"]
    if "others" in times:
        early, late, others = times["early"], times["late"], times["others"]
        options = [f"data.options.{name}={value}" for name, value in bounds(times).items()]
        lines.append(
            f"caution: {early + late:,} events lie years apart from all others ({others['first']} to "
            f"{others['last']}) and become their users' first or last; to drop them: {' '.join(options)}"
        )
    return lines
