"""What pass 3 counts, and writes for the parts: filters, the catalogue, splits, and the statistics of the events."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.example_set import event_statistics, filter_report, no_windows, number_items
from sirius_rec.data.filtering import FilterStep, nothing_left
from sirius_rec.data.impressions import impression_report
from sirius_rec.data.sharded.engine import Engine
from sirius_rec.data.sharded.filters import Filtering, Left, Order, time_cuts
from sirius_rec.data.sharded.parts import Global
from sirius_rec.data.sharded.plan import Plan
from sirius_rec.data.sharded.shard import Shard
from sirius_rec.data.splitting import Labels, check_shares, user_labels
from sirius_rec.data.usable import long_title_notes, long_titles
from sirius_rec.schema import ITEM_ID

_COUNTED = "counted.json"


@dataclass(frozen=True)
class Counted:
    """items: the dataset's. titles, notes: for dataset.json.

    steps: what the filters dropped. left: users, items and events after them. count_U: events of each user.
    """

    items: pl.DataFrame
    titles: dict[str, Any]
    notes: dict[str, Any]
    steps: list[FilterStep]
    left: dict[str, int]
    count_U: npt.NDArray[np.int32]

    def statistics(self, windows: dict[str, int]) -> dict[str, Any]:
        """Of the events. windows: as `Windowed.counts` of all parts."""
        return event_statistics(self.count_U, self.items.height, self.left["items"], windows)

    def filters(self, repeats: int) -> dict[str, Any]:
        return filter_report(self.left, self.steps, repeats)

    def impressions(self, log: dict[str, Any], kept: int) -> dict[str, Any]:
        """What became of impressions, for dataset.json. log: the notes of reading it. kept: by all parts."""
        return impression_report(kept, log["impressions"]["kept"] - kept) if "impressions" in log else {}


def count_all(engine: Engine, plan: Plan, catalogue: pl.DataFrame, say: Callable[[str], None]) -> Counted:
    """Count, unless that was done before, and write what the parts need into the folder `order`."""
    folder = plan.folder / "order"
    if not folder.is_dir():
        say("filtering and splitting")
        _count(engine, plan, catalogue, folder)
    saved = json.loads((folder / _COUNTED).read_text(encoding="utf-8"))
    items, titles = number_items(catalogue.filter(pl.Series(Global(folder).array("number") >= 0)))
    steps = [FilterStep(**step) for step in saved["steps"]]
    return Counted(items, titles, saved["notes"], steps, saved["left"], np.load(folder / "count.npy"))


def _count(engine: Engine, plan: Plan, catalogue: pl.DataFrame, folder: Path) -> None:
    shards = [plan.shard(number) for number in range(plan.sharding.shards)]
    long = long_titles(catalogue, plan.asked.max_title, plan.asked.unusable)
    item_I = ~catalogue[ITEM_ID].is_in(long[ITEM_ID].implode()).to_numpy()
    filtering = Filtering.begin(engine, shards, item_I)
    left, notes = filtering.left, {}
    before = left.events
    if long.height:
        n_events = sum(int(Shard(shard).item_E.size) for shard in shards)
        about = long_title_notes(long, plan.asked.max_title, "events", n_events, before, int(item_I.sum()))
        notes = {"long_titles_dropped": about}
    filtering.k_core(plan.asked.filter.min_item, plan.asked.filter.min_user)
    filtering.min_sequence(plan.asked.filter.min_sequence)
    if not left.events:
        raise nothing_left(before, **plan.asked.filter.model_dump())
    stays_I = left.count_I > 0 if max(plan.asked.filter.model_dump().values()) > 1 else item_I
    number_I = np.where(stays_I, stays_I.cumsum() - 1, -1).astype(np.int32)
    order = Order.of(shards, left.count_SU, plan.sharding.events)
    rows_U = np.maximum(order.count_U.astype(np.int64) - plan.asked.window.min_history, 0)
    if not rows_U.any():
        raise no_windows(order.count_U.size, int(order.count_U.max()), plan.asked.window)
    row_P = np.append(0, rows_U.cumsum())[order.first_P]
    labels, cuts = _split(engine, plan, shards, left, order.count_U.size)
    counts = {"users": left.users, "items": left.items, "events": left.events}
    with atomic.replacing(folder) as partial:
        partial.mkdir()
        Global.write(partial, order, number_I, row_P, labels, cuts)
        np.save(partial / "count.npy", order.count_U)
        saved = {"steps": [asdict(step) for step in filtering.steps], "left": counts, "notes": notes}
        (partial / _COUNTED).write_text(json.dumps(saved), encoding="utf-8")


def _split(
    engine: Engine, plan: Plan, shards: Sequence[Path], left: Left, n_users: int
) -> tuple[Labels, tuple[int, int] | None]:
    """The users' labels, or the cut-offs in time; neither for leave-last-out."""
    if plan.asked.split.kind == "user":
        return user_labels(n_users, ratios=plan.asked.split.ratios, seed=plan.asked.split.seed), None
    if plan.asked.split.kind == "time":
        days = [Shard(shard).days.table for shard in shards]
        low = int(np.floor(min(float(day["first"].min()) for day in days if day.height)))  # type: ignore[arg-type]
        high = int(np.floor(max(float(day["last"].max()) for day in days if day.height)))  # type: ignore[arg-type]
        cuts, got = time_cuts(engine, shards, left, plan.asked.split.ratios, low, high)
        check_shares(got, cuts, plan.asked.split.ratios)
        return np.empty(0, np.int8), cuts
    return np.empty(0, np.int8), None
