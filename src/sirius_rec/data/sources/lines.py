"""Raw files block by block, in bounded memory, with an account of what became of every line.

A raw dump of millions of lines has a few bad ones; stopping at the first would make it unusable, and passing over them
in silence would change the data unseen. So every line is counted as kept, dropped for a named reason, or malformed, the
first malformed ones are named by line number, and above a stated share of them the run stops.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.files import OnFault
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Advance

# the share of malformed lines above which a run stops
MAX_MALFORMED = 0.001

_BLOCK = 1 << 23
# Longer than any record of the known dumps; without a bound, a binary file without line breaks would fill the memory.
_LONGEST = 1 << 26
_NAMED = 5
# A file whose first lines are all malformed is not in this format: no need to read on.
_HOPELESS = 1000


@dataclass
class Account:
    """What became of the lines (records) of one file: read = kept + malformed + the sum of dropped; blank lines are
    not counted.

    first: (line, why) of the first malformed lines.
    """

    path: Path
    read: int = 0
    kept: int = 0
    malformed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first: list[tuple[int, str]] = field(default_factory=list)
    what: str = "line"

    def bad(self, line: int, why: str) -> None:
        """Count one malformed line."""
        self.malformed += 1
        if len(self.first) < _NAMED or line < self.first[-1][0]:
            self.first = sorted([*self.first, (line, why)])[:_NAMED]

    def refuse(self, line: int, error: ValueError, unknown_items: OnFault) -> None:
        """Count a row as malformed; one of an unknown item as dropped, if that is asked for."""
        if unknown_items == "drop" and isinstance(error, UnknownItem):
            self.drop("with an item not listed")
        else:
            self.bad(line, str(error))

    def drop(self, reason: str, count: int = 1) -> None:
        """Count lines that are in order but not wanted."""
        if count:
            self.dropped[reason] += count

    def check(self, most: float) -> None:
        """Raise a `DataError` naming the first malformed line if more than the share `most` of all is malformed."""
        if self.malformed > most * self.read:
            line, why = self.first[0]
            if not most:
                more = f"; {self.malformed:,} such {self.what}s" if self.malformed > 1 else ""
                raise DataError(f"{self.path}, {self.what} {line}: {why}{more}")
            raise DataError(
                f"{self.path}, {self.what} {line}: {why}; {self.malformed:,} of {self.read:,} {self.what}s are "
                f"malformed ({self.malformed / self.read:.2%}), more than max_malformed={most:g}; fix the file, or "
                "raise max_malformed to drop them"
            )

    def note(self) -> dict[str, Any]:
        """For dataset.json. The counts must add up."""
        assert self.read == self.kept + self.malformed + self.dropped.total(), self
        named = [{self.what: line, "why": why} for line, why in self.first]
        return {
            "file": str(self.path),
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "malformed": {"count": self.malformed, "first": named},
        }


class UnknownItem(ValueError):
    """A row names an item that the catalogue lacks."""


def check_share(most: float) -> None:
    """Raise a `ConfigError` unless `max_malformed` is a share."""
    if not 0 <= most < 1:
        raise ConfigError(f"max_malformed={most!r} is not a share of at least 0 and below 1")


def blocks(path: Path, advance: Advance | None = None, *, size: int = _BLOCK) -> Iterator[tuple[int, bytes]]:
    """Number of the first line (from 1) and bytes of consecutive blocks of whole lines of a plain or gzip file.

    A line longer than 64 MiB comes as a block of its own that holds its beginning only.

    Raises:
        DataError: the file cannot be read, or is a gzip file that is broken or ends early.
    """
    line = 1
    try:
        total = path.stat().st_size
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            rest = b""
            while chunk := stream.read(size):
                if line == 1 and not rest:
                    chunk = chunk.removeprefix(b"\xef\xbb\xbf")
                rest += chunk
                cut = rest.rfind(b"\n") + 1
                if cut:
                    yield line, rest[:cut]
                    line += rest.count(b"\n", 0, cut)
                    rest = rest[cut:]
                elif len(rest) > _LONGEST:
                    yield line, rest
                    rest = _after_line(stream, size)
                    line += 1
                if advance:
                    advance(path.name, raw.tell(), total)
            if rest:
                yield line, rest
            if advance:
                advance(path.name, total, total)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: not a complete gzip file, broken after line {line} ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _after_line(stream: Any, size: int) -> bytes:
    """What follows the line that is being read."""
    while chunk := stream.read(size):
        if (end := chunk.find(b"\n")) >= 0:
            return bytes(chunk[end + 1 :])
    return b""


def lines(path: Path, account: Account, advance: Advance | None = None, encoding: str = "utf-8") -> Iterator[
    list[tuple[int, str]]
]:  # fmt: skip
    """Line number and text of the lines of each block that are not blank; undecodable ones go to the account.

    Raises:
        DataError: as `blocks`, or the first 1,000 lines are all malformed.
    """
    for first, block in blocks(path, advance):
        if len(block) > _LONGEST and b"\n" not in block:
            account.read += 1
            account.bad(first, f"longer than {_LONGEST >> 20} MiB")
            continue
        try:
            numbered = list(enumerate(block.decode(encoding).split("\n"), start=first))
        except UnicodeDecodeError:
            numbered = []
            for number, raw in enumerate(block.split(b"\n"), start=first):
                try:
                    numbered.append((number, raw.decode(encoding)))
                except UnicodeDecodeError as error:
                    account.read += 1
                    account.bad(number, f"not {encoding.upper()} text ({error.reason} at byte {error.start + 1})")
        full = [(number, text) for number, text in numbered if text and not text.isspace()]
        account.read += len(full)
        yield full
        if account.read >= _HOPELESS and account.malformed == account.read:
            account.check(0)


def records(
    path: Path,
    decode: Callable[[str], Any],
    extract: Callable[[Mapping[str, Any]], tuple[Any, ...] | str],
    schema: Mapping[str, Any],
    account: Account,
    advance: Advance | None = None,
) -> Iterator[pl.DataFrame]:
    """One frame per block: what `extract` takes from the records, with the line number in column `ROW`.

    Args:
        decode: text of a line → record; a `ValueError` says why it cannot.
        extract: record → values in the order of `schema`, or the reason (text) for which it is dropped; a `ValueError`
            says why the record is malformed.
        schema: column → polars type, without `ROW`.
    """
    for block in lines(path, account, advance):
        numbers: list[int] = []
        rows: list[tuple[Any, ...]] = []
        for number, text in block:
            try:
                record = decode(text)
                if not isinstance(record, dict):
                    raise ValueError(f"not a record of named fields but {type(record).__name__}")
                values = extract(record)
            except ValueError as error:
                account.bad(number, str(error))
                continue
            if isinstance(values, str):
                account.drop(values)
            else:
                numbers.append(number)
                rows.append(values)
        if rows:
            yield frame_of(numbers, rows, schema)


def frame_of(numbers: Sequence[int], rows: Sequence[tuple[Any, ...]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Rows as a frame with their line numbers in column `ROW`."""
    columns = zip(*rows, strict=True)
    data = {
        name: pl.Series(name, list(values), dtype=schema[name]) for name, values in zip(schema, columns, strict=True)
    }
    return pl.DataFrame({ROW: pl.Series(ROW, numbers, dtype=pl.Int64), **data})


