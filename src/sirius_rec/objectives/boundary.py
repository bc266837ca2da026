"""Boundary negatives and a β per pair (DynamicPO, Hu et al. 2026, arXiv 2605.00327): easy negatives drown the few that
matter, so only those near the decision boundary are compared with, and pairs that are apart already count more.

Both look at log π_θ, not at rewards, and are constants for the gradient. Tensors are [B, C], column 0 the positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CLUSTERS = 3


@torch.no_grad()
def boundary_negatives(logp_BC: Tensor, kept_BC: Tensor) -> Tensor:
    """bool[B, C]: the kept negatives with log π_θ at or above the positive's; where there are none, the highest of the
    three clusters that the kept log-probs fall into (of two kept ones the higher, of one that one).

    The clusters are those of least squared distance, exactly; the authors' k-means looks for the same.
    """
    above_BC = kept_BC & (logp_BC >= logp_BC[:, :1])
    return torch.where(above_BC.any(1, keepdim=True), above_BC, _highest_cluster(logp_BC, kept_BC))


def _highest_cluster(logp_BC: Tensor, kept_BC: Tensor) -> Tensor:
    """Of each row's kept values in falling order, split in two places with the least sum of squares, the first part."""
    value_BC, place_BC = logp_BC.double().masked_fill(~kept_BC, float("-inf")).sort(dim=1, descending=True)
    count_B, width = kept_BC.sum(1), logp_BC.shape[1]
    # Around the row's mean, so that sums of squares keep their digits; what is not kept counts nothing.
    inside_BC = torch.arange(width, device=logp_BC.device) < count_B[:, None]
    value_BC = value_BC.masked_fill(~inside_BC, 0.0)
    value_BC = (value_BC - value_BC.sum(1, keepdim=True) / count_B.clamp(min=1)[:, None]).masked_fill(~inside_BC, 0.0)
    zero_B1 = value_BC.new_zeros((len(value_BC), 1))
    sum_BE = torch.cat([zero_B1, value_BC.cumsum(1)], 1)
    square_BE = torch.cat([zero_B1, value_BC.square().cumsum(1)], 1)

    def spread(first: Tensor, end: Tensor) -> Tensor:
        """Squared distances from their mean of values first … end − 1; index tensors [B, N]."""
        n = (end - first).clamp(min=1)
        total = sum_BE.gather(1, end) - sum_BE.gather(1, first)
        return square_BE.gather(1, end) - square_BE.gather(1, first) - total.square() / n

    one, two = torch.triu_indices(width + 1, width + 1, offset=1, device=logp_BC.device)
    one_BN, two_BN, end_BN = (
        one.expand(len(value_BC), -1),
        two.expand(len(value_BC), -1),
        count_B[:, None].expand(-1, len(one)),
    )
    # Three clusters of one value or more; two where there are two values, one where there is one.
    clusters_B1 = count_B.clamp(max=_CLUSTERS)[:, None]
    fits_BN = torch.where(clusters_B1 == _CLUSTERS, two_BN < end_BN, two_BN == end_BN) & (one_BN >= 1)
    fits_BN = torch.where(clusters_B1 == 1, (one_BN == 1) & (two_BN == 2), fits_BN)
    start_BN = torch.zeros_like(one_BN)
    cost_BN = spread(start_BN, one_BN) + spread(one_BN, two_BN) + spread(torch.minimum(two_BN, end_BN), end_BN)
    best_B = cost_BN.masked_fill(~fits_BN, float("inf")).argmin(1)
    first_B = torch.where(count_B > 0, one[best_B], 0)
    chosen_BC = torch.zeros_like(kept_BC)
    return chosen_BC.scatter(1, place_BC, torch.arange(width, device=logp_BC.device) < first_B[:, None]) & kept_BC


@torch.no_grad()
def pair_scale(logp_BC: Tensor, kept_BC: Tensor, boundary_BC: Tensor, *, spread: float, margin: float) -> Tensor:
    """[B, C], what β is multiplied by for each boundary negative j: 1 + spread · tanh((a − b − margin) / (|a| + |b|)).

    a = log π_i − log π_j, how far j is behind the positive; b = log π_j − the mean log π of the kept negatives that are
    no boundary ones (of the boundary ones where there are no others). margin in nats.
    """
    other_BC = kept_BC & ~boundary_BC
    other_BC = torch.where(other_BC.any(1, keepdim=True), other_BC, boundary_BC)
    mean_B1 = logp_BC.masked_fill(~other_BC, 0.0).sum(1, keepdim=True) / other_BC.sum(1, keepdim=True).clamp(min=1)
    behind_BC, ahead_BC = logp_BC[:, :1] - logp_BC, logp_BC - mean_B1
    size_BC = (behind_BC.abs() + ahead_BC.abs()).clamp(min=torch.finfo(logp_BC.dtype).tiny)
    scale_BC = 1 + spread * torch.tanh((behind_BC - ahead_BC - margin) / size_BC)
    return torch.where(boundary_BC, scale_BC, torch.ones_like(scale_BC))
