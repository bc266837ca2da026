"""LLaRA's windows (Liao et al. 2024): `train_data.df`, `Val_data.df`, `Test_data.df`, pickled pandas tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.catalogue import read_id_names
from sirius_rec.data.sources.files import OnFault, check_choice, file_note
from sirius_rec.data.sources.lines import MAX_MALFORMED, Account, UnknownItem, check_share, frame_of, short
from sirius_rec.data.sources.pickles import read_frame
from sirius_rec.errors import DataError
from sirius_rec.schema import HISTORY, ITEM_ID, SPLIT, TARGET, Examples

FILES = {"train": "train_data.df", "val": "Val_data.df", "test": "Test_data.df"}
_COLUMNS = ("seq", "len_seq", "next")
_SCHEMA = {HISTORY: pl.List(pl.String), TARGET: pl.String, SPLIT: pl.String}


def load(
    path: Path,
    *,
    seed: int = 0,
    names: Path | str | None = None,
    unknown_items: OnFault = "error",
    max_malformed: float = MAX_MALFORMED,
) -> Examples:
    """Read windows: seq (10 item numbers, padded behind), len_seq, next.

    The files are taken apart, not unpickled: nothing in them is run (see `pickles`).

    Args:
        path: folder with at least `train_data.df`; splits whose file is absent are empty.
        seed: not used.
        names: the titles, `id2name.txt` (`0::Morcheeba`) or MovieLens' `u.item`; default the one in the folder.
        unknown_items: 'drop' drops and counts rows with an item that the names lack; otherwise they are malformed.
        max_malformed: the share of malformed rows above which the run stops.

    The published order of LLaRA's LastFM is not that of time (it follows the HetRec artist id), which the notes say.

    Raises:
        DataError: a file is missing, damaged, names something that is no pandas or NumPy data type (the name is given),
            or has too many malformed rows.
    """
    check_share(max_malformed)
    check_choice("unknown_items", unknown_items, OnFault)
    folder = Path(path)
    files = {split: folder / name for split, name in FILES.items() if (folder / name).is_file()}
    if "train" not in files:
        raise DataError(f"{folder}: no {FILES['train']} found; name the folder with LLaRA's .df files")
    items, names_path, of_names = read_id_names(folder, names, max_malformed)
    catalogue = set(items[ITEM_ID])
    parts, accounts = [], []
    for split, file in files.items():
        account = Account(file, what="row")
        if (part := _windows(file, split, catalogue, account, unknown_items)) is not None:
            parts.append(part)
        account.check(max_malformed)
        accounts.append(account)
    if not parts:
        raise DataError(f"{folder}: no windows in {', '.join(file.name for file in files.values())}")
    notes: dict[str, Any] = {
        "files": [file_note(file) for file in (*files.values(), names_path)],
        "lines": [account.note() for account in (*accounts, of_names)],
        "items_read": items.height,
        "caution": "no user ids and no times; windows of one user may stand in several splits, and LLaRA's LastFM "
        "sequences are sorted by artist id, not by time",
    }
    return Examples(items, pl.concat(parts).select(list(_SCHEMA)), notes)


def _windows(
    path: Path, split: str, catalogue: set[str], account: Account, unknown_items: OnFault
) -> pl.DataFrame | None:
    columns = read_frame(path)
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise DataError(f"{path}: no column {missing[0]!r} (has: {', '.join(columns)}); is it a file of LLaRA's?")
    numbers: list[int] = []
    rows: list[tuple[Any, ...]] = []
    for row, (sequence, length, target) in enumerate(zip(*(columns[name] for name in _COLUMNS), strict=True), start=1):
        account.read += 1
        try:
            rows.append((*_window(sequence, length, target, catalogue), split))
            numbers.append(row)
            account.kept += 1
        except ValueError as error:
            account.refuse(row, error, unknown_items)
    return frame_of(numbers, rows, _SCHEMA) if rows else None


def _window(sequence: Any, length: Any, target: Any, catalogue: set[str]) -> tuple[list[str], str]:
    """History and target of one row; the first `length` entries count, and of one lone padding none."""
    if not isinstance(sequence, list | tuple):
        raise ValueError(f"seq is {type(sequence).__name__}; a list of item numbers is expected")
    if type(length) is not int or not 0 <= length <= len(sequence):
        raise ValueError(f"len_seq is {short(length)} for a sequence of {len(sequence)}")
    entries = [_item(entry) for entry in sequence[:length]]
    # an empty history is written as length 1 with the padding number, which is no item
    if length == 1 and entries[0] not in catalogue and all(_item(entry) == entries[0] for entry in sequence):
        entries = []
    wanted = [*entries, _item(target)]
    if unknown := next((item for item in wanted if item not in catalogue), None):
        raise UnknownItem(f"item {unknown!r} is not among the names")
    return entries, wanted[-1]


def _item(entry: Any) -> str:
    """The item number of an entry, which in LLaRA's MovieLens is a pair of item and rating."""
    if isinstance(entry, Sequence) and not isinstance(entry, str | bytes) and len(entry) == 2:
        entry = entry[0]
    if type(entry) is not int:
        raise ValueError(f"an item is {type(entry).__name__}; a whole number is expected")
    return str(entry)
