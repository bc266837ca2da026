"""Comparisons of the positive with its sampled negatives: rewards [B, C] → loss [B].

`kept_BC` marks the negatives that count; a row without any gives 0 and no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ComparisonFn = Callable[[Tensor, Tensor, float], Tensor]


def pairwise(reward_BC: Tensor, kept_BC: Tensor, gamma: float) -> Tensor:
    """Mean over the kept negatives of −log σ(r_i − r_j − γ), Eq. 5 (γ = 0) and Eq. 7."""
    margin_BC = reward_BC[:, :1] - reward_BC - gamma
    loss_BC = F.softplus(-margin_BC).masked_fill(~kept_BC, 0.0)
    return loss_BC.sum(1) / kept_BC.sum(1).clamp(min=1)


def softmax(reward_BC: Tensor, kept_BC: Tensor, gamma: float) -> Tensor:
    """−log σ(−log Σ_j exp(r_j − r_i + γ)) over the kept negatives; with γ = 0 the loss of S-DPO.

    log Σ exp is one logsumexp, so margins of ±1e4 stay finite (a naive float32 sum overflows at 89).
    """
    any_kept_B = kept_BC.any(1)
    excess_BC = (reward_BC - reward_BC[:, :1] + gamma).masked_fill(~kept_BC, float("-inf"))
    # A row of −inf alone has an undefined gradient; give it a finite row and drop its loss.
    excess_BC = torch.where(any_kept_B[:, None], excess_BC, torch.zeros_like(excess_BC))
    return F.softplus(torch.logsumexp(excess_BC, 1)).masked_fill(~any_kept_B, 0.0)


def weighted_positive(reward_BC: Tensor, kept_BC: Tensor, gamma: float) -> Tensor:
    """Mean over the kept negatives of −sg(σ(r_j − r_i + γ)) · r_i: pairwise's gradient without its push on r_j.

    With the DPO reward this is −β w log π_θ(y_i|x), w DPO's own weight, up to the constant w β log π_ref(y_i|x): SFT on
    the positive, which counts less the better the pair is ordered already. Weights are not normalised over the batch,
    so that the step is DPO's, and an example that DPO has learnt adds as little here.
    """
    weight_BC = torch.sigmoid(reward_BC - reward_BC[:, :1] + gamma).detach().masked_fill(~kept_BC, 0.0)
    return -reward_BC[:, 0] * weight_BC.sum(1) / kept_BC.sum(1).clamp(min=1)


def none(reward_BC: Tensor, kept_BC: Tensor, gamma: float) -> Tensor:
    """No comparison at all (SFT and other likelihood-only objectives)."""
    return reward_BC[:, 0] * 0.0


COMPARISONS: dict[str, ComparisonFn] = {
    "none": none,
    "pairwise": pairwise,
    "softmax": softmax,
    "weighted_positive": weighted_positive,
}