def keep(frame: pl.DataFrame, condition: pl.Expr, reason: str, account: Account) -> pl.DataFrame:
    """The rows in which `condition` is true; the others are counted as dropped."""
    rows = frame.filter(condition)
    account.drop(reason, frame.height - rows.height)
    return rows


def reject(frame: pl.DataFrame, condition: pl.Expr, column: str, why: str, account: Account) -> pl.DataFrame:
    """The rows in which `condition` is not true; the others are malformed: `why` and their value in `column`."""
    faulty = frame.filter(condition)
    if not faulty.height:
        return frame
    for row, value in faulty.select(ROW, column).iter_rows():
        account.bad(row, f"{why} {short(value)}")
    return frame.filter(~condition.fill_null(False))


def short(value: object) -> str:
    """`repr` cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_id(record: Mapping[str, Any], name: str) -> str:
    """The id in a field as stripped text, "" where the field is absent, null or empty.

    Raises:
        ValueError: it is no text and no integer, or not valid text.
    """
    value = record.get(name)
    if type(value) is not str:
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"field {name!r} holds {short(value)}; ids are text or integers")
        return str(value)
    return value.strip() if value.isascii() else valid_text(value, name).strip()


def valid_text(value: str, name: str) -> str:
    """Text that can be written to a file; the halves of a character written as two escapes are put together.

    Raises:
        ValueError: half a character stands alone.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise ValueError(f"field {name!r} holds half a character in {short(value)}") from error
    return value


def title_of(record: Mapping[str, Any], *names: str) -> str:
    """The first field of `names` that is there and not empty, as text; "" if none is."""
    for name in names:
        value = record.get(name)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise ValueError(f"field {name!r} holds {short(value)}; a title is text")
        return valid_text(value, name)
    return ""


def number_of(record: Mapping[str, Any], name: str) -> float:
    """A number in a field, written as a number or as text.

    Raises:
        ValueError: absent, or no finite number.
    """
    value = record.get(name)
    if type(value) is int and -(2**53) < value < 2**53:
        return value
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"field {name!r} holds {short(value)}; a number is expected")
    return number


def only_one(folder: Path, patterns: Sequence[str], what: str, *, optional: bool = False) -> Path | None:
    """The one file of a folder that fits a pattern.

    Raises:
        DataError: more than one fits, or none and it is not optional.
    """
    matches = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    if len(matches) == 1:
        return matches[0]
    if len(matches) > 1:
        raise DataError(
            f"{folder}: {len(matches)} files could hold the {what} ({', '.join(file.name for file in matches[:4])}); "
            "keep one there, or name the file"
        )
    if optional:
        return None
    raise DataError(f"{folder}: no {what} found (looked for {', '.join(patterns)}); name the file")
