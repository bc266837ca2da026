"""Blocks of whole lines, and the account of them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.data.sources import lines as module
from sirius_rec.data.sources.lines import Account, blocks, check_share, lines, number_of, text_id, title_of, valid_text
from sirius_rec.errors import ConfigError, DataError


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b), max_size=12), st.integers(1, 40), st.booleans())
def test_blocks_hold_every_line_once_with_its_number(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], size: int, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "file"
    raw = b"\n".join(content)
    if raw.startswith((b"\x1f\x8b", b"\xef\xbb\xbf")):
        return
    path.write_bytes(gzip.compress(raw) if packed else raw)
    seen: dict[int, bytes] = {}
    for first, block in blocks(path, size=size):
        part = block.removesuffix(b"\n").split(b"\n")
        assert block.endswith(b"\n") or first + len(part) - 1 == len(content)
        seen |= dict(enumerate(part, start=first))
    expected = dict(enumerate(raw.removesuffix(b"\n").split(b"\n"), start=1)) if raw else {}
    assert seen == expected


def test_progress_goes_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(b"line\n" * 10_000))
    calls: list[tuple[str, int, int]] = []
    list(blocks(path, lambda *call: calls.append(call), size=1000))
    total = path.stat().st_size
    assert calls[-1] == ("file.gz", total, total)
    assert all(name == "file.gz" and 0 < done <= total for name, done, _ in calls)


def test_a_cut_archive_is_an_error_that_says_where(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(b"".join(b"%d\n" % k for k in range(50_000)))[:-20])
    with pytest.raises(DataError, match=r"file.gz: not a complete gzip file, broken after line \d+ .*; fetch it again"):
        list(blocks(path))


def test_undecodable_and_endless_lines_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 50)
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfone\ntw\xe9o\n\nthree\n" + b"x" * 300 + b"\nfour\n")
    account = Account(path)
    monkeypatch.setattr(module.blocks, "__kwdefaults__", {"size": 16})
    got = [pair for block in lines(path, account) for pair in block]
    assert got == [(1, "one"), (4, "three"), (6, "four")]
    assert (account.read, account.malformed) == (5, 2)
    assert [line for line, _ in account.first] == [2, 5]
    assert "not UTF-8 text" in account.first[0][1] and "longer than" in account.first[1][1]


def test_lines_behind_a_long_one_in_its_block_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """55 bytes, of which 48 were read while no line end had come: the fourth read brings two more lines with it."""
    monkeypatch.setattr(module, "_LONGEST", 50)
    monkeypatch.setattr(module.blocks, "__kwdefaults__", {"size": 16})
    path = tmp_path / "file"
    path.write_bytes(b"x" * 55 + b"\ntwo\n3\n")
    account = Account(path)
    got = [pair for block in lines(path, account) for pair in block]
    assert got == [(1, "x" * 55), (2, "two"), (3, "3")]
    assert (account.read, account.malformed) == (3, 0)


def test_the_share_decides(tmp_path: Path) -> None:
    account = Account(tmp_path / "f.json", read=1000, kept=998)
    account.bad(17, "not JSON")
    account.bad(5, "no user")
    account.check(0.002)
    with pytest.raises(
        DataError, match=r"f.json, line 5: no user; 2 of 1,000 lines are malformed \(0.20%\), more than"
    ):
        account.check(0.0019)
    assert account.note()["malformed"] == {
        "count": 2,
        "first": [{"line": 5, "why": "no user"}, {"line": 17, "why": "not JSON"}],
    }
    account.drop("too old")
    with pytest.raises(AssertionError):
        account.note()
    for share in (-0.1, 1, 1.5):
        with pytest.raises(ConfigError, match="max_malformed"):
            check_share(share)


def test_a_file_of_another_kind_is_left_after_a_thousand_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.blocks, "__kwdefaults__", {"size": 300})
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\n" * 5000)
    account = Account(path)
    with pytest.raises(DataError, match="line 1: not UTF-8 text"):
        list(lines(path, account))
    assert account.read < 1200


def test_fields() -> None:
    record = {"a": " x ", "n": 7, "f": 1.5, "t": True, "l": [], "e": "", "s": "\ud83d\ude00", "h": "\ud83d"}
    assert [text_id(record, name) for name in ("a", "n", "e", "absent")] == ["x", "7", "", ""]
    for name in ("f", "t", "l", "h"):
        with pytest.raises(ValueError):
            text_id(record, name)
    assert valid_text(record["s"], "s") == "😀"  # type: ignore[arg-type]
    assert title_of(record, "absent", "e", "a") == " x "
    with pytest.raises(ValueError, match="a title is text"):
        title_of(record, "n")
    assert number_of({"x": "4.5"}, "x") == 4.5
    for value in (None, "", "abc", float("nan"), True, [1], 10**400, "1e999"):
        with pytest.raises(ValueError):
            number_of({"x": value}, "x")
