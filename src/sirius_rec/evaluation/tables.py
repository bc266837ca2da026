"""Score tables: what one method at one seed and checkpoint gave every candidate of every slate.

One Parquet file per table, `scores/<method>-s<seed>-<slates>-<checkpoint>.parquet`, with columns row_id (int64),
candidates (list[int32], order as shown) and scores (list[float32 or float64], aligned, larger ranks higher). Method,
label, seed, slates and checkpoint also stand inside the file, so a renamed file is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.errors import DataError, RunError, first_line
from sirius_rec.schema import CANDIDATES, ROW_ID

SCORES: Final = "scores"
_KEY: Final = "sirius_rec"
_WORD: Final = re.compile(r"[A-Za-z0-9_.]+")
_SLATES: Final = re.compile(r"[A-Za-z0-9_.-]+")
# method and checkpoint hold no dash, so the first and last dashes of the name are unambiguous
_NAME: Final = re.compile(r"([A-Za-z0-9_.]+)-s(\d+)-([A-Za-z0-9_.-]+)-([A-Za-z0-9_.]+)\.parquet")


def table_name(method: str, seed: int, slates: str, checkpoint: str) -> str:
    """File name of a table. Raises DataError when a part would make the name ambiguous.

    >>> table_name("dpo_sirius", 1, "test-uniform-20-s0", "last")
    'dpo_sirius-s1-test-uniform-20-s0-last.parquet'
    """
    for what, text, pattern in (
        ("method", method, _WORD),
        ("checkpoint", checkpoint, _WORD),
        ("slates", slates, _SLATES),
    ):
        if not pattern.fullmatch(text):
            allowed = "letters, digits, _ and ." + (" and -" if pattern is _SLATES else "")
            raise DataError(f"score table: {what} {text!r}; use {allowed} only")
    if seed < 0:
        raise DataError(f"score table: seed {seed}; give a seed >= 0")
    return f"{method}-s{seed}-{slates}-{checkpoint}.parquet"


def parse_name(name: str) -> tuple[str, int, str, str]:
    """Inverse of `table_name`: (method, seed, slates, checkpoint).

    >>> parse_name("dpo_sirius-s1-test-uniform-20-s0-last.parquet")
    ('dpo_sirius', 1, 'test-uniform-20-s0', 'last')
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise DataError(f"score table: file name {name!r}; expected <method>-s<seed>-<slates>-<checkpoint>.parquet")
    method, seed, slates, checkpoint = match.groups()
    return method, int(seed), slates, checkpoint


