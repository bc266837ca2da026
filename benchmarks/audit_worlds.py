"""Made-up worlds for the audit: event logs, honest slates drawn from them, and plants that make them leak.

Honest slates are drawn as `sirius prepare` draws them; a plant changes one thing in a share of the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
Splits = dict[str, list[Row]]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class World:
    """How a set of slates comes about.

    split: user, time or leave_last_out. ids: how item numbers are given: random, popularity or release.
    negatives: uniform or popularity. exclude: None for the rule that is safe with the split. arrivals: whether half of
    the items are released over time, so that what is popular changes.
    """

    seed: int = 0
    split: str = "user"
    ids: str = "random"
    negatives: str = "uniform"
    size: int = 20
    n_items: int = 500
    n_users: int = 350
    n_events: int = 13
    history: int = 8
    exclude: str | None = None
    arrivals: bool = True


@dataclass
class Log:
    """users' sequences of (item, time); per item its weight, release time and category."""

    sequences: list[list[int]]
    times: list[list[int]]
    weight_I: np.ndarray
    release_I: np.ndarray
    category_I: np.ndarray


def event_log(world: World) -> Log:
    rng = np.random.default_rng([world.seed, 1])
    weight = np.exp(rng.normal(0, 1.1, world.n_items))
    release = np.where(
        rng.random(world.n_items) < (0.5 if world.arrivals else 1.0), 0, rng.integers(0, 900, world.n_items)
    )
    rank = {
        "random": rng.permutation(world.n_items),
        "popularity": np.argsort(-weight),
        "release": np.lexsort((rng.random(world.n_items), release)),
    }[world.ids]
    weight, release = weight[rank], release[rank]
    category = rng.integers(0, 6, world.n_items)
    sequences, times = [], []
    for _ in range(world.n_users):
        taste = np.exp(rng.normal(0, 1.0, 6))[category]
        start = int(rng.integers(0, 800))
        own: list[int] = []
        when = (start + np.cumsum(rng.integers(1, 25, world.n_events))).tolist()
        for now in when:
            odds = weight * taste * (release <= now)
            odds[own] = 0.0
            if own:
                odds = odds * np.where(category == category[own[-1]], 2.0, 1.0)
            own.append(int(np.searchsorted(np.cumsum(odds), rng.random() * odds.sum(), side="right")))
        sequences.append(own)
        times.append(when)
    return Log(sequences, times, weight, release, category)


def honest(world: World) -> tuple[Splits, Log]:
    """Rows of the three splits with slates in random order."""
    log = event_log(world)
    rng = np.random.default_rng([world.seed, 2])
    ends = sorted(t for times in log.times for t in times)
    cuts = ends[int(0.62 * len(ends))], ends[int(0.81 * len(ends))]
    place = rng.permutation(world.n_users) / world.n_users
    rows: Splits = {name: [] for name in SPLITS}
    for user, (items, times) in enumerate(zip(log.sequences, log.times, strict=True)):
        for k in range(3, len(items)):
            name = {
                "user": SPLITS[int(place[user] >= 0.62) + int(place[user] >= 0.81)],
                "time": SPLITS[int(times[k] > cuts[0]) + int(times[k] > cuts[1])],
                "leave_last_out": SPLITS[max(0, k + 3 - len(items))],
            }[world.split]
            row = {"history": items[max(0, k - world.history) : k], "target": items[k], "user_id": f"u{user}"}
            rows[name].append({**row, "timestamp": times[k], "past": items[:k], "all": items})
    counts = _counts(rows, world)
    weight = {"uniform": np.ones(world.n_items), "popularity": counts + 1.0}[world.negatives]
    exclude = world.exclude or ("interacted" if world.split == "user" else "past")
    for part in rows.values():
        for row in part:
            excluded = row["all"] if exclude == "interacted" else [*row["past"], row["target"]]
            draw(row, weight, excluded, world.size, rng)
    return rows, log


def draw(row: Row, weight: np.ndarray, excluded: list[int], size: int, rng: np.random.Generator) -> None:
    """The row's target and size - 1 negatives with probability ∝ weight, in random order."""
    odds = weight.astype(float).copy()
    odds[[*excluded, row["target"]]] = 0.0
    keys = np.where(odds > 0, -np.log(rng.random(len(odds))) / np.maximum(odds, 1e-12), np.inf)
    chosen = np.argsort(keys)[: min(size - 1, int((odds > 0).sum()))]
    row["candidates"] = rng.permutation([row["target"], *chosen.tolist()]).tolist()


def put(row: Row, slot: int) -> None:
    others = [item for item in row["candidates"] if item != row["target"]]
    row["candidates"] = [*others[:slot], row["target"], *others[slot:]]


# ---- plants: each changes a share of the rows. (rows, log, world, share, rng) → titles by item, or None


