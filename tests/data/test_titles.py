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


@pytest.mark.slow
def test_no_character_is_treated_otherwise_by_a_single_title_or_the_second_time() -> None:
    """All code points. Python's white space has U+001C to U+001F, polars' has not; and a title comes back as shown."""
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for form in ("a{}b", " {}", "{}{}c", "e{}\u0301"):
        raw = [form.replace("{}", c) for c in characters]
        tidy = collapse_whitespace(pl.Series(raw))[0]
        again, changed = collapse_whitespace(tidy)
        assert changed == 0, [(r, t) for r, t, a in zip(raw, tidy, again, strict=True) if t != a][:3]
        some = [n for n, c in enumerate(characters) if c < "\u0300" or "\u2000" <= c < "\u2100" or c in "\u3000\ufeff"]
        assert [tidy_title(raw[n]) for n in some] == tidy.gather(some).to_list()
    assert tidy_title("Blur\x1fLive") == "Blur\x1fLive"


def test_twins_are_told_apart_and_empty_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    (tmp_path / "items.csv").write_text(f"item_id,title\na,{ODD[0]}\nb,{TIDY[0]}\nc,\u200b\n")
    with pytest.raises(DataError, match=r"line 4: empty title of item 'c'"):
        load(tmp_path)
    loaded = load(tmp_path, missing_titles="drop")
    assert loaded.items["title"].to_list() == ["Café Été", "Café Été"]
