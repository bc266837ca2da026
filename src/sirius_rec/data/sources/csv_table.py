"""A delimited file, at once or block by block in bounded memory, for events, catalogues and the audit.

One look at the whole file finds how it is written, its checksum, and where it may be cut. A file without quotes is cut
at the ends of lines and read by many hands; one that is packed, in UTF-16 or has quotes is read from its beginning.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.csv_bytes import BLOCK, Span, Text, scan
from sirius_rec.data.sources.csv_records import (
    ROW,
    SEPARATORS,
    SNIFFED,
    Dialect,
    Records,
    doubled,
    escaped_quotes,
    sniff_separator,
    without_types,
)
from sirius_rec.errors import DataError


@dataclass
class Table:
    """A file's records as text columns with `ROW`, and for the notes what was sniffed and where the lines went.

    lines = header + records + blank + continued (line breaks inside quoted fields).
    """

    frame: pl.DataFrame
    notes: dict[str, Any] = field(default_factory=dict)


def read_csv(path: Path, dialect: Dialect = Dialect(), wanted: Collection[str] = ()) -> Table:
    """All columns as text, "" as null, without blank lines.

    Args:
        wanted: columns of which the header must have some; by them the separator is sniffed.

    Raises:
        DataError: the file is empty or broken, has records with more fields than the header, or quotes that are neither
            doubled nor escaped throughout; naming file and line.
    """
    layout = look(path, dialect, wanted)
    parts, inside = [layout.empty], 0
    for span in layout.spans:
        for records, continued in frames(layout, span):
            parts.append(records)
            inside += continued
    whole = pl.concat(parts)
    return Table(whole, layout.notes(whole.height, inside))


@dataclass(frozen=True)
class Layout:
    """How a file is written. names: its columns, as in the header. header: on which line that stands, 0 if nowhere.

    escaped: quotes that are escaped by a backslash. spans: the parts that can be read one by one. sha256, bytes: of the
    file as it lies there.
    """

    text: Text
    separator: str
    names: list[str]
    header: int
    quoted: bool
    escaped: int
    lines: int
    spans: list[Span]
    sha256: str
    bytes: int

    @property
    def empty(self) -> pl.DataFrame:
        """A frame without records: `ROW` and the columns' names without RecBole's types."""
        types = without_types(self.names)
        return pl.DataFrame(schema={ROW: pl.Int64, **{types.get(name, name): pl.String for name in self.names}})

    def notes(self, records: int, continued: int) -> dict[str, Any]:
        """For dataset.json. records: that are not blank. continued: line breaks inside quoted fields."""
        return {
            "separator": SEPARATORS.get(self.separator, self.separator),
            "encoding": self.text.encoding,
            **({"quotes_escaped_by_backslash": self.escaped} if self.escaped else {}),
            "header": bool(self.header),
            "lines": self.lines,
            "records": records,
            "blank": self.lines - bool(self.header) - records - continued,
            **({"inside_quoted_fields": continued} if continued else {}),
            **({"header_types_removed": True} if without_types(self.names) else {}),
        }


def look(path: Path, dialect: Dialect = Dialect(), wanted: Collection[str] = (), size: int = BLOCK) -> Layout:
    """Read all of a file once.

    Raises:
        DataError: as `read_csv`, but for the faults of single records without quotes.
    """
    seen = scan(path, dialect.encoding, size)
    text, top = seen.text, min(size, SNIFFED)
    first = text.start(SNIFFED, top)
    if not first.strip():
        raise DataError(f"{path}: the file is empty; a header line and rows are expected")
    separator = dialect.separator or sniff_separator(first, wanted)
    quoted = dialect.quotes and seen.quotes
    escaped = escaped_quotes(path, lambda: text.lines(size), separator) if quoted else 0
    names, header = list(dialect.names or ()), 0
    if dialect.names is None:
        lines = map(doubled, text.lines(top)) if escaped else text.lines(top)
        records = Records(path, lines, separator, None, quotes=quoted)
        next(records.frames(1))
        names, header = records.names or [], records.header
    spans = [Span(0, 0, 1)] if quoted else seen.spans
    return Layout(text, separator, names, header, quoted, escaped, seen.lines, spans, seen.sha256, seen.bytes)


def frames(layout: Layout, span: Span, size: int = BLOCK) -> Iterator[tuple[pl.DataFrame, int]]:
    """`ROW` and text columns of a part's records that are not blank, and how many lines lay inside quoted fields."""
    renamed = without_types(layout.names)
    for frame, continued in _quoted_frames(layout, size) if layout.quoted else _plain_frames(layout, span, size):
        full = frame.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))
        yield full.rename(renamed), continued


def _quoted_frames(layout: Layout, size: int) -> Iterator[tuple[pl.DataFrame, int]]:
    lines = layout.text.lines(size)
    names = None if layout.header else layout.names
    records = Records(
        layout.text.path, map(doubled, lines) if layout.escaped else lines, layout.separator, names, quotes=True
    )
    for frame in records.frames():
        yield frame, 0
    yield frame.clear(), records.continued + layout.lines - records.ended


def _plain_frames(layout: Layout, span: Span, size: int) -> Iterator[tuple[pl.DataFrame, int]]:
    line = span.line
    for block in layout.text.encoded(span, size):
        count = block.count(b"\n") + (not block.endswith(b"\n"))
        if line <= layout.header:  # which may stand below blank lines
            skipped = layout.header + 1 - line
            block = b"".join(block.split(b"\n", skipped)[skipped:])
            count, line = count - skipped, layout.header + 1
        if block:
            yield _parsed(layout, block, line, count), 0
        line += count


def _parsed(layout: Layout, block: bytes, line: int, count: int) -> pl.DataFrame:
    """Whole lines as records; slowly where one of them is not as the others."""
    schema = dict.fromkeys(layout.names, pl.String)
    try:
        if block.startswith(codecs.BOM_UTF8):  # a character of the first field: of the file's own mark it is free
            raise pl.exceptions.ComputeError("polars would take it off")
        frame = pl.read_csv(block, separator=layout.separator, quote_char=None, has_header=False, schema=schema)
        if frame.height == count:
            rows = pl.int_range(line, line + count, dtype=pl.Int64, eager=True).alias(ROW)
            return frame.select(rows, *layout.names)
    except pl.exceptions.PolarsError:
        pass
    lines = (f"{text}\n" for text in block.decode().removesuffix("\n").split("\n"))
    return pl.concat(
        Records(layout.text.path, lines, layout.separator, layout.names, quotes=False, first=line).frames()
    )
