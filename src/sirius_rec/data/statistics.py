"""What a dataset holds, for dataset.json and for printing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from sirius_rec.data.sources.span import time_lines
from sirius_rec.data.store import Dataset
from sirius_rec.schema import HISTORY, SPLIT, SPLITS, TIMESTAMP, USER_ID

# Table 2 of the paper, by source. Its samples of Goodreads and Steam are not public.
PAPER_TABLE_2: dict[str, dict[str, Any]] = {
    "lastfm": {"name": "LastFM", "n_sequences": 1220, "n_items": 4606, "n_interactions": 73_510},
    "goodreads": {"name": "Goodreads", "n_sequences": 6031, "n_items": 4550, "n_interactions": 220_100},
    "steam": {"name": "Steam", "n_sequences": 11_938, "n_items": 3581, "n_interactions": 274_726},
}
_TABLE = {"n_sequences": "# Sequence", "n_items": "# Item", "n_interactions": "# Interaction"}


def paper_statistics(source: str) -> dict[str, Any]:
    """`{"paper": …}` with the row of the paper's Table 2 for the source, or nothing where it has none."""
    return {"paper": PAPER_TABLE_2[source]} if source in PAPER_TABLE_2 else {}


def row_statistics(examples: pl.DataFrame) -> dict[str, Any]:
    """Rows and users per split, the least, mean and greatest history length, and the first and last target's time."""
    return joint_statistics([row_counts(examples)])


def row_counts(examples: pl.DataFrame) -> dict[str, Any]:
    """What `joint_statistics` needs of some rows; a user's rows are all among them or none is."""
    grouped = examples.group_by(SPLIT).agg(pl.len(), pl.col(USER_ID).drop_nulls().n_unique().alias("users"))
    counts = {split: (rows, users) for split, rows, users in grouped.iter_rows()}
    lengths = examples[HISTORY].list.len()
    return {
        "rows": {split: counts.get(split, (0, 0))[0] for split in SPLITS},
        "users": {split: counts.get(split, (0, 0))[1] for split in SPLITS},
        "named": examples.height - examples[USER_ID].null_count(),
        "history_length": {"min": lengths.min(), "sum": lengths.sum(), "max": lengths.max()},
        "target_time": {"first": examples[TIMESTAMP].min(), "last": examples[TIMESTAMP].max()},
    }


