"""Histories that start at multiples of a step in the user's sequence."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirius_rec.commands.common import app
from sirius_rec.data.fingerprint import table_fingerprint
from sirius_rec.data.options import SlateOptions, SplitOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.statistics import summary_lines
from sirius_rec.data.store import Dataset
from sirius_rec.data.windows import anchored_windows, sliding_windows
from sirius_rec.errors import ConfigError

ANCHORED = WindowOptions(kind="anchored", max_history=3, min_history=2, step=2)


def small(table: Path, out: Path, window: WindowOptions, **kwargs: Any) -> Dataset:
    split = SplitOptions(kind="leave_last_out")
    return prepare("table", table, out, window=window, **{"split": split, "slates": (SlateOptions(size=4),), **kwargs})


def test_starts_by_hand() -> None:
    """max_history 5, step 3: up to place 5 all there is; then 5 would begin at 1, 2, 3, 4, 5: the next multiple is
    3, 3, 3, 6, 6. A second user begins anew."""
    users = np.repeat([0, 1], [11, 7])
    items = np.concatenate([np.arange(11), 100 + np.arange(7)])
    windows = anchored_windows(users, items, max_history=5, min_history=4, step=3)
    assert windows.position_R.tolist() == [4, 5, 6, 7, 8, 9, 10, 15, 16, 17]
    assert windows.start_R.tolist() == [0, 0, 3, 3, 3, 6, 6, 11, 11, 14]
    assert windows.history.to_list() == [
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [3, 4, 5],
        [3, 4, 5, 6],
        [3, 4, 5, 6, 7],
        [6, 7, 8],
        [6, 7, 8, 9],
        [100, 101, 102, 103],
        [100, 101, 102, 103, 104],
        [103, 104, 105],
    ]


sequences = st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=14), max_size=5)


@given(sequences, st.data())
def test_what_anchored_windows_promise(sequences: list[list[int]], data: st.DataObject) -> None:
    longest = data.draw(st.integers(1, 7))
    step, least = data.draw(st.integers(1, longest)), data.draw(st.integers(0, longest))
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences]).astype(np.int64)
    items = np.array([i for s in sequences for i in s], dtype=np.int64)
    windows = anchored_windows(users, items, max_history=longest, min_history=least, step=step)
    sliding = sliding_windows(users, items, max_history=longest, min_history=least)
    assert windows.position_R.tolist() == sliding.position_R.tolist(), "other histories, the same targets"
    first = {user: int(np.flatnonzero(users == user)[0]) for user in users.tolist()}
    rows = list(zip(windows.position_R.tolist(), windows.start_R.tolist(), windows.history.to_list(), strict=True))
    for position, start, history in rows:
        place, begin = position - first[int(users[position])], start - first[int(users[position])]
        assert history == items[start:position].tolist(), "the run right before the target"
        assert begin % step == 0 and begin >= 0
        assert len(history) <= longest < place - (begin - step) or begin == 0, "the first multiple that fits"
        assert len(history) == place if place <= longest else longest - step < len(history) <= longest
    for (before, start, shorter), (after, other, longer) in pairwise(rows):
        if start == other and users[before] == users[after]:
            assert longer[: len(shorter)] == shorter


@given(sequences, st.integers(1, 7), st.integers(0, 7))
def test_a_step_of_one_slides(sequences: list[list[int]], longest: int, least: int) -> None:
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences]).astype(np.int64)
    items = np.array([i for s in sequences for i in s], dtype=np.int64)
    of = {"max_history": longest, "min_history": min(least, longest)}
    one, sliding = anchored_windows(users, items, step=1, **of), sliding_windows(users, items, **of)
    assert one.position_R.tolist() == sliding.position_R.tolist()
    assert one.history.equals(sliding.history)


def test_a_prepared_folder_of_anchored_windows(table: Path, tmp_path: Path) -> None:
    """Seven events a user, targets at 2 … 6: starts 0, 0, 2, 2, 4, so 2, 3, 2, 3, 2 items, the longest 3, 3 and 2."""
    sliding = small(table, tmp_path / "sliding", WindowOptions(max_history=3, min_history=2))
    anchored = small(table, tmp_path / "anchored", ANCHORED)
    rows = pl.concat([anchored.examples(split) for split in ("train", "val", "test")]).sort("row_id")
    assert rows.filter(pl.col("user_id") == "u1")["history"].to_list() == [[1, 2], [1, 2, 3], [3, 4], [3, 4, 5], [5, 6]]
    assert anchored.info["recipe"]["window"] == {"kind": "anchored", "max_history": 3, "min_history": 2, "step": 2}
    assert anchored.info["statistics"]["histories"] == {"starts": 15, "items": 60, "items_once_per_start": 40}
    # sliding: starts 0, 0, 1, 2, 3 with 2, 3, 3, 3, 3 items; the first two share a start
    assert sliding.info["statistics"]["histories"] == {"starts": 20, "items": 70, "items_once_per_start": 60}
    line = (
        "histories start at multiples of 2, in 15 places: of their 60 items 40 remain with each start's longest alone"
    )
    assert line in summary_lines(anchored) and not any("multiples" in line for line in summary_lines(sliding))
    assert anchored.fingerprint != sliding.fingerprint
    for split in ("train", "val", "test"):
        same = ["row_id", "user_id", "target", "timestamp"]
        assert anchored.examples(split).select(same).equals(sliding.examples(split).select(same))
    ours, theirs = anchored.train_sequences(), sliding.train_sequences()
    assert [s.tolist() for s in ours] == [s.tolist() for s in theirs], "networks train on whole sequences"


def test_the_recipe_knows_the_kind(table: Path, tmp_path: Path) -> None:
    sliding = WindowOptions(max_history=3, min_history=2)
    made = small(table, tmp_path / "out", sliding)
    assert small(table, tmp_path / "out", sliding).fingerprint == made.fingerprint
    with pytest.raises(Exception, match=r"another recipe \(differs in: window\)"):
        small(table, tmp_path / "out", ANCHORED)


def test_sliding_data_are_byte_for_byte_what_they_were(table: Path, tmp_path: Path) -> None:
    """Fingerprints of the commit before windows had kinds."""
    made = small(table, tmp_path / "out", WindowOptions(max_history=3, min_history=2))
    assert {name: value[:16] for name, value in made.info["fingerprints"].items()} == FINGERPRINTS
    again = small(table, tmp_path / "step", WindowOptions(kind="anchored", max_history=3, min_history=2, step=1))
    for name in ("examples", "items", "slates/train-uniform-4-s0"):
        one, other = (pl.read_parquet(path / f"{name}.parquet") for path in (made.path, again.path))
        assert table_fingerprint(one) == table_fingerprint(other)
        assert (made.path / f"{name}.parquet").read_bytes() == (again.path / f"{name}.parquet").read_bytes()


FINGERPRINTS = {
    "items": "ed41a428dcd422a1",
    "examples": "dacbb2b878abc979",
    "slates/train-uniform-4-s0": "274dbe55d4b78b96",
    "slates/val-uniform-4-s0": "fe853d2f80ca4d9f",
    "slates/test-uniform-4-s0": "4856c04b81d418bd",
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "anchored", "max_history": 5, "step": 6, "min_history": 1},
            "step 6 is above max_history 5: lower it",
        ),
        ({"kind": "anchored", "step": 0}, "step: must be at least 1, got 0"),
        ({"kind": "anchored"}, "kind anchored needs a step between starts: give one from 1 to 10"),
        ({"step": 5}, "step 5 is for kind anchored: write kind: anchored, or leave step out"),
        ({"kind": "fixed"}, "kind: must be 'sliding' or 'anchored', got 'fixed'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WindowOptions(**options)
    assert str(caught.value) == message


def test_ready_made_rows_cannot_be_anchored(tmp_path: Path) -> None:
    row = {"history": ["a", "b", "c"], "target": "d", "split": "train"}
    (tmp_path / "windows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{c},T{c}\n" for c in "abcd"), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"window\.kind anchored: these rows come with their histories.*use kind slid"
    ):
        prepare("windows", tmp_path, tmp_path / "out", window=ANCHORED)
    assert not (tmp_path / "out").exists()


def test_a_simulated_users_memory_must_fit_into_every_history(tmp_path: Path) -> None:
    """Else the true utilities of a row would rest on fewer items than the user went by."""
    small = {"n_items": 120, "n_users": 20, "events_per_user": 12}
    short = r"^window\.max_history 2: a simulated user goes by the last 3 items, and histories may hold 2; raise max_hi"
    with pytest.raises(ConfigError, match=short):
        prepare("simulated", None, tmp_path / "out", options=small, window=WindowOptions(max_history=2, min_history=1))
    window = {"kind": "anchored", "max_history": 5, "min_history": 5}
    message = r"window\.step 4: a simulated user goes by the last 3 items, and histories may hold 2; lower step"
    with pytest.raises(ConfigError, match=message):
        prepare("simulated", None, tmp_path / "out", options=small, window=WindowOptions(**window, step=4))
    slates = (SlateOptions(size=5, splits=("test",)),)
    made = {
        kind: prepare("simulated", None, tmp_path / kind, options=small, slates=slates, window=WindowOptions(**options))
        for kind, options in {
            "anchored": {**window, "step": 3},
            "sliding": {"max_history": 5, "min_history": 5},
            "shortest": {"max_history": 3, "min_history": 3},
        }.items()
    }
    assert made["anchored"].examples("test")["history"].list.len().min() == 3

    def truths(kind: str) -> dict[tuple[str, int], float]:
        """The target's utility by user and time, which no window changes."""
        [name] = made[kind].slate_names
        rows = made[kind].examples("test").join(made[kind].slates(name), on="row_id")
        rows = rows.join(made[kind].truth(name), on="row_id")  # type: ignore[arg-type]
        return {(r["user_id"], r["timestamp"]): r["utility"][r["candidates"].index(r["target"])]
                for r in rows.iter_rows(named=True)}  # fmt: skip

    whole, others = truths("sliding"), (truths("anchored"), truths("shortest"))
    assert whole and all(whole[key] == other[key] for other in others for key in whole)
    assert made["sliding"].examples("test")["history"].list.len().min() == 5


def test_the_command_line(table: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    window = "data.window={kind: anchored, max_history: 3, min_history: 2, step: 2}"
    arguments = ["prepare", "--source", "table", "--input", str(table), "--out", str(tmp_path / "out"), window]
    done = CliRunner().invoke(app, [*arguments, "data.slates=[{size: 3}]"])
    assert done.exit_code == 0, done.output
    assert "histories start at multiples of 2, in 15 places" in done.output
