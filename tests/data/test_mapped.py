"""Train rows as arrays in files: what the tables hold, from one file or from parts, and checked like them."""

from __future__ import annotations

import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sirius_rec.data import mapped
from sirius_rec.data.fingerprint import table_fingerprint
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


def test_of_several_at_once_one_writes_and_none_takes_it_away(
    whole: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As processes of one training come to it, or jobs side by side."""
    written, original = list[Path](), mapped._write

    def slowly(folder: Path, *rest: Any) -> None:
        written.append(folder)
        time.sleep(0.2)
        original(folder, *rest)

    monkeypatch.setattr(mapped, "_write", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: mapped_rows(whole, NAME, tmp_path / "run" / "rows"), range(4)))
    assert len(written) == 1
    assert all(len(rows.candidates_RC) == whole.n_rows(NAME.split) for rows in found)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".rows.lock", "rows"]


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


def with_slates(dataset: Dataset, folder: Path, slates: pl.DataFrame) -> Dataset:
    """The same with other train slates, whose fingerprint is right."""
    shutil.copytree(dataset.path, folder)
    slates.write_parquet(folder / f"slates/{NAME}.parquet")
    prints = {**dataset.info["fingerprints"], f"slates/{NAME}": table_fingerprint(slates)}
    return Dataset(folder, {**dataset.info, "fingerprints": prints})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda slates: slates.reverse(), "are not in the order of the rows"),
        (lambda slates: slates.head(slates.height - 1), "are not in the order of the rows"),
        (lambda slates: pl.concat([slates, slates.head(3)]), "there are more slates"),
        (lambda slates: slates.with_columns(pl.col(CANDIDATES).list.head(5)), "does not hold its target"),
        (lambda slates: slates.with_columns(pl.col(CANDIDATES).list.eval(pl.element() + 80)), "holds an item outside"),
    ],
)
def test_slates_that_are_none_of_these_rows(whole: Dataset, tmp_path: Path, change: Any, message: str) -> None:
    slates = pl.read_parquet(whole.path / f"slates/{NAME}.parquet")
    dataset = with_slates(whole, tmp_path / "d", change(slates))
    with pytest.raises(DataError, match=message):
        mapped_rows(dataset, NAME, tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_slates_that_changed_are_found_and_others_are_mapped_anew(whole: Dataset, tmp_path: Path) -> None:
    slates = pl.read_parquet(whole.path / f"slates/{NAME}.parquet")
    mapped_rows(whole, NAME, tmp_path / "rows")
    other = with_slates(whole, tmp_path / "d", slates.with_columns(pl.col(CANDIDATES).list.reverse()))
    (other.path / f"slates/{NAME}.parquet").rename(tmp_path / "kept")
    slates.write_parquet(other.path / f"slates/{NAME}.parquet")
    with pytest.raises(DataError, match=r"uniform-6-s0\.parquet: the content has changed"):
        mapped_rows(other, NAME, tmp_path / "rows")
    (tmp_path / "kept").rename(other.path / f"slates/{NAME}.parquet")
    again = mapped_rows(other, NAME, tmp_path / "rows")
    assert again.candidates_RC.tolist() == slates[CANDIDATES].list.reverse().to_list()


def test_rows_of_no_item_are_refused(whole: Dataset, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "d")
    examples = pl.read_parquet(tmp_path / "d" / "examples.parquet")
    examples = examples.with_columns((pl.col(TARGET) + 90).cast(pl.Int32))
    examples.write_parquet(tmp_path / "d" / "examples.parquet")
    prints = {**whole.info["fingerprints"], "examples": table_fingerprint(examples)}
    with pytest.raises(DataError, match="target holds items outside 0 to 89"):
        mapped_rows(Dataset(tmp_path / "d", {**whole.info, "fingerprints": prints}), NAME, tmp_path / "rows")


def test_what_a_kill_left_is_no_obstacle(whole: Dataset, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "history").write_bytes(b"half")
    rows = mapped_rows(whole, NAME, tmp_path / "rows")
    assert len(rows) == whole.n_rows("train")
    assert pickle.loads(pickle.dumps(rows)).target_R.tolist() == rows.target_R.tolist()
    assert len(pickle.dumps(rows)) < 1000
