"""SHA-256 over logical content: the same rows give the same fingerprint on any machine and with any file layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sirius_rec.errors import DataError

if TYPE_CHECKING:
    from hashlib import _Hash

_PART = 1 << 20
# A column as its parts in order, which can be gone through again and again.
_Parts = Callable[[], Iterator[pl.Series]]


def table_fingerprint(frame: pl.DataFrame) -> str:
    """Hex SHA-256 over column names, types, and values in row order (little-endian 64-bit numbers, UTF-8 text)."""
    # turned into bytes part by part, columns of a hundred million entries need no second copy
    return _fingerprint(frame.schema, frame.height, lambda name: _slices(frame[name]))


def files_fingerprint(files: Iterable[Path]) -> str:
    """The same of a table in Parquet files, one behind the other; of these one column of two files is held at once."""
    files = list(files)
    schema = pl.read_parquet_schema(files[0])
    heights = [pl.scan_parquet(file).select(pl.len()).collect().item() for file in files]
    return _fingerprint(schema, sum(heights), lambda name: _read_ahead(files, name))


def combined_fingerprint(parts: Mapping[str, str]) -> str:
    """Hex SHA-256 over named fingerprints, whatever their order.

    >>> combined_fingerprint({"a": "1", "b": "2"}) == combined_fingerprint({"b": "2", "a": "1"})
    True
    """
    return hashlib.sha256("\n".join(f"{name} {parts[name]}" for name in sorted(parts)).encode()).hexdigest()


def _fingerprint(schema: Mapping[str, pl.DataType], height: int, column: Callable[[str], Iterator[pl.Series]]) -> str:
    digest = hashlib.sha256(f"rows {height}".encode())
    for name, dtype in schema.items():
        digest.update(f"\ncolumn {name} ".encode())
        digest = _with_column(digest, name, dtype, height, lambda name=name: column(name))  # type: ignore[misc]
    return digest.hexdigest()


def _with_column(digest: _Hash, name: str, dtype: pl.DataType, height: int, column: _Parts) -> _Hash:
    """The digest, and a column. Values are behind what says which are missing and how long lists are, so that a column
    is gone through several times, unless what nearly all columns are like is guessed rightly."""
    guessed = _guessed(digest.copy(), dtype, height, column)
    if guessed is not None:
        return guessed
    _update_missing(digest, column)
    if isinstance(dtype, pl.List):
        digest.update(b"list ")
        size = 0
        for part in column():
            lengths = part.list.len().fill_null(0)
            _little(digest, lengths, "<i8")
            size += int(lengths.sum())
        inner: pl.DataType = dtype.inner  # type: ignore[assignment]
        return _with_column(digest, name, inner, size, lambda: (part.explode().drop_nulls() for part in column()))
    if dtype == pl.String:
        digest.update(b"text ")
        for part in column():
            _little(digest, part.fill_null("").str.len_bytes(), "<i8")
        for part in column():
            digest.update(part.fill_null("").str.join("").item().encode())
    elif dtype.is_integer() or dtype.is_float():
        digest.update(_KINDS[dtype.is_integer()][0])
        for part in column():
            _little(digest, part.fill_null(0), _KINDS[dtype.is_integer()][1])
    else:
        raise DataError(f"column {name!r} has type {dtype}; text, integers, floats and lists are expected")
    return digest


_KINDS = {True: (b"int ", "<i8"), False: (b"float ", "<f8")}


def _guessed(digest: _Hash, dtype: pl.DataType, height: int, column: _Parts) -> _Hash | None:
    """The digest and a column of numbers, or of lists of them that are equally long, if nothing is missing."""
    length = None
    if isinstance(dtype, pl.List):
        first = next((part for part in column() if part.len()), None)
        length = 0 if first is None else first.list.len()[0]
        if not length:
            return None
        digest.update(bytes(-(-height // 8)) + b"list ")
        for start in range(0, height, _PART):
            digest.update(np.full(min(_PART, height - start), length, "<i8").data)
        dtype, height = dtype.inner, height * length  # type: ignore[assignment]
    if not (dtype.is_integer() or dtype.is_float()):
        return None
    kind, stored = _KINDS[dtype.is_integer()]
    digest.update(bytes(-(-height // 8)) + kind)
    values = 0
    for part in column():
        if part.null_count():
            return None
        if length is not None:
            if (part.list.len() != length).any():
                return None
            part = part.explode()
            if part.null_count():
                return None
        _little(digest, part, stored)
        values += part.len()
    return digest if values == height else None  # fewer where lists hold nothing in places


def _update_missing(digest: _Hash, column: _Parts) -> None:
    """One bit per value, eight to a byte across the parts."""
    rest = np.empty(0, dtype=bool)
    for part in column():
        missing = np.concatenate([rest, part.is_null().to_numpy()])
        whole = missing.size & ~7
        digest.update(np.packbits(missing[:whole]).data)
        rest = missing[whole:]
    digest.update(np.packbits(rest).data)


def _slices(column: pl.Series) -> Iterator[pl.Series]:
    for start in range(0, column.len(), _PART):
        yield column.slice(start, _PART)


def _read_ahead(files: list[Path], name: str) -> Iterator[pl.Series]:
    """A column file by file; the next one is read while the last one is used."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_read, files[0], name)
        for following in [*files[1:], None]:
            column = coming.result()
            if following is not None:
                coming = reader.submit(_read, following, name)
            yield from _slices(column)


def _read(file: Path, name: str) -> pl.Series:
    return pl.read_parquet(file, columns=[name])[name]


def _little(digest: _Hash, column: pl.Series, dtype: str) -> None:
    digest.update(column.to_numpy().astype(dtype).data)
