"""Delimited files: the fast way over a whole block equals the way line by line."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.data.sources import delimited as module
from sirius_rec.data.sources.delimited import delimited
from sirius_rec.data.sources.lines import Account
from sirius_rec.errors import DataError

COLUMNS = {"a": pl.Int64, "x": pl.Float64}
NAMES = ("a", "other", "x")
CELL = st.sampled_from(
    ["1", "-20", "3.5", "", " 7", "x", "1e3", "nan", "inf", '"4"', "9" * 30, "1_0", "٣", "0x1", "+2"]
)
LINE = st.lists(CELL, min_size=2, max_size=4)


def read(path: Path, separator: str) -> tuple[list[tuple[int, ...]], Account]:
    account = Account(path)
    frames = list(delimited(path, COLUMNS, account, separator=separator, names=NAMES))
    return [row for frame in frames for row in frame.iter_rows()], account


@settings(max_examples=150)
@given(st.lists(LINE, max_size=8), st.sampled_from([",", "\t", "::"]), st.sampled_from(["\n", "\r\n"]))
def test_fast_equals_slow(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[str]], separator: str, end: str
) -> None:
    path = tmp_path_factory.mktemp("delimited") / "file"
    path.write_bytes("".join(separator.join(line) + end for line in lines).encode())
    got, account = read(path, separator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_at_once", lambda *_: None)
        slow, slowly = read(path, separator)
    assert got == slow
    assert (account.read, account.malformed) == (slowly.read, slowly.malformed)
    assert account.read == len(got) + account.malformed


def test_clean_blocks_take_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_by_line", lambda *_: pytest.fail("line by line"))
    path = tmp_path / "file"
    for separator, end in ((",", "\n"), ("::", "\n"), ("\t", "\r\n")):
        path.write_bytes("".join(separator.join((str(k), "text", str(k / 2))) + end for k in range(500)).encode())
        got, account = read(path, separator)
        assert got == [(k + 1, k, k / 2) for k in range(500)] and account.read == 500


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(b'\xef\xbb\xbf"x",y,a\r\n1.5,?,2\r\n\r\n2.5,?,3')
    frames = list(delimited(path, COLUMNS, Account(path)))
    assert [row for frame in frames for row in frame.iter_rows()] == [(2, 2, 1.5), (4, 3, 2.5)]
    path.write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"file.csv, line 1: no column 'a' in the header \(has: 'x, y'\)"):
        list(delimited(path, COLUMNS, Account(path)))
    path.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        list(delimited(path, COLUMNS, Account(path)))
