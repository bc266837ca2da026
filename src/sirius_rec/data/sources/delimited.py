"""Large delimited files of numbers (CSV, `::`, tab), block by block: fast where a block is clean, by line where not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.lines import Account, blocks, frame_of, lines, short
from sirius_rec.errors import DataError
from sirius_rec.progress import Advance

_PARSE: dict[Any, Callable[[str], Any]] = {pl.Int64: int, pl.Float64: float}
_WORDS = {pl.Int64: "a whole number", pl.Float64: "a number"}
_LARGEST = 2**62


def delimited(
    path: Path,
    columns: Mapping[str, Any],
    account: Account,
    *,
    separator: str = ",",
    names: Sequence[str] | None = None,
    advance: Advance | None = None,
) -> Iterator[pl.DataFrame]:
    """One frame per block: line number in column `ROW`, and the columns asked for.

    Args:
        columns: name → `pl.Int64` or `pl.Float64`.
        separator: one character, or one character twice (`::`).
        names: of all columns, in a file without a header line; else the first line has them.

    Raises:
        DataError: a column is missing, or the file is broken.
    """
    header = names is None
    for first, block in blocks(path, advance):
        if names is None:
            line, _, block = block.partition(b"\n")
            names = _header(path, line, separator, columns)
            first += 1
        if (frame := _at_once(first, block, separator, names, columns)) is not None:
            account.read += frame.height
            if frame.height:
                yield frame
        elif (frame := _by_line(first, block, separator, names, columns, account)).height:
            yield frame
    if header and names is None:
        raise DataError(f"{path}: the file is empty; a header line and rows are expected")


def _header(path: Path, line: bytes, separator: str, columns: Mapping[str, Any]) -> list[str]:
    names = [name.strip().strip('"') for name in line.decode("utf-8", "replace").split(separator)]
    if missing := [name for name in columns if name not in names]:
        has = short(", ".join(names))
        raise DataError(f"{path}, line 1: no column {missing[0]!r} in the header (has: {has}); is it the right file?")
    return names


def _at_once(
    first: int, block: bytes, separator: str, names: Sequence[str], columns: Mapping[str, Any]
) -> pl.DataFrame | None:
    """All lines of a block, or None if one of them is blank, misshapen, or does not parse."""
    # polars separates by one character; between a doubled one stands an empty field
    spread = [part for name in names for part in (name, f"_{name}")][:-1] if len(separator) == 2 else list(names)
    if not block.strip() or b'"' in block:
        return None
    try:
        frame = pl.read_csv(
            block,
            has_header=False,
            separator=separator[0],
            new_columns=spread,
            schema={name: columns.get(name, pl.String) for name in spread},
            quote_char=None,
        )
    except pl.exceptions.PolarsError:
        return None
    count = block.count(b"\n") + (not block.endswith(b"\n"))
    between = [name for name in spread if name not in names]
    if frame.height != count or any(frame[name].null_count() for name in names):
        return None
    if any(frame[name].null_count() < count for name in between):
        return None
    for name in columns:
        if not (frame[name].abs() <= _LARGEST).all():  # NaN is above every number here
            return None
    rows = pl.int_range(first, first + count, dtype=pl.Int64, eager=True).alias(ROW)
    return frame.select(rows, *columns)


def _by_line(
    first: int, block: bytes, separator: str, names: Sequence[str], columns: Mapping[str, Any], account: Account
) -> pl.DataFrame:
    numbers, rows = [], []
    place = {name: names.index(name) for name in columns}
    for number, raw in enumerate(block.split(b"\n"), start=first):
        if not raw.strip():
            continue
        account.read += 1
        try:
            rows.append(_fields(raw, separator, len(names), place, columns))
            numbers.append(number)
        except ValueError as error:
            account.bad(number, str(error))
    return frame_of(numbers, rows, columns) if rows else pl.DataFrame(schema={ROW: pl.Int64, **columns})


def _fields(
    raw: bytes, separator: str, width: int, place: Mapping[str, int], columns: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The numbers of one line, or a `ValueError` saying why not."""
    try:
        fields = raw.decode().rstrip("\r").split(separator)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start + 1})") from error
    if len(fields) != width:
        raise ValueError(f"{len(fields)} fields, {width} are expected")
    values = []
    for name, at in place.items():
        text = fields[at].strip().strip('"')
        try:
            if not text.isascii() or "_" in text:
                raise ValueError
            value = _PARSE[columns[name]](text)
            if not abs(value) <= _LARGEST:
                raise ValueError
        except ValueError:
            raise ValueError(f"{name} is {short(text)}; {_WORDS[columns[name]]} is expected") from None
        values.append(value)
    return tuple(values)


def text_rows(
    path: Path, separator: str, width: int, account: Account, *, encoding: str, advance: Advance | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of the lines that have at least `width` of them."""
    for block in lines(path, account, advance, encoding):
        for number, text in block:
            fields = text.rstrip("\r").split(separator)
            if len(fields) < width:
                account.bad(number, f"{len(fields)} fields, at least {width} are expected")
            else:
                yield number, fields
