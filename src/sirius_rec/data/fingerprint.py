"""SHA-256 over logical content: the same rows give the same fingerprint on any machine and with any file layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from sirius_rec.errors import DataError

_PART = 1 << 20


def table_fingerprint(frame: pl.DataFrame) -> str:
    """Hex SHA-256 over column names, types, and values in row order (little-endian 64-bit numbers, UTF-8 text)."""
    digest = hashlib.sha256(f"rows {frame.height}".encode())
    for column in frame.iter_columns():
        digest.update(f"\ncolumn {column.name} ".encode())
        _update(digest, column)
    return digest.hexdigest()


def combined_fingerprint(parts: Mapping[str, str]) -> str:
    """Hex SHA-256 over named fingerprints, whatever their order.

    >>> combined_fingerprint({"a": "1", "b": "2"}) == combined_fingerprint({"b": "2", "a": "1"})
    True
    """
    return hashlib.sha256("\n".join(f"{name} {parts[name]}" for name in sorted(parts)).encode()).hexdigest()


def _update(digest: hashlib._Hash, column: pl.Series) -> None:
    missing = column.is_null().to_numpy()
    digest.update(np.packbits(missing).tobytes())
    if isinstance(column.dtype, pl.List):
        digest.update(b"list ")
        _little(digest, column.list.len().fill_null(0), "<i8")
        _update(digest, column.explode().drop_nulls())
    elif column.dtype == pl.String:
        digest.update(b"text ")
        text = column.fill_null("")
        _little(digest, text.str.len_bytes(), "<i8")
        for part in _slices(text):
            digest.update(part.str.join("").item().encode())
    elif column.dtype.is_integer():
        digest.update(b"int ")
        _little(digest, column.fill_null(0), "<i8")
    elif column.dtype.is_float():
        digest.update(b"float ")
        _little(digest, column.fill_null(0.0), "<f8")
    else:
        raise DataError(
            f"column {column.name!r} has type {column.dtype}; text, integers, floats and lists are expected"
        )


def _slices(column: pl.Series) -> Iterator[pl.Series]:
    """Slate columns hold a hundred million entries: turned into bytes part by part, they need no second copy."""
    for start in range(0, column.len(), _PART):
        yield column.slice(start, _PART)


def _little(digest: hashlib._Hash, column: pl.Series, dtype: str) -> None:
    for part in _slices(column):
        digest.update(part.to_numpy().astype(dtype).tobytes())