def joint_statistics(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`row_statistics` of the rows that were counted part by part."""
    rows = {split: sum(part["rows"][split] for part in counts) for split in SPLITS}
    users = {split: sum(part["users"][split] for part in counts) for split in SPLITS}
    total = sum(rows.values())

    def found(table: str, name: str, choose: Callable[[list[Any]], Any]) -> Any:
        values = [part[table][name] for part in counts if part[table][name] is not None]
        return choose(values) if values else None

    mean = sum(part["history_length"]["sum"] for part in counts) / total if total else None
    return {
        "rows": rows,
        "users": users if any(part["named"] for part in counts) else None,
        "history_length": {
            "min": found("history_length", "min", min), "mean": mean, "max": found("history_length", "max", max)
        },
        "target_time": {
            "first": found("target_time", "first", min), "last": found("target_time", "last", max)
        },
    }  # fmt: skip


def summary_lines(dataset: Dataset) -> list[str]:
    """A few lines about a dataset, to be printed."""
    info, numbers = dataset.info, dataset.info["statistics"]
    notes = info["source"]["notes"]
    rows = ", ".join(f"{split} {count:,}" for split, count in numbers["rows"].items())
    length = numbers["history_length"]
    lines = [
        f"dataset {dataset.path} (source {info['source']['name']}, fingerprint {dataset.fingerprint[:12]})",
        *_format_lines(notes),
        *read_lines(notes),
        *_funnel_lines(info),
        f"users {_show(numbers['n_users'])}, items {_show(numbers['n_items'])} "
        f"({_show(numbers['n_items_seen'])} seen), interactions {_show(numbers['n_interactions'])}, "
        f"sequences {_show(numbers['n_sequences'])}, density {_show(numbers['density'], '.3%')}",
        *_table_2(numbers),
        f"rows: {rows}; history length {length['min']} to {length['max']}, mean {length['mean']:.1f}",
    ]
    window = info["recipe"]["window"]
    if window.get("kind") == "anchored":
        histories = numbers["histories"]
        lines.append(
            f"histories start at multiples of {window['step']}, in {histories['starts']:,} places: of their "
            f"{histories['items']:,} items {histories['items_once_per_start']:,} remain with each start's longest alone"
        )
    if few := info["filters"].get("rows_without_enough_negatives_dropped"):
        lines.append(f"rows whose user leaves too few items for the negatives of a slate, dropped: {few:,}")
    if short := info["filters"].get("rows_with_short_history_dropped"):
        lines.append(f"rows with a history below min_history, dropped: {short:,}")
    if (ties := notes.get("ties", {})).get("rows"):
        lines.append(
            f"ties: {ties['rows']:,} events share user and time with another one; their order: {ties['broken_by']}"
        )
    if long := notes.get("long_titles_dropped"):
        table = "events" if "events" in long else "rows"
        lines.append(
            f"titles longer than max_title, dropped: {long['items']:,} items and their {long[table]:,} {table}; the "
            f"first is item {long['first']['item_id']!r} with {long['first']['characters']:,} characters"
        )
    if renamed := info["titles"]["renamed_to_be_distinct"]:
        lines.append(f"titles: {renamed} made distinct by a number in brackets")
    lines += time_lines(notes.get("times", {}))
    if repeats := info["filters"].get("targets_in_own_history"):
        lines.append(
            f"caution: {repeats:,} targets are in their own history and negatives are not, so there a candidate that "
            "is in the history is always the target"
        )
    if "caution" in notes:
        lines.append(f"caution: {notes['caution']}")
    lines += [f"slates {name}: {slate['rows']:,} rows of {slate['size']}" for name, slate in info["slates"].items()]
    return lines


def _show(value: float | None, form: str = ",") -> str:
    return "unknown" if value is None else format(value, form)


def _format_lines(notes: Mapping[str, Any]) -> Iterator[str]:
    """How text files were taken to be written, where that is not the plainest way."""
    for what in ("events", "items"):
        found = notes.get(f"{what}_format", {})
        said = []
        if found.get("separator", "commas") != "commas":
            said.append(f"separated by {found['separator']}")
        if found.get("encoding", "utf-8") not in ("utf-8", "utf-8-sig"):
            said.append(f"encoding {found['encoding']}")
        if found.get("header") is False:
            said.append("without a header line, by the names given")
        if found.get("header_types_removed"):
            said.append("types removed from the header's name:type")
        if count := found.get("quotes_escaped_by_backslash"):
            said.append(f'{count:,} quotes escaped as \\" read as quotes')
        if count := found.get("blank"):
            said.append(f"{count:,} blank lines")
        if said:
            yield f"{what} file read as: {'; '.join(said)}"


def _funnel_lines(info: Mapping[str, Any]) -> Iterator[str]:
    """What the filters and windows left of the events and users that the source handed over, and why."""
    filters, numbers = info["filters"], info["statistics"]
    for step in filters["steps"]:
        yield f"filter {step['name']}: -{step['users']:,} users, -{step['items']:,} items, -{step['events']:,} events"
    if "after" not in filters:
        return
    before, after = filters["before"], filters["after"]
    left = f" -> {after['events']:,} after filters" if filters["steps"] else ""
    least = info["recipe"]["window"]["min_history"] + 1
    short = numbers["n_users"] - numbers["n_sequences"]
    limited = " within limits" if info["recipe"]["limits"] else ""
    rows = f"{sum(numbers['rows'].values()):,} rows{limited}, each with {least - 1} or more events before it"
    yield f"events {before['events']:,}{left} -> {rows}"
    left = f" -> {after['users']:,} after filters" if filters["steps"] else ""
    why = f" ({short:,} have fewer than {least} events, min_history + 1)" if short else ""
    yield f"users {before['users']:,}{left} -> {numbers['n_sequences']:,} sequences{why}"


def read_lines(notes: Mapping[str, Any]) -> Iterator[str]:
    """What was read from each raw file, and where its first malformed line stands."""
    for account in notes.get("lines", []):
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in account["dropped"].items())
        yield f"read {account['file']}: {account['read']:,}, kept {account['kept']:,}" + (
            f"; dropped: {dropped}" if dropped else ""
        )
        if bad := account["malformed"]["count"]:
            first = account["malformed"]["first"][0]
            what = next(name for name in first if name != "why")
            yield f"  malformed {what}s dropped: {bad:,}, the first is {what} {first[what]}: {first['why']}"


def _table_2(numbers: Mapping[str, Any]) -> Iterator[str]:
    """The numbers of the paper's Table 2, beside the paper's where it has them."""
    rows = [("this data set", numbers)]
    if "paper" in numbers:
        rows.append((f"the paper's {numbers['paper']['name']}", numbers["paper"]))
    width = max(len(name) for name, _ in rows)
    yield " " * (width + 2) + "".join(f"{title:>15}" for title in _TABLE.values())
    for name, values in rows:
        yield f"  {name:<{width}}" + "".join(f"{_show(values[key]):>15}" for key in _TABLE)
