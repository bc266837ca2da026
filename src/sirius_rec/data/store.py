"""The dataset folder: written whole or not at all, checked when read. `schema` says what is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.fingerprint import combined_fingerprint, files_fingerprint, table_fingerprint
from sirius_rec.errors import DataError, RunError, first_line
from sirius_rec.schema import (
    CANDIDATES,
    EXCLUDED,
    HISTORY,
    ITEM,
    ROW_ID,
    SPLIT,
    SPLITS,
    TARGET,
    TITLE,
    USER_ID,
    SlateName,
)

FORMAT = 1
_FULL_CELLS = 400_000_000  # scores of full slates held at once: 1.6 GB per column
INFO_FILE = "dataset.json"
ITEMS_FILE = "items.parquet"
EXAMPLES_FILE = "examples.parquet"
ALL_TRAIN = "all_train"  # every train row, where a limit leaves language models fewer


@dataclass(frozen=True)
class Dataset:
    """An opened dataset folder; a table is read when first asked for, checked against its fingerprint, and kept.

    path: the folder. info: what dataset.json holds.
    """

    path: Path
    info: dict[str, Any]

    def __repr__(self) -> str:
        """One line: the folder, rows of each split, names of the slates."""
        rows, slates = self.info.get("statistics", {}).get("rows"), list(self.info.get("slates", {}))
        return f"Dataset(path={str(self.path)!r}, rows={rows}, slates={slates})"

    @cached_property
    def _kept(self) -> dict[str, pl.DataFrame]:
        return {}

    def _read_unchanged(self, name: str) -> pl.DataFrame:
        """A table from the disk, if it is still the one that dataset.json records."""
        frame = _read(self.path, name)
        self._check(name, lambda: table_fingerprint(frame))
        return frame

    def _check(self, name: str, fingerprint: Callable[[], str]) -> None:
        """Raise a `DataError` unless a table has the fingerprint that dataset.json records."""
        try:
            same = fingerprint() == self.info["fingerprints"].get(name)
        except (DataError, pl.exceptions.PolarsError, OSError):  # a type of column that none of our tables has, or cut
            same = False
        if not same:
            path = self.path / f"{name}.parquet"
            raise DataError(f"{path}: the content has changed since it was written; prepare the dataset again")

    @cached_property
    def items(self) -> pl.DataFrame:
        """item (int32, = row number), item_id, title."""
        items = self._read_unchanged("items")
        if not (items[ITEM] == pl.int_range(items.height, eager=True)).all() or items[TITLE].n_unique() < items.height:
            raise DataError(
                f"{self.path / ITEMS_FILE}: items are not numbered 0, 1, … with distinct titles; prepare it again"
            )
        return items

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return self.items.height

    @cached_property
    def titles(self) -> list[str]:
        """Titles by item number."""
        return self.items[TITLE].to_list()

    @cached_property
    def _split_examples(self) -> Callable[[str], pl.DataFrame]:
        """The rows of a split, of a table whose content is that which dataset.json records."""
        files = parts_of(self.path, "examples")
        if len(files) > 1:  # read split by split, so that a caller who needs few rows keeps few in memory
            self.verify_table("examples")
            return lambda split: pl.scan_parquet(files).filter(pl.col(SPLIT) == split).collect()
        examples = self._read_unchanged("examples")
        return {split: examples.filter(pl.col(SPLIT) == split) for split in SPLITS}.__getitem__

    def examples(self, split: str) -> pl.DataFrame:
        """row_id, user_id, history, target, timestamp, split of one split, in row order.

        Raises:
            DataError: no such split, or items that are not in the catalogue.
        """
        if split not in SPLITS:
            raise DataError(f"{self.path}: no split {split!r}; there are {', '.join(SPLITS)}")
        table = f"examples/{split}"
        if table not in self._kept:
            examples = self._split_examples(split)
            self.check_items(examples)
            self._kept[table] = examples
        return self._kept[table]

    def check_items(self, examples: pl.DataFrame) -> None:
        """Raise a `DataError` where histories or targets hold numbers of no item."""
        for column in (HISTORY, TARGET):
            flat = examples[column].explode().drop_nulls() if column == HISTORY else examples[column]
            if flat.len() and not 0 <= int(flat.min()) <= int(flat.max()) < self.n_items:  # type: ignore[arg-type]
                path = self.path / EXAMPLES_FILE
                raise DataError(f"{path}: {column} holds items outside 0 to {self.n_items - 1}; prepare it again")

    def n_rows(self, split: str) -> int:
        """How many rows a split has, without holding them."""
        rows = pl.scan_parquet(parts_of(self.path, "examples")).filter(pl.col(SPLIT) == split)
        return int(rows.select(pl.len()).collect().item())

    @property
    def slate_names(self) -> list[str]:
        """Names of the frozen sets of slates."""
        return list(self.info["slates"])

    def slates(self, name: str | SlateName) -> pl.DataFrame:
        """row_id, candidates (list[int32]) of a frozen set, in the order of `examples(split)`.

        Raises:
            DataError: no such set, the file has changed since it was written, or a row without its target, with an item
                twice, or with an unknown item.
        """
        name = str(name)
        if name not in self.info["slates"]:
            raise DataError(f"{self.path}: no slates {name!r}; there are {', '.join(self.slate_names) or 'none'}")
        table = f"slates/{name}"
        if table not in self._kept and SlateName.parse(name).protocol == "full":
            examples = self.examples(SlateName.parse(name).split)
            self._kept[table] = full_slates(examples, self._read_unchanged(table), self.n_items)
        if table not in self._kept:
            slates = self._read_unchanged(table)
            examples = self.examples(SlateName.parse(name).split)
            check_slates(f"{self.path / table}.parquet", slates, examples, self.n_items)
            ordered = examples.select(ROW_ID).join(slates, on=ROW_ID, how="left", maintain_order="left")
            self._kept[table] = ordered
        return self._kept[table]

    def titled(self, name: str | SlateName) -> Iterator[tuple[list[str], str, list[str]]]:
        """The rows of a frozen set in titles: history (oldest first), target, candidates in the order shown.

        Raises:
            DataError: as `slates`.
        """
        candidates, titles = self.slates(name)[CANDIDATES], self.titles
        examples = self.examples(SlateName.parse(str(name)).split)
        for history, target, slate in zip(examples[HISTORY], examples[TARGET], candidates, strict=True):
            yield [titles[item] for item in history], titles[target], [titles[item] for item in slate]

    def truth(self, name: str | SlateName) -> pl.DataFrame | None:
        """row_id, utility (list[float64], aligned with the candidates) for a simulated world, else None."""
        table = f"truth/{name}"
        if table not in self.info["fingerprints"]:
            return None
        if table not in self._kept:
            self._kept[table] = self._read_unchanged(table)
        return self._kept[table]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the content of items, examples, slates and truth."""
        return str(self.info["fingerprint"])

    def verify(self) -> None:
        """`verify_table` of all tables."""
        for name in self.info["fingerprints"]:
            self.verify_table(name)

    def all_train_examples(self) -> pl.DataFrame:
        """Every train row, also those that `limits` keeps from language models; columns as `examples`."""
        if ALL_TRAIN not in self.info["fingerprints"]:
            return self.examples("train")
        if ALL_TRAIN not in self._kept:
            self._kept[ALL_TRAIN] = self._read_unchanged(ALL_TRAIN)
        return self._kept[ALL_TRAIN]

    @property
    def n_all_train(self) -> int:
        """How many rows `all_train_examples` has."""
        if ALL_TRAIN not in self.info["fingerprints"]:
            return self.n_rows("train")
        return int(pl.scan_parquet(parts_of(self.path, ALL_TRAIN)).select(pl.len()).collect().item())

    def verify_table(self, name: str) -> None:
        """Raise a `DataError` unless a table on the disk has the fingerprint that dataset.json records.

        A column of a file, or of a part of a table in several files, is held at once.
        """
        self._check(name, lambda: files_fingerprint(parts_of(self.path, name)))

    def train_sequences(self, *, limited: bool = False) -> list[npt.NDArray[np.int32]]:
        """The distinct items of each train user's windows, oldest first; of each train row where there are no users.

        limited: of the rows that `limits` leaves alone, which language models train on.
        """
        return list(chain.from_iterable(map(_sequences, self._train_parts(limited))))

    def _train_parts(self, limited: bool) -> Iterator[pl.DataFrame]:
        """Train rows, each user's in one piece; of a table in several files one file at a time."""
        table = "examples" if limited or ALL_TRAIN not in self.info["fingerprints"] else ALL_TRAIN
        files = parts_of(self.path, table)
        if len(files) == 1:
            yield self.examples("train") if table == "examples" else self.all_train_examples()
            return
        if table == "examples":
            self._split_examples  # noqa: B018 (checks the files)
        else:
            self.verify_table(table)
        for file in files:
            yield pl.read_parquet(file).filter(pl.col(SPLIT) == "train")


