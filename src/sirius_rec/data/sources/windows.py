"""Ready-made windows: one JSON object per line, with history, target, split and perhaps a slate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.files import (
    OnFault,
    check_choice,
    file_note,
    find_table,
    load_items,
    require_file,
)
from sirius_rec.data.sources.lines import Account, UnknownItem, check_share, lines
from sirius_rec.data.sources.span import OUTSIDE, Moment, TimeSpan, time_notes
from sirius_rec.data.sources.timestamps import EARLIEST, LATEST
from sirius_rec.errors import DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import CANDIDATES, HISTORY, SPLIT, SPLITS, TARGET, TIMESTAMP, USER_ID, Examples

FILE_NAMES = ("windows.jsonl", "windows.jsonl.gz")
_KNOWN = {HISTORY, TARGET, SPLIT, CANDIDATES, USER_ID, TIMESTAMP}


def load(
    path: Path,
    *,
    seed: int = 0,
    items: Path | str | None = None,
    item_columns: dict[str, str] | None = None,
    missing_titles: OnFault = "error",
    unknown_items: OnFault = "error",
    min_time: Moment = None,
    max_time: Moment = None,
    max_malformed: float = 0.0,
    stitch: bool = False,
    advance: Advance | None = None,
) -> Examples:
    """Read JSON lines {"history": [ids, oldest first], "target": id, "split": "train"|"val"|"test"
    [, "candidates": [ids]][, "user_id": id][, "timestamp": seconds]}; ids are text or integers.

    Args:
        path: the JSONL file (plain or gzip), or a folder that holds `windows.jsonl[.gz]`.
        seed: not used.
        items: the items file (item_id, title); default `items.*` beside the windows.
        item_columns, missing_titles: as for the `table` source.
        unknown_items: 'drop' drops and counts rows with an item that the items file lacks, else they are malformed.
        min_time, max_time: rows whose timestamp is before or after are dropped and counted; a date (UTC) or seconds
            since 1970. Rows without a timestamp stay.
        max_malformed: the share of malformed lines above which the run stops; below it they are dropped and counted.
        stitch: for sliding windows without user ids: rows of which each continues the one before become one user
            ("stitched-1", …), so that train histories are whole, negatives avoid all of a user's items, and intervals
            resample users. A row that continues nothing is a user of its own. A reconstruction: two users are joined
            where the second one's first row happens to continue the first one's last.
        advance: called as bytes are read.

    Raises:
        DataError: naming file, line and reason of the first line that is not so, has an item that the catalogue lacks,
            or a slate without its target or with an item twice.
    """
    check_share(max_malformed)
    span = TimeSpan.of(min_time, max_time)
    check_choice("unknown_items", unknown_items, OnFault)
    check_choice("missing_titles", missing_titles, OnFault)
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in FILE_NAMES if (path / name).is_file()]
        if len(files) != 1:
            raise DataError(f"{path}: expected one of {' and '.join(FILE_NAMES)}, found {len(files)}; name the file")
        path = files[0]
    require_file(path, "windows file")
    items_path = Path(items) if items is not None else find_table(path.parent, "items")
    catalogue, _, item_notes = load_items(items_path, dict(item_columns or {}), missing_titles)
    item_ids = set(catalogue["item_id"].to_list())

    rows: list[dict[str, Any]] = []
    account = Account(path)
    for block in lines(path, account, advance):
        for number, line in block:
            try:
                rows.append(_parse(line, item_ids))
            except ValueError as error:
                account.refuse(number, error, unknown_items)
    inside = [row for row in rows if row[TIMESTAMP] is None or span.holds(row[TIMESTAMP])]
    account.drop(OUTSIDE, len(rows) - len(inside))
    rows = inside
    account.kept = len(rows)
    account.check(max_malformed)
    if not rows:
        raise DataError(f"{path}: no rows; one JSON object per line is expected")
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        HISTORY: pl.List(pl.String),
        TARGET: pl.String,
        SPLIT: pl.String,
        CANDIDATES: pl.List(pl.String),
        USER_ID: pl.String,
        TIMESTAMP: pl.Int64,
    }
    if stitch:
        item_notes = {**item_notes, "stitched_users": _stitch(rows, path)}
    frame = pl.DataFrame(rows, schema=schema)
    optional = [c for c in (CANDIDATES, USER_ID, TIMESTAMP) if frame[c].null_count() == frame.height]
    notes = {
        "files": [file_note(path), file_note(items_path)],
        "lines": [account.note()],
        "rows_read": account.read,
        **item_notes,
        "times": time_notes(frame[TIMESTAMP].drop_nulls().to_numpy()),
    }
    return Examples(catalogue, frame.drop(optional), notes)


def _stitch(rows: list[dict[str, Any]], path: Path) -> int:
    """Give rows without a user the user of the row that they continue; how many users that makes."""
    if any(row[USER_ID] is not None for row in rows):
        raise DataError(f"{path}: option stitch is for windows without user ids, and there are some: leave it out")
    users, before = 0, None
    for row in rows:
        if before is None or not _continues(row, before):
            users += 1
        row[USER_ID] = f"stitched-{users}"
        before = row
    return users


def _continues(row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether the history is the one before plus its target, cut off at the old end where windows have a length."""
    if row[SPLIT] != before[SPLIT]:
        return False
    longer, history = [*before[HISTORY], before[TARGET]], row[HISTORY]
    return len(history) > 0 and len(history) >= len(before[HISTORY]) and longer[-len(history) :] == history


