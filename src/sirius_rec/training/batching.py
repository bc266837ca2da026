"""Which examples make a step, in which order, and how much each counts: the same however a step is split.

A step is `batch` examples. It is computed in micro-batches of `micro` examples, dealt to the processes in turn, and its
loss is the mean over its own examples: also in an epoch's last step, which may have fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

POOL = 32  # steps whose rows are sorted by length together


@dataclass(frozen=True)
class StepLayout:
    """How a step is computed: `accumulation` rounds, in each of which every process gets `micro` examples."""

    micro: int = 1
    accumulation: int = 1
    processes: int = 1

    @property
    def batch(self) -> int:
        """Examples of a whole step, over all processes."""
        return self.micro * self.accumulation * self.processes

    def slots(self, n_examples: int) -> int:
        """Places in an epoch of `n_examples`.

        More than examples only where several processes must all get a micro-batch of the last round: the rest of it is
        filled with examples that count nothing.
        """
        if self.processes == 1:
            return n_examples
        full_round = self.micro * self.processes
        return -(-n_examples // full_round) * full_round

    def weight(self, slot: int, n_examples: int) -> float:
        """What the example in `slot` counts in its micro-batch's loss.

        The Trainer divides a micro-batch's loss by the step's rounds and averages over processes; the weight makes the
        result the mean over the step's examples. In a whole step it is 1 / micro.
        """
        if slot >= n_examples:
            return 0.0
        in_step = min(self.batch, n_examples - slot // self.batch * self.batch)
        rounds = -(-in_step // (self.micro * self.processes))
        return rounds * self.processes / in_step


def grouped(rows: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffled rows with neighbours of similar length, so that all micro-batches of a step take about as long.

    rows: row numbers in random order. lengths: tokens of each of them, in the same order. Pools of POOL steps are
    sorted by length and cut into steps; the steps are shuffled.
    """
    batches: list[np.ndarray] = []
    for start in range(0, len(rows), batch * POOL):
        pool = slice(start, start + batch * POOL)
        ordered = rows[pool][np.argsort(lengths[pool], kind="stable")]
        batches += [ordered[at : at + batch] for at in range(0, len(ordered), batch)]
    full = [step for step in batches if len(step) == batch]
    short = [step for step in batches if len(step) < batch]
    # An incomplete step goes last: anywhere else it would shift the borders of those behind it.
    return np.concatenate([full[b] for b in rng.permutation(len(full))] + short)


def by_user(user_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row numbers with each user's together, in their order; users shuffled."""
    rank_U = rng.permutation(int(user_R.max()) + 1)
    return np.argsort(rank_U[user_R], kind="stable")


def spread(user_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row numbers in an order whose first n are, for any n, about the same share of every user's rows.

    A user's rows come one after the other from a random one on (the first follows the last), so those chosen have
    their histories in common. Whole users would share more; but in a log of which a few users make half, a thousand
    rows of whole users are those of three people.

    user_R: numbers from 0, all in use.
    """
    n_U = np.bincount(user_R)
    order = np.argsort(user_R, kind="stable")
    place_R = np.empty(len(user_R), dtype=np.int64)  # of a row among its user's
    place_R[order] = np.arange(len(user_R)) - np.repeat(n_U.cumsum() - n_U, n_U)
    first_U, offset_U = rng.integers(n_U), rng.random(len(n_U))
    turn_R = (place_R - first_U[user_R]) % n_U[user_R]
    return np.argsort((turn_R + offset_U[user_R]) / n_U[user_R], kind="stable")
