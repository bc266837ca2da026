"""Where a step's negatives come from: random ones of the slate, the strongest of several, or the policy's own list.

Updates on random negatives hardly reach the items that outrank the target (Eq. 10: the pair (i, j) moves p_ik through
r_i alone, whatever j is). What outranks it is reached for sure when it is what is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sirius_rec.objectives.losses import Objective

SLATE, HARD, ON_POLICY = SOURCES = ("slate", "hard", "on_policy")
POOL: Final = 16
REFRESH: Final = 16


@dataclass(frozen=True)
class NegativeSource:
    """kind: `slate` draws from a record's rejected completions; `hard` takes those with the largest log π_θ among
    `pool` drawn ones; `on_policy` draws from ranks `skip` + 1 … `skip` + `pool` of the policy's exact list of the whole
    catalogue, without the target and what its user interacted with, made anew every `refresh` steps.

    skip: top ranks passed over, which may hold items that the user would have taken (false negatives).
    """

    kind: str = SLATE
    pool: int = POOL
    skip: int = 0
    refresh: int = REFRESH

    def problems(self, objective: Objective) -> Iterator[str]:
        """What is wrong with it, or with it and an objective together."""
        if self.kind not in SOURCES:
            yield f"negatives_from: choose one of {', '.join(SOURCES)}, got {self.kind!r}"
            return
        defaults = NegativeSource(self.kind)
        if self.kind == SLATE and self != defaults:
            yield "pool, skip and refresh are for negatives_from hard and on_policy: leave them out"
        if self.kind == HARD and (self.skip, self.refresh) != (defaults.skip, defaults.refresh):
            yield "skip and refresh are for negatives_from on_policy: leave them out"
        if self.kind == SLATE:
            return
        if not objective.uses_negatives:
            yield f"negatives_from {self.kind}: this loss takes no negatives"
        if self.kind == HARD and objective.negatives == "all":
            yield "negatives_from hard: the strongest of some negatives are not all: give a number of negatives"
        if isinstance(objective.negatives, int) and objective.negatives > self.pool:
            yield f"pool {self.pool} is smaller than the {objective.negatives} negatives that are taken from it"
        if self.refresh < 1:
            yield f"refresh {self.refresh}: lists are made anew every 1 or more steps"
        if self.skip < 0:
            yield f"skip {self.skip} must not be negative"


@torch.no_grad()
def strongest(logp_BC: Tensor, pool_BC: Tensor, count: int) -> Tensor:
    """bool[B, C]: of each row's pool the `count` columns with the largest log-probs, all where it has fewer; equal ones
    by column."""
    pooled_BC = logp_BC.float().masked_fill(~pool_BC, float("-inf"))
    ranked_BC = pooled_BC.argsort(dim=1, descending=True, stable=True)
    chosen_BC = torch.zeros_like(pool_BC)
    chosen_BC.scatter_(1, ranked_BC[:, :count], torch.ones_like(pool_BC))
    return chosen_BC & pool_BC
