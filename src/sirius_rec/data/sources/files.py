"""Reading input files so that a fault can be named by file, line and value."""

from __future__ import annotations

import gzip
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, Literal, get_args

import polars as pl

from sirius_rec import cache
from sirius_rec.data.sources.csv_records import ROW, SEPARATORS, Dialect, headerless, is_time
from sirius_rec.data.sources.csv_table import Table, read_csv
from sirius_rec.data.titles import collapse_whitespace
from sirius_rec.errors import ConfigError, DataError, first_line
from sirius_rec.schema import ITEM, ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID

TABLE_SUFFIXES: tuple[str, ...] = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
_ATOMIC_SUFFIXES = {"interactions": ".inter", "items": ".item"}  # RecBole's files have the data set's name as stem
OnFault = Literal["error", "drop"]


def file_note(path: Path) -> dict[str, Any]:
    """Provenance of one input file: path as given, sha256 and size in bytes."""
    return {"path": str(path), "sha256": cache.fingerprint(path), "bytes": path.stat().st_size}


def require_file(path: Path, what: str) -> Path:
    """`path` if it is a file, else a `DataError` saying `what` was looked for."""
    if not path.is_file():
        raise DataError(f"{path}: {what} not found; give the path of an existing file")
    return path


def find_table(folder: Path, stem: str) -> Path:
    """The one file `stem`.parquet, .csv[.gz] or .tsv[.gz] in a folder, else its one .inter (.item) file.

    Raises:
        DataError: none or more than one is there.
    """
    files = [folder / f"{stem}{suffix}" for suffix in TABLE_SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
    files = files or sorted(folder.glob(f"*{_ATOMIC_SUFFIXES.get(stem, '/')}"))
    if len(files) == 1:
        return files[0]
    names = ", ".join(f"{stem}{suffix}" for suffix in TABLE_SUFFIXES)
    if not files:
        raise DataError(f"{folder}: none of {names} found; put one there or name the file")
    raise DataError(f"{folder}: {' and '.join(p.name for p in files)} are both there; name the one to use")


def events_files(path: Path) -> tuple[Path, list[Path]]:
    """Where a log's events are, as they are named to people, and the files that hold them, in order.

    path: the file, or a folder with `interactions.*` or with a folder `interactions` of files of one kind; in such a
    folder, names that begin with a dot or an underscore are passed over.

    Raises:
        DataError: nothing of it, or more than one, is there; the folder's files are of several kinds, or none.
    """
    if not path.is_dir():
        return require_file(path, "events file"), [path]
    parts = path / "interactions"
    if not parts.is_dir():
        found = find_table(path, "interactions")
        return found, [found]
    for suffix in TABLE_SUFFIXES:
        if (path / f"interactions{suffix}").is_file():
            raise DataError(f"{path}: the folder interactions and interactions{suffix} are both there; remove one")
    named = sorted(file for file in parts.iterdir() if file.is_file() and file.name[0] not in "._")
    kinds = {file: next((suffix for suffix in TABLE_SUFFIXES if file.name.endswith(suffix)), None) for file in named}
    if not named:
        raise DataError(f"{parts}: holds no files; put the log there, as {', '.join(TABLE_SUFFIXES)}")
    for file, kind in kinds.items():
        if kind is None:
            raise DataError(f"{file}: is none of {', '.join(TABLE_SUFFIXES)}; move it out of the folder of events")
        if kind != kinds[named[0]]:
            raise DataError(f"{file}: is of another kind than {named[0].name}; keep files of one kind in a folder")
    return parts, named


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """UTF-8 text of a plain or gzip file; a broken archive or encoding becomes a `DataError`."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); fetch it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); give text (CSV, JSON lines) in UTF-8") from error


def place(path: Path, row: int) -> str:
    """Where the record with `ROW` stands: 'FILE, line N', or 'FILE, row N' for Parquet."""
    return f"{path}, {'row' if path.suffix == '.parquet' else 'line'} {row}"


def read_table(path: Path, dialect: Dialect = Dialect(), wanted: Collection[str] = ()) -> Table:
    """CSV (all columns as text, see `csv_table`) or Parquet (own types), with the place of each record in column `ROW`.

    wanted: columns of which the file must have some; by them a separator is sniffed.

    Raises:
        DataError: the file is empty, broken, in another encoding, or its records are not of one shape.
    """
    if path.suffix != ".parquet":
        return read_csv(path, dialect, wanted)
    try:
        frame = pl.read_parquet(path).with_row_index(ROW, offset=1)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error
    return Table(frame.with_columns(pl.col(ROW).cast(pl.Int64)), {"records": frame.height})


def require_columns(frame: pl.DataFrame, path: Path, columns: dict[str, str], option: str) -> None:
    """Raise a `DataError` unless every value of `columns` (our name → the file's) is a column of plain values."""
    missing = [theirs for theirs in columns.values() if theirs not in frame.columns]
    has = [name for name in frame.columns if name != ROW]
    names_option = option.replace("columns", "names")
    late = columns.get(TIMESTAMP, "")
    if path.suffix != ".parquet" and ((missing and headerless(has)) or (late in has and is_time(late))):
        guess = ", ".join([USER_ID, ITEM_ID, RATING, TIMESTAMP] if len(has) == 4 else columns)
        raise DataError(
            f"{path}, line 1: looks like data ({short_list(has)}), a header line is missing; add one, or name all "
            f"columns in their order with option {names_option}, such as [{guess}]"
        )
    if missing:
        mixed = next((mark for mark in SEPARATORS if len(has) == 1 and mark in has[0]), None)
        hint = f"; are fields separated by {SEPARATORS[mixed]}? set option separator" if mixed else ""
        raise DataError(
            f"{path}: no column {missing[0]!r} (has: {short_list(has)}); rename it or map it with option {option}{hint}"
        )
    for theirs in columns.values():
        dtype = frame.schema[theirs]
        if dtype.is_nested() or dtype.base_type() in (pl.Binary, pl.Time, pl.Duration, pl.Object):
            raise DataError(
                f"{path}: column {theirs!r} has type {dtype}; text, numbers or dates are expected, convert it"
            )


def short_list(names: Sequence[str]) -> str:
    """Names of columns in one line."""
    return ", ".join(names).replace("\n", "\\n")


def check_names(option: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Raise a `ConfigError` for the first name in the mapping `option` that is none of ours, with the nearest one."""
    for name in given:
        if name not in names:
            near = get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it maps {', '.join(names)}"
            raise ConfigError(f"option {option}: there is no column {name!r} to map; {hint}")


def first_bad(frame: pl.DataFrame, path: Path, column: str, reason: str, fix: str) -> DataError:
    """A `DataError` naming the first row of `frame`, which holds the offending rows only, and how many there are."""
    row, value = frame.select(ROW, column).row(0)
    return bad_row(path, row, value, frame.height, reason, fix)


def bad_row(path: Path, row: int, value: object, count: int, reason: str, fix: str) -> DataError:
    """A `DataError` naming the first of `count` offending rows; a value of None is not shown."""
    more = f"; {count} such rows" if count > 1 else ""
    shown = "" if value is None else f" {value!r}"
    return DataError(f"{place(path, row)}: {reason}{shown}{more}; {fix}")


def check_choice(option: str, value: str, choices: Any) -> None:
    """Raise a `ConfigError` unless `value` is one of the literal type's values."""
    if value not in get_args(choices):
        raise ConfigError(f"{option}={value!r} is not one of {', '.join(get_args(choices))}")


def check_fields(fields: Sequence[str], where: Path | str, known: Sequence[str]) -> None:
    """Raise a `ConfigError` for a field that is asked for twice, is not there, or has the name of a column of ours."""
    for name in fields:
        if name in (ITEM, ITEM_ID, TITLE):
            raise ConfigError(f"option fields: {name!r} is what this package calls a column of its own; leave it out")
        if name not in known:
            has = short_list(known) or "no others"
            raise ConfigError(f"option fields: {where} has no column {name!r} (has: {has}); leave it out")
        if list(fields).count(name) > 1:
            raise ConfigError(f"option fields: {name!r} is asked for twice")


# Whole numbers from here on have neighbours that are the same float.
_WHOLE: dict[Any, int] = {pl.Float32: 2**24, pl.Float64: 2**53}


def id_text(ids: pl.Series) -> pl.Series:
    """Ids (or other text) as text without white space around it; of floats, whole ones without their `.0`.

    Whole numbers become floats in pandas where some are missing.

    >>> id_text(pl.Series([24.0, 2.5, None])).to_list()
    ['24', '2.5', None]
    """
    if ids.dtype.is_decimal():
        ids = ids.cast(pl.Float64)
    if not ids.dtype.is_float():
        return ids.cast(pl.String).str.strip_chars()
    ids = ids.fill_nan(None)
    whole = (ids == ids.floor()) & (ids.abs() < _WHOLE[ids.dtype])
    texts = pl.when(whole).then(ids.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(ids.cast(pl.String))
    return pl.select(texts).to_series().alias(ids.name)


def field_texts(values: pl.Series) -> pl.Series:
    """A column beside the titles, as text of one line; null where there is nothing."""
    tidy, _ = collapse_whitespace(values.cast(pl.String).fill_null(""))
    return pl.select(pl.when(tidy != "").then(tidy)).to_series().alias(values.name)


def load_items(
    path: Path,
    columns: dict[str, str],
    missing_titles: OnFault,
    dialect: Dialect = Dialect(),
    bad_rows: OnFault = "error",
    fields: Sequence[str] = (),
) -> tuple[pl.DataFrame, list[str], dict[str, Any]]:
    """The catalogue: item_id (text, unique) and title (not empty, white space collapsed), in file order.

    fields: further columns of the file to keep, as text; null where they are empty.

    Returns:
        items, the ids dropped for want of a title, and counts for the notes.

    Raises:
        DataError: missing column, empty or repeated item_id unless `bad_rows` is 'drop' (the first with a title stays),
            empty title unless `missing_titles` is 'drop'.
    """
    check_names("item_columns", columns, (ITEM_ID, TITLE))
    names = {ITEM_ID: ITEM_ID, TITLE: TITLE, **columns}
    table = read_table(require_file(path, "items file"), dialect, names.values())
    raw = table.frame
    require_columns(raw, path, names, "item_columns")
    check_fields(fields, path, [name for name in raw.columns if name not in (ROW, *names.values())])
    kept = {**names, **{name: name for name in fields}}
    frame = raw.select(ROW, *(pl.col(theirs).cast(pl.String).alias(ours) for ours, theirs in kept.items()))
    frame = frame.with_columns(id_text(raw[names[ITEM_ID]]).alias(ITEM_ID))
    if bad_rows == "drop":
        titled = pl.col(TITLE).fill_null("").str.strip_chars() != ""
        frame = frame.filter(pl.col(ITEM_ID).fill_null("") != "").sort(~titled, ROW)
        frame = frame.filter(pl.col(ITEM_ID).is_first_distinct()).sort(ROW)
    bad = raw.height - frame.height
    if (empty := frame.filter(pl.col(ITEM_ID).fill_null("") == "")).height:
        raise first_bad(empty, path, TITLE, "empty item_id for title", "give every item an id")
    if (twice := frame.filter(~pl.col(ITEM_ID).is_first_distinct())).height:
        raise first_bad(twice, path, ITEM_ID, "item_id occurs a second time:", "keep one row per item")
    tidy, collapsed = collapse_whitespace(frame[TITLE].fill_null(""))
    frame = frame.with_columns(tidy.alias(TITLE))
    untitled = frame.filter(pl.col(TITLE) == "")
    if untitled.height and missing_titles == "error":
        raise first_bad(untitled, path, ITEM_ID, "empty title of item", "add it, or set missing_titles: drop")
    frame = frame.with_columns(field_texts(frame[name]) for name in fields)
    items = frame.filter(pl.col(TITLE) != "").select(ITEM_ID, TITLE, *fields)
    if not items.height:
        raise DataError(f"{path}: no items; a catalogue of at least one titled item is needed")
    notes = {
        "items_read": raw.height,
        **({"item_rows_dropped": bad} if bad else {}),
        "items_without_title_dropped": untitled.height,
        "titles_collapsed": collapsed,
        "items_format": table.notes,
    }
    return items, untitled[ITEM_ID].to_list(), notes
