"""Pass 3: what only all shards together can tell: which items and users the filters leave, the order of all users, the
time cut-offs, and into which parts the result falls.

The state is small: a number per item, and a few per user. A filter is counting over the shards, again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sirius_rec.data.filtering import FilterStep
from sirius_rec.data.sharded.engine import Engine
from sirius_rec.data.sharded.shard import Int, Shard
from sirius_rec.data.splitting import cut_offs

Mask = npt.NDArray[np.bool_]
_BUCKET = 1 << 16  # seconds of a coarse count of times


@dataclass
class Left:
    """What is left of the shards. item_I: which items may stay. user_SU: which users of each shard.

    count_I: events of each item. count_SU: of each user of each shard; those with none are gone.
    """

    item_I: Mask
    user_SU: list[Mask]
    count_I: Int
    count_SU: list[npt.NDArray[np.int32]]

    @property
    def users(self) -> int:
        return sum(int(np.count_nonzero(count_U)) for count_U in self.count_SU)

    @property
    def items(self) -> int:
        return int(np.count_nonzero(self.count_I))

    @property
    def events(self) -> int:
        return int(self.count_I.sum())


def count_left(shard: Path, item_I: Mask, user_U: Mask | None) -> tuple[Int, npt.NDArray[np.int32]]:
    """Events of each item and of each user of a shard, of the items and users that may stay."""
    of = Shard(shard)
    if not of.item_E.size:
        return np.zeros(item_I.size, np.int64), np.zeros(0, np.int32)
    left_E = item_I[of.item_E]
    if user_U is not None:
        left_E &= np.repeat(user_U, of.count_U)
    count_U = np.add.reduceat(left_E, of.stop_U - of.count_U, dtype=np.int32)
    return np.bincount(of.item_E[left_E], minlength=item_I.size), count_U


@dataclass
class Filtering:
    """The filters at work on all shards; `steps` says what each dropped."""

    engine: Engine
    shards: Sequence[Path]
    left: Left
    steps: list[FilterStep] = field(default_factory=list)

    @classmethod
    def begin(cls, engine: Engine, shards: Sequence[Path], item_I: Mask) -> Filtering:
        """With the items that may be there at all."""
        users = [np.ones(Shard(shard).count_U.size, bool) for shard in shards]
        filtering = cls(engine, shards, Left(item_I, users, np.empty(0, np.int64), []))
        filtering._count()
        return filtering

    def k_core(self, min_item: int, min_user: int) -> None:
        """As `filtering.k_core`."""
        changed = min_item > 1 or min_user > 1
        while changed:
            dropped = self._drop_items(min_item), self._drop_users("min_user", min_user)
            changed = any(dropped)

    def min_sequence(self, least: int) -> None:
        """As `filtering.min_sequence`."""
        self._drop_users("min_sequence", least)

    def _drop_items(self, least: int) -> bool:
        drop_I = (self.left.count_I > 0) & (self.left.count_I < least)
        if not drop_I.any():
            return False
        self.left.item_I = self.left.item_I & ~drop_I
        self._step(f"min_item={least}")
        return True

    def _drop_users(self, name: str, least: int) -> bool:
        drop_SU = [(count_U > 0) & (count_U < least) for count_U in self.left.count_SU]
        if not any(drop_U.any() for drop_U in drop_SU):
            return False
        self.left.user_SU = [user_U & ~drop_U for user_U, drop_U in zip(self.left.user_SU, drop_SU, strict=True)]
        self._step(f"{name}={least}")
        return True

    def _step(self, name: str) -> None:
        users, items, events = self.left.users, self.left.items, self.left.events
        self._count()
        left = self.left
        self.steps.append(FilterStep(name, users - left.users, items - left.items, events - left.events))

    def _count(self) -> None:
        left = self.left
        calls = [(shard, left.item_I, user_U) for shard, user_U in zip(self.shards, left.user_SU, strict=True)]
        left.count_I = np.zeros(left.item_I.size, np.int64)
        left.count_SU = [np.empty(0, np.int32)] * len(self.shards)
        for at, (count_I, count_U) in self.engine.map(count_left, calls):
            left.count_I += count_I
            left.count_SU[at] = count_U


@dataclass(frozen=True)
class Order:
    """All users that are left, in the order of their first events, and the parts that they fall into.

    count_U: events of each user. rank_SU: per shard, each user's place among all, -1 for those that are gone.
    first_P: place of each part's first user, and behind the last part's last one. start_PS: the number, in each shard,
    of the first user who belongs to that part or a later one.
    """

    count_U: npt.NDArray[np.int32]
    rank_SU: list[Int]
    first_P: Int
    start_PS: Int

    @classmethod
    def of(cls, shards: Sequence[Path], count_SU: Sequence[npt.NDArray[np.int32]], part_events: int) -> Order:
        """part_events: how many a part has, but for one user's events more or less."""
        left_SU = [np.flatnonzero(count_U) for count_U in count_SU]
        first_U = np.concatenate([Shard(shard).first_U[left] for shard, left in zip(shards, left_SU, strict=True)])
        place_U = np.empty(first_U.size, np.int64)
        place_U[np.argsort(first_U)] = np.arange(first_U.size)
        del first_U
        count_U = np.empty(place_U.size, np.int32)
        rank_SU, at = [], 0
        for counts, left in zip(count_SU, left_SU, strict=True):
            ranks = np.full(counts.size, -1, np.int64)
            ranks[left] = place_U[at : at + left.size]
            count_U[ranks[left]] = counts[left]
            rank_SU.append(ranks)
            at += left.size
        before_U = count_U.cumsum(dtype=np.int64) - count_U
        first_P = np.flatnonzero(np.diff(before_U // part_events, prepend=-1))
        first_P = np.append(first_P, count_U.size)
        start_PS = np.empty((first_P.size, len(shards)), np.int64)
        for shard, (ranks, left) in enumerate(zip(rank_SU, left_SU, strict=True)):
            behind = np.append(left, ranks.size)
            start_PS[:, shard] = behind[np.searchsorted(ranks[left], first_P)]
        return cls(count_U, rank_SU, first_P, start_PS)


def time_cuts(
    engine: Engine, shards: Sequence[Path], left: Left, ratios: Sequence[int], low: int, high: int
) -> tuple[tuple[int, int], list[int]]:
    """The cut-offs of split `time`, and how many events fall into each split.

    low, high: seconds between which all times lie. Exact, by counting twice: in buckets, then inside the two that
    matter.
    """

    def counted(low: int, width: int, n: int) -> Int:
        calls = [(shard, left.item_I, user_U, low, width, n)
                 for shard, user_U in zip(shards, left.user_SU, strict=True)]  # fmt: skip
        return sum((count for _, count in engine.map(count_times, calls)), start=np.zeros(n, np.int64))

    coarse = counted(low, _BUCKET, (high - low) // _BUCKET + 1).cumsum()
    fine: dict[int, Int] = {}

    def inside(bucket: int) -> Int:
        if bucket not in fine:
            fine[bucket] = counted(low + bucket * _BUCKET, 1, _BUCKET).cumsum()
        return fine[bucket]

    def at(place: int) -> int:
        bucket = int(np.searchsorted(coarse, place, side="right"))
        before = int(coarse[bucket - 1]) if bucket else 0
        return low + bucket * _BUCKET + int(np.searchsorted(inside(bucket), place - before, side="right"))

    def until(time: int) -> int:
        if time < low:
            return 0
        bucket, second = divmod(time - low, _BUCKET)
        return (int(coarse[bucket - 1]) if bucket else 0) + int(inside(bucket)[second])

    cuts = cut_offs(left.events, ratios, at)
    first, second = until(cuts[0]), until(cuts[1])
    return cuts, [first, second - first, left.events - second]


def count_times(shard: Path, item_I: Mask, user_U: Mask, low: int, width: int, n: int) -> Int:
    """int64[n]: events of a shard that are left and fall into each of `n` spans of `width` seconds from `low` on."""
    of = Shard(shard)
    left_E = item_I[of.item_E] & np.repeat(user_U, of.count_U)
    place = (of.time_E[left_E] - low) // width
    return np.bincount(place[(place >= 0) & (place < n)], minlength=n)
