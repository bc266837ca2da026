"""The files of a log before they are read: one look at each finds how it is written and into what pieces it falls.

A piece (a span of bytes of a plain delimited file, a span of rows of a Parquet file, or a whole file that can only be
read from its beginning) is read on its own, in frames of bounded size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.options import Sharding
from sirius_rec.data.sources.csv_bytes import Span
from sirius_rec.data.sources.csv_records import ROW, Dialect
from sirius_rec.data.sources.csv_table import Layout, frames, look
from sirius_rec.data.sources.files import file_note
from sirius_rec.errors import DataError, first_line


@dataclass(frozen=True)
class LogFile:
    """path; layout, of a delimited file (None: Parquet); empty: a frame without rows that has the file's columns.

    note: its provenance, as `file_note`. spans: its pieces.
    """

    path: Path
    layout: Layout | None
    empty: pl.DataFrame
    note: dict[str, Any]
    spans: list[Span]

    @classmethod
    def look(cls, path: Path, dialect: Dialect, wanted: Collection[str], sharding: Sharding) -> LogFile:
        """Read all of it once. Raises a `DataError` for what is not in order already."""
        if path.suffix != ".parquet":
            layout = look(path, dialect, wanted, sharding.block)
            note = {"path": str(path), "sha256": layout.sha256, "bytes": layout.bytes}
            return cls(path, layout, layout.empty, note, layout.spans)
        try:
            note = file_note(path)
            schema = pl.read_parquet_schema(path)
            rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(path, error) from error
        size = sharding.rows
        spans = [Span(start, min(start + size, rows), start + 1) for start in range(0, max(rows, 1), size)]
        return cls(path, None, pl.DataFrame(schema={ROW: pl.Int64, **schema}), note, spans)

    def read(self, span: Span, columns: Collection[str], size: int) -> Iterator[tuple[pl.DataFrame, int]]:
        """`ROW` and the columns of a piece, and how many lines lay inside quoted fields. size: bytes read at once."""
        if self.layout is not None:
            for frame, continued in frames(self.layout, span, size):
                yield frame.select(ROW, *columns), continued
            return
        rows = pl.scan_parquet(self.path).slice(span.start, span.stop - span.start).select(*columns)
        try:
            frame = rows.collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(self.path, error) from error
        yield frame.select(pl.int_range(span.line, span.line + frame.height, dtype=pl.Int64).alias(ROW), *columns), 0

    def format(self, records: int, continued: int) -> dict[str, Any]:
        """For dataset.json. records: that are not blank. continued: line breaks inside quoted fields."""
        return {"records": records} if self.layout is None else self.layout.notes(records, continued)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({first_line(error)})")
