"""LLaRA's windows and S-DPO's rows, as published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sirius_rec.data.options import SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sources import llara, sdpo
from sirius_rec.data.sources.llara import _window
from sirius_rec.errors import DataError

KNOWN = {"0", "1", "2", "7"}


@pytest.mark.parametrize(
    ("sequence", "length", "target", "expected"),
    [
        ([1, 2, 9, 9], 2, 7, (["1", "2"], "7")),
        ([9, 9, 9, 9], 1, 0, ([], "0")),  # an empty history, written as one padding
        ([1, 9, 9, 9], 1, 0, (["1"], "0")),
        ([(1, 5), (2, 3), (9, 0)], 2, (7, 4), (["1", "2"], "7")),
        ([], 0, 7, ([], "7")),
    ],
)
def test_one_window(sequence: Any, length: int, target: Any, expected: Any) -> None:
    assert _window(sequence, length, target, KNOWN) == expected


@pytest.mark.parametrize(
    ("sequence", "length", "target", "why"),
    [
        ([1, 9], 2, 7, "item '9' is not among the names"),
        ([1, 2], 3, 7, "len_seq is 3 for a sequence of 2"),
        ([1, 2], True, 7, "len_seq is True"),
        ("12", 1, 7, "seq is str"),
        ([1, "2"], 2, 7, "an item is str"),
        ([1, 2], 2, 9, "item '9' is not among"),
    ],
)
def test_bad_windows(sequence: Any, length: Any, target: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _window(sequence, length, target, KNOWN)


def test_llara_equals_the_independent_extract(shared_data: Path) -> None:
    """windows.jsonl.gz was made from the same files with pandas itself."""
    loaded = llara.load(shared_data / "lastfm" / "raw")
    with gzip.open(shared_data / "lastfm" / "windows.jsonl.gz", "rt") as stream:
        theirs = [json.loads(line) for line in stream]
    got = {split: loaded.rows.filter(split=split) for split in ("train", "val", "test")}
    for split, frame in got.items():
        expected = [(list(map(str, w["history"])), str(w["target"])) for w in theirs if w["split"] == split]
        assert list(frame.select("history", "target").iter_rows()) == expected
    titles = pl.read_csv(shared_data / "lastfm" / "items.csv", infer_schema=False)
    assert dict(loaded.items.iter_rows()) == dict(titles.iter_rows())


def test_llara_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train_data.df found"):
        llara.load(tmp_path)
    (tmp_path / "train_data.df").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(DataError, match=r"id2name.txt: file of names .* not found"):
        llara.load(tmp_path)
    (tmp_path / "id2name.txt").write_text("0::Air\n1::Blur::Live\n1::Again\nno\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"id2name.txt, line 4: 'no' is not id::title; 1 of 4 lines"):
        llara.load(tmp_path)
    with pytest.raises(DataError, match=r"train_data.df: the pickle names 'os.system'"):
        llara.load(tmp_path, max_malformed=0.5)


ROW = {"historyList": "Air::Blur", "itemList": ["Can", "Low", "+44"], "trueSelection": "Can"}
NAMES = "0::Air\n1::Blur\n2::Can\n3::Low\n4::+44\n"


def write(folder: Path, rows: Any, names: str | None = NAMES) -> Path:
    text = rows if isinstance(rows, str) else json.dumps(rows, indent=4)
    (folder / "x-test.json").write_text(text, encoding="utf-8")
    if names is not None:
        (folder / "id2name.txt").write_text(names, encoding="utf-8")
    return folder


def test_sdpo_by_hand(tmp_path: Path) -> None:
    aliased = {**ROW, "itemList": ["Can", "Low", "Plus 44"], "historyList": ["Air"]}
    loaded = sdpo.load(write(tmp_path, [ROW, aliased, {**ROW, "historyList": ""}]))
    assert loaded.rows.rows() == [
        (["0", "1"], "2", "test", ["2", "3", "4"]),
        (["0"], "2", "test", ["2", "3", "4"]),
        ([], "2", "test", ["2", "3", "4"]),
    ]
    assert loaded.notes["names_mapped"] == {"Plus 44": 1}
    assert loaded.notes["caution"].startswith("LEAKY")
    (tmp_path / "id2name.txt").unlink()
    by_title = sdpo.load(tmp_path / "x-test.json")
    assert by_title.items["item_id"].to_list() == sorted(["Air", "Blur", "Can", "Low", "+44", "Plus 44"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"trueSelection": "Air"}, "trueSelection 'Air' is not in itemList"),
        ({"itemList": ["Can", "Can"]}, "a title is duplicated"),
        ({"itemList": ["Can", "Nobody"]}, "title 'Nobody' is not among the names; add it to option aliases"),
        ({"itemList": None}, "field 'itemList' is None"),
        ({"historyList": "Air::"}, "a title is ''"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, change: Any, why: str) -> None:
    write(tmp_path, [ROW, {**ROW, **change}])
    with pytest.raises(DataError, match=rf"x-test.json, line 11: {why}.*; 1 of 2 lines are malformed"):
        sdpo.load(tmp_path)
    assert sdpo.load(tmp_path, max_malformed=0.5).rows.height == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"historyList": "A"},\n {"itemList": }]', "line 2: not JSON"),
        ('[\n{"a": 1}\n', "line 3: the list of rows is not closed"),
        ('[{"a": 1}] more', "more follows"),
        ('{"a": 1}', "not a JSON list"),
        ("", "not a JSON list"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no rows in x-test.json"),
    ],
    ids=range(7),
)
def test_files_that_are_no_list(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        sdpo.load(write(tmp_path, text))
    with pytest.raises(DataError, match="does not say which split"):
        (tmp_path / "x.json").write_text("[]")
        sdpo.load(tmp_path / "x.json")


def test_sdpo_equals_the_independent_extract(shared_data: Path, tmp_path: Path) -> None:
    loaded = sdpo.load(shared_data / "lastfm" / "raw")
    with (shared_data / "lastfm" / "sdpo_slates.jsonl").open() as stream:
        theirs = [json.loads(line) for line in stream]
    expected = [
        ([str(i) for i in r["history"]], str(r["target"]), r["split"], list(map(str, r["candidates"]))) for r in theirs
    ]
    assert loaded.rows.rows() == expected
    assert loaded.notes["names_mapped"] == {"Florence and the Machine": 131, "Plus 44": 38}
    slates = (SlateOptions(protocol="given", size=20, splits=("val", "test")),)
    dataset = prepare(
        "sdpo",
        shared_data / "lastfm" / "raw",
        tmp_path / "out",
        window=WindowOptions(max_history=10, min_history=3),
        slates=slates,
    )
    assert dataset.info["statistics"]["rows"] == {"train": 0, "val": 2767, "test": 2495}
