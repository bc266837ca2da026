"""SHA-256 over logical content: the same rows give the same fingerprint on any machine and with any file layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import polars as pl

from sirius_rec.errors import DataError


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
        digest.update(_little(column.list.len().fill_null(0), "<i8"))
        _update(digest, column.explode().drop_nulls())
    elif column.dtype == pl.String:
        digest.update(b"text ")
        text = column.fill_null("")
        digest.update(_little(text.str.len_bytes(), "<i8"))
        digest.update((text.str.join("").item() if text.len() else "").encode())
    elif column.dtype.is_integer():
        digest.update(b"int ")
        digest.update(_little(column.fill_null(0), "<i8"))
    elif column.dtype.is_float():
        digest.update(b"float ")
        digest.update(_little(column.fill_null(0.0), "<f8"))
    else:
        raise DataError(
            f"column {column.name!r} has type {column.dtype}; text, integers, floats and lists are expected"
        )


def _little(column: pl.Series, dtype: str) -> bytes:
    return column.to_numpy().astype(dtype).tobytes()
