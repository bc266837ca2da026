"""What the dumps (Amazon, Goodreads, MovieLens, Steam) share: one file of events and one of titles."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.catalogue import MissingTitles, gather_titles, titled_items
from sirius_rec.data.sources.events import TIME, EventLog, Ties
from sirius_rec.data.sources.files import check_choice, file_note, require_file
from sirius_rec.data.sources.lines import Account, check_share, keep, number_of, only_one, records, reject, text_id
from sirius_rec.data.sources.span import OUTSIDE, TimeSpan
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, RATING, USER_ID, Interactions

_DATE = "__date__"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Fields:
    """Where a record of an event has what.

    user, item, rating: names of fields. time: what a record lacks that has no moment.
    moment: record → whole seconds, or the text of a date if there is `seconds`; None where it is empty.
    seconds: texts of dates → whole seconds, null where a date does not parse.
    """

    user: str
    item: str
    time: str
    moment: Callable[[Record], int | str | None]
    seconds: Callable[[pl.Series], pl.Series] | None = None
    rating: str | None = None


def date_text(record: Record, *names: str, example: str) -> str | None:
    """The first field of `names` that is not empty; ValueError if it is no text."""
    when = next((value for name in names if (value := record.get(name))), None)
    if when is not None and not isinstance(when, str):
        raise ValueError(f"the date is {when!r}; text such as {example!r} is expected")
    return when


@dataclass
class Dump:
    """The two files of a dump, the words for what they hold ("reviews" of a "game"), and the options of all dumps.

    fields: further fields of the records with titles that the catalogue keeps, each to be filled.
    """

    path: Path
    titles_path: Path | None
    events: str
    item: str
    seed: int
    missing_titles: MissingTitles
    ties: Ties
    max_malformed: float
    advance: Advance | None
    span: TimeSpan
    fields: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("missing_titles", self.missing_titles, MissingTitles)
        check_choice("ties", self.ties, Ties)
        check_share(self.max_malformed)
        self.account = Account(self.path)

    def frames(self, decode: Callable[[str], Any], fields: Fields) -> Iterator[pl.DataFrame]:
        """user_id, item_id, `TIME` and rating (null without one) of the records, block by block."""

        def extract(record: Record) -> tuple[Any, ...] | str:
            user, item = text_id(record, fields.user), text_id(record, fields.item)
            if not user or not item:
                return f"without {fields.item if user else fields.user}"
            if (moment := fields.moment(record)) is None:
                return f"without {fields.time}"
            return user, item, moment, number_of(record, fields.rating) if fields.rating else None

        time = {_DATE: pl.String} if fields.seconds else {TIME: pl.Int64}
        schema = {USER_ID: pl.String, ITEM_ID: pl.String, **time, RATING: pl.Float64}
        for frame in records(self.path, decode, extract, schema, self.account, self.advance):
            if fields.seconds:
                frame = frame.with_columns(fields.seconds(frame[_DATE]).alias(TIME))
                frame = reject(frame, pl.col(TIME).is_null(), _DATE, "date does not parse:", self.account)
            yield frame

    def rated(self, frames: Iterable[pl.DataFrame], least: float | None) -> Iterator[pl.DataFrame]:
        """The events with a rating of at least `least`, all where it is None."""
        for frame in frames:
            if least is not None:
                frame = keep(frame, pl.col(RATING) >= least, f"rating below {least:g}", self.account)
            yield frame

    def titles(
        self, decode: Callable[[str], Any], id_field: str, names: tuple[str, ...], wanted: Container[str] | None = None
    ) -> tuple[dict[str, str], list[Account]]:
        """id → title, of the ids that are wanted."""
        assert self.titles_path is not None
        titles, account = gather_titles(
            self.titles_path, decode, id_field, names, wanted=wanted, max_malformed=self.max_malformed,
            advance=self.advance, fields=self.fields,
        )  # fmt: skip
        return titles, [account]

    def interactions(
        self,
        frames: Iterable[pl.DataFrame],
        titles: Callable[[Container[str]], tuple[dict[str, str], list[Account]]],
        *,
        min_user: int = 1,
    ) -> Interactions:
        """All events in order, of items with titles; `notes` says what became of every line.

        titles: ids with events → id → title, and the account of the file of titles if there is one.
        """
        account = self.account
        log = EventLog(self.span)
        for frame in frames:
            log.add(frame)
        account.check(self.max_malformed)
        of_items, accounts = titles(set(log.items()))
        ordered = log.finish(ties=self.ties, seed=self.seed, min_user=min_user)
        account.drop(OUTSIDE, log.outside)
        account.drop(f"user had the {self.item} before", ordered.repeated)
        account.drop(f"user with fewer than {min_user}", ordered.of_short_users)
        events = ordered.events
        if not events.height:
            left = f"no {self.events} left of {account.read:,}"
            raise DataError(f"{self.path}: {left}; dropped: {dict(account.dropped)}")
        seen = events[ITEM_ID].unique(maintain_order=True)
        items, item_notes = titled_items(seen, of_items, self.missing_titles, self.titles_path or self.path)
        for name, texts in self.fields.items():
            if not texts:
                raise ConfigError(f"option fields: no item of {self.titles_path} has {name!r}; leave it out")
            values = [texts.get(item) for item in items[ITEM_ID].to_list()]
            items = items.with_columns(pl.Series(name, values, dtype=pl.String))
        titled = events.filter(pl.col(ITEM_ID).is_in(items[ITEM_ID].implode()))
        account.drop(f"{self.item} without title", events.height - titled.height)
        account.kept = titled.height
        files = [self.path, *([self.titles_path] if self.titles_path else [])]
        notes: dict[str, Any] = {
            "files": [file_note(file) for file in files],
            "lines": [one.note() for one in (account, *accounts)],
            **item_notes,
            "times": ordered.times,
            "ties": ordered.ties,
        }
        return Interactions(titled, items, notes)


def file_in(path: Path, patterns: tuple[str, ...], what: str) -> Path:
    """`path`, or the one file in it that fits a pattern."""
    file = only_one(path, patterns, what) if path.is_dir() else require_file(path, what)
    assert file is not None
    return file
