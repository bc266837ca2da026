"""How a delimited file is written, and its records one by one: every line is a record, part of one, or blank.

A quote escaped by a backslash (`"12\\" rack"`) closes the field for a reader that doubles its quotes, and the records
up to the next such quote vanish into one field. So a file with quotes is read strictly (RFC 4180); where that fails and
quotes are escaped by backslashes, it is read so throughout, and the notes say it. Encoding and separator are sniffed
unless they are given, and what was found is in the notes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from sirius_rec.errors import ConfigError, DataError

ROW: str = "__row__"  # line on which the record begins (text) or row number (Parquet), from 1
SEPARATORS: dict[str, str] = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
MEND_QUOTES = "quote the whole field, and double the quotes inside it"
_ATOMIC = re.compile(r"(.+):(?:token|float)(?:_seq)?")  # RecBole's name:type
_ESCAPED = re.compile(r'\\([\\"])')
_BLOCK = 100_000
SNIFFED = 1 << 16  # characters by which the separator is found
_LATE = 1e8  # a header of this size is a time, not a column number: 1973 in seconds


@dataclass(frozen=True)
class Dialect:
    """How a text file is written; None is sniffed. names: of all columns, for a file without a header line."""

    separator: str | None = None
    names: Sequence[str] | None = None
    encoding: str | None = None
    quotes: bool = True

    def __post_init__(self) -> None:
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise ConfigError(f"separator {self.separator!r} is not one character, such as ',' or \"\\t\"")
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise ConfigError("names: a column is named twice")
        if self.encoding is not None:
            try:
                "".encode(self.encoding)
            except LookupError:
                raise ConfigError(f"encoding {self.encoding!r} is unknown; use utf-8, utf-16 or cp1252") from None


def without_types(names: Sequence[str]) -> dict[str, str]:
    """RecBole's `name:type` → name, if all columns are called so; else nothing."""
    if len(names) > 0 and all(_ATOMIC.fullmatch(name) for name in names):
        return {name: name.rpartition(":")[0] for name in names}
    return {}


def headerless(names: Sequence[str]) -> bool:
    """Whether a first line holds data rather than names: a time, or several numbers that do not count the columns."""
    numbers = [name for name in names if _number(name) is not None]
    counting = [str(k) for k in range(len(names))]
    return any(is_time(name) for name in names) or (len(numbers) > 1 and list(names) != counting)


def is_time(name: str) -> bool:
    """Whether a text is a date, or a number that can only be a moment."""
    number = _number(name)
    if number is not None:
        return abs(number) >= _LATE
    try:
        datetime.fromisoformat(name.strip())
    except ValueError:
        return False
    return True


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def sniff_separator(text: str, wanted: Collection[str]) -> str:
    """The separator that makes the first line hold the columns wanted, else the one that most lines agree on."""
    first = [line for line in text[:SNIFFED].split("\n")[:20] if line.strip()]
    fits = {}
    for separator in SEPARATORS:
        names = [name.strip().strip('"').rpartition(":")[0] or name.strip().strip('"') for name in
                 first[0].split(separator)]  # fmt: skip
        names += [name.strip().strip('"') for name in first[0].split(separator)]
        widths = {line.count(separator) for line in first}
        steady = widths.pop() if len(widths) == 1 else 0
        fits[separator] = (sum(name in names for name in wanted), steady, -list(SEPARATORS).index(separator))
    best = max(fits, key=lambda separator: fits[separator])
    return best if fits[best][:2] > (0, 0) else ","


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for at, name in enumerate(names) if name in names[:at]), None)


def escaped_quotes(path: Path, lines: Callable[[], Iterable[str]], separator: str) -> int:
    """How many quotes are escaped by a backslash, if that is how the file is written; 0 if it is in order.

    lines: gives all lines of the file anew.

    Raises:
        DataError: it is in order neither way, naming the first fault.
    """
    try:
        _check_quotes(path, lines(), separator)
        return 0
    except DataError as error:
        count = sum(line.count('\\"') for line in lines())
        if not count:
            raise
        try:
            _check_quotes(path, map(doubled, lines()), separator)
        except DataError:
            raise error from None
        return count