def _parse(line: str, item_ids: set[str]) -> dict[str, Any]:
    """One row, or a `ValueError` that says what is wrong with it."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}); write one object per line") from error
    except RecursionError as error:
        raise ValueError("brackets nest too deep; write one flat object per line") from error
    if not isinstance(record, dict):
        raise ValueError('not a JSON object; write {"history": [...], "target": ..., "split": ...}')
    for name in (HISTORY, TARGET, SPLIT):
        if record.get(name) is None:
            raise ValueError(f"no {name!r}; every row needs history, target and split")
    if unknown := set(record) - _KNOWN:
        raise ValueError(f"unknown field {min(unknown)!r}; known are {', '.join(sorted(_KNOWN))}")
    split = record[SPLIT]
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    history = _item_list(record[HISTORY], HISTORY, item_ids)
    target = _known_item(record[TARGET], TARGET, item_ids)
    candidates = record.get(CANDIDATES)
    if candidates is not None:
        candidates = _item_list(candidates, CANDIDATES, item_ids)
        if len(set(candidates)) < len(candidates):
            twice = next(c for i, c in enumerate(candidates) if c in candidates[:i])
            raise ValueError(f"item {twice!r} is duplicated in candidates; a slate holds distinct items")
        if target not in candidates:
            raise ValueError(f"target {target!r} is not among the candidates; add it to the slate")
    timestamp = record.get(TIMESTAMP)
    if timestamp is not None and (isinstance(timestamp, bool) or not isinstance(timestamp, int)):
        raise ValueError(f"timestamp {timestamp!r} is not an integer; give seconds since 1970")
    if timestamp is not None and not EARLIEST <= timestamp <= LATEST:
        raise ValueError(f"timestamp {timestamp} lies outside the years 1 to 9999; give seconds since 1970")
    user = record.get(USER_ID)
    return {
        HISTORY: history,
        TARGET: target,
        SPLIT: split,
        CANDIDATES: candidates,
        USER_ID: None if user is None else _text_id(user, USER_ID),
        TIMESTAMP: timestamp,
    }


def _text_id(value: object, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"{name} holds {value!r}; ids are text or integers")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):  # half of a \\u pair, which no file can hold
        raise ValueError(f"{name} holds {text!r}, which is not valid text; write the whole character")
    return text


def _known_item(value: object, name: str, item_ids: set[str]) -> str:
    text = _text_id(value, name)
    if text not in item_ids:
        raise UnknownItem(f"{name} item {text!r} is not in the items file; add it there, or set unknown_items: drop")
    return text


def _item_list(value: object, name: str, item_ids: set[str]) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}; a list of item ids is expected")
    return [_known_item(item, name, item_ids) for item in value]
