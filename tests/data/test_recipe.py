"""What a dataset folder was made from: found again, refused, or taken over from elsewhere with its frozen slates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.data.options import SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.store import Dataset
from sirius_rec.errors import ConfigError, DataError, RunError


def window(max_history: int, min_history: int) -> WindowOptions:
    return WindowOptions(max_history=max_history, min_history=min_history)


def small(table: Path | None, out: Path, **kwargs: Any) -> Dataset:
    defaults: dict[str, Any] = {
        "window": window(3, 2),
        "slates": (SlateOptions(size=4),),
    }
    return prepare("table", table, out, **{**defaults, **kwargs})


def test_reuse_and_refusal(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = small(table, out)
    stamp = (out / "dataset.json").stat().st_mtime_ns
    assert small(table, out).fingerprint == first.fingerprint
    assert (out / "dataset.json").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match=r"another recipe \(differs in: slates, window\)"):
        small(table, out, window=window(4, 2), slates=(SlateOptions(size=5),))
    with (table / "interactions.csv").open("a", encoding="utf-8") as stream:
        stream.write("u9,i1,5\n")
    with pytest.raises(RunError, match=r"interactions.csv has changed"):
        small(table, out)
    with pytest.raises(RunError, match="exists and is not a dataset"):
        small(table, table)


def test_options_at_their_defaults_are_no_other_recipe_but_changed_defaults_are(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recorded = small(table, out).info["recipe"]["options"]
    assert recorded["ties"] == "shuffle" and "path" not in recorded
    small(table, out, options={"ties": "shuffle"})
    info = json.loads((out / "dataset.json").read_text())
    info["recipe"]["options"]["ties"] = "file"  # as if that had been the default when the folder was made
    (out / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(RunError, match=r"another recipe \(differs in: options\)"):
        small(table, out)


def test_a_prepared_folder_is_taken_over_without_its_input(table: Path, tmp_path: Path) -> None:
    """On another machine the raw log is not there; rows and slates are those that were frozen."""
    first = small(table, tmp_path / "first")
    shutil.rmtree(table)
    assert small(table, tmp_path / "first").fingerprint == first.fingerprint, "prepared before, and needed no more"
    # the very section that prepared it, which names an input that is not there
    taken = small(table, tmp_path / "taken", prepared=tmp_path / "first")
    assert taken.fingerprint == first.fingerprint
    assert taken.slates("val-uniform-4-s0").equals(first.slates("val-uniform-4-s0"))
    assert small(None, tmp_path / "taken", prepared=tmp_path / "first").fingerprint == first.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "taken"]
    shutil.rmtree(tmp_path / "first")
    assert small(table, tmp_path / "taken", prepared=tmp_path / "first").fingerprint == first.fingerprint
    with pytest.raises(DataError, match=r"data\.prepared .*first: no such folder"):
        small(table, tmp_path / "again", prepared=tmp_path / "first")
    with pytest.raises(DataError, match=r"raw: no such file or folder: name yours with data\.input=PATH"):
        small(table, tmp_path / "again")


def test_a_prepared_folder_of_another_recipe_or_damaged_is_refused(table: Path, tmp_path: Path) -> None:
    small(table, tmp_path / "first")
    with pytest.raises(ConfigError, match=r"first: was prepared with another recipe \(differs in: slates\)"):
        small(None, tmp_path / "taken", prepared=tmp_path / "first", slates=(SlateOptions(size=5),))
    with pytest.raises(DataError, match="not a dataset folder"):
        small(None, tmp_path / "taken", prepared=table)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("mine")
    for taken in (tmp_path / "other", tmp_path / "other" / "precious"):
        with pytest.raises(RunError, match="exists and is not a copy of"):
            small(None, taken, prepared=tmp_path / "first")
    slates = tmp_path / "first" / "slates" / "val-uniform-4-s0.parquet"
    shutil.copy(tmp_path / "first" / "slates" / "train-uniform-4-s0.parquet", slates)
    with pytest.raises(DataError, match="val-uniform-4-s0"):
        small(None, tmp_path / "taken", prepared=tmp_path / "first")
    assert not (tmp_path / "taken").exists()
