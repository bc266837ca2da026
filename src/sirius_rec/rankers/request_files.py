"""Where requests are read from: JSON lines, plain or gzip, Parquet, or a folder of such files; one stream of lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.lines import blocks
from sirius_rec.errors import DataError, first_line
from sirius_rec.progress import Advance

_ROWS = 1 << 16  # of a Parquet file, read at once
_PARQUET = ".parquet"


def request_lines(path: Path, advance: Advance | None = None) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and text of every line that is not blank. Bounded memory.

    A row of Parquet is the line that it would be, its empty fields left out. Files of a folder are read in the order of
    their paths, and their lines counted through.

    Raises:
        DataError: a file cannot be read or holds bytes, or a folder has no files.
    """
    before = 0
    for file in _files(path):
        number = 0
        for number, text in _rows(file, advance) if file.suffix == _PARQUET else _lines(file, advance):
            yield before + number, text
        before += number


def _files(path: Path) -> list[Path]:
    """The file, or those of a folder and the folders in it, as Spark writes partitions; as Spark has it, names that
    begin with a dot or an underscore are not meant."""
    if not path.is_dir():
        return [path]
    meant = (file for file in path.rglob("*") if not any(part[0] in "._" for part in file.relative_to(path).parts))
    files = sorted(file for file in meant if file.is_file())
    if not files:
        raise DataError(f"{path}: holds no files; put requests there, as JSON lines or Parquet")
    return files


def _lines(file: Path, advance: Advance | None) -> Iterator[tuple[int, bytes]]:
    for first, block in blocks(file, advance, size=1 << 20):
        for number, text in enumerate(block.split(b"\n"), first):
            if text.strip():
                yield number, text.strip()


def _rows(file: Path, advance: Advance | None) -> Iterator[tuple[int, bytes]]:
    try:
        scanned, size = pl.scan_parquet(file), file.stat().st_size
        for name, kind in scanned.collect_schema().items():
            if pl.Binary in (kind, getattr(kind, "inner", None)):
                raise DataError(f"{file}: column {name} holds bytes: write it as text")
        height = int(scanned.select(pl.len()).collect().item())
        for start in range(0, height, _ROWS):
            frame = scanned.slice(start, _ROWS).collect()
            for number, row in enumerate(frame.iter_rows(named=True), start + 1):
                yield number, _line(row)
            if advance:
                advance(file.name, size * (start + frame.height) // height, size)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: cannot be read ({first_line(error)})") from error


def _line(row: dict[str, Any]) -> bytes:
    there = {name: value for name, value in row.items() if value is not None}
    return json.dumps(there, ensure_ascii=False, default=str).encode()
