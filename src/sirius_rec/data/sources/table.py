"""Events and items as two tables (CSV or another delimited text, plain or gzip, or Parquet)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.cleaning import Rules, Tally, Where
from sirius_rec.data.sources.csv_records import Dialect
from sirius_rec.data.sources.events import EventLog, Ordered, Ties, in_seconds
from sirius_rec.data.sources.files import (
    OnFault,
    check_choice,
    check_names,
    events_files,
    file_note,
    find_table,
    load_items,
    read_table,
)
from sirius_rec.data.sources.lines import Account
from sirius_rec.data.sources.span import TIME, Moment, TimeSpan
from sirius_rec.data.sources.timestamps import Unit
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Interactions

_EVENTS = (USER_ID, ITEM_ID, TIMESTAMP, RATING)


def load(
    path: Path,
    *,
    seed: int = 0,
    items: Path | str | None = None,
    columns: dict[str, str] | None = None,
    item_columns: dict[str, str] | None = None,
    separator: str | None = None,
    names: list[str] | None = None,
    encoding: str | None = None,
    item_separator: str | None = None,
    item_names: list[str] | None = None,
    item_encoding: str | None = None,
    fields: list[str] | None = None,
    where: Where | None = None,
    timestamp_unit: Unit = "auto",
    min_rating: float | None = None,
    min_time: Moment = None,
    max_time: Moment = None,
    keep_repeats: bool = False,
    bad_rows: OnFault = "error",
    missing_titles: OnFault = "error",
    unknown_items: OnFault = "error",
    ties: Ties = "shuffle",
    impressions: Where | None = None,
) -> Interactions:
    """Read user_id, item_id, timestamp[, rating] and item_id, title.

    Args:
        path: the events file, or a folder that holds `interactions.*` and `items.*` (or RecBole's .inter and .item); in
            place of `interactions.*` it may hold a folder `interactions` of files of one kind, read in the order of
            their names.
        seed: of the order inside ties.
        items: the items file; default `items.*` beside the events.
        columns, item_columns: our column name → the file's.
        separator, encoding: of the events file; null finds out and says what was found: commas, tabs, semicolons or
            bars; UTF-8, UTF-16 with its mark, else cp1252. RecBole's headers (`user_id:token`) lose their types.
        names: of all columns, in their order, for a file without a header line.
        item_separator, item_names, item_encoding: the same for the items file.
        fields: further columns of the items file that the catalogue keeps, as text, for prompts (`prompts.fields`).
        where: column of the file → the value, or list of values, that a row must have; the others are dropped and
            counted (`where: {event: purchase}`). A number is compared as one: 5 keeps 5.0 too.
        timestamp_unit: see `timestamps.to_seconds`.
        min_rating: rows rated lower are dropped and counted, as if they had never happened: such an item may become a
            negative for that user.
        min_time, max_time: events before or after are dropped and counted, likewise; a date (UTC) or seconds since
            1970.
        keep_repeats: a repeated (user, item) pair stays, where customers buy things again; otherwise it keeps its first
            event in time, and the others are counted in the notes.
        bad_rows: 'drop' drops and counts rows with an empty id, or a time or rating that does not parse, and repeated
            rows of an item (the first with a title stays).
        missing_titles, unknown_items: 'drop' drops and counts items without a title, and events of unlisted items.
        ties: rows of equal user and time in a seeded random order ('shuffle'), or as they stand in the 'file'. A file
            sorted by item id inside a day tells the next item by its id if its order is kept.
        impressions: rows, chosen as with `where`, that are no events but what a user was shown and passed over (or did
            not like), from which slates of protocol `impressions` take their negatives: `{event: impression}` beside
            `where: {event: click}`, `{clicked: 0}` beside `{clicked: 1}`. An impression goes with the user's first
            event at or after its time (docs/protocol.md).

    Raises:
        ConfigError: an option holds what it may not.
        DataError: naming file, line and value of the first fault, and how many rows have it.
    """
    table = open_table(path, dict(locals()))  # every option by its name
    rules, tally, formats, parts = table.rules, Tally(Account(table.path)), [], []
    shown = None if table.shown is None else _Shown(table.shown, table.path)
    for file in table.files:
        read = read_table(file, table.dialect, rules.names.values())
        rules.check_columns(read.frame, file)
        formats.append(read.notes)
        parts.append((file, rules.rows(read.frame, file, tally)))
        if shown is not None:
            shown.read(read.frame, file, rules)
        del read
    unit = tally.unit(rules)
    log = EventLog()
    while parts:
        file, rows = parts.pop(0)
        log.add(rules.events(rows, file, unit, tally))
        del rows
    rules.check(tally, table.path, len(log))
    ordered = log.finish(ties=ties, seed=seed, keep_repeats=keep_repeats)
    notes = table.notes(
        tally,
        files=[*map(file_note, table.files), file_note(table.items_path)],
        formats=formats,
        unit=unit,
        kept=ordered.events.height,
        repeated=ordered.repeated,
    )
    notes |= {"times": ordered.times, "ties": ordered.ties}
    if shown is None:
        return Interactions(ordered.events, table.items, notes)
    frame, notes["impressions"] = shown.finish(unit, ordered)
    return Interactions(ordered.events, table.items, notes, impressions=frame)


class _Shown:
    """The rows of a log that are impressions."""

    def __init__(self, rules: Rules, path: Path) -> None:
        self._rules, self._tally, self._path = rules, Tally(Account(path)), path
        self._parts: list[tuple[Path, pl.DataFrame]] = []

    def read(self, frame: pl.DataFrame, file: Path, events: Rules) -> None:
        """Take the rows of a file. events: their rules."""
        self._rules.check_columns(frame, file)
        self._rules.check_apart(events, frame, file)
        self._parts.append((file, self._rules.rows(frame, file, self._tally)))

    def finish(self, unit: str, events: Ordered) -> tuple[pl.DataFrame, dict[str, Any]]:
        """user_id, item_id, timestamp of the impressions; and what was read and dropped, for the notes."""
        self._tally.check()
        frames = [self._rules.events(rows, file, unit, self._tally) for file, rows in self._parts]
        frame = pl.concat([one.select(USER_ID, ITEM_ID, TIME) for one in frames])
        notes = impression_notes(self._tally, self._path, frame.height)
        moments = events.events.select(USER_ID, pl.Series(TIME, events.exact, dtype=pl.Float64))
        return in_seconds(frame, moments).select(USER_ID, ITEM_ID, TIMESTAMP), notes


def impression_notes(tally: Tally, path: Path, left: int) -> dict[str, Any]:
    """What was read of a log as impressions, and dropped. DataError for what is refused, or where none is left."""
    tally.check()
    account = tally.account
    if not left:
        dropped = "; ".join(f"{reason}: {n:,}" for reason, n in sorted(account.dropped.items()))
        raise DataError(f"{path}: option impressions: none of {account.read:,} rows is left; dropped: {dropped}")
    account.kept = left
    return account.note()


@dataclass(frozen=True)
class OpenTable:
    """A log whose files are found and whose catalogue is read, before any event is.

    path: the events as they are named: a file, or the folder of the files. item_notes: of reading the catalogue.
    shown: the rules of impressions, those of events but for `where` and `min_rating`; None where there are none.
    """

    path: Path
    files: list[Path]
    dialect: Dialect
    rules: Rules
    items: pl.DataFrame
    items_path: Path
    item_notes: dict[str, Any]
    shown: Rules | None

    def notes(
        self,
        tally: Tally,
        *,
        files: list[dict[str, Any]],
        formats: list[dict[str, Any]],
        unit: str,
        kept: int,
        repeated: int,
    ) -> dict[str, Any]:
        """For dataset.json, but for `times` and `ties`.

        files: provenance of each. formats: how each file of events is written. kept, repeated: events that are left,
        and that were dropped because their user had the item before.
        """
        account = tally.account
        account.drop("user had the item before", repeated)
        account.kept = kept
        counts: dict[str, Any] = {"events_read": account.read}
        if self.rules.min_rating is not None:
            counts["events_below_min_rating_dropped"] = tally.below
        return {
            "files": files,
            "lines": [account.note()],
            "events_format": joint_format(formats),
            "timestamp_unit": unit,
            **self.item_notes,
            **counts,
            "events_of_untitled_items_dropped": tally.untitled,
            "events_of_unknown_items_dropped": tally.unknown,
            "repeated_pairs_dropped": repeated,
        }


def joint_format(formats: list[dict[str, Any]]) -> dict[str, Any]:
    """How the files of a log are written: counts are added, and where files differ, all that is found is named.

    >>> joint_format([{"separator": "commas", "records": 2}, {"separator": "tabs", "records": 3}])
    {'separator': 'commas, tabs', 'records': 5}
    """
    joint: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in formats for name in one):
        values = [one[name] for one in formats if name in one]
        if isinstance(values[0], bool):
            joint[name] = all(values)
        elif isinstance(values[0], int):
            joint[name] = sum(values)
        else:
            joint[name] = ", ".join(dict.fromkeys(values))
    return joint


def open_table(path: Path, options: Mapping[str, Any]) -> OpenTable:
    """Check the options of `load`, all of them, find the files and read the catalogue."""
    for name, choices in (("bad_rows", OnFault), ("missing_titles", OnFault), ("unknown_items", OnFault)):
        check_choice(name, options[name], choices)
    check_choice("timestamp_unit", options["timestamp_unit"], Unit)
    check_choice("ties", options["ties"], Ties)
    columns, item_columns = dict(options["columns"] or {}), dict(options["item_columns"] or {})
    check_names("columns", columns, _EVENTS)
    span = TimeSpan.of(options["min_time"], options["max_time"])
    events_path, files = events_files(Path(path))
    items_path = Path(options["items"]) if options["items"] is not None else find_table(events_path.parent, "items")
    of_items, of_events = (
        Dialect(*(options[f"{prefix}{name}"] for name in ("separator", "names", "encoding")))
        for prefix in ("item_", "")
    )
    catalogue, untitled, notes = load_items(
        items_path, item_columns, options["missing_titles"], of_items, options["bad_rows"], options["fields"] or ()
    )
    rules = Rules(
        columns=columns,
        where=dict(options["where"] or {}),
        unit=options["timestamp_unit"],
        min_rating=options["min_rating"],
        span=span,
        bad_rows=options["bad_rows"],
        unknown_items=options["unknown_items"],
        listed=catalogue[ITEM_ID],
        untitled=untitled,
        items_path=items_path,
        first_id=item_columns.get(ITEM_ID),
    )
    shown = None
    if (chosen := options["impressions"]) is not None:
        if not rules.where or not chosen:
            empty = "where" if not rules.where else "impressions"
            raise ConfigError(
                f"impressions: without a column in {empty} events and impressions cannot be told apart: name one, as "
                "where: {event: click}, impressions: {event: impression}"
            )
        shown = replace(rules, where=dict(chosen), min_rating=None, chosen_by="impressions")
    return OpenTable(events_path, files, of_events, rules, catalogue, items_path, notes, shown)
