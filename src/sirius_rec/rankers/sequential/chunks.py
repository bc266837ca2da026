"""Training histories cut into what a network reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sirius_rec.rankers.protocol import Items


def left_padded(rows: Sequence[Items], fill: int, width: int | None = None) -> npt.NDArray[np.int64]:
    """int64[N, width]; None takes the longest row. A fixed width keeps a row's state the same in any batch."""
    width = width or max([1, *map(len, rows)])
    out = np.full((len(rows), width), fill, dtype=np.int64)
    for r, row in enumerate(rows):
        if len(row):
            out[r, width - len(row) :] = row
    return out


def chunks(
    sequences: Sequence[Items], length: int, rng: np.random.Generator, shuffle: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inputs and targets [N, length] of every position: sequences cut at a random offset into chunks of length + 1.

    Neighbouring chunks share an item, so that every item but a sequence's first is a target once. −1 is padding.
    """
    inputs, targets = [], []
    for sequence in sequences:
        if shuffle:
            sequence = rng.permutation(sequence)
        first = int(rng.integers(1, length + 1))
        cuts = [0, *range(first, len(sequence) - 1, length), len(sequence) - 1]
        for start, end in pairwise(cuts):
            chunk = np.asarray(sequence[start : end + 1])
            inputs.append(chunk[:-1])
            targets.append(chunk[1:])
    return left_padded(inputs, -1, length), left_padded(targets, -1, length)


def windows(
    sequences: Sequence[Items], length: int, rng: np.random.Generator, shuffle: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every target with up to `length` items before it: inputs [N, length], targets [N, 1]."""
    inputs, targets = [], []
    for sequence in sequences:
        if shuffle:
            sequence = rng.permutation(sequence)
        for at in range(1, len(sequence)):
            inputs.append(np.asarray(sequence[max(0, at - length) : at]))
            targets.append(int(sequence[at]))
    return left_padded(inputs, -1, length), np.array(targets, dtype=np.int64)[:, None]
