"""What stands for an item in a prompt beside its title: columns of the catalogue, in brackets, cut by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from sirius_rec.errors import ConfigError
from sirius_rec.schema import ITEM, ITEM_ID, TITLE


def with_fields(items: pl.DataFrame, fields: Sequence[str], tokenizer: Any, most: int) -> list[str]:
    """Texts by item number: the title, and behind it in brackets what the item has of `fields`, in their order.

    items: item_id, title and further columns. most: tokens that the brackets may hold. Raises ConfigError for a field
    that is no column of the catalogue.
    """
    titles: list[str] = items[TITLE].to_list()
    if not fields:
        return titles
    known = [name for name in items.columns if name not in (ITEM, ITEM_ID, TITLE)]
    for name in fields:
        if name not in known:
            have = ", ".join(known) or "none but titles: name columns of the items file in data.options.fields"
            raise ConfigError(f"prompts.fields: the catalogue has no {name!r}; there are {have}")
    columns = [items[name].cast(pl.String).to_list() for name in fields]
    texts = ["; ".join(value for value in values if value) for values in zip(*columns, strict=True)]
    short = _cut(texts, tokenizer, most)
    return [f"{title} ({text})" if text else title for title, text in zip(titles, short, strict=True)]


def _cut(texts: Sequence[str], tokenizer: Any, most: int) -> list[str]:
    """Texts of at most so many tokens: whole where they are short, else what their first ones say and "…"."""
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    out = []
    for text, ids in zip(texts, rows, strict=True):
        if len(ids) > most:
            # A token may end inside a character.
            text = tokenizer.decode(ids[: most - 1], skip_special_tokens=True).rstrip("\ufffd ;") + "…"
        out.append(text)
    return out
