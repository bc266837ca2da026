"""A table's fingerprint is that of its rows, however they are cut into files."""

from __future__ import annotations

import hashlib
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.data.fingerprint import files_fingerprint, table_fingerprint
from sirius_rec.errors import DataError

SCHEMA = {"n": pl.Int32, "t": pl.String, "l": pl.List(pl.Int32), "f": pl.Float64}
ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-5, 5), st.none() | st.sampled_from(["", "a", "éß"]),
        st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3), st.none() | st.floats(-1, 1),
    ),
    max_size=30,
)  # fmt: skip


def naive(rows: list[tuple[Any, ...]]) -> str:
    """By the definition, value by value."""
    content = b"rows %d" % len(rows)
    for at, (name, dtype) in enumerate(SCHEMA.items()):
        column = [row[at] for row in rows]
        content += f"\ncolumn {name} ".encode() + bits(column)
        if name == "l":
            flat = [value for values in column for value in values or [] if value is not None]
            content += b"list " + words([len(values or []) for values in column]) + bits(flat) + b"int " + words(flat)
        elif dtype == pl.String:
            texts = [(text or "").encode() for text in column]
            content += b"text " + words([len(text) for text in texts]) + b"".join(texts)
        elif name == "n":
            content += b"int " + words([value or 0 for value in column])
        else:
            content += b"float " + np.array([0.0 if value is None else value for value in column], "<f8").tobytes()
    return hashlib.sha256(content).hexdigest()


def bits(column: list[Any]) -> bytes:
    return np.packbits([value is None for value in column]).tobytes() if column else b""


def words(values: list[int]) -> bytes:
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.lists(st.integers(0, 30), max_size=4))
def test_by_the_definition_and_in_any_number_of_files(rows: list[tuple[Any, ...]], cuts: list[int]) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    expected = naive(rows)
    assert table_fingerprint(frame) == expected
    with tempfile.TemporaryDirectory() as folder:
        files, edges = [], [0, *sorted(cuts), 31]
        for number, (start, stop) in enumerate(pairwise(edges)):
            files.append(Path(folder) / f"{number}.parquet")
            frame[start:stop].write_parquet(files[-1])
        assert files_fingerprint(files) == expected


def test_other_types_are_refused() -> None:
    with pytest.raises(DataError, match="column 'd' has type Date"):
        table_fingerprint(pl.DataFrame({"d": pl.Series([0], dtype=pl.Int32).cast(pl.Date)}))
