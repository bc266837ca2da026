"""An order of many rows of which none is held: each entry is computed from its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of SplitMix64 (Steele et al. 2014)


class Permutation:
    """A seeded permutation of 0 … n - 1.

    A Feistel network on the smallest even number of bits that can write n - 1, walked until the number is below n
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): at most some four steps on average.
    """

    def __init__(self, n: int, seed: Sequence[int]) -> None:
        self.n = n
        half = max(1, -(-(n - 1).bit_length() // 2))
        self._half, self._mask = np.uint64(half), np.uint64((1 << half) - 1)
        self._keys = np.random.default_rng(seed).integers(0, 1 << 64, size=_ROUNDS, dtype=np.uint64)

    def __call__(self, places: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        """The numbers at these places, all of which are in 0 … n - 1."""
        value = self._network(np.asarray(places).astype(np.uint64))
        while (beyond := value >= self.n).any():
            value[beyond] = self._network(value[beyond])
        return value.astype(np.int64)

    def _network(self, value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            mixed = right ^ key
            for shift, factor in zip((30, 27), _MIX, strict=True):
                mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & self._mask)
        return (left << self._half) | right
