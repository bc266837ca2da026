"""A delimited file block by block, in bounded memory: records, line numbers and faults are those of `csv_table`.

One look at the whole file finds how it is written, its checksum, and where it may be cut. A file without quotes is cut
at the ends of lines and read by many hands; one that is packed, in UTF-16 or has quotes is read from its beginning.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import sys
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.csv_table import (
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
from sirius_rec.data.sources.files import file_note
from sirius_rec.errors import DataError

BLOCK = 1 << 25  # bytes of a block; parsed and cleaned it takes some ten times as much
_CUTTABLE = ("utf-8", "utf-8-sig", "ascii", "cp1252", "iso8859-1")  # the byte "\n" is the end of a line, and only that


@dataclass(frozen=True)
class Span:
    """A part of a file: bytes `start` to `stop`, beginning with line `line`. Stop 0: the whole file."""

    start: int
    stop: int
    line: int


@dataclass(frozen=True)
class Layout:
    """How a file is written. names: its columns, as in the header. header: on which line that stands, 0 if nowhere.

    returns: lines end with a carriage return alone. escaped: quotes that are escaped by a backslash. spans: the parts
    that can be read one by one. sha256, bytes: of the file as it lies there.
    """

    separator: str
    encoding: str
    names: list[str]
    header: int
    quoted: bool
    returns: bool
    escaped: int
    lines: int
    spans: list[Span]
    sha256: str
    bytes: int

    @property
    def columns(self) -> list[str]:
        """The columns' names without RecBole's types."""
        types = without_types(self.names)
        return [types.get(name, name) for name in self.names]

    def notes(self, records: int, continued: int) -> dict[str, Any]:
        """As `read_csv` has them. records: that are not blank. continued: line breaks inside quoted fields."""
        blank = self.lines - bool(self.header) - records - continued
        return {
            "separator": SEPARATORS.get(self.separator, self.separator),
            "encoding": self.encoding,
            **({"quotes_escaped_by_backslash": self.escaped} if self.escaped else {}),
            "header": bool(self.header),
            "lines": self.lines,
            "records": records,
            "blank": blank,
            **({"inside_quoted_fields": continued} if continued else {}),
            **({"header_types_removed": True} if without_types(self.names) else {}),
        }


def look(path: Path, dialect: Dialect = Dialect(), wanted: Collection[str] = (), size: int = BLOCK) -> Layout:
    """Read all of a file once.

    Raises:
        DataError: as `read_csv`, but for the faults of single records without quotes.
    """
    seen = _Scan(path, dialect, size)
    encoding = seen.encoding()
    known = codecs.lookup(encoding).name in _CUTTABLE
    returns = seen.returns if known else _returns_alone(path, encoding)
    cuttable = known and not seen.packed and not returns
    first = ""
    for text in _texts(path, encoding, returns, min(size, SNIFFED)):
        first += text
        if len(first) >= SNIFFED and first.strip():
            break
    if not first.strip():
        raise DataError(f"{path}: the file is empty; a header line and rows are expected")
    separator = dialect.separator or sniff_separator(first, wanted)
    quoted = dialect.quotes and seen.quotes
    escaped = 0
    if quoted:
        escaped = escaped_quotes(path, lambda: _lines(path, encoding, returns, size), separator)
    lines = seen.lines if cuttable else sum(1 for _ in _lines(path, encoding, returns, size))
    spans = seen.spans if cuttable and not quoted else [Span(0, 0, 1)]
    names, header = list(dialect.names or ()), 0
    if dialect.names is None:
        top = (doubled(line) if escaped else line for line in _lines(path, encoding, returns, min(size, SNIFFED)))
        names, header = _header(path, top, separator, quoted)
    return Layout(separator, encoding, names, header, quoted, returns, escaped, lines, spans, seen.sha256, seen.bytes)


def _header(path: Path, lines: Iterator[str], separator: str, quoted: bool) -> tuple[list[str], int]:
    records = Records(path, lines, separator, None, quotes=quoted)
    next(records.frames(1))
    assert records.names is not None
    return records.names, records.header


def frames(path: Path, layout: Layout, span: Span, size: int = BLOCK) -> Iterator[tuple[pl.DataFrame, int]]:
    """`ROW` and text columns of a part's records that are not blank, and how many lines lay inside quoted fields."""
    renamed = without_types(layout.names)
    for frame, continued in _raw_frames(path, layout, span, size):
        full = frame.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))
        yield full.rename(renamed), continued


