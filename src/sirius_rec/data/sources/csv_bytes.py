"""The bytes of a text file: plain or packed, in some encoding, its lines ended in some way; never all of it in memory.

`scan` reads a file once and says what its bytes are; the `Text` in that gives it as text, with "\\n" at the ends of
lines.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
class Text:
    """A file as text. returns: its lines end with a carriage return alone."""

    path: Path
    encoding: str
    returns: bool

    def blocks(self, size: int) -> Iterator[str]:
        """Whole lines from the beginning of the file, read `size` bytes at a time."""
        decoder = _decoder(self.path, self.encoding)
        rest, end = "", "\r" if self.returns else "\n"
        with _opened(self.path) as file:
            begun = False
            while chunk := file.read(size):
                text = decoder.decode(chunk)
                rest += text if begun else text.removeprefix("\ufeff")
                begun = begun or bool(text)
                if cut := rest.rfind(end) + 1:
                    yield self._with_newlines(rest[:cut])
                    rest = rest[cut:]
            rest += decoder.decode(b"", final=True)
        if rest:
            yield self._with_newlines(rest)

    def lines(self, size: int) -> Iterator[str]:
        """Its lines, each with "\\n" at its end."""
        for text in self.blocks(size):
            yield from (f"{line}\n" for line in text.removesuffix("\n").split("\n"))

    def start(self, length: int, size: int) -> str:
        """Its first lines: some `length` characters, more where nothing but white space stands there."""
        first = ""
        for text in self.blocks(size):
            first += text
            if len(first) >= length and first.strip():
                break
        return first

    def encoded(self, span: Span, size: int) -> Iterator[bytes]:
        """A part of the file in UTF-8, in blocks of whole lines of some `size` bytes."""
        if not span.stop:
            for text in self.blocks(size):
                yield text.encode()
            return
        with self.path.open("rb") as file:
            file.seek(span.start)
            unicode = codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig", "ascii")
            rest = b""
            if unicode and span.start == 0 and file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            while left := span.stop - file.tell():
                rest += file.read(min(size, left))
                cut = rest.rfind(b"\n") + 1 if left > size else len(rest)
                if block := rest[:cut]:
                    block = block if unicode else block.decode(self.encoding).encode()
                    yield block.replace(b"\r\n", b"\n") if b"\r" in block else block
                rest = rest[cut:]

    def _with_newlines(self, text: str) -> str:
        if "\r" not in text:
            return text
        return text.replace("\r", "\n") if self.returns else text.replace("\r\n", "\n")


@dataclass(frozen=True)
class Scan:
    """What the bytes of a file say of it. spans: parts that can be read one by one. sha256, bytes: as it lies there."""

    text: Text
    lines: int
    quotes: bool
    spans: list[Span]
    sha256: str
    bytes: int


def scan(path: Path, encoding: str | None, size: int) -> Scan:
    """Read all of a file. encoding: None takes what fits: UTF-8, UTF-16 by its mark, else cp1252.

    Raises:
        DataError: it cannot be read, its archive is not complete, or it is not in the encoding, with the line.
    """
    seen = _Seen(path, size)
    encoding = seen.checked(encoding) if encoding is not None else seen.encoding()
    known = codecs.lookup(encoding).name in _CUTTABLE
    text = Text(path, encoding, seen.returns if known else _returns_alone(path, encoding))
    cuttable = known and not seen.packed and not text.returns
    lines = seen.lines if cuttable else sum(1 for _ in text.lines(size))
    return Scan(text, lines, seen.quotes, seen.spans if cuttable else [Span(0, 0, 1)], seen.sha256, seen.bytes)


class _Seen:
    """Counts and signs gathered while a file is read in blocks of whole lines."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.lines, self.quotes = 0, False
        self.bad_utf8: tuple[int, str] | None = None
        self.start, self.spans = b"", list[Span]()
        self.zero = newline = carriage = False
        try:
            self.bytes = path.stat().st_size
            digest = hashlib.sha256()
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
            if self.packed:  # the checksum is of the file as it lies there
                with path.open("rb") as raw:
                    digest = hashlib.file_digest(raw, "sha256")
            self.sha256 = digest.hexdigest()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a complete gzip file ({error}); fetch it again") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        self.returns = carriage and not newline

    def _utf8(self, decoder: codecs.IncrementalDecoder, chunk: bytes, *, final: bool = False) -> None:
        if self.bad_utf8 is not None or (chunk.isascii() and not final):
            return
        try:
            decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            self.bad_utf8 = (self.lines + chunk.count(b"\n", 0, error.start) + 1, error.reason)

    def encoding(self) -> str:
        """What fits; a `DataError` if nothing does."""
        if self.start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return self.checked("utf-16")
        first = "utf-8-sig" if self.start[:3] == codecs.BOM_UTF8 else "utf-8"
        if self.bad_utf8 is None:
            return first
        if not self.zero and self._fault("cp1252") is None:
            return "cp1252"
        raise self._undecodable(first, self.bad_utf8)

    def checked(self, encoding: str) -> str:
        """The encoding, if all of the file is in it; else a `DataError`."""
        if encoding.lower() in ("utf-8", "utf8", "utf-8-sig") and self.bad_utf8 is None:
            return encoding
        if (fault := self._fault(encoding)) is not None:
            raise self._undecodable(encoding, fault)
        return encoding

    def _undecodable(self, encoding: str, fault: tuple[int, str]) -> DataError:
        line, reason = fault
        fix = "give option encoding, for example cp1252 or utf-16"
        return DataError(f"{self.path}, line {line}: not {encoding.upper()} text ({reason}); {fix}")

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
