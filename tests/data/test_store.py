"""A dataset folder: what is no such folder, and what was changed in one, is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sirius_rec.data.options import SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.store import Dataset, check_slates, open_dataset
from sirius_rec.errors import DataError
from sirius_rec.schema import SlateName


def test_opening_what_is_no_dataset(world: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a dataset folder"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not the description of a dataset"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({**world.info, "format": 99}), encoding="utf-8")
    with pytest.raises(DataError, match="format 99, this version reads 1"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(world.info), encoding="utf-8")
    with pytest.raises(DataError, match=r"items.parquet: missing"):
        open_dataset(tmp_path)
    opened = open_dataset(world.path)
    opened.verify()
    with pytest.raises(DataError, match="no slates 'test-uniform-9-s0'; there are train-uniform-20-s0"):
        opened.slates("test-uniform-9-s0")
    with pytest.raises(DataError, match="no split 'dev'"):
        opened.examples("dev")


def test_changed_content_is_noticed(table: Path, tmp_path: Path) -> None:
    dataset = prepare(
        "table",
        table,
        tmp_path / "out",
        window=WindowOptions(max_history=3, min_history=2),
        slates=(SlateOptions(size=4),),
    )
    file = dataset.path / "slates" / "train-uniform-4-s0.parquet"
    slates = pl.read_parquet(file)
    slates.with_columns(pl.col("candidates").list.reverse()).write_parquet(file)
    with pytest.raises(DataError, match="the content has changed"):
        dataset.verify()
    file.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        dataset.slates("train-uniform-4-s0")


@pytest.mark.parametrize("name", ["items", "examples", "slates/test-uniform-20-s0", "truth/test-uniform-20-s0"])
def test_a_table_changed_on_the_disk_is_refused_when_read(world: Dataset, tmp_path: Path, name: str) -> None:
    """Each change keeps the table well formed: rows in another order, titles and slates swapped between rows."""
    folder = tmp_path / "copy"
    shutil.copytree(world.path, folder)
    read: dict[str, Callable[[Dataset], object]] = {
        "items": lambda dataset: dataset.items,
        "examples": lambda dataset: dataset.examples("test"),
        "slates/test-uniform-20-s0": lambda dataset: dataset.slates("test-uniform-20-s0"),
        "truth/test-uniform-20-s0": lambda dataset: dataset.truth("test-uniform-20-s0"),
    }
    before = open_dataset(folder)
    kept = read[name](before)
    file = folder / f"{name}.parquet"
    frame = pl.read_parquet(file)
    if name == "items":
        frame = frame.with_columns(pl.col("title").reverse())
    elif name.startswith("slates/"):
        frame = frame.with_columns(pl.col("candidates").list.reverse())
    else:
        frame = frame.reverse()
    frame.write_parquet(file)
    with pytest.raises(DataError, match=rf"{name}.parquet: the content has changed") as caught:
        read[name](open_dataset(folder))
    assert "\n" not in str(caught.value)
    assert frame_of(read[name](before)).equals(frame_of(kept))  # what was read once stays what it was
    frame.with_columns(new=pl.lit(True)).write_parquet(file)
    with pytest.raises(DataError, match=rf"{name}.parquet: the content has changed"):
        read[name](open_dataset(folder))


def frame_of(value: object) -> pl.DataFrame:
    assert isinstance(value, pl.DataFrame)
    return value


def test_a_table_is_read_and_checked_once(world: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_dataset(world.path)
    first = opened.slates("test-uniform-20-s0"), opened.truth("test-uniform-20-s0"), opened.items
    monkeypatch.setattr("sirius_rec.data.store.pl.read_parquet", lambda _: pytest.fail("read again"))
    again = opened.slates("test-uniform-20-s0"), opened.truth("test-uniform-20-s0"), opened.items
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_an_edited_fingerprint_is_refused(world: Dataset, tmp_path: Path) -> None:
    shutil.copytree(world.path, tmp_path / "copy")
    info = json.loads((world.path / "dataset.json").read_text(encoding="utf-8"))
    info["fingerprints"]["items"] = "0" * 64
    (tmp_path / "copy" / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset.json: its fingerprint is not that of the tables"):
        open_dataset(tmp_path / "copy")


def test_each_slate_fault_names_its_row() -> None:
    rows = pl.DataFrame({"row_id": [4, 7], "target": [1, 2]})

    def check(*slates: list[int], row_ids: tuple[int, ...] = (4, 7)) -> None:
        frame = pl.DataFrame(
            {"row_id": row_ids, "candidates": slates}, schema_overrides={"candidates": pl.List(pl.Int32)}
        )
        check_slates("FILE", frame, rows, 5)

    check([0, 1], [2, 3])
    for slates, message in (
        (([0, 1], [0, 3]), "slate of row 7 does not hold its target"),
        (([1, 0, 0], [2, 3, 4]), "slate of row 4 holds an item twice"),
        (([1, 0], [2, 5]), "slate of row 7 holds an item outside 0 to 4"),
        (([1, 0], [2, -1]), "slate of row 7 holds an item outside 0 to 4"),
        (([1, 0], [2, 3, 4]), "slate of row 7 has another size"),
    ):
        with pytest.raises(DataError, match=message):
            check(*slates)
    with pytest.raises(DataError, match="row 7 has no slate"):
        check([0, 1], row_ids=(4,))
    with pytest.raises(DataError, match="row 9 has a slate but is not among the examples"):
        check([0, 1], [2, 3], [2, 3], row_ids=(4, 7, 9))
    with pytest.raises(DataError, match="row 7 has two slates"):
        check([0, 1], [2, 3], [2, 4], row_ids=(4, 7, 7))


def test_a_dataset_is_shown_in_one_line(world: Dataset) -> None:
    shown = repr(world)
    assert shown.startswith(f"Dataset(path='{world.path}', rows={{'train': ") and len(shown.splitlines()) == 1
    assert "test-uniform-50-s3" in shown and "fingerprint" not in shown


def test_rows_in_titles(world: Dataset) -> None:
    rows = list(world.titled("test-uniform-50-s3"))
    assert len(rows) == world.n_rows("test")
    first, target = world.examples("test").row(0, named=True), world.examples("test")["target"][0]
    history, title, candidates = rows[0]
    assert history == [world.titles[item] for item in first["history"]] and title == world.titles[target]
    assert candidates == [world.titles[item] for item in world.slates("test-uniform-50-s3")["candidates"][0]]
    assert title in candidates and len(candidates) == 50


@pytest.mark.parametrize("text", ["whatever", "", "test-uniform-20", "test-uniform-x-s0", "test--20-s"])
def test_what_is_no_name_of_slates_is_refused(text: str, world: Dataset) -> None:
    with pytest.raises(DataError, match="names are SPLIT-PROTOCOL-SIZE-sSEED, as test-uniform-20-s0"):
        SlateName.parse(text)
    with pytest.raises(DataError, match="there are train-uniform-20-s0"):
        next(world.titled(text))
