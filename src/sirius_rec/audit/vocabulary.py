"""Names of items in files of several makers → one numbering, and numeric id columns beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from sirius_rec.audit.slates import Catalogue, Floats, Int
from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.files import id_text, place, read_table, require_file, short_list
from sirius_rec.errors import DataError
from sirius_rec.schema import ITEM_ID, TITLE

CATEGORY = "category"
_CATEGORIES = (CATEGORY, "categories", "genre", "genres")  # columns of an items table that are taken for categories
_SAMPLE = 2000


class Vocabulary:
    """Numbers items as they come. An items table, where there is one, ties ids and titles together."""

    def __init__(self, items: pl.DataFrame | None = None) -> None:
        self.ids: list[str | None] = []
        self.titles: list[str] = []
        self.by_id: dict[str, int] = {}
        self.by_title: dict[str, int] = {}
        self.known = 0
        self.categories: list[str | None] | None = None
        if items is not None:
            for item_id, title in items.select(ITEM_ID, TITLE).iter_rows():
                self._add(item_id, title)
            self.known = len(self.titles)
            if CATEGORY in items.columns:
                self.categories = items[CATEGORY].to_list()

    def _add(self, item_id: str | None, title: str) -> int:
        number = len(self.titles)
        self.ids.append(item_id)
        self.titles.append(title)
        if item_id is not None:
            self.by_id.setdefault(item_id, number)
        self.by_title.setdefault(title, number)
        return number

    def speaks_ids(self, names: Iterable[object]) -> bool:
        """Whether a file's names are ids rather than titles: numbers, or text that the items table knows as ids."""
        sample = [name for name, _ in zip(names, range(_SAMPLE), strict=False)]
        if any(isinstance(name, int) for name in sample):
            return True
        texts = {str(name) for name in sample}
        as_ids, as_titles = sum(t in self.by_id for t in texts), sum(t in self.by_title for t in texts)
        return as_ids > as_titles if as_ids or as_titles else all(t.isdigit() for t in texts)

    def number(self, name: object, *, is_id: bool) -> int:
        """The item's number; an unknown name becomes a new item."""
        text = str(name)
        if is_id:
            found = self.by_id.get(text)
            return self._add(text, text) if found is None else found
        found = self.by_title.get(text)
        return self._add(None, text) if found is None else found

    def catalogue(self, columns: dict[str, Floats] | None = None) -> Catalogue:
        """Titles, the raw ids where enough of them are numbers, and further id columns."""
        named: dict[str, Floats] = {}
        raw = np.array([_as_number(i) for i in self.ids], dtype=np.float64)
        if np.isfinite(raw).mean() > 0.5:
            named[ITEM_ID] = raw
        for name, values in (columns or {}).items():
            padded = np.full(len(self.titles), np.nan)
            padded[: len(values)] = values
            if ITEM_ID in named and np.array_equal(padded, named[ITEM_ID], equal_nan=True):
                continue
            named[name] = padded
        return Catalogue(list(self.titles), named, range(self.known), self._category_codes())

    def _category_codes(self) -> Int | None:
        if self.categories is None:
            return None
        number = {name: k for k, name in enumerate(sorted({c for c in self.categories if c is not None}))}
        codes = np.full(len(self.titles), -1, dtype=np.int64)
        codes[: self.known] = [-1 if name is None else number[name] for name in self.categories]
        return codes


def _as_number(text: str | None) -> float:
    """The number that an id is, or ends on (`nm0001234`, `B-17`); NaN otherwise."""
    if text is None:
        return np.nan
    digits = text[len(text.rstrip("0123456789")) :]
    return float(digits) if digits else np.nan


def _read(path: Path) -> pl.DataFrame:
    """A table of items as `prepare` reads it, ids and titles as text."""
    frame = read_table(require_file(path, "file"), wanted=(ITEM_ID, TITLE)).frame
    return frame.with_columns(id_text(frame[name]) for name in (ITEM_ID, TITLE) if name in frame.columns)


def _names(frame: pl.DataFrame) -> str:
    return short_list([name for name in frame.columns if name != ROW])


def read_items(path: Path) -> pl.DataFrame:
    """item_id, title of an items table, and category where it has one; rows without a title keep their id as title.

    Of a column of several categories (`Comedy|Drama`) the first counts.
    """
    frame = _read(path)
    missing = [name for name in (ITEM_ID, TITLE) if name not in frame.columns]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r} (found {_names(frame)}); an items file needs both")
    if (empty := frame[ITEM_ID].is_null()).any():
        raise DataError(f"{place(path, frame[ROW][int(empty.arg_true()[0])])}: empty item_id; fill it in")
    columns = [pl.col(ITEM_ID), pl.coalesce(pl.col(TITLE).str.strip_chars(), ITEM_ID)]
    if named := next((name for name in _CATEGORIES if name in frame.columns), None):
        columns.append(pl.col(named).str.split("|").list.first().str.strip_chars().alias(CATEGORY))
    return frame.select(columns)


def read_id_columns(path: Path, vocabulary: Vocabulary) -> dict[str, Floats]:
    """Every numeric column of a CSV keyed by item_id or title → float64 by item number, NaN where an item is missing.

    Raises:
        DataError: no key column, no numeric column, or no row that belongs to an item.
    """
    frame = _read(path)
    keys = [name for name in (ITEM_ID, TITLE) if name in frame.columns]
    if not keys:
        raise DataError(f"{path}: no column item_id or title (found {_names(frame)}); name the key column so")
    index: Sequence[int | None] = []
    key = keys[0]
    for key in keys:
        known = vocabulary.by_id if key == ITEM_ID else vocabulary.by_title
        index = [known.get(name) if name is not None else None for name in frame[key].to_list()]
        if any(number is not None for number in index):
            break
    rows = np.array([k for k, number in enumerate(index) if number is not None], dtype=np.int64)
    if not rows.size:
        raise DataError(
            f"{path}: no {key} belongs to an item of the slates; where slates hold titles, also give --items items.csv"
        )
    numbers = np.array([number for number in index if number is not None], dtype=np.int64)
    found: dict[str, Floats] = {}
    for name in frame.columns:
        values = frame[name].cast(pl.Float64, strict=False).to_numpy()
        if name in (key, ROW) or not np.isfinite(values[rows]).any():
            continue
        column = np.full(len(vocabulary.titles), np.nan)
        column[numbers] = values[rows]
        found[name] = column
    if not found:
        raise DataError(f"{path}: no column of numbers beside {key} (found {_names(frame)}); add one")
    return found