def doubled(text: str) -> str:
    """Text with its escaped quotes doubled."""
    return _ESCAPED.sub(lambda found: '""' if found[1] == '"' else "\\", text)


def _check_quotes(path: Path, lines: Iterable[str], separator: str) -> None:
    """Raise a `DataError` for the first record with a broken quote or another number of fields than the first."""
    width = 0
    for line, record in _records(path, lines, separator, quotes=True):
        width = width or len(record)
        if record and len(record) != width:
            raise DataError(_misshapen(path, line, len(record), width, separator))


def _misshapen(path: Path, line: int, has: int, width: int, separator: str) -> str:
    return f"{path}, line {line}: {has} fields, the header has {width}; quote fields that hold {separator!r}"


def _records(
    path: Path, lines: Iterable[str], separator: str, *, quotes: bool, first: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Line on which each record begins, and its fields; none for a blank line. first: number of the first line."""
    odd, escapes, where = False, False, first

    def counted() -> Iterator[str]:
        nonlocal odd, escapes
        for line in lines:
            odd ^= line.count('"') % 2 == 1
            escapes |= '\\"' in line
            yield line

    reader = csv.reader(
        counted(), delimiter=separator, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE, strict=True
    )
    try:
        for record in reader:
            if quotes and odd:
                raise DataError(f"{path}, line {where}: a quote stands alone inside a field; {MEND_QUOTES}")
            yield where, record
            where = first + reader.line_num
    except csv.Error as error:
        if not quotes:
            raise DataError(f"{path}, line {where}: a carriage return stands inside it; end all lines alike") from error
        escaped = "; its quotes are escaped by \\, write them twice" if escapes else ""
        raise DataError(
            f"{path}, line {where}: a quoted field that starts here is not closed properly ({error}); "
            f"{MEND_QUOTES}{escaped}"
        ) from error


class Records:
    """Lines read record by record, slowly: with quotes, or where a line is not as the others.

    After `frames`: names, of the columns; header, the line on which they stand, 0 if they were given; continued, lines
    inside quoted fields; ended, the line on which the last record begins.
    """

    def __init__(
        self,
        path: Path,
        lines: Iterable[str],
        separator: str,
        names: Sequence[str] | None,
        *,
        quotes: bool,
        first: int = 1,
    ) -> None:
        self.path, self.separator = path, separator
        self.names = None if names is None else list(names)
        self.header = self.continued = 0
        self.ended = first - 1
        self._lines = _records(path, lines, separator, quotes=quotes, first=first)

    def frames(self, size: int = _BLOCK) -> Iterator[pl.DataFrame]:
        """`ROW` and text columns of up to `size` records each; at least one frame."""
        numbers: list[int] = []
        rows: list[list[str | None]] = []
        for line, record in self._lines:
            self.continued += max(line - self.ended - 1, 0)
            self.ended = line
            if not record:
                continue
            if self.names is None:
                self.names, self.header = record, line
                if (twice := _repeated(self.names)) is not None:
                    raise DataError(
                        f"{self.path}, line {line}: column {twice!r} is in the header twice; rename one of them"
                    )
            elif len(record) > len(self.names):
                raise DataError(_misshapen(self.path, line, len(record), len(self.names), self.separator))
            else:
                rows.append([value or None for value in record] + [None] * (len(self.names) - len(record)))
                numbers.append(line)
                if len(rows) == size:
                    yield self._frame(numbers, rows)
                    numbers, rows = [], []
        if self.names is None:
            raise DataError(f"{self.path}: the file is empty; a header line and rows are expected")
        yield self._frame(numbers, rows)

    def _frame(self, numbers: list[int], rows: list[list[str | None]]) -> pl.DataFrame:
        assert self.names is not None
        columns = list(zip(*rows, strict=True)) or [()] * len(self.names)
        data = {name: pl.Series(name, list(v), dtype=pl.String) for name, v in zip(self.names, columns, strict=True)}
        return pl.DataFrame({ROW: pl.Series(ROW, numbers, dtype=pl.Int64), **data})
