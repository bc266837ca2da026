"""Implicit rewards r(x, y), in nats scaled by β. METHOD table 2; paper Eq. 3 and 6."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

RewardFn = Callable[[Tensor, Tensor | None, Tensor, float], Tensor]


def dpo_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """β (log π_θ(y|x) − log π_ref(y|x)), Eq. 3 without β log Z(x), which is the same for every y."""
    assert ref_logp_BC is not None, "the DPO reward needs reference log-probs"
    return beta * (logp_BC - ref_logp_BC)


def simpo_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """(β / |y|) log π_θ(y|x), Eq. 6; |y| counts the completion's tokens with the end of sequence."""
    return beta * logp_BC / length_BC


def simpo_no_ln_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """β log π_θ(y|x): SimPO without length normalisation (section 4.3)."""
    return beta * logp_BC


REWARDS: dict[str, RewardFn] = {
    "dpo": dpo_reward,
    "simpo": simpo_reward,
    "simpo_no_ln": simpo_no_ln_reward,
}
NEEDS_REFERENCE = frozenset({"dpo"})
