"""Train rows and their slates as flat arrays in files: any row is read at once, and none has to be held."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic, cache
from sirius_rec.data.store import Dataset, check_slates, parts_of
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, HISTORY, ROW_ID, SPLIT, TARGET, USER_ID, SlateName

_BLOCK = 1 << 18  # rows read at once
_ABOUT = "rows.json"

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class MappedRows:
    """R rows of frozen slates of C candidates, in the order of the table.

    history_V: items of all histories, one behind the other; end_R: where each ends. target_R. candidates_RC: in the
    order of the slate, the target among them.
    """

    folder: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / _ABOUT).read_text(encoding="utf-8")))

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process by its place, not by its content."""
        return MappedRows, (self.folder,)

    def __len__(self) -> int:
        return int(self.about["rows"])

    @cached_property
    def history_V(self) -> Ints:
        return self._array("history", np.int32, (self.about["history_items"],))

    @cached_property
    def end_R(self) -> Ints:
        return self._array("end", np.int64, (len(self),))

    @cached_property
    def target_R(self) -> Ints:
        return self._array("target", np.int32, (len(self),))

    @cached_property
    def candidates_RC(self) -> Ints:
        return self._array("candidates", np.int32, (len(self), self.about["size"]))

    def _array(self, name: str, dtype: type, shape: tuple[int, ...]) -> Ints:
        # An empty file cannot be mapped.
        return np.memmap(self.folder / name, dtype, "r", shape=shape) if np.prod(shape) else np.zeros(shape, dtype)

    def history(self, row: int) -> Ints:
        """Items of a row's history, oldest first."""
        return self.history_V[self.end_R[row - 1] if row else 0 : self.end_R[row]]

    def lengths(
        self, tokens_I: Ints, longest_I: Ints, *, shows_slate: bool
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """About how many tokens each row's prompt takes with its longest candidate, but for what all have in common:
        block by block, with the number of its first row.

        tokens_I: of each item in a prompt. longest_I: of each item as a completion.
        """
        for start in range(0, len(self), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(self)))
            first = int(self.end_R[start - 1]) if start else 0
            ends = self.end_R[rows].astype(np.int64) - first
            before = np.r_[0, tokens_I[self.history_V[first : first + ends[-1]]].cumsum()]
            candidates = self.candidates_RC[rows]
            found = np.diff(before[np.r_[0, ends]]) + longest_I[candidates].max(axis=1)
            if shows_slate:
                found += tokens_I[candidates].sum(axis=1)
            yield start, found


def mapped_rows(dataset: Dataset, name: SlateName, folder: Path) -> MappedRows:
    """The rows of frozen slates, written into `folder` unless they lie there already.

    Tables are read block by block and checked as `Dataset` checks them. DataError where the slates are no longer those
    of the dataset, or stand in another order than the rows.
    """
    table, fingerprints = f"slates/{name}", dataset.info["fingerprints"]
    of = {"examples": fingerprints["examples"], "slates": fingerprints.get(table)}
    if _holds(folder, of):
        return MappedRows(folder)
    dataset.verify_table("examples")
    dataset.verify_table(table)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with cache.one_at_a_time(folder):
        if not _holds(folder, of):  # another process or job may have been first
            shutil.rmtree(folder, ignore_errors=True)
            with atomic.replacing(folder) as partial:
                partial.mkdir()
                _write(partial, dataset, name, of)
    return MappedRows(folder)


def _holds(folder: Path, of: dict[str, Any]) -> bool:
    """Whether the arrays of these tables lie there whole."""
    file = folder / _ABOUT
    return file.is_file() and {key: MappedRows(folder).about[key] for key in of} == of


def _write(folder: Path, dataset: Dataset, name: SlateName, of: dict[str, Any]) -> None:
    examples = _blocks(dataset, "examples", name.split)
    slates = _blocks(dataset, f"slates/{name}", None)
    n_rows, n_items, size, rest = 0, 0, None, pl.DataFrame()
    with (
        (folder / "history").open("wb") as history,
        (folder / "end").open("wb") as end,
        (folder / "target").open("wb") as target,
        (folder / "candidates").open("wb") as candidates,
    ):
        for block in examples:
            while rest.height < block.height and (more := next(slates, None)) is not None:
                rest = pl.concat([rest, more], how="vertical") if rest.height else more
            own, rest = rest.head(block.height), rest.slice(block.height)
            if own.height < block.height or not own[ROW_ID].equals(block[ROW_ID]):
                raise DataError(f"{dataset.path}: the slates {name} are not in the order of the rows; prepare it again")
            dataset.check_items(block)
            check_slates(f"{dataset.path / 'slates' / str(name)}.parquet", own, block, dataset.n_items)
            lengths = block[HISTORY].list.len().to_numpy().astype(np.int64)
            slate = own[CANDIDATES].explode().to_numpy().astype(np.int32).reshape(block.height, -1)
            if size not in (None, slate.shape[1]):
                raise DataError(f"{dataset.path}: the slates {name} are not of one size; prepare it again")
            size = slate.shape[1]
            history.write(block[HISTORY].explode().drop_nulls().to_numpy().astype(np.int32).data)
            end.write((n_items + lengths.cumsum()).data)
            target.write(block[TARGET].to_numpy().astype(np.int32).data)
            candidates.write(slate.data)
            n_rows, n_items = n_rows + block.height, n_items + int(lengths.sum())
    if rest.height or next(slates, None) is not None:
        raise DataError(f"{dataset.path}: there are more slates {name} than rows; prepare it again")
    about = {**of, "rows": n_rows, "history_items": n_items, "size": size or 0}
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _blocks(dataset: Dataset, table: str, split: str | None) -> Iterator[pl.DataFrame]:
    """A table's rows in order, of one split or all; no block is empty."""
    files: Sequence[Path] = parts_of(dataset.path, table)
    for file in files:
        height = pl.scan_parquet(file).select(pl.len()).collect().item()
        for start in range(0, height, _BLOCK):
            block = pl.scan_parquet(file).slice(start, _BLOCK)
            if split is not None:
                block = block.filter(pl.col(SPLIT) == split).drop(USER_ID)
            if (found := block.collect()).height:
                yield found
