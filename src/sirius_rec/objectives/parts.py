"""What an objective is composed of: rewards, links, comparisons and anchors, each a pure function with its equation.

Tensors are [B, C]: B examples, C scored candidates, column 0 the positive y_i. log-probs in nats. A comparison and an
anchor make margins z, how far the positive is ahead; a link turns a margin into a loss.

A part of your own is a function and an entry in its table: `REWARDS["mine"] = Reward(mine, needs_reference=True)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sirius_rec.errors import ConfigError


class Numbers(Protocol):
    """What parts may ask of an objective."""

    @property
    def beta(self) -> float: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def anchor_constant(self) -> float: ...
    @property
    def anchor_margin(self) -> float: ...


# Rewards r(x, y): (logp_BC, ref_logp_BC, length_BC, β) → [B, C], in nats scaled by β. Paper Eq. 3 and 6.

RewardFn = Callable[[Tensor, Tensor | None, Tensor, float], Tensor]


@dataclass(frozen=True)
class Reward:
    """function: [B, C], with gradient. needs_reference: whether it reads log π_ref; without, it is given None.
    takes_reference_anchor: whether r_0 = −β log π_ref(y_i|x) belongs to it (Theorem 2): log π_ref is in it as in Eq. 3.
    """

    function: RewardFn
    needs_reference: bool = False
    takes_reference_anchor: bool = False


def _given(ref_logp_BC: Tensor | None) -> Tensor:
    if ref_logp_BC is None:
        raise ConfigError("this reward or anchor needs reference log-probs: give ref_logp_BC")
    return ref_logp_BC


def dpo_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """β (log π_θ(y|x) − log π_ref(y|x)), Eq. 3 without β log Z(x), which is the same for every y."""
    return beta * (logp_BC - _given(ref_logp_BC))


def dpo_ln_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """(β / |y|) (log π_θ(y|x) − log π_ref(y|x)): the DPO reward per token, with the end of sequence.

    IPO's authors used it in their experiments, says TRL, which asked them.
    """
    return dpo_reward(logp_BC, ref_logp_BC, length_BC, beta) / length_BC


def simpo_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """(β / |y|) log π_θ(y|x), Eq. 6; |y| counts the completion's tokens with the end of sequence."""
    return beta * logp_BC / length_BC


def simpo_no_ln_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """β log π_θ(y|x): SimPO without length normalisation (section 4.3)."""
    return beta * logp_BC


