"""Cold items and fewer training users: what training is denied, at rows and slates of evaluation that stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.example_set import ExampleSet
from sirius_rec.data.options import HoldOutOptions, SlateOptions
from sirius_rec.data.slates import ExcludedItems
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import HISTORY, SPLIT, TARGET, USER_ID


def check_hold_out(hold_out: HoldOutOptions, slates: Sequence[SlateOptions], sharded: bool) -> None:
    """ConfigError where slates would tell of what is held out, or depend on it."""
    if not hold_out:
        return
    if sharded:
        raise ConfigError("data.hold_out: not for data prepared in shards: leave shards out")
    for option in slates:
        if option.protocol in ("popularity", "hard"):
            raise ConfigError(
                f"data.hold_out: slates of protocol {option.protocol} are drawn by what train rows say, and would not "
                "be those without it: use uniform"
            )
        if "train" in option.splits and option.protocol != "uniform" and hold_out.cold_items:
            raise ConfigError(
                f"data.hold_out.cold_items: train slates of protocol {option.protocol} hold items that are denied"
                ": use uniform, or splits: [val, test]"
            )


@dataclass(frozen=True)
class HeldOut:
    """cold_I: bool[n_items]. n_train_users: with train rows, of so many before. rows, left: of train that were dropped,
    and that stay. lost: pairs of such a user and a warm item that stood in dropped rows alone."""

    cold_I: npt.NDArray[np.bool_]
    n_train_users: int
    of_train_users: int
    rows: int
    left: int
    lost: int

    def denied_to(self, train: ExampleSet) -> ExampleSet:
        """Train rows for which cold items are no negatives."""
        interacted, past = (_without(of, self.cold_I) for of in (train.interacted, train.past))
        return replace(train, interacted=interacted, past=past)

    def info(self, options: HoldOutOptions) -> dict[str, Any]:
        """For dataset.json; items by number."""
        return {
            **options.model_dump(), "items": np.flatnonzero(self.cold_I).tolist(), "users": self.n_train_users,
            "of_users": self.of_train_users, "train_rows_dropped": self.rows,
            "pairs_lost": self.lost,
        }  # fmt: skip


def hold_out(example_set: ExampleSet, options: HoldOutOptions, min_history: int) -> tuple[ExampleSet, HeldOut]:
    """The examples without what training is denied. Rows of val and test stay, whole.

    min_history: train rows whose history loses items, and is left with fewer, are dropped too. (Anchored histories may
    be shorter than that by themselves.)

    Raises:
        DataError: no train row is left.
    """
    examples, n_items = example_set.examples, example_set.items.height
    cold_I = np.zeros(n_items, dtype=bool)
    drawn = np.random.default_rng([options.seed, 0]).permutation(n_items)
    cold_I[drawn[: round(options.cold_items * n_items)]] = True
    train_R = (examples[SPLIT] == "train").to_numpy()
    user_R, n_users, kept = _kept_users(examples, train_R, options)
    cold = pl.Series(np.flatnonzero(cold_I), dtype=pl.Int32)
    warm = pl.col(HISTORY).list.eval(pl.element().filter(~pl.element().is_in(cold.implode())))
    before_R = examples[HISTORY].list.len().to_numpy()
    examples = examples.with_columns(pl.when(pl.Series(train_R)).then(warm).otherwise(HISTORY).alias(HISTORY))
    left_R = examples[HISTORY].list.len().to_numpy()
    short_R = (left_R < before_R) & (left_R < min_history)
    dropped_R = train_R & (cold_I[examples[TARGET].to_numpy()] | ~kept[user_R] | short_R)
    if not (train_R & ~dropped_R).any():
        raise DataError(f"data.hold_out: no train row is left of {int(train_R.sum()):,}: hold less out")
    n_dropped = int(dropped_R.sum())
    pairs = [_pairs(examples, user_R, rows, cold) for rows in (train_R & kept[user_R], train_R & ~dropped_R)]
    held = HeldOut(cold_I, int(kept.sum()), n_users, n_dropped, int(train_R.sum()) - n_dropped, pairs[0] - pairs[1])
    return replace(example_set, examples=examples).select(~dropped_R), held


def _kept_users(
    examples: pl.DataFrame, train_R: npt.NDArray[np.bool_], options: HoldOutOptions
) -> tuple[npt.NDArray[np.int64], int, npt.NDArray[np.bool_]]:
    """A number of each row's user, how many have train rows, and which numbers keep them. A row may be its own user."""
    alone = pl.format("row {}", pl.int_range(pl.len()))
    names = examples.select(pl.coalesce(pl.format("user {}", USER_ID), alone)).to_series()
    user_R = names.cast(pl.Enum(names.unique(maintain_order=True))).to_physical().cast(pl.Int64).to_numpy()
    kept = np.zeros(int(user_R.max(initial=-1)) + 1, dtype=bool)
    training = np.unique(user_R[train_R])
    order = np.random.default_rng([options.seed, 1]).permutation(training)
    kept[order[: max(1, round(options.train_users * len(training)))]] = True
    return user_R, len(training), kept


def _pairs(examples: pl.DataFrame, user_R: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_], cold: pl.Series) -> int:
    """How many pairs of a user and a warm item stand in these rows."""
    frame = examples.select(pl.Series("who", user_R), pl.concat_list(HISTORY, TARGET).alias("item"))
    pairs = frame.filter(pl.Series(rows)).explode("item").unique()
    return pairs.filter(~pl.col("item").is_in(cold.implode())).height


def _without(excluded: ExcludedItems, cold_I: npt.NDArray[np.bool_]) -> ExcludedItems:
    """The same exclusions, and the cold items of every row."""
    warm = ~cold_I[excluded.item]
    before = np.append(0, warm.cumsum())
    starts, stops = before[excluded.start_R], before[excluded.stop_R]
    return ExcludedItems(excluded.item[warm], starts, stops, np.flatnonzero(cold_I))
