"""The pseudo-negative's reward r_0 (Theorem 2, section 4.3): [B], a constant for the gradient."""

from __future__ import annotations

from torch import Tensor

ANCHORS = ("none", "reference", "constant", "slate")


def reference_anchor(ref_logp_positive_B: Tensor, beta: float) -> Tensor:
    """r_0 = −β log π_ref(y_i|x), so that r_i − r_0 = β log π_θ(y_i|x). For the DPO reward only."""
    return (-beta * ref_logp_positive_B).detach()


def constant_anchor(reward_BC: Tensor, constant: float) -> Tensor:
    """r_0 = c for every example (SimPO family; 0 in the paper, 1 and 10 in its Table 6)."""
    return reward_BC.new_full((reward_BC.shape[0],), constant)


def slate_anchor(reward_BC: Tensor, valid_BC: Tensor, margin: float) -> Tensor:
    """r_0 = max over the slate of r, plus a margin ≥ 0 (Algorithm 1 to the letter)."""
    return reward_BC.detach().masked_fill(~valid_BC, float("-inf")).amax(1) + margin
