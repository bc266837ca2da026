"""Counting over shards, against the same filters and cut-offs over all events at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sirius_rec.data.filtering import filter_events
from sirius_rec.data.sharded.engine import Local
from sirius_rec.data.sharded.filters import Filtering, Order, time_cuts
from sirius_rec.data.splitting import by_time
from sirius_rec.errors import DataError


def shards_of(folder: Path, user: Any, item: Any, time: Any, n_shards: int) -> list[Path]:
    """Shards by the user's number, written by hand; a user's first event is where it stands in the arrays."""
    paths = []
    for shard in range(n_shards):
        path = folder / str(shard)
        path.mkdir(parents=True)
        mine = np.flatnonzero(user % n_shards == shard)
        users = list(dict.fromkeys(user[mine].tolist()))
        events = [mine[user[mine] == one] for one in users]
        order = np.concatenate([np.empty(0, int), *events])
        counts = np.array([len(one) for one in events], np.int32)
        np.save(path / "count.npy", counts)
        np.save(path / "stop.npy", counts.cumsum())
        np.save(path / "first.npy", np.array([one[0] for one in events], np.int64))
        np.save(path / "item.npy", item[order].astype(np.int32))
        np.save(path / "time.npy", time[order].astype(np.int64))
        paths.append(path)
    return paths


@pytest.mark.parametrize("seed", range(12))
def test_filters_order_and_cut_offs(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 400))
    user, item = rng.integers(0, 30, n), (rng.exponential(12, n) % 40).astype(int)
    low = int(rng.choice([-5, 0, 1_400_000_000]))
    time = low + (rng.exponential(1.0, n) ** 4 * 90_000).astype(int)
    least = {"min_item": int(rng.integers(1, 9)), "min_user": int(rng.integers(1, 9))}
    sequence = int(rng.integers(1, 10))
    events = pl.DataFrame({"user_id": user.astype(str), "item_id": item.astype(str), "time": time})
    try:
        expected, steps = filter_events(events, **least, sequence=sequence)
    except DataError:
        expected, steps = events.clear(), None
    shards = shards_of(tmp_path, user, item, time, int(rng.integers(1, 6)))
    engine = Local(1)
    filtering = Filtering.begin(engine, shards, np.ones(40, bool))
    filtering.k_core(**least)
    filtering.min_sequence(sequence)
    assert steps is None or filtering.steps == steps
    left = filtering.left
    assert left.events == expected.height
    assert {str(k) for k in np.flatnonzero(left.count_I)} == set(expected["item_id"])
    if not expected.height:
        return
    users = [one for one in events["user_id"].unique(maintain_order=True) if one in set(expected["user_id"])]
    order = Order.of(shards, left.count_SU, 40)
    assert order.count_U.tolist() == [expected.filter(pl.col("user_id") == one).height for one in users]
    parts = np.diff(np.append(0, order.count_U.cumsum())[order.first_P])
    assert parts.sum() == expected.height and max(parts) <= 40 + max(order.count_U)
    for ratios in ((8, 1, 1), (1, 1, 1), (3, 1, 0)):
        labels = by_time(expected["time"].to_numpy(), ratios=ratios) if _splits(expected["time"], ratios) else None
        cuts, got = time_cuts(engine, shards, left, ratios, int(time.min()), int(time.max()))
        ordered = np.sort(expected["time"].to_numpy())
        assert got == [int((ordered <= cuts[0]).sum()), int(((ordered > cuts[0]) & (ordered <= cuts[1])).sum()),
                       int((ordered > cuts[1]).sum())]  # fmt: skip
        if labels is not None:
            assert got == np.bincount(labels, minlength=3).tolist()
            assert cuts[0] == ordered[got[0] - 1]


def _splits(times: pl.Series, ratios: tuple[int, int, int]) -> bool:
    try:
        by_time(times.to_numpy(), ratios=ratios)
    except DataError:
        return False
    return True
