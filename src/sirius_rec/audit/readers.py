"""Any of the forms that slates come in → `SlateSet`s over one catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sirius_rec.audit.records import Record, read_records
from sirius_rec.audit.slates import NONE, Catalogue, Int, SlateSet, joined
from sirius_rec.audit.vocabulary import Vocabulary, read_id_columns, read_items
from sirius_rec.audit.wording import mentions
from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.files import TABLE_SUFFIXES, id_text, place, read_table, require_file, short_list
from sirius_rec.data.sources.timestamps import to_seconds
from sirius_rec.data.store import Dataset, open_dataset
from sirius_rec.data.windows import sliding_windows
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import (
    CANDIDATES,
    HISTORY,
    ITEM_ID,
    ROW_ID,
    SPLITS,
    TARGET,
    TIMESTAMP,
    TITLE,
    USER_ID,
    SlateName,
)

_LONGEST = 50  # history items looked at
_WINDOW = 10  # history items of the windows made from a table of interactions


@dataclass(frozen=True)
class AuditInput:
    """What is audited, and what probes may learn from: `train` and `val`, with or without slates.

    mentions: of records with prompts, how often each item's title stands in each audited row's.
    """

    audited: SlateSet
    learn: dict[str, SlateSet]
    catalogue: Catalogue
    form: str
    slates_name: str | None = None
    mentions: list[dict[int, int]] | None = None
    notes: list[str] = field(default_factory=list)


def read_audit_input(
    path: Path,
    *,
    train: Sequence[Path] = (),
    val: Sequence[Path] = (),
    ids: Path | None = None,
    items: Path | None = None,
    slates: str | None = None,
) -> AuditInput:
    """Read the slates to be audited and the files to learn from.

    Args:
        path: a dataset folder, S-DPO's JSON, TRL-style records, or JSON lines (history, target, candidates).
        train, val: in any of these forms, without candidates too, or a table of interactions (user_id, item_id,
            timestamp). Of a file whose rows name their split only the rows of that split are used.
        ids: a CSV with numeric id columns, keyed by item_id or title.
        items: a CSV of item_id and title; looked for beside the other files when not given.
        slates: which slates of a dataset folder.

    Raises:
        DataError, ConfigError: one line that names file, row and what to do.
    """
    if path.is_dir():
        if train or val or items:
            raise ConfigError(f"{path}: a dataset folder brings its own train, val and items; leave the options out")
        return _from_folder(open_dataset(path), slates, ids)
    if slates is not None:
        raise ConfigError(f"{path}: --slates chooses among the slates of a dataset folder; leave it out")
    table = items or _find_items([path, *([ids] if ids else []), *train, *val])
    vocabulary = Vocabulary(read_items(table) if table else None)
    notes = [f"items and titles from {table}"] if table else []
    records, form = read_records(path)
    by_split = _by_split(records)
    split = next(name for name in ("test", "val", "train", None) if name in by_split)
    audited = _encode(by_split[split], vocabulary, form, str(path))
    if not audited.has_slates:
        raise DataError(f"{path}: its rows have no candidates; give the file with the slates")
    learn: dict[str, SlateSet] = {}
    for name, files in (("train", train), ("val", val)):
        sets = [_learning_set(file, name, vocabulary) for file in files]
        if not files and name in by_split and name != split:
            sets = [_encode(by_split[name], vocabulary, form, f"{path} ({name} rows)")]
        if sets:
            learn[name] = joined(sets)
    if table and (strange := len(vocabulary.titles) - vocabulary.known):
        notes.append(f"{strange} names are not in {table.name}; they were taken for further items")
    columns = read_id_columns(ids, vocabulary) if ids else {}
    prompts = [record.prompt for record in by_split[split] if record.prompt is not None]
    mentioned = mentions(prompts, vocabulary.titles) if prompts else None
    return AuditInput(audited, learn, vocabulary.catalogue(columns), form, mentions=mentioned, notes=notes)


def _find_items(files: Sequence[Path]) -> Path | None:
    """The items table beside one of the files, or one folder above it."""
    for file in files:
        for folder in (file.absolute().parent, file.absolute().parent.parent):
            if (folder / "items.csv").is_file():
                return folder / "items.csv"
    return None


def _by_split(records: list[Record]) -> dict[str | None, list[Record]]:
    found: dict[str | None, list[Record]] = {}
    for record in records:
        found.setdefault(record.split, []).append(record)
    if None in found and len(found) > 1:
        raise DataError(f"{found[None][0].place}: no split, but other rows have one; give every row its split")
    return found


def _learning_set(path: Path, split: str, vocabulary: Vocabulary) -> SlateSet:
    if path.name.endswith((*TABLE_SUFFIXES, ".inter")):
        return _interactions(path, vocabulary)
    records, form = read_records(path)
    by_split = _by_split(records)
    chosen = by_split.get(split, by_split.get(None))
    if not chosen:
        has = ", ".join(str(name) for name in by_split)
        raise DataError(f"{path}: no rows of split {split} (it has {has}); give a file with {split} rows")
    return _encode(chosen, vocabulary, form, str(path))


def _encode(records: list[Record], vocabulary: Vocabulary, form: str, where: str) -> SlateSet:
    names = (name for record in records for name in (record.target, *record.history))
    is_id = form == "plain" and vocabulary.speaks_ids(names)
    known: dict[Any, int] = {}

    def number(name: Any) -> int:
        found = known.get(name)
        if found is None:
            found = known[name] = vocabulary.number(name, is_id=is_id)
        return found

    history = [[number(name) for name in record.history[-_LONGEST:]] for record in records]
    target_R = np.array([number(record.target) for record in records], dtype=np.int64)
    slates = [[number(name) for name in record.candidates or ()] for record in records]
    lacking = [not slate for slate in slates]
    if any(lacking) and not all(lacking):
        raise DataError(f"{records[lacking.index(True)].place}: no candidates, but other rows have them; add the slate")
    candidates_RC = _table(slates, left=False)
    epochs = [record.epoch for record in records]
    user_R = np.array([record.user for record in records])
    row_ids = [record.row_id for record in records]
    return _slate_set(
        where,
        _table(history, left=True),
        target_R,
        candidates_RC,
        row_id_R=np.array(row_ids if all(k is not None for k in row_ids) else range(len(records)), dtype=np.int64),
        time_R=np.array([record.time for record in records]),
        user_R=user_R,
        ordered=all(record.ordered for record in records),
        epoch_R=np.array(epochs, dtype=np.int64) if all(e is not None for e in epochs) else None,
    )


def _slate_set(
    where: str,
    history_RH: Int,
    target_R: Int,
    candidates_RC: Int,
    *,
    row_id_R: Int,
    time_R: Any,
    user_R: Any,
    ordered: bool = True,
    epoch_R: Int | None = None,
) -> SlateSet:
    users = bool(len(user_R)) and bool((user_R != "").all())
    group_R = np.unique(user_R, return_inverse=True)[1] if users else _runs(history_RH, target_R)
    position_R = np.full(len(target_R), NONE, dtype=np.int64)
    if candidates_RC.shape[1]:
        position_R = (candidates_RC == target_R[:, None]).argmax(axis=1).astype(np.int64)
    return SlateSet(
        where, history_RH, target_R, candidates_RC, position_R, np.asarray(group_R, dtype=np.int64), row_id_R,
        np.asarray(time_R, dtype=np.float64), user_R, users, ordered, epoch_R,
    )  # fmt: skip


def _runs(history_RH: Int, target_R: Int) -> Int:
    """Numbers of runs of rows in which each window is the one before it plus its target (one user's, most likely)."""
    n, width = history_RH.shape
    follows = np.zeros(n, dtype=bool)
    if n > 1 and width:
        follows[1:] = history_RH[1:, -1] == target_R[:-1]
        if width > 1:
            follows[1:] &= history_RH[1:, -2] == history_RH[:-1, -1]
    return np.asarray(np.cumsum(~follows) - 1, dtype=np.int64)


def _table(rows: Sequence[Sequence[int]], *, left: bool) -> Int:
    """int64[R, longest], padded with -1 on the left or right."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    table = np.full((len(rows), int(lengths.max(initial=0))), NONE, dtype=np.int64)
    inside = np.arange(table.shape[1])[None, :] < lengths[:, None]
    table[inside[:, ::-1] if left else inside] = np.array([item for row in rows for item in row], dtype=np.int64)
    return table


def _interactions(path: Path, vocabulary: Vocabulary) -> SlateSet:
    """Windows over a table of user_id, item_id, timestamp; rows of equal time keep the file's order."""
    needed = (USER_ID, ITEM_ID, TIMESTAMP)
    frame = read_table(require_file(path, "table of interactions"), wanted=needed).frame
    for name in needed:
        if name not in frame.columns:
            has = short_list([column for column in frame.columns if column != ROW])
            raise DataError(f"{path}: no column {name!r} (found {has}); give user_id, item_id, timestamp")
    frame = frame.with_columns(id_text(frame[USER_ID]), id_text(frame[ITEM_ID]))
    for name in needed:
        if (empty := frame[name].is_null()).any():
            raise DataError(f"{place(path, frame[ROW][int(empty.arg_true()[0])])}: empty {name}; fill it in")
    times, _ = to_seconds(frame, path, "auto")
    users = np.unique(frame[USER_ID].to_numpy().astype(str), return_inverse=True)[1]
    order = np.lexsort((np.arange(frame.height), times.to_numpy(), users))
    is_id = vocabulary.speaks_ids(frame[ITEM_ID].to_list())
    item_E = np.array([vocabulary.number(name, is_id=is_id) for name in frame[ITEM_ID].to_list()], dtype=np.int64)
    item_E, user_E = item_E[order], users[order].astype(np.int64)
    windows = sliding_windows(user_E, item_E, max_history=_WINDOW, min_history=0)
    rows = windows.position_R
    return _slate_set(
        str(path),
        _table(windows.history.to_list(), left=True),
        item_E[rows],
        np.empty((len(rows), 0), dtype=np.int64),
        row_id_R=rows,
        time_R=times.to_numpy()[order][rows],
        user_R=user_E[rows].astype(str),
    )


def _from_folder(dataset: Dataset, slates: str | None, ids: Path | None) -> AuditInput:
    names = [SlateName.parse(name) for name in dataset.slate_names]
    if not names:
        raise DataError(f"{dataset.path}: no slates in it; prepare it with some")
    if slates is None:
        sampled = [n for n in names if n.protocol != "full"]
        name = next((n for split in ("test", "val", "train") for n in sampled if n.split == split), names[0])
    elif slates in dataset.slate_names:
        name = SlateName.parse(slates)
    else:
        raise ConfigError(f"{dataset.path}: no slates {slates!r}; there are {', '.join(dataset.slate_names)}")
    learn = {}
    for split in SPLITS:
        if split == name.split or not dataset.examples(split).height or split == "test":
            continue
        same = [n for n in names if n.split == split and n.protocol == name.protocol and n.protocol != "full"]
        same.sort(key=lambda n: (n.exclusion_leaks != name.exclusion_leaks, n.size != name.size))
        learn[split] = _folder_set(dataset, split, same[0] if same else None)
    vocabulary = Vocabulary(dataset.items.select(ITEM_ID, TITLE))
    if name.protocol == "full":
        raise ConfigError(f"{dataset.path}: slates {name} are the whole catalogue in every row; choose others to audit")
    columns = read_id_columns(ids, vocabulary) if ids else {}
    others = [str(n) for n in names if n.split == name.split and n != name]
    notes = [f"other slates of this folder: {', '.join(others)} (choose with --slates)"] if others else []
    return AuditInput(
        _folder_set(dataset, name.split, name),
        learn,
        vocabulary.catalogue(columns),
        "folder",
        str(name),
        notes=notes,
    )


def _folder_set(dataset: Dataset, split: str, name: SlateName | None) -> SlateSet:
    examples = dataset.examples(split)
    slates = [[] for _ in range(examples.height)] if name is None else dataset.slates(name)[CANDIDATES].to_list()
    return _slate_set(
        f"{dataset.path} ({name or split})",
        _table(examples[HISTORY].to_list(), left=True),
        examples[TARGET].to_numpy().astype(np.int64),
        _table(slates, left=False),
        row_id_R=examples[ROW_ID].to_numpy(),
        time_R=examples[TIMESTAMP].cast(pl.Float64).fill_null(float("nan")).to_numpy(),
        user_R=examples[USER_ID].fill_null("").to_numpy().astype(str),
    )
