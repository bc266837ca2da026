"""What every probe works on: rows of (history, target, slate) as integer tables over one catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NONE = -1  # padding of histories (left) and slates (right)


@dataclass(frozen=True)
class Catalogue:
    """Items by number.

    titles: one per item. columns: id column name → float64[n_items], NaN where an item has no number there.
    tabled: numbers of the items that an items table names. category_I: int64[n_items], -1 for unknown; None where the
    table has no categories.
    """

    titles: list[str]
    columns: dict[str, Floats] = field(default_factory=dict)
    tabled: range = range(0)
    category_I: Int | None = None

    @property
    def n_items(self) -> int:
        return len(self.titles)


@dataclass(frozen=True)
class SlateSet:
    """R rows of one split.

    history_RH: the last items before the target, oldest first, padded on the left with -1; its width may be 0.
    candidates_RC: the slate as shown, padded on the right with -1; width 0 where the file has no slates.
    position_R: place of the target in its slate (its first one if it is duplicated), -1 without slates.
    ordered: whether the order of the candidates is the one that is shown to a model.
    group_R: dense numbers of users, or of runs of rows that continue each other, or of the rows themselves.
    users: whether group_R are users named in the file. user_R: their names ("" where missing).
    time_R: seconds of the target, NaN where missing. epoch_R: None where the file has no epochs.
    """

    where: str
    history_RH: Int
    target_R: Int
    candidates_RC: Int
    position_R: Int
    group_R: Int
    row_id_R: Int
    time_R: Floats
    user_R: npt.NDArray[np.str_]
    users: bool = False
    ordered: bool = True
    epoch_R: Int | None = None

    @property
    def n_rows(self) -> int:
        return len(self.target_R)

    @property
    def has_slates(self) -> bool:
        return bool(self.candidates_RC.shape[1])

    @property
    def valid_RC(self) -> Bools:
        return np.asarray(self.candidates_RC != NONE)

    @property
    def size_R(self) -> Int:
        return np.asarray(self.valid_RC.sum(axis=1), dtype=np.int64)

    @property
    def chance_R(self) -> Floats:
        """HR@1 of a blind guess, per row."""
        return np.asarray(1.0 / self.size_R)

    @property
    def last_R(self) -> Int:
        """The last history item, -1 where there is none."""
        if not self.history_RH.shape[1]:
            return np.full(self.n_rows, NONE, dtype=np.int64)
        return self.history_RH[:, -1]

    @property
    def length_R(self) -> Int:
        return np.asarray((self.history_RH != NONE).sum(axis=1), dtype=np.int64)

    def select(self, rows: npt.NDArray[np.generic]) -> SlateSet:
        """The same with a selection of rows (mask or positions)."""
        part = {
            name: getattr(self, name)[rows]
            for name in ("history_RH", "target_R", "candidates_RC", "position_R", "group_R", "row_id_R", "time_R",
                         "user_R")
        }  # fmt: skip
        return replace(self, **part, epoch_R=None if self.epoch_R is None else self.epoch_R[rows])


def joined(sets: list[SlateSet]) -> SlateSet:
    """Several sets as one; narrower tables are padded, groups stay apart."""
    if len(sets) == 1:
        return sets[0]

    def wide(tables: list[Int], left: bool) -> Int:
        width = max(table.shape[1] for table in tables)
        pads = [((0, 0), (width - t.shape[1], 0) if left else (0, width - t.shape[1])) for t in tables]
        return np.vstack([np.pad(t, pad, constant_values=NONE) for t, pad in zip(tables, pads, strict=True)])

    offsets = np.cumsum([0, *(int(s.group_R.max(initial=-1)) + 1 for s in sets)])[:-1]
    return SlateSet(
        " and ".join(s.where for s in sets),
        wide([s.history_RH for s in sets], left=True),
        np.concatenate([s.target_R for s in sets]),
        wide([s.candidates_RC for s in sets], left=False),
        np.concatenate([s.position_R for s in sets]),
        np.concatenate([s.group_R + offset for s, offset in zip(sets, offsets, strict=True)]),
        np.arange(sum(s.n_rows for s in sets)),
        np.concatenate([s.time_R for s in sets]),
        np.concatenate([s.user_R for s in sets]),
        all(s.users for s in sets),
        all(s.ordered for s in sets),
    )


def expected_hits(scores_RC: Floats, position_R: Int, valid_RC: Bools) -> Floats:
    """float64[R]: HR@1 of a probe's scores, in expectation over the orders of ties (all equal: 1 / slate size)."""
    scores = np.where(valid_RC, scores_RC, -np.inf)
    target = scores[np.arange(len(scores)), position_R][:, None]
    tied = (valid_RC & (scores == target)).sum(axis=1)
    return np.asarray(np.where((scores > target).any(axis=1), 0.0, 1.0 / np.maximum(tied, 1)))


def shuffles(slates: SlateSet, rounds: int, seed: int) -> Iterator[tuple[Int, Int]]:
    """(candidates_RC, position_R) with every row's slate in a new random order, `rounds` times."""
    rng = np.random.default_rng([seed, 11])
    valid = slates.valid_RC
    for _ in range(rounds):
        keys = np.where(valid, rng.random(valid.shape), 2.0)  # padding stays behind
        order = np.argsort(keys, axis=1)
        yield (
            np.take_along_axis(slates.candidates_RC, order, axis=1),
            np.asarray((order == slates.position_R[:, None]).argmax(axis=1), dtype=np.int64),
        )


def rounds_for(slates: SlateSet, cells: int = 40_000_000, least: int = 20, most: int = 200) -> int:
    """How many control rounds a table of this size is worth."""
    return int(np.clip(cells // max(1, slates.candidates_RC.size), least, most))


Hits = Callable[[Int, Int], Floats]
"""(candidates_RC, position_R) → expected hits [R]."""
