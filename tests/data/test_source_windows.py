"""The `windows` source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sirius_rec.data.sources.windows import load
from sirius_rec.errors import DataError

GOOD: dict[str, Any] = {"history": ["a", "b"], "target": "c", "split": "train"}


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "windows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "items.csv").write_text("item_id,title\na,Red\nb,Blue\nc,Green\n7,Seven\n", encoding="utf-8")
    return folder


def test_reads_ids_as_text_and_optional_fields(tmp_path: Path) -> None:
    loaded = load(
        write(tmp_path, GOOD, {**GOOD, "history": [7], "candidates": ["b", "c"], "user_id": 4, "timestamp": 9})
    )
    assert loaded.rows["history"].to_list() == [["a", "b"], ["7"]]
    assert loaded.rows["candidates"].to_list() == [None, ["b", "c"]]
    assert loaded.rows["user_id"].to_list() == [None, "4"]
    assert loaded.rows["timestamp"].to_list() == [None, 9]


def test_absent_optional_fields_give_no_columns(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD)).rows.columns == ["history", "target", "split"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{not json", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"history": [], "split": "train"}, "no 'target'"),
        ({**GOOD, "history": ["a", "zz"]}, "history item 'zz' is not in the items file"),
        ({**GOOD, "history": "a"}, "history is 'a'; a list"),
        ({**GOOD, "target": "zz"}, "target item 'zz' is not in the items file"),
        ({**GOOD, "target": True}, "target holds True"),
        ({**GOOD, "split": "dev"}, "unknown split 'dev'; use one of train, val, test"),
        ({**GOOD, "candidates": ["a", "b"]}, "target 'c' is not among the candidates"),
        ({**GOOD, "candidates": ["c", "b", "b"]}, "item 'b' is duplicated in candidates"),
        ({**GOOD, "candidates": ["c", "zz"]}, "candidates item 'zz' is not in the items file"),
        ({**GOOD, "timestamp": "now"}, "timestamp 'now' is not an integer"),
        ({**GOOD, "timestamp": 99999999999999999999}, "timestamp 9{20} lies outside the years 1 to 9999"),
        ({**GOOD, "user_id": "\ud800"}, "user_id holds .*not valid text"),
        ("[" * 100_000, "brackets nest too deep"),
        ({**GOOD, "labels": 1}, "unknown field 'labels'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: dict[str, Any] | str, reason: str) -> None:
    with pytest.raises(DataError, match=f"windows.jsonl, line 2: .*{reason}") as caught:
        load(write(tmp_path, GOOD, row))
    assert "\n" not in str(caught.value)


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        load(write(tmp_path))


def test_published_slates(shared_data: Path) -> None:
    rows = load(shared_data / "lastfm" / "sdpo_slates.jsonl").rows
    assert dict(rows.group_by("split").len().iter_rows()) == {"val": 2767, "test": 2495}
    assert rows["candidates"].list.len().unique().to_list() == [20]


def test_goodreads(shared_data: Path) -> None:
    rows = load(shared_data / "goodreads_sprec").rows
    assert dict(rows.group_by("split").len().iter_rows()) == {"train": 5000, "val": 2494}


def test_stitching_windows_that_continue_each_other(tmp_path: Path) -> None:
    def row(history: str, target: str, split: str = "train") -> dict[str, Any]:
        return {"history": list(history), "target": target, "split": split}

    rows = [
        row("", "a"), row("a", "b"), row("ab", "c"),  # grows
        row("bc", "7"),  # windows of two slide
        row("a", "b"),  # "a" is not what the row before ended with
        row("ab", "c", "val"),  # another split
        row("", "c", "val"),  # an empty history begins anew
    ]  # fmt: skip
    loaded = load(write(tmp_path, *rows), stitch=True)
    users = [f"stitched-{n}" for n in (1, 1, 1, 1, 2, 3, 4)]
    assert loaded.rows["user_id"].to_list() == users
    assert loaded.notes["stitched_users"] == 4
    with pytest.raises(DataError, match="windows without user ids, and there are some: leave it out"):
        load(write(tmp_path, {**GOOD, "user_id": "u"}), stitch=True)


def test_stitched_lastfm_has_its_users(shared_data: Path) -> None:
    """976 train users, whose whole histories LLaRA's windows hold (SOURCE.md counts them)."""
    rows = load(shared_data / "lastfm", stitch=True).rows
    train = rows.filter(pl.col("split") == "train")
    assert train.height == 50800 and train["user_id"].n_unique() == 976
