"""Means of what is logged between two log lines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Averages:
    """Sums and counts on the device; read only when something is logged, so that steps need no synchronisation."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, parts: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, (total, count) in parts.items():
            if name in self._sums:
                self._sums[name][0] += total
                self._sums[name][1] += count
            else:
                self._sums[name] = [total.clone(), count.clone()]

    def means(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Means of what has a count, and forget them. One wait for the device, however many there are.

        reduce: adds up a tensor over processes.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        sums_S2 = torch.stack([torch.stack([part.float() for part in self._sums[name]]) for name in names])
        self._sums.clear()
        pairs = (reduce(sums_S2) if reduce else sums_S2).tolist()
        return {name: total / count for name, (total, count) in zip(names, pairs, strict=True) if count > 0}
