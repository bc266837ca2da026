"""Cold items and fewer training users: nothing of them in training, and evaluation as it is without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sirius_rec.data.options import HoldOutOptions, Sharding, SlateOptions, SplitOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.store import Dataset
from sirius_rec.errors import ConfigError, DataError, RunError

SLATES = (SlateOptions(size=6), SlateOptions(protocol="full", size=None, splits=("test",)))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(3)
    rows = [f"u{u},i{i},{t}" for u in range(60) for t, i in enumerate(rng.permutation(50)[:12])]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Title {n}\n" for n in range(50)))
    return folder


def made(log: Path, out: Path, slates: tuple[SlateOptions, ...] = SLATES, **options: Any) -> Dataset:
    held = HoldOutOptions(**{k: options.pop(k) for k in ("cold_items", "train_users", "seed") if k in options})
    window = WindowOptions(max_history=5, min_history=2)
    return prepare("table", log, out, window=window, slates=slates, held_out=held, **options)


@pytest.mark.parametrize("split", ["user", "leave_last_out"])
def test_training_meets_no_cold_item_and_evaluation_stays(log: Path, tmp_path: Path, split: str) -> None:
    kind = SplitOptions(kind=split)  # type: ignore[arg-type]
    plain, held = made(log, tmp_path / "a", split=kind), made(log, tmp_path / "b", split=kind, cold_items=0.3)
    about = held.info["hold_out"]
    cold = set(about["items"])
    assert len(cold) == 15
    train, before = held.examples("train"), plain.examples("train")
    assert not cold & {*train["target"].to_list(), *train["history"].explode().drop_nulls().to_list()}
    assert not cold & {*held.slates("train-uniform-6-s0")["candidates"].explode().to_list()}
    assert not cold & {int(i) for sequence in held.train_sequences() for i in sequence}
    warm = before.filter(~pl.col("target").is_in(list(cold)))
    rows = zip(warm["row_id"].to_list(), warm["history"].to_list(), strict=True)
    stripped = {row_id: [i for i in history if i not in cold] for row_id, history in rows}
    wanted = {row_id: history for row_id, history in stripped.items() if len(history) >= 2}
    assert dict(zip(train["row_id"].to_list(), train["history"].to_list(), strict=True)) == wanted
    assert len(wanted) < len(stripped)
    assert about["train_rows_dropped"] == before.height - train.height > 0
    for part in ("val", "test"):
        assert held.examples(part).equals(plain.examples(part))
        for name in (n for n in plain.slate_names if n.startswith(part)):
            assert held.slates(name).equals(plain.slates(name))
    assert cold & set(held.examples("test")["target"].to_list())
    negatives = held.slates("train-uniform-6-s0")
    assert negatives["candidates"].list.len().unique().to_list() == [6]


def test_fewer_users_are_among_more_and_evaluation_stays(log: Path, tmp_path: Path) -> None:
    plain = made(log, tmp_path / "plain")
    users = {}
    for share in (0.1, 0.5):
        held = made(log, tmp_path / str(share), train_users=share)
        users[share] = set(held.examples("train")["user_id"].to_list())
        assert len(users[share]) == round(share * 48) == held.info["hold_out"]["users"]
        kept = plain.examples("train").filter(pl.col("user_id").is_in(list(users[share])))
        assert held.examples("train").equals(kept)
        assert held.all_train_examples().equals(kept)
        assert held.examples("test").equals(plain.examples("test"))
        assert held.slates("test-uniform-6-s0").equals(plain.slates("test-uniform-6-s0"))
    assert users[0.1] < users[0.5]


@pytest.mark.parametrize("held_out", [{"train_users": 0.5}, {"cold_items": 0.1}])
def test_a_history_that_lost_nothing_may_be_as_short_as_its_window_makes_it(
    log: Path, tmp_path: Path, held_out: dict[str, float]
) -> None:
    """Anchored histories of 12 events, at most 6 items, starts at multiples of 5: of 1 to 6 items."""
    window = WindowOptions(kind="anchored", max_history=6, min_history=4, step=5)
    plain, held = (
        prepare("table", log, tmp_path / str(n), window=window, slates=(SlateOptions(size=6),), held_out=options)
        for n, options in enumerate((HoldOutOptions(), HoldOutOptions(**held_out)))
    )
    before = plain.examples("train")
    assert before["history"].list.len().min() == 2
    cold, users = set(held.info["hold_out"]["items"]), set(held.examples("train")["user_id"].to_list())
    wanted = {}
    for row in before.filter(pl.col("user_id").is_in(list(users))).to_dicts():
        left = [i for i in row["history"] if i not in cold]
        if row["target"] not in cold and (left == row["history"] or len(left) >= 4):
            wanted[row["row_id"]] = left
    train = held.examples("train")
    assert dict(zip(train["row_id"].to_list(), train["history"].to_list(), strict=True)) == wanted
    assert min(map(len, wanted.values())) == 2
    assert len(users) == held.info["hold_out"]["users"]


@pytest.mark.parametrize("least", [0, 5])
def test_items_that_no_row_tells_of_any_more_are_counted(log: Path, tmp_path: Path, least: int) -> None:
    window, held_out = WindowOptions(max_history=5, min_history=least), HoldOutOptions(cold_items=0.2, train_users=0.5)
    plain, held = (
        prepare("table", log, tmp_path / str(n), window=window, slates=(SlateOptions(size=6),), held_out=options)
        for n, options in enumerate((HoldOutOptions(), held_out))
    )
    cold = set(held.info["hold_out"]["items"])
    order = np.random.default_rng([0, 1]).permutation(plain.examples("train")["user_id"].unique().len())
    users = plain.examples("train")["user_id"].unique(maintain_order=True)[order[: len(order) // 2].tolist()]

    def had(data: Dataset) -> set[tuple[str, int]]:
        rows = data.examples("train").filter(pl.col("user_id").is_in(users.to_list()))
        return {(r["user_id"], i) for r in rows.iter_rows(named=True) for i in (*r["history"], r["target"])}

    lost = {(user, item) for user, item in had(plain) - had(held) if item not in cold}
    assert held.info["hold_out"]["pairs_lost"] == len(lost)
    assert (len(lost) > 0) is (least == 5)


def test_another_seed_holds_others_out_and_is_another_recipe(log: Path, tmp_path: Path) -> None:
    items = [made(log, tmp_path / str(s), cold_items=0.3, seed=s).info["hold_out"]["items"] for s in (0, 1)]
    assert items[0] != items[1]
    with pytest.raises(RunError, match=r"another recipe .*hold_out"):
        made(log, tmp_path / "0", cold_items=0.2)
    with pytest.raises(RunError, match=r"another recipe .*hold_out"):
        made(log, tmp_path / "0")


def test_what_cannot_be_held_out_is_one_line(log: Path, tmp_path: Path) -> None:
    for slates, options, why in (
        ((SlateOptions(size=4, protocol="popularity"),), {"cold_items": 0.1}, "protocol popularity are drawn by what"),
        (
            (SlateOptions(size=4, protocol="sdpo-legacy"),),
            {"cold_items": 0.1},
            "sdpo-legacy hold items that are denied",
        ),
        (SLATES, {"cold_items": 0.1, "sharding": Sharding(2)}, "not for data prepared in shards"),
    ):
        with pytest.raises(ConfigError, match=why):
            made(log, tmp_path / "x", slates, **options)
    with pytest.raises(DataError, match=r"no train row is left of .*: hold less out"):
        made(log, tmp_path / "y", cold_items=0.99, train_users=0.02)
