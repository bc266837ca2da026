"""When events happened: the span that is asked for, the range that was found, and outliers in it.

Exporters write 1970, the year 1 or 2050 where they know no time; such an event becomes its user's first or last.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def time_notes(time: npt.NDArray[Any]) -> dict[str, Any]:
    """First and last moment, and the outliers: a fifth of the events or fewer, years before or after all the others."""
    if not time.size:
        return {"first": None, "last": None}
    ordered = np.sort(time)
    notes: dict[str, Any] = {"first": iso(ordered[0]), "last": iso(ordered[-1])}
    gaps = np.flatnonzero(np.diff(ordered) > _APART)
    most = int(_FEW * time.size)
    early = max((int(at) + 1 for at in gaps if at + 1 <= most), default=0)
    late = max((int(time.size - at - 1) for at in gaps if time.size - at - 1 <= most), default=0)
    if not early + late and gaps.size:  # placeholders may be many; then all lie together, in a time that cannot be
        at = int(gaps[0])
        early = at + 1 if ordered[at] < _YEAR and at + 1 < time.size / 2 else 0
    if early or late:
        rest = ordered[early : time.size - late]
        notes |= {"early": early, "late": late, "others": {"first": iso(rest[0]), "last": iso(rest[-1])}}
    return notes


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
