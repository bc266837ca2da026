"""What becomes of the rows of an events file: the rules by which a row is an event, dropped and counted, or refused.

A log is cleaned part by part, as it is read; the tallies of the parts add up to that of the whole log. What becomes of
a row depends on the row alone, but for the unit of its time, which all rows decide together: hence two steps, `rows`
and `events`, with `Tally.unit` between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.files import OnFault, bad_row, id_text, place, require_columns
from sirius_rec.data.sources.lines import Account, keep
from sirius_rec.data.sources.span import OUTSIDE, TIME, TimeSpan
from sirius_rec.data.sources.timestamps import Evidence, Unit, evidence, parsed
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID

Where = dict[str, str | int | float | bool | list[str | int | float | bool]]
# Rules in the order in which they are told: those before the times, the times, and those behind.
_TIMES, _HEADER = 10, 20


@dataclass(frozen=True)
class Fault:
    """Rows that a rule refuses: where the first stands, what it holds (None is not shown), and how many there are."""

    path: Path
    row: int
    value: object
    count: int
    reason: str
    fix: str

    def error(self) -> DataError:
        return bad_row(self.path, self.row, self.value, self.count, self.reason, self.fix)


@dataclass
class Tally:
    """What cleaning found in a part of a log; `add` the later parts in order and it is that of them all.

    faults: by the number of the rule. below: events rated too low. header: whether an id is the name of a column.
    stranger: the first item that is not listed.
    """

    account: Account
    faults: dict[int, Fault] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    below: int = 0
    untitled: int = 0
    unknown: int = 0
    header: bool = False
    stranger: str | None = None

    def add(self, later: Tally) -> None:
        self.account.read += later.account.read
        self.account.dropped.update(later.account.dropped)
        for number, fault in later.faults.items():
            self.refuse(number, fault)
        self.evidence += later.evidence
        self.below, self.untitled = self.below + later.below, self.untitled + later.untitled
        self.unknown, self.header = self.unknown + later.unknown, self.header or later.header
        self.stranger = later.stranger if self.stranger is None else self.stranger

    def refuse(self, number: int, fault: Fault) -> None:
        """Count rows that rule `number` refuses."""
        first = self.faults.get(number, fault)
        count = fault.count + (first.count if number in self.faults else 0)
        self.faults[number] = Fault(first.path, first.row, first.value, count, first.reason, first.fix)

    def check(self, before: int = 1 << 30) -> None:
        """Raise a `DataError` for the first rule (of those before a number) that refused a row."""
        for number in sorted(self.faults):
            if number < before:
                raise self.faults[number].error()

    def unit(self, rules: Rules) -> str:
        """The unit of all times, once all rows have been looked at; a `DataError` for what was refused so far."""
        self.check(_TIMES)
        return self.evidence.unit(rules.unit, rules.bad_times)


@dataclass(frozen=True)
class Rules:
    """The options of source `table` that say which rows are events, with what they refer to.

    columns: ours → the file's. listed, untitled: ids of the catalogue's items, and of those dropped for want of a
    title. items_path: the catalogue; its column of ids is `first_id`, if one is named. chosen_by: the option that
    `where` was given as.
    """

    columns: dict[str, str]
    where: Mapping[str, Any]
    unit: Unit
    min_rating: float | None
    span: TimeSpan
    bad_rows: OnFault
    unknown_items: OnFault
    listed: pl.Series
    untitled: Sequence[str]
    items_path: Path
    first_id: str | None = None
    chosen_by: str = "where"

    @property
    def names(self) -> dict[str, str]:
        """The columns that are read, ours → the file's."""
        wanted = (USER_ID, ITEM_ID, TIMESTAMP, *([RATING] if self.min_rating is not None else []))
        return {name: self.columns.get(name, name) for name in wanted}

    @property
    def bad_times(self) -> Any:
        return "null" if self.bad_rows == "drop" else "error"

    def check_columns(self, frame: pl.DataFrame, path: Path) -> None:
        """ConfigError or DataError unless a file (any part of it, or none of its rows) has the columns."""
        require_columns(frame, path, self.names, "columns")
        for column in self.where:
            if column not in frame.columns:
                has = ", ".join(name for name in frame.columns if name != ROW)
                raise ConfigError(f"{self.chosen_by}: {path} has no column {column!r} (has: {has})")

    def rows(self, frame: pl.DataFrame, path: Path, tally: Tally) -> pl.DataFrame:
        """`ROW`, user_id, item_id, timestamp[, rating] of the rows that are events unless their time is bad."""
        tally.account.read += frame.height
        for column, (meant, wanted) in self._chosen().items():
            frame = keep(frame, meant, f"{column} is not {wanted}", tally.account)
        frame = frame.select(ROW, *(pl.col(theirs).alias(ours) for ours, theirs in self.names.items()))
        frame = frame.with_columns(id_text(frame[USER_ID]), id_text(frame[ITEM_ID]))
        for number, column in enumerate((USER_ID, ITEM_ID, TIMESTAMP)):
            empty = pl.col(column).is_null()  # polars panics when it turns a date of the year 5 million into text
            if frame.schema[column] == pl.String:
                empty |= pl.col(column).str.strip_chars() == ""
            rule = _Rule(number, column, f"empty {column}", "fill it in", show=False)
            frame = self._reject(frame, empty, rule, path, tally)
        if self.min_rating is not None:
            frame = frame.with_columns(frame[RATING].cast(pl.Float64, strict=False).alias("__rating__"))
            unrated = ~pl.col("__rating__").is_finite().fill_null(False)
            rule = _Rule(3, RATING, "rating is not a number:", "correct it, or leave min_rating out")
            frame = self._reject(frame, unrated, rule, path, tally)
            frame = frame.with_columns(pl.col("__rating__").alias(RATING)).drop("__rating__")
        tally.evidence += evidence(frame, path, self.unit, self.bad_times)
        return frame

    def _chosen(self) -> dict[str, tuple[pl.Expr, str]]:
        """For each column of `where` the rows that are meant, and the values in words."""
        found = {}
        for column, value in self.where.items():
            values = value if isinstance(value, list) else [value]
            wanted = [_as_text(one) for one in values]
            texts = pl.col(column).cast(pl.String).str.strip_chars()
            numbers = [float(one) for one in values if _is_number(one)]  # 5, 5.0 and "5.0" are one number
            meant = texts.is_in(wanted) | texts.cast(pl.Float64, strict=False).is_in(numbers).fill_null(False)
            found[column] = (meant, " or ".join(wanted))
        return found

    def check_apart(self, others: Rules, frame: pl.DataFrame, path: Path) -> None:
        """DataError for a row that these rules choose and others too."""
        chosen = [meant for rules in (self, others) for meant, _ in rules._chosen().values()]
        if (both := frame.filter(pl.all_horizontal(chosen))).height:
            at = place(path, both[ROW][0])
            raise DataError(
                f"{at}: is an event by {others.chosen_by} and an impression by {self.chosen_by}; let each name rows of "
                "its own"
            )

    def events(self, frame: pl.DataFrame, path: Path, unit: str, tally: Tally) -> pl.DataFrame:
        """`ROW`, user_id, item_id and `TIME` of the events among the rows of `rows`.

        unit: of the whole log's times.
        """
        seconds, faults = parsed(frame, self.unit, unit, self.bad_times)
        for number, bad in enumerate(faults, start=_TIMES):
            row, value = bad.rows.row(0)
            tally.refuse(number, Fault(path, row, value, bad.rows.height, bad.reason, bad.fix))
        frame = frame.with_columns(seconds.alias(TIME)).drop(TIMESTAMP)
        in_time = pl.col(TIME).is_not_null()
        if self.bad_rows == "drop":
            frame = keep(frame, in_time, "timestamp does not parse", tally.account)
        elif faults:
            frame = frame.filter(in_time)
        if self.first_id is not None:
            tally.header |= bool((frame[ITEM_ID] == self.first_id).any())
        if self.min_rating is not None:
            before = frame.height
            low = f"rating below {self.min_rating:g}"
            frame = keep(frame, pl.col(RATING) >= self.min_rating, low, tally.account).drop(RATING)
            tally.below += before - frame.height
        return self.span_of(self._listed(frame, path, tally), tally)

    def _listed(self, frame: pl.DataFrame, path: Path, tally: Tally) -> pl.DataFrame:
        known = pl.col(ITEM_ID).is_in(self.listed.implode())
        if frame.select(known.all()).item():
            return frame
        before = frame.height
        frame = keep(frame, ~pl.col(ITEM_ID).is_in(self.untitled), "item without title", tally.account)
        tally.untitled += before - frame.height
        if self.unknown_items == "error":
            rule = _Rule(_HEADER + 1, ITEM_ID, f"item is not in {self.items_path}:", self._mend(frame, known))
            return self._refuse(frame, ~known, rule, "set unknown_items: drop", path, tally)
        before = frame.height
        if tally.stranger is None:
            tally.stranger = next(iter(frame.filter(~known)[ITEM_ID].head(1)), None)
        frame = keep(frame, known, "item not listed", tally.account)
        tally.unknown += before - frame.height
        return frame

    def _mend(self, frame: pl.DataFrame, known: pl.Expr) -> str:
        """What to do about the first item that is not listed: pandas may have written its id as a float."""
        stranger = next(iter(frame.filter(~known)[ITEM_ID].head(1)), "")
        for other, whose in ((stranger.removesuffix(".0"), "this file's"), (f"{stranger}.0", "that file's")):
            if other != stranger and other in self.listed:
                return f"{other!r} is: write {whose} ids as whole numbers (pandas writes floats if one is missing)"
        return "add it"

    def span_of(self, frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
        """The events in the span; the others never happened: not even a later one is a repetition."""
        inside = self.span.keep(frame)
        tally.account.drop(OUTSIDE, frame.height - inside.height)
        return inside

    def check(self, tally: Tally, events_path: Path, left: int) -> None:
        """Raise a `DataError` for what a whole log has that is not in order. left: how many events are left of it."""
        tally.check(_HEADER)
        if tally.header:
            raise DataError(
                f"{self.items_path}, line 1: {self.first_id!r} is the id of an item that has events, not the name of a "
                "column; the header line is missing: add one, or name all columns in their order with option item_names"
            )
        tally.check()
        if not left:
            dropped = "; ".join(f"{reason}: {n:,}" for reason, n in sorted(tally.account.dropped.items())) or "none"
            said = f"no events left of {tally.account.read:,}; dropped: {dropped}{self._unlike(tally)}"
            raise DataError(f"{events_path}: {said}")

    def _unlike(self, tally: Tally) -> str:
        """Ids of both sides where no event's item was listed, so that one sees how they are written."""
        if tally.unknown < tally.account.read or tally.stranger is None or not len(self.listed):
            return ""
        return f"; item ids of events are like {tally.stranger!r}, those of {self.items_path} like {self.listed[0]!r}"

    def _reject(self, frame: pl.DataFrame, condition: pl.Expr, rule: _Rule, path: Path, tally: Tally) -> pl.DataFrame:
        if self.bad_rows == "drop":
            return keep(frame, ~condition, rule.reason.rstrip(":"), tally.account)
        return self._refuse(frame, condition, rule, "set bad_rows: drop", path, tally)

    def _refuse(
        self, frame: pl.DataFrame, condition: pl.Expr, rule: _Rule, way_out: str, path: Path, tally: Tally
    ) -> pl.DataFrame:
        if not frame.select(condition.any()).item():
            return frame
        bad = frame.filter(condition)
        row, value = bad.select(ROW, rule.column).row(0)
        fix = f"{rule.fix}, or {way_out}"
        tally.refuse(rule.number, Fault(path, row, value if rule.show else None, bad.height, rule.reason, fix))
        return frame.filter(~condition)


@dataclass(frozen=True)
class _Rule:
    """number: its place in the order in which faults are told. show: whether the value of the column is shown."""

    number: int
    column: str
    reason: str
    fix: str
    show: bool = True


def _is_number(value: object) -> bool:
    """Larger whole numbers are ids, and have neighbours that are the same float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53


def _as_text(value: object) -> str:
    """As a file has it: YAML reads `true` and 1 as other things than text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