def inverse_perplexity_reward(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """β exp(log π_θ(y|x) / |y|), between 0 and β (SimPER, arXiv 2502.00883, which has no β: leave it at 1)."""
    return beta * torch.exp(logp_BC / length_BC)


REWARDS: dict[str, Reward] = {
    "dpo": Reward(dpo_reward, needs_reference=True, takes_reference_anchor=True),
    "dpo_ln": Reward(dpo_ln_reward, needs_reference=True),
    "simpo": Reward(simpo_reward),
    "simpo_no_ln": Reward(simpo_no_ln_reward),
    "inverse_perplexity": Reward(inverse_perplexity_reward),
}

# Links ℓ(z): (margin, objective) → loss, any shape. The margin z = r_i − r_j − γ is in rewards, so β is in it.

LinkFn = Callable[[Tensor, Numbers], Tensor]


@dataclass(frozen=True)
class Link:
    """anchor: what the anchor's margin costs; None refuses anchors. takes_smoothing: whether ε is in it."""

    function: LinkFn
    anchor: LinkFn | None = None
    takes_smoothing: bool = False


def logistic(margin: Tensor, objective: Numbers) -> Tensor:
    """−log σ(z): Bradley–Terry, DPO and SimPO."""
    return F.softplus(-margin)


def hinge(margin: Tensor, objective: Numbers) -> Tensor:
    """max(0, 1 − z): SLiC-HF (arXiv 2305.10425); on the DPO reward it is RSO's normalised hinge (2309.06657)."""
    return F.relu(1 - margin)


def squared(margin: Tensor, objective: Numbers) -> Tensor:
    """((z − 1/2) / β)²: IPO (arXiv 2310.12036, Eq. 17), (h − 1/(2τ))² with τ = β and h = z / β in log-ratios."""
    return ((margin - 0.5) / objective.beta) ** 2


def smoothed(margin: Tensor, objective: Numbers) -> Tensor:
    """−(1 − ε) log σ(z) − ε log σ(−z): a label is wrong with probability ε (conservative DPO, E. Mitchell's note)."""
    epsilon = objective.label_smoothing
    return (1 - epsilon) * F.softplus(-margin) + epsilon * F.softplus(margin)


def robust(margin: Tensor, objective: Numbers) -> Tensor:
    """(−(1 − ε) log σ(z) + ε log σ(−z)) / (1 − 2ε): unbiased where labels flip with probability ε (2403.00409).

    Its mean over flips is −log σ(z). It has no lower bound: margins are pushed on with at least ε / (1 − 2ε).
    """
    epsilon = objective.label_smoothing
    return ((1 - epsilon) * F.softplus(-margin) - epsilon * F.softplus(margin)) / (1 - 2 * epsilon)


def linear(margin: Tensor, objective: Numbers) -> Tensor:
    """−z: for rewards that have bounds themselves (SimPER)."""
    return -margin


# The anchor's term: the pseudo-negative is below the positive by construction, so its label cannot be wrong and ε has
# no place there. `squared` would hold the positive at r_0 + 1/2 and `linear` pulls alike whatever r_0 is, so neither
# ends where the anchor is passed.
LINKS: dict[str, Link] = {
    "logistic": Link(logistic, anchor=logistic),
    "hinge": Link(hinge, anchor=hinge),
    "squared": Link(squared),
    "smoothed": Link(smoothed, anchor=logistic, takes_smoothing=True),
    "robust": Link(robust, anchor=logistic, takes_smoothing=True),
    "linear": Link(linear),
}

# Comparisons of the positive with its sampled negatives: (reward_BC, kept_BC, γ, link) → [B], where the link takes
# margins. `kept_BC` marks the negatives that count; a row without any gives 0 and no gradient.

ComparisonFn = Callable[[Tensor, Tensor, float, Callable[[Tensor], Tensor]], Tensor]


def pairwise(reward_BC: Tensor, kept_BC: Tensor, gamma: float, link: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over the kept negatives of ℓ(r_i − r_j − γ), Eq. 5 (γ = 0) and Eq. 7."""
    # Absent columns may hold anything, also what a link makes infinite.
    margin_BC = (reward_BC[:, :1] - reward_BC - gamma).masked_fill(~kept_BC, 0.0)
    loss_BC = link(margin_BC).masked_fill(~kept_BC, 0.0)
    return loss_BC.sum(1) / kept_BC.sum(1).clamp(min=1)


def softmax(reward_BC: Tensor, kept_BC: Tensor, gamma: float, link: Callable[[Tensor], Tensor]) -> Tensor:
    """ℓ(−log Σ_j exp(r_j − r_i + γ)) over the kept negatives; with −log σ and γ = 0 the loss of S-DPO.

    log Σ exp is one logsumexp, so margins of ±1e4 stay finite (a naive float32 sum overflows at 89).
    """
    any_kept_B = kept_BC.any(1)
    excess_BC = (reward_BC - reward_BC[:, :1] + gamma).masked_fill(~kept_BC, float("-inf"))
    # A row of −inf alone has an undefined gradient; give it a finite row and drop its loss.
    excess_BC = torch.where(any_kept_B[:, None], excess_BC, torch.zeros_like(excess_BC))
    return link(-torch.logsumexp(excess_BC, 1)).masked_fill(~any_kept_B, 0.0)


def mean(reward_BC: Tensor, kept_BC: Tensor, gamma: float, link: Callable[[Tensor], Tensor]) -> Tensor:
    """ℓ(r_i − mean_j r_j − γ) over the kept negatives: with −log σ the loss of DMPO (Bai et al. 2024, 2405.16127)."""
    any_kept_B = kept_BC.any(1)
    margin_BC = (reward_BC[:, :1] - reward_BC).masked_fill(~kept_BC, 0.0)
    margin_B = margin_BC.sum(1) / kept_BC.sum(1).clamp(min=1) - gamma
    return link(margin_B).masked_fill(~any_kept_B, 0.0)


def weighted_positive(reward_BC: Tensor, kept_BC: Tensor, gamma: float, link: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over the kept negatives of −sg(σ(r_j − r_i + γ)) · r_i: pairwise's gradient without its push on r_j.

    With the DPO reward this is −β w log π_θ(y_i|x), w DPO's own weight, up to the constant w β log π_ref(y_i|x): SFT on
    the positive, which counts less the better the pair is ordered already. Weights are not normalised over the batch,
    so that the step is DPO's, and an example that DPO has learnt adds as little here. For the logistic link only.
    """
    weight_BC = torch.sigmoid(reward_BC - reward_BC[:, :1] + gamma).detach().masked_fill(~kept_BC, 0.0)
    return -reward_BC[:, 0] * weight_BC.sum(1) / kept_BC.sum(1).clamp(min=1)


def no_comparison(reward_BC: Tensor, kept_BC: Tensor, gamma: float, link: Callable[[Tensor], Tensor]) -> Tensor:
    """No comparison at all (SFT and other likelihood-only objectives)."""
    return reward_BC[:, 0] * 0.0


COMPARISONS: dict[str, ComparisonFn] = {
    "none": no_comparison,
    "pairwise": pairwise,
    "softmax": softmax,
    "mean": mean,
    "weighted_positive": weighted_positive,
}

# Anchors, the pseudo-negative's reward r_0 (Theorem 2, section 4.3): (reward_BC, ref_logp_BC, valid_BC, objective) →
# [B], which the loss takes as a constant for the gradient, or None. They add ℓ(r_i − r_0 − γ) (Eq. 11, ℓ = −log σ).

AnchorFn = Callable[[Tensor, Tensor | None, Tensor, Numbers], Tensor | None]


@dataclass(frozen=True)
class Anchor:
    """takes: which of anchor_constant and anchor_margin it reads. needs_slate: whether every candidate must be scored.
    needs_reference: whether it reads log π_ref, which may be None otherwise.
    """

    function: AnchorFn
    takes: tuple[str, ...] = ()
    needs_slate: bool = False
    needs_reference: bool = False


def no_anchor(reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Numbers) -> Tensor | None:
    """The base loss alone."""
    return None


def reference_anchor(
    reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Numbers
) -> Tensor | None:
    """r_0 = −β log π_ref(y_i|x), so that r_i − r_0 = β log π_θ(y_i|x) with the DPO reward."""
    return -objective.beta * _given(ref_logp_BC)[:, 0]


def constant_anchor(
    reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Numbers
) -> Tensor | None:
    """r_0 = c for every example (SimPO family; 0 in the paper, 1 and 10 in its Table 6)."""
    return reward_BC.new_full((reward_BC.shape[0],), objective.anchor_constant)


def slate_anchor(reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Numbers) -> Tensor | None:
    """r_0 = max over the slate of r, plus a margin ≥ 0 (Algorithm 1 to the letter)."""
    return reward_BC.masked_fill(~valid_BC, float("-inf")).amax(1) + objective.anchor_margin


ANCHORS: dict[str, Anchor] = {
    "none": Anchor(no_anchor),
    "reference": Anchor(reference_anchor, needs_reference=True),
    "constant": Anchor(constant_anchor, takes=("anchor_constant",)),
    "slate": Anchor(slate_anchor, takes=("anchor_margin",), needs_slate=True),
}