def _sequences(train: pl.DataFrame) -> Iterator[npt.NDArray[np.int32]]:
    """The distinct items of each user's rows, in the order of their first ones."""
    rows = train.select(
        pl.coalesce("u" + pl.col(USER_ID), "r" + pl.col(ROW_ID).cast(pl.String)).alias("who"),
        pl.concat_list(HISTORY, TARGET).alias(ITEM),
    )
    pairs = rows.explode(ITEM).unique(keep="first", maintain_order=True)
    grouped = pairs.group_by("who", maintain_order=True).agg(ITEM)[ITEM]
    return (sequence.to_numpy() for sequence in grouped)


def open_dataset(path: Path | str) -> Dataset:
    """Open a dataset folder.

    Raises:
        DataError: it is no dataset folder, or its files are not what dataset.json says.
    """
    path = Path(path)
    info_path = path / INFO_FILE
    if not info_path.is_file():
        raise DataError(f"{path}: not a dataset folder (no {INFO_FILE}); make one with `sirius prepare`")
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
        version, tables = info["format"], info["fingerprints"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{info_path}: not the description of a dataset ({error}); prepare it again") from error
    if version != FORMAT:
        raise DataError(f"{info_path}: format {version}, this version reads {FORMAT}; prepare the dataset again")
    if combined_fingerprint(info["fingerprints"]) != info.get("fingerprint"):
        raise DataError(f"{info_path}: its fingerprint is not that of the tables it lists; prepare the dataset again")
    for name in tables:
        if not parts_of(path, name):
            raise DataError(f"{path / name}.parquet: missing; prepare the dataset again")
    return Dataset(path, info)


def full_slates(examples: pl.DataFrame, excluded: pl.DataFrame, n_items: int) -> pl.DataFrame:
    """row_id, candidates: every item that a row does not exclude, in the catalogue's order.

    excluded: row_id, excluded (list of items) of the same rows.

    Raises:
        DataError: the table would not fit into memory, or a row excludes nothing known, its target, or an unknown item.
    """
    cells = examples.height * n_items
    if cells > _FULL_CELLS:
        raise DataError(
            f"full slates: {examples.height:,} rows of {n_items:,} items are more than {_FULL_CELLS:,} scores; set "
            "limits for the split"
        )
    rows = examples.select(ROW_ID, TARGET).join(excluded, on=ROW_ID, how="left", maintain_order="left")
    faulty = rows.filter(
        pl.col(EXCLUDED).is_null()
        | pl.col(EXCLUDED).list.contains(pl.col(TARGET))
        | (pl.col(EXCLUDED).list.max() >= n_items)
        | (pl.col(EXCLUDED).list.min() < 0)
    )
    if faulty.height:
        raise DataError(f"full slates: row {faulty[ROW_ID][0]} excludes its target, or unknown items; prepare it again")
    left = np.ones((rows.height, n_items), dtype=bool)
    lengths = rows[EXCLUDED].list.len().to_numpy()
    left[np.repeat(np.arange(rows.height), lengths), rows[EXCLUDED].explode().drop_nulls().to_numpy()] = False
    row, item = np.nonzero(left)
    starts = np.searchsorted(row, np.arange(rows.height + 1)).tolist()
    lists = [item[start:stop].tolist() for start, stop in pairwise(starts)]
    return rows.select(ROW_ID, pl.Series(CANDIDATES, lists, dtype=pl.List(pl.Int32)))


def check_slates(where: str, slates: pl.DataFrame, examples: pl.DataFrame, n_items: int) -> None:
    """Raise a `DataError` naming the first row without a proper slate: unknown or repeated items, or no target."""
    if slates[ROW_ID].n_unique() < slates.height:
        row = slates.filter(pl.col(ROW_ID).is_duplicated())[ROW_ID][0]
        raise DataError(f"{where}: row {row} has two slates; prepare the dataset again")
    if examples[ROW_ID].equals(slates[ROW_ID]):  # the usual case, in which nothing needs to be copied
        # rechunked, because older polars compares lists to items wrongly where the chunks of the two differ
        rows = examples.select(ROW_ID, TARGET, slates[CANDIDATES]).rechunk()
    else:
        rows = examples.select(ROW_ID, TARGET).join(slates, on=ROW_ID, how="full", coalesce=True)
    for column, fault in ((CANDIDATES, "has no slate"), (TARGET, "has a slate but is not among the examples")):
        if (lone := rows.filter(pl.col(column).is_null())).height:
            raise DataError(
                f"{where}: row {lone[ROW_ID][0]} {fault} ({lone.height} such rows); prepare the dataset again"
            )
    lists = pl.col(CANDIDATES).list
    faults = {
        f"holds an item outside 0 to {n_items - 1}": (lists.min() < 0) | (lists.max() >= n_items),
        "holds an item twice": lists.n_unique() < lists.len(),
        "does not hold its target": ~lists.contains(pl.col(TARGET)),
        "has another size than the rest": lists.len() != rows.select(lists.len().first()).item(),
    }
    for fault, condition in faults.items():
        for part in rows.iter_slices(1 << 19):  # what the conditions need on the way is a multiple of the slates
            if (bad := part.filter(condition)).height:
                row, target, slate = bad.select(ROW_ID, TARGET, CANDIDATES).row(0)
                raise DataError(
                    f"{where}: the slate of row {row} {fault} (target {target}, slate {slate}); fix the file"
                )


def write_dataset(path: Path, tables: Mapping[str, pl.DataFrame], info: Mapping[str, Any]) -> Dataset:
    """Write tables (name without .parquet → frame) and dataset.json, then give the folder its name in one step.

    `fingerprints` (per table) and `fingerprint` (of all) are added to `info`.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    fingerprints = {name: table_fingerprint(frame) for name, frame in tables.items()}
    try:
        with atomic.replacing(path) as partial:
            partial.mkdir()
            for name, frame in tables.items():
                file = partial / f"{name}.parquet"
                file.parent.mkdir(exist_ok=True)
                write_table(frame, file)
            full = write_info(partial, info, fingerprints)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    return Dataset(path, full)


def write_table(frame: pl.DataFrame, file: Path) -> None:
    """As Parquet, packed at the level at which slates take a third of the time and no more room."""
    frame.write_parquet(file, compression="zstd", compression_level=1)


def write_info(folder: Path, info: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Write dataset.json beside the tables of these fingerprints; returns what it holds."""
    full = {
        "format": FORMAT,
        **info,
        "fingerprints": dict(fingerprints),
        "fingerprint": combined_fingerprint(fingerprints),
    }
    text = json.dumps(full, indent=2, ensure_ascii=False)
    (folder / INFO_FILE).write_text(text + "\n", encoding="utf-8")
    return dict(json.loads(text))


def give_name(folder: Path, path: Path) -> None:
    """Move a finished dataset folder to its place on the same disk, in one step; a `RunError` if something is there."""
    try:
        os.replace(folder, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def parts_of(folder: Path, name: str) -> list[Path]:
    """The Parquet files of a table, in order: `NAME.parquet`, or the files in a folder of that name; none if absent."""
    path = folder / f"{name}.parquet"
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


def _read(folder: Path, name: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(parts_of(folder, name) or folder / f"{name}.parquet")
    except (pl.exceptions.PolarsError, OSError) as error:
        path = folder / f"{name}.parquet"
        raise DataError(f"{path}: cannot be read ({first_line(error)}); prepare the dataset again") from error
