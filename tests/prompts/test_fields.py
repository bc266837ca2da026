"""Columns of the catalogue behind titles."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from sirius_rec.errors import ConfigError
from sirius_rec.prompts.fields import with_fields

ITEMS = pl.DataFrame(
    {
        "item": [0, 1, 2],
        "item_id": ["a", "b", "c"],
        "title": ["Moon Safari", "Dummy", "Untitled"],
        "genre": ["Electronic", "Trip hop; slow, dark and rather a long description of it", None],
        "year": [1998, 1994, None],
    }
)


def test_fields_stand_in_brackets_in_their_order_and_what_is_missing_does_not(tokenizer: Any) -> None:
    assert with_fields(ITEMS, (), tokenizer, 16) == ["Moon Safari", "Dummy", "Untitled"]
    found = with_fields(ITEMS, ("year", "genre"), tokenizer, 200)
    assert found[0] == "Moon Safari (1998; Electronic)"
    assert found[1] == "Dummy (1994; Trip hop; slow, dark and rather a long description of it)"
    assert found[2] == "Untitled"


def test_what_is_too_long_is_cut_by_tokens_and_says_so(tokenizer: Any) -> None:
    whole = tokenizer("1994; Trip hop; slow, dark and rather a long description of it", add_special_tokens=False)
    short = with_fields(ITEMS, ("year", "genre"), tokenizer, 8)[1]
    assert short.startswith("Dummy (1994") and short.endswith("…)")
    inside = short.removeprefix("Dummy (").removesuffix("…)")
    assert len(tokenizer(inside, add_special_tokens=False)["input_ids"]) <= 7 < len(whole["input_ids"])
    assert "1994; Trip hop; slow, dark and rather a long description of it".startswith(inside)


def test_a_field_that_is_not_there_is_named(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="the catalogue has no 'brand'; there are genre, year"):
        with_fields(ITEMS, ("brand",), tokenizer, 8)
    with pytest.raises(
        ConfigError, match=r"there are none but titles: name columns of the items file in data\.options"
    ):
        with_fields(ITEMS.select("item", "item_id", "title"), ("brand",), tokenizer, 8)
