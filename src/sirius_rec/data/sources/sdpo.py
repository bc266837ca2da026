"""S-DPO's rows (Chen et al. 2024): a JSON list of {"historyList": "A::B", "itemList": […], "trueSelection": title}.

The published slates leak: the target's id is the seed of its slate. They are read as they are; `sirius audit` says how
much of a score that explains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.catalogue import read_id_names
from sirius_rec.data.sources.files import OnFault, check_choice, file_note, open_text, require_file
from sirius_rec.data.sources.lines import (
    MAX_MALFORMED,
    Account,
    UnknownItem,
    check_share,
    frame_of,
    only_one,
    short,
    valid_text,
)
from sirius_rec.data.sources.literals import strict_json
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, HISTORY, ITEM_ID, SPLIT, SPLITS, TARGET, TITLE, Examples

# names that S-DPO writes otherwise than LLaRA's id2name.txt
ALIASES = {"Florence and the Machine": "Florence + the Machine", "Plus 44": "+44"}
_SEPARATOR = "::"
_SCHEMA = {HISTORY: pl.List(pl.String), TARGET: pl.String, SPLIT: pl.String, CANDIDATES: pl.List(pl.String)}


def load(
    path: Path,
    *,
    seed: int = 0,
    names: Path | str | None = None,
    aliases: dict[str, str] | None = None,
    unknown_items: OnFault = "error",
    max_malformed: float = MAX_MALFORMED,
) -> Examples:
    """Read rows with their published slates, in the published order.

    Args:
        path: a folder with `*train*.json`, `*val*.json`, `*test*.json` (at least one of them), or one such file; the
            split is in the name.
        seed: not used.
        names: `id2name.txt` (`0::Morcheeba`) for item ids; default the one in the folder. Without it an item's id is
            its title, and the catalogue is what the rows name.
        aliases: further names as S-DPO writes them → as `names` has them; two are known and always mapped.
        unknown_items: 'drop' drops and counts rows with an item that the names lack; otherwise they are malformed.
        max_malformed: the share of malformed rows above which the run stops.

    Raises:
        DataError: a file is missing or not JSON, or has too many malformed rows.
    """
    check_share(max_malformed)
    check_choice("unknown_items", unknown_items, OnFault)
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    files = _files(path)
    items: pl.DataFrame | None = None
    of_names: list[Account] = []
    paths = list(files.values())
    if names is not None or (folder / "id2name.txt").is_file():
        items, names_path, account = read_id_names(folder, names, max_malformed)
        of_names.append(account)
        paths.append(names_path)
    known = None if items is None else _ids_by_title(items)
    renamed = {**ALIASES, **(aliases or {})}

    parts, accounts = [], []
    mapped: dict[str, int] = {}
    for split, file in files.items():
        account = Account(file, what="line")
        if (part := _rows(file, split, known, renamed, mapped, account, unknown_items)) is not None:
            parts.append(part)
        account.check(max_malformed)
        accounts.append(account)
    if not parts:
        raise DataError(f"{path}: no rows in {', '.join(file.name for file in files.values())}")
    rows = pl.concat(parts)
    if items is None:
        texts = pl.concat([rows[HISTORY].explode(), rows[CANDIDATES].explode()]).drop_nulls().unique().sort()
        items = pl.DataFrame({ITEM_ID: texts, TITLE: texts})
    notes: dict[str, Any] = {
        "files": [file_note(file) for file in paths],
        "lines": [account.note() for account in (*accounts, *of_names)],
        "items_read": items.height,
        "names_mapped": mapped,
        "caution": "LEAKY slates: drawn and shuffled with the target's id as seed",
    }
    return Examples(items, rows.select(list(_SCHEMA)), notes)


def _files(path: Path) -> dict[str, Path]:
    """split → file."""
    if not path.is_dir():
        require_file(path, "S-DPO file")
        splits = [split for split in SPLITS if split in path.stem.lower()]
        if len(splits) != 1:
            raise DataError(f"{path}: the name does not say which split it is; put train, val or test into it")
        return {splits[0]: path}
    found = {split: only_one(path, [f"*{split}*.json"], f"{split} file", optional=True) for split in SPLITS}
    files = {split: file for split, file in found.items() if file is not None}
    if not files:
        raise DataError(f"{path}: no *train*.json, *val*.json or *test*.json found; name the folder with S-DPO's files")
    return files


def _ids_by_title(items: pl.DataFrame) -> dict[str, str]:
    """title → id; a title that two items share names neither."""
    once = items.filter(~pl.col(TITLE).is_duplicated())
    return dict(once.select(TITLE, ITEM_ID).iter_rows())


def _rows(
    path: Path,
    split: str,
    known: dict[str, str] | None,
    renamed: Mapping[str, str],
    mapped: dict[str, int],
    account: Account,
    unknown_items: OnFault,
) -> pl.DataFrame | None:
    numbers: list[int] = []
    rows: list[tuple[Any, ...]] = []

    def item(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"a title is {short(value)}; text is expected")
        title = " ".join(valid_text(value, "itemList").split())
        if known is None:
            return title
        if title not in known and title in renamed:
            mapped[title] = mapped.get(title, 0) + 1
            title = renamed[title]
        if title not in known:
            raise UnknownItem(f"title {short(title)} is not among the names; add it to option aliases")
        return known[title]

    for line, record in _elements(path):
        account.read += 1
        try:
            rows.append((*_row(record, item), split))
            numbers.append(line)
            account.kept += 1
        except ValueError as error:
            account.refuse(line, error, unknown_items)
    schema = {name: _SCHEMA[name] for name in (HISTORY, CANDIDATES, TARGET, SPLIT)}
    return frame_of(numbers, rows, schema) if rows else None


def _row(record: Any, item: Callable[[Any], str]) -> tuple[list[str], list[str], str]:
    """History, candidates and target of one row, as ids."""
    if not isinstance(record, dict):
        raise ValueError(f"not a record of named fields but {type(record).__name__}")
    history, slate, target = (record.get(name) for name in ("historyList", "itemList", "trueSelection"))
    if isinstance(history, str):
        history = history.split(_SEPARATOR) if history else []
    for name, value in (("historyList", history), ("itemList", slate)):
        if not isinstance(value, list):
            raise ValueError(f"field {name!r} is {short(value)}; a list of titles is expected")
    assert isinstance(history, list) and isinstance(slate, list)
    candidates, chosen = [item(title) for title in slate], item(target)
    if len(set(candidates)) < len(candidates):
        raise ValueError("a title is duplicated in itemList")
    if chosen not in candidates:
        raise ValueError(f"trueSelection {short(target)} is not in itemList")
    return [item(title) for title in history], candidates, chosen


def _elements(path: Path) -> Iterator[tuple[int, Any]]:
    """Line on which each element of the JSON list begins, and the element, one at a time."""
    with open_text(path) as stream:
        text = stream.read()
    decoder = strict_json()
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise DataError(f"{path}: not a JSON list of rows; is it one of S-DPO's files?")
    at, counted, line = _skip(text, at + 1), 0, 1
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            element, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError, ValueError) as error:
            place = line + text.count("\n", at, getattr(error, "pos", at))
            raise DataError(
                f"{path}, line {place}: not JSON ({getattr(error, 'msg', error)}); fetch it again"
            ) from error
        yield line, element
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            place = line + text.count("\n", counted, at)
            raise DataError(
                f"{path}, line {place}: the list of rows is not closed; the file is cut off, fetch it again"
            )
    if text[at + 1 :].strip():
        raise DataError(f"{path}: more follows after the list of rows; fetch it again")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