def _raw_frames(path: Path, layout: Layout, span: Span, size: int) -> Iterator[tuple[pl.DataFrame, int]]:
    if layout.quoted:
        every = _lines(path, layout.encoding, layout.returns, size)
        names = None if layout.header else layout.names
        records = Records(path, map(doubled, every) if layout.escaped else every, layout.separator, names, quotes=True)
        for frame in records.frames():
            yield frame, 0
        yield frame.clear(), records.continued + layout.lines - records.ended
        return
    line = span.line
    for block in _blocks(path, layout, span, size):
        count = block.count(b"\n") + (not block.endswith(b"\n"))
        if line <= layout.header:  # which may stand below blank lines
            skipped = layout.header + 1 - line
            block = b"".join(block.split(b"\n", skipped)[skipped:])
            count, line = count - skipped, layout.header + 1
        if block:
            yield _parsed(path, layout, block, line, count), 0
        line += count


def _parsed(path: Path, layout: Layout, block: bytes, line: int, count: int) -> pl.DataFrame:
    """Whole lines as records; slowly where one of them is not as the others."""
    try:
        frame = pl.read_csv(
            block,
            separator=layout.separator,
            quote_char=None,
            has_header=False,
            schema=dict.fromkeys(layout.names, pl.String),
        )
        if frame.height == count:
            rows = pl.int_range(line, line + count, dtype=pl.Int64, eager=True).alias(ROW)
            return frame.select(rows, *layout.names)
    except pl.exceptions.PolarsError:
        pass
    lines = (f"{text}\n" for text in block.decode().removesuffix("\n").split("\n"))
    return pl.concat(Records(path, lines, layout.separator, layout.names, quotes=False, first=line).frames())


def _blocks(path: Path, layout: Layout, span: Span, size: int) -> Iterator[bytes]:
    """Blocks of whole lines in UTF-8."""
    if not span.stop:
        for text in _texts(path, layout.encoding, layout.returns, size):
            yield text.encode()
        return
    with path.open("rb") as file:
        file.seek(span.start)
        unicode = codecs.lookup(layout.encoding).name in ("utf-8", "utf-8-sig", "ascii")
        rest = b""
        if unicode and span.start == 0 and file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        while left := span.stop - file.tell():
            rest += file.read(min(size, left))
            cut = rest.rfind(b"\n") + 1 if left > size else len(rest)
            if block := rest[:cut]:
                block = block if unicode else block.decode(layout.encoding).encode()
                yield block.replace(b"\r\n", b"\n") if b"\r" in block else block
            rest = rest[cut:]


def _texts(path: Path, encoding: str, returns: bool, size: int) -> Iterator[str]:
    """Blocks of whole lines as text, with "\\n" at their ends, from the beginning of the file."""
    decoder = _decoder(path, encoding)
    rest, end = "", "\r" if returns else "\n"
    with _opened(path) as file:
        begun = False
        while chunk := file.read(size):
            text = decoder.decode(chunk)
            rest += text if begun else text.removeprefix("\ufeff")
            begun = begun or bool(text)
            if cut := rest.rfind(end) + 1:
                yield _with_newlines(rest[:cut], returns)
                rest = rest[cut:]
        rest += decoder.decode(b"", final=True)
    if rest:
        yield _with_newlines(rest, returns)


def _with_newlines(text: str, returns: bool) -> str:
    if "\r" not in text:
        return text
    return text.replace("\r", "\n") if returns else text.replace("\r\n", "\n")


def _lines(path: Path, encoding: str, returns: bool, size: int) -> Iterator[str]:
    for text in _texts(path, encoding, returns, size):
        yield from (f"{line}\n" for line in text.removesuffix("\n").split("\n"))


