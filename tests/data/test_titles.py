"""Titles that look alike are alike, and one that shows nothing is none."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import polars as pl
import pytest

from sirius_rec.data.sources.table import load
from sirius_rec.data.titles import collapse_whitespace, tidy_title
from sirius_rec.errors import DataError

ODD = [
    unicodedata.normalize("NFD", "Café Été"), "\ufeffRed", "Re\u200bd", "\u200b", "\u200d\u2060", " \n ", "",
    "Two\u2003words\n ", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "می\u200cخواهم", "A\u00a0B",
]  # fmt: skip
TIDY = [
    "Café Été", "Red", "Red", "", "", "", "", "Two words", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "می\u200cخواهم", "A B",
]  # fmt: skip


def test_a_series_and_a_single_title_are_treated_the_same() -> None:
    tidy, changed = collapse_whitespace(pl.Series(ODD))
    assert tidy.to_list() == TIDY == [tidy_title(title) for title in ODD]
    assert changed == sum(odd != plain for odd, plain in zip(ODD, TIDY, strict=True))


def test_twins_are_told_apart_and_empty_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    (tmp_path / "items.csv").write_text(f"item_id,title\na,{ODD[0]}\nb,{TIDY[0]}\nc,\u200b\n")
    with pytest.raises(DataError, match=r"line 4: empty title of item 'c'"):
        load(tmp_path)
    loaded = load(tmp_path, missing_titles="drop")
    assert loaded.items["title"].to_list() == ["Café Été", "Café Été"]
