"""The catalogue of a raw dump: titles gathered line by line, and what to do with items that have none."""

from __future__ import annotations

import html
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl

from sirius_rec.data.sources.files import require_file
from sirius_rec.data.sources.lines import Account, lines, short, text_id, title_of
from sirius_rec.data.titles import collapse_whitespace
from sirius_rec.errors import DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, TITLE

MissingTitles = Literal["error", "drop", "id"]


def gather_titles(
    path: Path,
    decode: Callable[[str], Any],
    id_field: str,
    title_fields: tuple[str, ...],
    *,
    wanted: Container[str] | None = None,
    max_malformed: float,
    advance: Advance | None = None,
    fields: dict[str, dict[str, str]] | None = None,
) -> tuple[dict[str, str], Account]:
    """id → title ("" where the record has none) of a file with one record per line; a repeated id keeps its first
    title.

    wanted: the ids to keep; a catalogue may hold millions of items that no event names. fields: by name of a field, to
    be filled: id → its text, of the record that the title is of.

    Raises:
        DataError: too many malformed lines.
    """
    account = Account(path)
    titles: dict[str, str] = {}
    for block in lines(path, account, advance):
        for number, text in block:
            try:
                record = decode(text)
                if not isinstance(record, dict):
                    raise ValueError(f"not a record of named fields but {type(record).__name__}")
                item, title = text_id(record, id_field), title_of(record, *title_fields)
            except ValueError as error:
                account.bad(number, str(error))
                continue
            if not item:
                account.drop(f"without {id_field}")
            elif wanted is not None and item not in wanted:
                account.drop("without events")
            elif item in titles:
                if title and not titles[item]:
                    titles[item] = title
                    _fill(fields, item, record)
                account.drop(f"repeated {id_field}")
            else:
                titles[item] = title
                _fill(fields, item, record)
                account.kept += 1
    account.check(max_malformed)
    return titles, account


def _fill(fields: Mapping[str, dict[str, str]] | None, item: str, record: Mapping[str, Any]) -> None:
    for name, texts in (fields or {}).items():
        if text := field_text(record.get(name)):
            texts[item] = text


def field_text(value: Any) -> str:
    """What a field of a record says, as text of one line: lists and lists of lists by commas, each entry once.

    >>> field_text([["Books", "Art &amp; Music"], ["Books"]])
    'Books, Art & Music'
    """
    return ", ".join(dict.fromkeys(_entries(value)))


def _entries(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _entries(entry)
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        yield " ".join(_unescaped(str(value)).split())


def read_id_names(folder: Path, names: Path | str | None, max_malformed: float) -> tuple[pl.DataFrame, Path, Account]:
    """item_id, title from `id2name.txt` (`0::Morcheeba`) or MovieLens' `u.item` (`1|Toy Story (1995)|…`, Latin-1).

    Raises:
        DataError: neither is in the folder, or too many lines are malformed.
    """
    candidates = [folder / name for name in ("id2name.txt", "u.item") if (folder / name).is_file()]
    path = Path(names) if names is not None else (candidates[0] if candidates else folder / "id2name.txt")
    require_file(path, "file of names (id2name.txt or u.item)")
    separator, encoding = ("|", "latin-1") if path.name == "u.item" else ("::", "utf-8")
    account = Account(path)
    titles: dict[str, str] = {}
    for block in lines(path, account, None, encoding):
        for number, text in block:
            item, mark, title = text.strip().partition(separator)
            title = title.partition("|")[0] if separator == "|" else title
            if not mark or not item.strip() or not title.strip():
                account.bad(number, f"{short(text)} is not id{separator}title")
            elif item.strip() in titles:
                account.drop("repeated id")
            else:
                titles[item.strip()] = " ".join(title.split())
                account.kept += 1
    account.check(max_malformed)
    if not titles:
        raise DataError(f"{path}: no names; lines such as 0{separator}Title are expected")
    return pl.DataFrame({ITEM_ID: list(titles), TITLE: list(titles.values())}), path, account


def _unescaped(title: str) -> str:
    """Without HTML entities, however often they were escaped.

    >>> _unescaped("Salt &amp;amp; Pepper")
    'Salt & Pepper'
    """
    while (plain := html.unescape(title)) != title:
        title = plain
    return title


def titled_items(
    seen: pl.Series, titles: Mapping[str, str], missing: MissingTitles, where: Path | str
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """item_id, title of the items that have events, by numbers first (2 before 10) and then by text.

    Args:
        seen: ids of the items with events.
        titles: id → title as the file has it; HTML entities are read, white space is collapsed.
        missing: an item without a title is an error, is left out, or goes by its id.
        where: the file that the titles come from.

    Returns:
        items, and counts for the notes.

    Raises:
        DataError: an item without title and `missing` is 'error', or nothing is left.
    """
    raw = pl.Series(TITLE, [titles.get(item, "") for item in seen.to_list()], dtype=pl.String)
    plain = pl.Series(TITLE, [_unescaped(title) if "&" in title else title for title in raw], dtype=pl.String)
    tidy, collapsed = collapse_whitespace(plain)
    items = pl.DataFrame({ITEM_ID: seen.alias(ITEM_ID), TITLE: tidy})
    untitled = items.filter(pl.col(TITLE) == "")
    if untitled.height and missing == "error":
        raise DataError(
            f"{where}: no title for {untitled.height:,} of {items.height:,} items with events, for example item "
            f"{untitled[ITEM_ID].min()!r}; set missing_titles to drop (leave them out) or id (show the id)"
        )
    if missing == "id":
        items = items.with_columns(pl.when(pl.col(TITLE) == "").then(ITEM_ID).otherwise(TITLE).alias(TITLE))
    else:
        items = items.filter(pl.col(TITLE) != "")
    if not items.height:
        raise DataError(f"{where}: none of {seen.len():,} items with events has a title; set missing_titles to id")
    number = pl.col(ITEM_ID).cast(pl.Int64, strict=False)
    items = items.sort(number, ITEM_ID, nulls_last=True)
    notes = {
        "items_with_events": seen.len(),
        "items_without_title": {"count": untitled.height, "done": "shown by id" if missing == "id" else "dropped"},
        "titles_collapsed": collapsed,
        "titles_with_html_entities": int((plain != raw).sum()),
    }
    return items, notes
