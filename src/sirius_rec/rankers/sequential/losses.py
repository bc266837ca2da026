"""Losses of next-item networks, each a mean over the trained positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sirius_rec.rankers.sequential.networks import Network

LossFn = Callable[[Network, Tensor, Tensor, int, torch.Generator], Tensor]


def _drawn(model: Network, target_N: Tensor, negatives: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scores of the targets [N] and of uniformly drawn items [N, negatives]; an accidental hit is pushed out."""
    drawn_NK = torch.randint(model.n_items, (len(target_N), negatives), generator=generator).to(target_N.device)
    return drawn_NK, drawn_NK == target_N[:, None]


def full_softmax(
    model: Network, state_ND: Tensor, target_N: Tensor, negatives: int, generator: torch.Generator
) -> Tensor:
    """−log softmax over the whole catalogue."""
    return F.cross_entropy(model.scores(state_ND), target_N)


def sampled_softmax(
    model: Network, state_ND: Tensor, target_N: Tensor, negatives: int, generator: torch.Generator
) -> Tensor:
    """−log softmax over the target and `negatives` items drawn uniformly; uniform draws need no correction."""
    drawn_NK, hit_NK = _drawn(model, target_N, negatives, generator)
    scores_NC = model.scores(state_ND, torch.cat([target_N[:, None], drawn_NK], 1))
    scores_NC = torch.cat([scores_NC[:, :1], scores_NC[:, 1:].masked_fill(hit_NK, float("-inf"))], 1)
    return F.cross_entropy(scores_NC, torch.zeros_like(target_N))


def shared_softmax(
    model: Network, state_ND: Tensor, target_N: Tensor, negatives: int, generator: torch.Generator
) -> Tensor:
    """−log softmax over the target and `negatives` items drawn uniformly once for all positions.

    For catalogues too large for full_softmax, and for items whose embedding costs something to compute.
    """
    drawn_K = torch.randint(model.n_items, (negatives,), generator=generator).to(target_N.device)
    own_N = (state_ND * model.items(target_N)).sum(1) + model.bias[target_N]
    drawn_NK = F.linear(state_ND, model.items(drawn_K), model.bias[drawn_K])
    drawn_NK = drawn_NK.masked_fill(drawn_K[None, :] == target_N[:, None], float("-inf"))
    return F.cross_entropy(torch.cat([own_N[:, None], drawn_NK], 1), torch.zeros_like(target_N))


def bce(model: Network, state_ND: Tensor, target_N: Tensor, negatives: int, generator: torch.Generator) -> Tensor:
    """Binary cross-entropy of the target against each drawn item, SASRec's own loss (there with one negative)."""
    drawn_NK, hit_NK = _drawn(model, target_N, negatives, generator)
    scores_NC = model.scores(state_ND, torch.cat([target_N[:, None], drawn_NK], 1))
    against_NK = F.softplus(scores_NC[:, 1:]).masked_fill(hit_NK, 0.0)
    return (F.softplus(-scores_NC[:, 0]) + against_NK.mean(1)).mean()


def bpr(model: Network, state_ND: Tensor, target_N: Tensor, negatives: int, generator: torch.Generator) -> Tensor:
    """−log σ(target − drawn), GRU4Rec's own loss, averaged over the drawn items."""
    drawn_NK, hit_NK = _drawn(model, target_N, negatives, generator)
    scores_NC = model.scores(state_ND, torch.cat([target_N[:, None], drawn_NK], 1))
    return F.softplus(scores_NC[:, 1:] - scores_NC[:, :1]).masked_fill(hit_NK, 0.0).mean()


LOSSES: dict[str, LossFn] = {
    "full_softmax": full_softmax,
    "sampled_softmax": sampled_softmax,
    "shared_softmax": shared_softmax,
    "bce": bce,
    "bpr": bpr,
}