def _is_list_of(dtype: pl.DataType, integer: bool) -> bool:
    if not isinstance(dtype, pl.List):
        return False
    inner = dtype.inner
    return inner in (pl.Float32, pl.Float64) if not integer else bool(inner.is_integer())


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one method. Raises DataError on construction when the frame is not a score table.

    facts: of a method that its run does not know: `random`, `language_model`, `probabilities`. training: what tells
    the training that made them from another; None where nobody knows.
    """

    method: str
    label: str
    seed: int
    slates: str
    checkpoint: str
    frame: pl.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)
    training: str | None = None

    def __post_init__(self) -> None:
        name, schema = self.name, self.frame.schema
        for column, good, wanted in (
            (ROW_ID, lambda dtype: dtype.is_integer(), "an integer"),
            (CANDIDATES, lambda dtype: _is_list_of(dtype, True), "a list of integers"),
            (SCORES, lambda dtype: _is_list_of(dtype, False), "a list of floats"),
        ):
            if column not in schema:
                raise DataError(f"{name}: column {column!r} is missing; found {', '.join(schema) or 'no columns'}")
            if not good(schema[column]):
                raise DataError(f"{name}: column {column!r} is {schema[column]}; it must be {wanted} per row")
            if self.frame[column].null_count():
                row = self.frame[column].is_null().arg_true()[0]
                raise DataError(f"{name}: column {column!r} is null in row {row}; score every row")
        if self.frame.is_empty():
            raise DataError(f"{name}: no rows; score at least one slate")
        uneven = self.frame.filter(pl.col(CANDIDATES).list.len() != pl.col(SCORES).list.len())
        if not uneven.is_empty():
            row = uneven.row(0, named=True)
            raise DataError(
                f"{name}: row_id {row[ROW_ID]} has {len(row[CANDIDATES])} candidates and {len(row[SCORES])} scores"
            )
        twice = self.frame[ROW_ID].is_duplicated()
        if twice.any():
            raise DataError(f"{name}: row_id {self.frame[ROW_ID].filter(twice)[0]} is duplicated")

    @property
    def name(self) -> str:
        """File name, `<method>-s<seed>-<slates>-<checkpoint>.parquet`."""
        return table_name(self.method, self.seed, self.slates, self.checkpoint)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """(method, seed, slates, checkpoint); unique within a run."""
        return self.method, self.seed, self.slates, self.checkpoint


def user_groups(users: pl.Series) -> npt.NDArray[np.int64]:
    """A number for each row: one for all rows of a user, in the order of their ids; its own for a row without a user.

    >>> user_groups(pl.Series(["b", None, "a", "b", None])).tolist()
    [2, 3, 1, 2, 4]
    """
    codes = users.cast(pl.String).rank("dense").fill_null(0).to_numpy().astype(np.int64)
    alone = np.flatnonzero(codes == 0)
    codes[alone] = codes.max(initial=0) + 1 + np.arange(len(alone))
    return codes


def write_table(table: ScoreTable, folder: Path | str) -> Path:
    """Write the table into `folder` (made when absent), atomically; returns the file's path."""
    path = Path(folder) / table.name
    about = {"method": table.method, "label": table.label, "seed": table.seed, "slates": table.slates}
    about |= {"checkpoint": table.checkpoint, **({"facts": dict(table.facts)} if table.facts else {})}
    about |= {} if table.training is None else {"training": table.training}
    with atomic.replacing(path) as partial:
        table.frame.write_parquet(partial, metadata={_KEY: json.dumps(about, sort_keys=True)})
    return path


def read_table(path: Path | str) -> ScoreTable:
    """Read one table. Raises RunError when the file is missing, unreadable, or not the table its name says."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path}: no such score table; run `sirius evaluate` first")
    parsed = parse_name(path.name)
    try:
        about = _about(path)
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _torn(path, error) from error
    if about is None:
        raise RunError(
            f"{path}: not a score table of sirius-rec (its metadata is missing); delete it and evaluate again"
        )
    inside = (about["method"], about["seed"], about["slates"], about["checkpoint"])
    if inside != parsed:
        raise RunError(f"{path}: the file holds {table_name(*inside)}; give it back its name")
    method, seed, slates, checkpoint = parsed
    return ScoreTable(
        method, about["label"], seed, slates, checkpoint, frame, about.get("facts", {}), about.get("training")
    )


def rows_and_training(path: Path) -> tuple[list[int], str | None]:
    """The row_id and `ScoreTable.training` of a table, without its scores. RunError as `read_table`."""
    try:
        return pl.read_parquet(path, columns=[ROW_ID])[ROW_ID].to_list(), (_about(path) or {}).get("training")
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _torn(path, error) from error


def _torn(path: Path, error: Exception) -> RunError:
    return RunError(f"{path}: not a readable Parquet file ({first_line(error)}); delete it and evaluate again")


def _about(path: Path) -> dict[str, Any] | None:
    return json.loads(pl.read_parquet_metadata(path).get(_KEY, "null"))  # type: ignore[no-any-return]


def read_tables(folder: Path | str) -> list[ScoreTable]:
    """Every table of a folder, in the order of their names. Raises RunError when there is none."""
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise RunError(f"{folder}: no score tables; run `sirius evaluate` first")
    return [read_table(path) for path in paths]