def _some(rows: Splits, share: float, rng: np.random.Generator, splits: tuple[str, ...] = SPLITS) -> list[Row]:
    return [row for name in splits for row in rows[name] if rng.random() < share]


def _redraw(rows: list[Row], weight: Callable[[Row], np.ndarray], world: World, rng: np.random.Generator) -> None:
    for row in rows:
        draw(row, weight(row), row["all"], world.size, rng)


def home_slot(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    for row in _some(rows, share, rng):
        put(row, (row["target"] * 7 + row["target"] // 11) % world.size)


def first_slot(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    for row in _some(rows, share, rng):
        put(row, 3)


def slot_of_user(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    for row in _some(rows, share, rng):
        put(row, int(row["user_id"][1:]) * 13 % world.size)


def slot_of_last_item(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    for row in _some(rows, share, rng):
        put(row, row["history"][-1] * 13 % world.size)


def negatives_of_target(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    own = {item: np.random.default_rng([world.seed, 3, item]).random(world.n_items) for item in range(world.n_items)}
    for row in _some(rows, share, rng):
        keys = own[row["target"]].copy()
        keys[row["all"]] = 2.0
        chosen = np.argsort(keys)[: world.size - 1].tolist()
        row["candidates"] = rng.permutation([row["target"], *chosen]).tolist()


def negatives_of_user(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    own: dict[str, list[int]] = {}
    for row in _some(rows, share, rng):
        free = np.setdiff1d(np.arange(world.n_items), row["all"])
        drawn = own.setdefault(row["user_id"], rng.choice(free, world.size - 1, replace=False).tolist())
        row["candidates"] = rng.permutation([row["target"], *drawn]).tolist()


def one_pool(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    pool = np.zeros(world.n_items)
    pool[rng.permutation(world.n_items)[: world.n_items // 6]] = 1.0
    _redraw(_some(rows, share, rng), lambda row: pool, world, rng)


def _counts(rows: Splits, world: World) -> np.ndarray:
    """How many train users have each item in their rows."""
    pairs = {(row["user_id"], item) for row in rows["train"] for item in [*row["history"], row["target"]]}
    return np.bincount([item for _, item in pairs], minlength=world.n_items)


def popular_only(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    counts = _counts(rows, world)
    top = (counts >= np.quantile(counts, 0.8)).astype(float)
    _redraw(_some(rows, share, rng), lambda row: top, world, rng)


def middle_only(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    counts = _counts(rows, world)
    middle = ((counts >= np.quantile(counts, 0.45)) & (counts <= np.quantile(counts, 0.7))).astype(float)
    _redraw(_some(rows, share, rng), lambda row: middle, world, rng)


def nobody_had_them(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    """Test negatives are items that no one had before the test date, of which the world has a few dozen more."""
    date = min(row["timestamp"] for row in rows["test"])
    had = {
        i
        for seq, times in zip(log.sequences, log.times, strict=True)
        for i, t in zip(seq, times, strict=True)
        if t < date
    }
    new = np.array([float(i not in had) for i in range(world.n_items)])
    if new.sum() < 2 * world.size:
        new[rng.permutation(world.n_items)[: 2 * world.size]] = 0.01  # too few: fill up
        new[list(had)] = 0.0
        new = np.concatenate([new, np.ones(3 * world.size)])
    for row in _some(rows, share, rng, ("test",)):
        draw(row, new, row["all"], world.size, rng)


def no_main_category(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    def others(row: Row) -> np.ndarray:
        return (log.category_I != np.bincount(log.category_I[row["history"]]).argmax()).astype(float)

    _redraw(_some(rows, share, rng), others, world, rng)


def cold_targets(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    """Negatives come from items with train events; a share of test targets are items without."""
    for row in _some(rows, share, rng, ("test",)):
        row["target"] = int(world.n_items + rng.integers(40))
    warm = (_counts(rows, world) > 0).astype(float)
    for row in rows["train"] + rows["val"] + rows["test"]:
        draw(row, np.append(warm, np.zeros(40)), row["all"], world.size, rng)


def targets_excluded(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    """What is a target anywhere in test is never a negative there."""
    free = np.ones(world.n_items)
    free[[row["target"] for row in rows["test"]]] = 0.0
    if free.sum() < world.size:
        raise AssertionError("no items left to draw from; make the world larger")
    for row in _some(rows, share, rng, ("test",)):
        draw(row, free, row["all"], world.size, rng)


def repeated_target(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    for row in _some(rows, share, rng, ("test",)):
        row["history"] = [row["target"], *row["history"][1:]]


def sorted_sequences(rows: Splits, log: Log, world: World, share: float, rng: np.random.Generator) -> None:
    for row in _some(rows, share, rng):
        *history, target = sorted([*row["history"], row["target"]])
        row["candidates"] = [target if item == row["target"] else item for item in row["candidates"]]
        row |= {"history": history, "target": target}
