"""What requests may name: the items of a run's catalogue, those added to it, or those of a table for a plain model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.fingerprint import table_fingerprint
from sirius_rec.data.sources.files import load_items
from sirius_rec.data.titles import distinct_titles
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.recipes.job import log
from sirius_rec.recipes.run import Run
from sirius_rec.schema import ITEM_ID, TITLE


@dataclass(frozen=True)
class Listing:
    """ids, titles: of items by number. own: how many, the first ones, are of the run's data; the others are known to
    what reads titles alone. new_shown: what stands for those in prompts, the title or that with the run's fields.
    """

    ids: list[str]
    titles: list[str]
    own: int
    new_shown: list[str] = field(default_factory=list)

    def names(self, *, titles: bool) -> list[str]:
        """How requests name them."""
        return self.titles if titles else self.ids

    @property
    def recipe(self) -> dict[str, Any]:
        """What answers depend on beside the run's data."""
        if not self.new_shown:
            return {}
        added = {ITEM_ID: self.ids[self.own :], TITLE: self.titles[self.own :], "shown": self.new_shown}
        return {"items": table_fingerprint(pl.DataFrame(added))}


def listing_of(run: Run, items: Path | str | None = None) -> Listing:
    """A run's items, and those of a table (item_id, title, and the run's prompts.fields) that it lacks.

    A new title that equals another's is told apart as in a preparation. An item of the run's keeps the title that the
    model was trained on. DataError for a bad table.
    """
    ids, titles = [str(i) for i in run.dataset.items[ITEM_ID].to_list()], run.dataset.titles
    if items is None:
        return Listing(ids, titles, len(ids))
    from sirius_rec.prompts.fields import with_fields

    prompts = run.config.prompts
    items = Path(items)
    table = _titled(items, prompts.fields)
    known = dict(zip(ids, titles, strict=True))
    other = [i for i, title in table.select(ITEM_ID, TITLE).rows() if known.get(i, title) != title]
    if other:
        log(f"{items}: {len(other):,} items such as {other[0]!r} have another title in the run: that one stays")
    new = table.filter(~pl.col(ITEM_ID).is_in(ids))
    every, renamed = distinct_titles([*titles, *new[TITLE].to_list()])
    if renamed:
        log(f"{items}: {len(renamed)} titles are those of other items and got a number, such as {every[renamed[0]]!r}")
    new = new.with_columns(pl.Series(TITLE, every[len(ids) :], dtype=pl.String))
    log(f"{items}: {new.height:,} items that the run's catalogue lacks")
    # Without fields no tokenizer is asked for.
    new_shown = with_fields(new, prompts.fields, run.tokenizer if prompts.fields else None, prompts.field_tokens)
    return Listing([*ids, *new[ITEM_ID].to_list()], every, len(ids), new_shown)


def listed_titles(items: Path) -> tuple[list[str], list[str]]:
    """Ids and titles of a table of items for a plain model; equal titles are told apart as in a preparation.

    DataError for an item without a title. Numbers behind equal titles go by the order of the table, so whoever lists
    other items than the model was trained on is told of them.
    """
    frame = _titled(items)
    shown, renamed = distinct_titles(frame[TITLE].to_list())
    if renamed:
        log(f"warning: {items}: {len(renamed)} titles are those of an earlier item and got a number, such as "
            f"{shown[renamed[0]]!r}: a model of a run knows them as its data/items.parquet has them")  # fmt: skip
    return frame[ITEM_ID].to_list(), shown


def _titled(items: Path, fields: tuple[str, ...] = ()) -> pl.DataFrame:
    try:
        frame, untitled, _ = load_items(items, {}, "drop", fields=fields)
    except ConfigError as error:
        if not fields:
            raise
        raise DataError(f"{items}: the run's prompts show {', '.join(fields)}: the table needs that, too") from error
    if untitled:
        raise DataError(f"{items}: item {untitled[0]!r} has no title: give it one, or leave it out")
    return frame
