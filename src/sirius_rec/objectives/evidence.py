"""What a step reveals about reward hacking: sums and counts over triples (i, j, k), no gradient.

i the positive (column 0), j a sampled negative, k an unsampled one of the same slate. The NumPy oracle is
`theory.preference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# How far float32 log-probs of one completion differ by the order of their sums, as a share of |log π| (of 1 nat at
# least): a pair is out of order only beyond that, or policy and reference as one would show rounding as a share.
RESOLUTION = 1e-5


def log_slope(difference: Tensor) -> Tensor:
    """log σ'(x), any shape."""
    return -F.softplus(difference) - F.softplus(-difference)


@torch.no_grad()
def evidence(
    reward_BC: Tensor,
    logp_BC: Tensor,
    sampled_BC: Tensor,
    valid_BC: Tensor,
    epsilons: Sequence[float],
    rounding: float = 0.0,
) -> dict[str, tuple[Tensor, Tensor]]:
    """name → (sum, count), to be added up over steps and devices and divided at the end.

    reward_margin: r_i − r_j over sampled pairs; reward_margin_unsampled: r_i − r_k; reward_positive, _sampled,
    _unsampled: mean rewards; insensitive@ε: share of triples with |∂p_ik/∂p_ij| < ε (Definition 2);
    insensitive_misordered@ε: the same among the triples with r_k > r_i, the ones that still need correction;
    misordered: share of pairs (i, k) over all negatives with r_k > r_i; misranked: the same by log π, which is what
    ranks at inference; logp_positive: log π_θ(y_i|x) in nats.

    reward_BC in nats times β, summed or per token; logp_BC in nats, summed over tokens. rounding: how far rewards move
    with a nat of log π where they are differences from a reference, which begin at 0 (`losses.rounding_of`): there
    r_k > r_i means by more than rounding · 1e-5 · max(1, |log π_i|, |log π_k|), the rounding of float32 log-probs.
    Those of bfloat16 differ by 1e-2 nats: `misordered` says nothing while policy and reference are one.
    """
    reward_BC = reward_BC.float()
    logp_BC = logp_BC.float()
    positive_BC = torch.zeros_like(valid_BC)
    positive_BC[:, 0] = True
    sampled_BC = sampled_BC & valid_BC & ~positive_BC
    negative_BC = valid_BC & ~positive_BC
    unsampled_BC = negative_BC & ~sampled_BC
    margin_BC = reward_BC[:, :1] - reward_BC
    size_BC = torch.maximum(logp_BC.abs(), logp_BC[:, :1].abs()).clamp(min=1.0)
    misordered_BC = margin_BC < -rounding * RESOLUTION * size_BC

    def masked(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return values.masked_fill(~mask, 0.0).sum(), mask.sum().to(values.dtype)

    rows = torch.full((), float(reward_BC.shape[0]), device=reward_BC.device)
    out = {
        "reward_positive": (reward_BC[:, 0].sum(), rows),
        "reward_sampled": masked(reward_BC, sampled_BC),
        "reward_unsampled": masked(reward_BC, unsampled_BC),
        "reward_margin": masked(margin_BC, sampled_BC),
        "reward_margin_unsampled": masked(margin_BC, unsampled_BC),
        "misordered": masked(misordered_BC.to(reward_BC.dtype), negative_BC),
        "misranked": masked((logp_BC > logp_BC[:, :1]).to(reward_BC.dtype), negative_BC),
        "logp_positive": (logp_BC[:, 0].sum(), rows),
    }
    slope_BC = log_slope(margin_BC)
    triple_BJK = sampled_BC[:, :, None] & unsampled_BC[:, None, :]
    wrong_BJK = triple_BJK & misordered_BC[:, None, :]
    log_ratio_BJK = slope_BC[:, None, :] - slope_BC[:, :, None]
    for epsilon in epsilons:
        inside_BJK = (log_ratio_BJK < math.log(epsilon)).to(reward_BC.dtype)
        out[f"insensitive@{epsilon:g}"] = masked(inside_BJK, triple_BJK)
        out[f"insensitive_misordered@{epsilon:g}"] = masked(inside_BJK, wrong_BJK)
    return out
