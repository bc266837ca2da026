"""Train rows as arrays in files: what the tables hold, from one file or from parts, and checked like them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sirius_rec.data import mapped
from sirius_rec.data.mapped import mapped_rows
from sirius_rec.data.options import SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.store import Dataset, open_dataset
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, HISTORY, SPLIT, TARGET, SlateName

NAME = SlateName("train", "uniform", 6, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small world; its histories are of one to four items."""
    return prepare(
        "simulated",
        None,
        tmp_path_factory.mktemp("data") / "d",
        options={"n_items": 90, "n_users": 60, "events_per_user": 9},
        window=WindowOptions(max_history=4, min_history=1),
        slates=(SlateOptions(size=6),),
    )


@pytest.fixture(scope="module")
def parts(whole: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same rows in several files, users whole: of other lengths for rows than for slates."""
    folder = tmp_path_factory.mktemp("parts") / "d"
    shutil.copytree(whole.path, folder)
    user = pl.read_parquet(folder / "examples.parquet")["user_id"].rle_id()
    for name, group in (("examples", user // 7), (f"slates/{NAME}", None)):
        frame = pl.read_parquet(folder / f"{name}.parquet")
        group = pl.Series(np.arange(frame.height) // 37) if group is None else group
        (folder / f"{name}.parquet").unlink()
        (folder / f"{name}.parquet").mkdir()
        for number, part in enumerate(frame.with_columns(group.alias("g")).partition_by("g", include_key=False)):
            part.write_parquet(folder / f"{name}.parquet" / f"part-{number:05d}.parquet")
    return open_dataset(folder)


@pytest.mark.parametrize("block", [10, 1 << 18])
@pytest.mark.parametrize("which", ["whole", "parts"])
def test_arrays_hold_what_the_tables_hold(
    which: str, block: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_BLOCK", block)
    dataset: Dataset = request.getfixturevalue(which)
    rows = mapped_rows(dataset, NAME, tmp_path / "rows")
    examples = pl.read_parquet(sorted(dataset.path.glob("examples.parquet/*")) or dataset.path / "examples.parquet")
    train = examples.filter(pl.col(SPLIT) == "train")
    assert len(rows) == train.height == dataset.n_rows("train") > 200
    assert [rows.history(r).tolist() for r in range(len(rows))] == train[HISTORY].to_list()
    assert rows.target_R.tolist() == train[TARGET].to_list()
    file = dataset.path / f"slates/{NAME}.parquet"
    slates = pl.read_parquet(sorted(file.glob("*")) or file)
    assert rows.candidates_RC.tolist() == slates[CANDIDATES].to_list()


@pytest.mark.parametrize("shows_slate", [True, False])
def test_lengths_are_sums_over_history_and_slate(
    whole: Dataset, tmp_path: Path, shows_slate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_BLOCK", 10)
    rows = mapped_rows(whole, NAME, tmp_path / "rows")
    rng = np.random.default_rng(0)
    tokens_I, longest_I = rng.integers(1, 30, (2, whole.n_items))
    blocks = list(rows.lengths(tokens_I, longest_I, shows_slate=shows_slate))
    assert [start for start, _ in blocks] == list(range(0, len(rows), 10))
    found = np.concatenate([lengths for _, lengths in blocks])
    for r in range(len(rows)):
        history, slate = rows.history(r), rows.candidates_RC[r]
        expected = sum(tokens_I[i] for i in history) + max(longest_I[i] for i in slate)
        assert found[r] == expected + shows_slate * sum(tokens_I[i] for i in slate)


def test_parts_are_read_like_the_whole(whole: Dataset, parts: Dataset) -> None:
    for split in ("train", "val", "test"):
        assert parts.examples(split).equals(whole.examples(split))
        assert parts.n_rows(split) == whole.examples(split).height
    for limited in (True, False):
        ours, other = parts.train_sequences(limited=limited), whole.train_sequences(limited=limited)
        assert [one.tolist() for one in ours] == [one.tolist() for one in other]
    assert parts.slates(NAME).equals(whole.slates(NAME))


def test_they_are_written_once_for_a_data_set(whole: Dataset, tmp_path: Path) -> None:
    first = mapped_rows(whole, NAME, tmp_path / "rows")
    made = (first.folder / "target").stat().st_mtime_ns
    assert (mapped_rows(whole, NAME, tmp_path / "rows").folder / "target").stat().st_mtime_ns == made
    other = Dataset(whole.path, {**whole.info, "fingerprints": {**whole.info["fingerprints"], "examples": "another"}})
    with pytest.raises(DataError, match=r"examples\.parquet: the content has changed"):
        mapped_rows(other, NAME, tmp_path / "rows")


def test_a_part_that_changed_is_found(parts: Dataset, tmp_path: Path) -> None:
    shutil.copytree(parts.path, tmp_path / "d")
    file = sorted((tmp_path / "d" / "examples.parquet").iterdir())[2]
    frame = pl.read_parquet(file)
    frame.with_columns(pl.lit(0, pl.Int32).alias(TARGET)).write_parquet(file)
    for ask in (
        lambda d: d.examples("val"),
        lambda d: d.train_sequences(limited=True),
        lambda d: mapped_rows(d, NAME, tmp_path / "rows"),
    ):
        with pytest.raises(DataError, match=r"examples\.parquet: the content has changed"):
            ask(open_dataset(tmp_path / "d"))
    assert not (tmp_path / "rows").exists()