def _decoder(path: Path, encoding: str) -> codecs.IncrementalDecoder:
    """Of UTF-16 without a mark, which is the machine's own, as `bytes.decode` takes it."""
    if codecs.lookup(encoding).name == "utf-16":
        with _opened(path) as file:
            if file.read(2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                encoding = f"utf-16-{sys.byteorder[0]}e"
    return codecs.getincrementaldecoder(encoding)()


def _opened(path: Path) -> Any:
    file: Any = path.open("rb")
    packed = file.read(2) == b"\x1f\x8b" or path.suffix == ".gz"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if packed else file


class _Scan:
    """What the bytes of a file say about it."""

    def __init__(self, path: Path, dialect: Dialect, size: int) -> None:
        self.path, self.given = path, dialect.encoding
        self.lines, self.quotes, self.ascii = 0, False, True
        self.bad_utf8: tuple[int, str] | None = None
        self.start, self.spans = b"", list[Span]()
        self.zero = newline = carriage = False
        try:
            digest = hashlib.sha256()
            self.bytes = path.stat().st_size
            with _opened(path) as file:
                self.packed = isinstance(file, gzip.GzipFile)
                decoder = codecs.getincrementaldecoder("utf-8")()
                offset, last = 0, b"\n"
                while chunk := file.read(size):
                    chunk += file.readline()
                    self.start = self.start or chunk[:4]
                    self.spans.append(Span(offset, offset + len(chunk), self.lines + 1))
                    digest.update(b"" if self.packed else chunk)
                    self._utf8(decoder, chunk)
                    self.lines += chunk.count(b"\n")
                    self.quotes |= b'"' in chunk
                    self.zero |= b"\0" in chunk
                    newline, carriage = newline or b"\n" in chunk, carriage or b"\r" in chunk
                    offset, last = offset + len(chunk), chunk[-1:]
                self._utf8(decoder, b"", final=True)
                self.lines += last != b"\n"
            self.sha256 = file_note(path)["sha256"] if self.packed else digest.hexdigest()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a complete gzip file ({error}); fetch it again") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        self.returns = carriage and not newline

    def _utf8(self, decoder: codecs.IncrementalDecoder, chunk: bytes, *, final: bool = False) -> None:
        if self.bad_utf8 is not None or (chunk.isascii() and not final):
            return
        self.ascii &= not chunk
        try:
            decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            self.bad_utf8 = (self.lines + chunk.count(b"\n", 0, error.start) + 1, error.reason)

    def encoding(self) -> str:
        """The one given, or what fits; a `DataError` if none does."""
        if self.given is not None:
            self._check(self.given)
            return self.given
        if self.start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            self._check("utf-16")
            return "utf-16"
        first = "utf-8-sig" if self.start[:3] == codecs.BOM_UTF8 else "utf-8"
        if self.bad_utf8 is None:
            return first
        line, reason = self.bad_utf8
        if not self.zero and self._fault("cp1252") is None:
            return "cp1252"
        raise DataError(_undecodable(self.path, line, first, reason))

    def _check(self, encoding: str) -> None:
        if encoding.lower() in ("utf-8", "utf8", "utf-8-sig") and self.bad_utf8 is None:
            return
        if (fault := self._fault(encoding)) is not None:
            raise DataError(_undecodable(self.path, fault[0], encoding, fault[1]))

    def _fault(self, encoding: str) -> tuple[int, str] | None:
        """Line and reason of the first bytes that are not in this encoding."""
        decoder = _decoder(self.path, encoding)
        line = 1
        with _opened(self.path) as file:
            while True:
                chunk = file.read(BLOCK)
                waiting = decoder.getstate()[0]  # bytes of a character that is not complete yet
                line -= waiting.count(b"\n")
                try:
                    decoder.decode(chunk, not chunk)
                except UnicodeDecodeError as error:
                    return line + (waiting + chunk).count(b"\n", 0, error.start), error.reason
                line += (waiting + chunk).count(b"\n")
                if not chunk:
                    return None


def _undecodable(path: Path, line: int, encoding: str, reason: str) -> str:
    fix = "give option encoding, for example cp1252 or utf-16"
    return f"{path}, line {line}: not {encoding.upper()} text ({reason}); {fix}"


def _returns_alone(path: Path, encoding: str) -> bool:
    """Whether lines of a file in any encoding end with a carriage return and nothing else."""
    decoder, carriage = _decoder(path, encoding), False
    with _opened(path) as file:
        while chunk := file.read(BLOCK):
            text = decoder.decode(chunk)
            if "\n" in text:
                return False
            carriage |= "\r" in text
    return carriage
