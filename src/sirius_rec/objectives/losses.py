"""The whole method on one page: reward × comparison × anchor (+ λ·NLL), and the presets that carry the papers' names.

Tensors are [B, C]: B examples, C scored candidates, column 0 the positive y_i. log-probs in nats. `LOSSES` is the only
list of objectives: config choices, error messages, docs and test parameters come from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sirius_rec.errors import ConfigError

# Rewards r(x, y): (logp_BC, ref_logp_BC, length_BC, β) → [B, C], in nats scaled by β. Paper Eq. 3 and 6.

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

# Comparisons of the positive with its sampled negatives: (reward_BC, kept_BC, γ) → [B]. `kept_BC` marks the negatives
# that count; a row without any gives 0 and no gradient.

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


def no_comparison(reward_BC: Tensor, kept_BC: Tensor, gamma: float) -> Tensor:
    """No comparison at all (SFT and other likelihood-only objectives)."""
    return reward_BC[:, 0] * 0.0


COMPARISONS: dict[str, ComparisonFn] = {
    "none": no_comparison,
    "pairwise": pairwise,
    "softmax": softmax,
    "weighted_positive": weighted_positive,
}

# Anchors, the pseudo-negative's reward r_0 (Theorem 2, section 4.3): (reward_BC, ref_logp_BC, valid_BC, objective) →
# [B], a constant for the gradient, or None. They add −log σ(r_i − r_0 − γ) to the loss (Eq. 11).

AnchorFn = Callable[[Tensor, Tensor | None, Tensor, "Objective"], Tensor | None]


def no_anchor(reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Objective) -> Tensor | None:
    """The base loss alone."""
    return None


def reference_anchor(
    reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Objective
) -> Tensor | None:
    """r_0 = −β log π_ref(y_i|x), so that r_i − r_0 = β log π_θ(y_i|x). For the DPO reward only."""
    assert ref_logp_BC is not None, "the reference anchor needs reference log-probs"
    return (-objective.beta * ref_logp_BC[:, 0]).detach()


def constant_anchor(
    reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Objective
) -> Tensor | None:
    """r_0 = c for every example (SimPO family; 0 in the paper, 1 and 10 in its Table 6)."""
    return reward_BC.new_full((reward_BC.shape[0],), objective.anchor_constant)


def slate_anchor(
    reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Objective
) -> Tensor | None:
    """r_0 = max over the slate of r, plus a margin ≥ 0 (Algorithm 1 to the letter)."""
    return reward_BC.detach().masked_fill(~valid_BC, float("-inf")).amax(1) + objective.anchor_margin


ANCHORS: dict[str, AnchorFn] = {
    "none": no_anchor,
    "reference": reference_anchor,
    "constant": constant_anchor,
    "slate": slate_anchor,
}


@dataclass(frozen=True)
class Objective:
    """One training objective, composed.

    reward: `dpo`, `simpo` or `simpo_no_ln`. comparison: `none`, `pairwise`, `softmax` or `weighted_positive`.
    anchor: `none`, `reference` (DPO reward only), `constant`, `slate`.
    beta: reward scale, > 0. gamma: target margin ≥ 0; 0 for the DPO family.
    negatives: how many are drawn from the slate anew each epoch, or "all".
    nll_weight: λ ≥ 0 of λ·(−log π_θ(y_i|x)), summed over tokens unless nll_per_token.
    filter: drop negatives with r_j − r_i > γ; an example that loses all of them contributes nothing (E.3.1).
    anchor_constant: c of the `constant` anchor. anchor_margin: ≥ 0, added to the `slate` anchor.
    """

    reward: str = "dpo"
    comparison: str = "pairwise"
    anchor: str = "none"
    beta: float = 1.0
    gamma: float = 0.0
    negatives: int | str = 1
    nll_weight: float = 0.0
    nll_per_token: bool = False
    filter: bool = False
    anchor_constant: float = 0.0
    anchor_margin: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("reward", REWARDS), ("comparison", COMPARISONS), ("anchor", ANCHORS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"unknown {name} '{value}': choose one of {', '.join(allowed)}")
        for name in ("beta", "gamma", "nll_weight", "anchor_constant", "anchor_margin"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be a finite number, got {getattr(self, name)}")
        if not self.beta > 0:
            raise ConfigError(f"beta must be positive, got {self.beta}")
        for name in ("gamma", "nll_weight", "anchor_margin"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.reward == "dpo" and self.gamma:
            raise ConfigError(f"gamma belongs to the SimPO family: the DPO reward takes gamma 0, got {self.gamma}")
        if self.anchor == "reference" and self.reward not in NEEDS_REFERENCE:
            raise ConfigError(f"the reference anchor needs the DPO reward, not '{self.reward}': use anchor 'constant'")
        if self.negatives != "all" and not (isinstance(self.negatives, int) and self.negatives >= 1):
            raise ConfigError(f"negatives must be a whole number from 1, or 'all', got {self.negatives!r}")
        if self.filter and self.comparison == "none":
            raise ConfigError("filter drops sampled negatives: it needs a comparison with them")
        if self.comparison == "none" and self.anchor == "none" and not self.nll_weight:
            raise ConfigError("nothing to train on: comparison 'none' needs an anchor or nll_weight > 0")

    @property
    def needs_reference(self) -> bool:
        """Whether log π_ref enters the loss."""
        return self.reward in NEEDS_REFERENCE and (self.comparison != "none" or self.anchor != "none")

    @property
    def needs_slate(self) -> bool:
        """Whether every candidate of the slate must be scored in each step."""
        return self.anchor == "slate" or (self.negatives == "all" and self.comparison != "none")

    @property
    def uses_negatives(self) -> bool:
        return self.comparison != "none"

    def parts(self) -> dict[str, str]:
        """The names of what it is composed of."""
        return {"reward": self.reward, "comparison": self.comparison, "anchor": self.anchor}

    def base(self) -> Objective | None:
        """The same objective without the anchor; None where nothing else is trained on."""
        if self.comparison == "none" and not self.nll_weight:
            return None
        return replace(self, anchor="none", anchor_constant=0.0, anchor_margin=0.0)

    def is_base_of(self, other: Objective) -> bool:
        """Whether `other` is this objective plus an anchor."""
        return self.anchor == "none" and other.anchor != "none" and self.base() == other.base()


@dataclass(frozen=True)
class Preset:
    """A named objective: `label` for tables, `options` as differences from `Objective`'s defaults."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)


# The margin of the SimPO presets: the middle of the paper's grid {0.4, 0.6, 0.8, 1.0}.
_SIMPO = {"reward": "simpo", "gamma": 0.6}
_NO_LN = {"reward": "simpo_no_ln", "gamma": 0.6, "filter": True}
_SOFTMAX = {"comparison": "softmax", "negatives": 3}
_NLL = {"comparison": "none", "reward": "simpo_no_ln", "nll_weight": 1.0}

LOSSES: dict[str, Preset] = {
    "sft": Preset("SFT", _NLL),
    "sft_continued": Preset("SFT continued", _NLL),
    "dpo": Preset("DPO"),
    "dpo_sirius": Preset("DPO + SIRIUS", {"anchor": "reference"}),
    "dpo_nll": Preset("DPO + NLL", {"nll_weight": 1.0}),
    # λ = 1, per token: the NLL term of iterative reasoning preference optimisation (Pang et al. 2024).
    "rpo": Preset("RPO (DPO + NLL per token)", {"nll_weight": 1.0, "nll_per_token": True}),
    "sft_reward_weighted": Preset("SFT with DPO's weights", {"comparison": "weighted_positive"}),
    "softmax_dpo": Preset("S-DPO (softmax, 3)", _SOFTMAX),
    "softmax_dpo_sirius": Preset("S-DPO (softmax, 3) + SIRIUS", {**_SOFTMAX, "anchor": "reference"}),
    "softmax_dpo_all": Preset("S-DPO (softmax, whole slate)", {**_SOFTMAX, "negatives": "all"}),
    "simpo": Preset("SimPO", _SIMPO),
    "simpo_sirius": Preset("SimPO + SIRIUS", {**_SIMPO, "anchor": "constant"}),
    "simpo_no_ln": Preset("SimPO w/o LN", _NO_LN),
    "simpo_no_ln_sirius": Preset("SimPO w/o LN + SIRIUS", {**_NO_LN, "anchor": "constant"}),
    "simpo_no_ln_sirius_slate": Preset("SimPO w/o LN + SIRIUS (slate anchor)", {**_NO_LN, "anchor": "slate"}),
    "simpo_no_ln_nll": Preset("SimPO w/o LN + NLL", {**_NO_LN, "nll_weight": 1.0}),
    "softmax_ref_free": Preset(
        "Reference-free softmax (whole slate)",
        {"reward": "simpo_no_ln", "comparison": "softmax", "negatives": "all"},
    ),
}


def build_objective(name: str, **overrides: Any) -> Objective:
    """The preset `name` with overrides (None means: keep the preset's value).

    Raises ConfigError for an unknown name (the nearest is named), an unknown part, or a value out of range.
    """
    if name not in LOSSES:
        near = get_close_matches(name, LOSSES, n=1)
        hint = f", did you mean '{near[0]}'?" if near else "."
        raise ConfigError(f"unknown loss '{name}'{hint} Known: {', '.join(LOSSES)}")
    known = {f.name for f in fields(Objective)}
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ConfigError(f"unknown loss option '{unknown[0]}': choose from {', '.join(sorted(known))}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return replace(Objective(), **{**LOSSES[name].options, **given})


@dataclass(frozen=True)
class LossOutput:
    """loss_B; reward_BC with gradient; kept_BC: sampled negatives that entered the loss; anchor_B or None."""

    loss_B: Tensor
    reward_BC: Tensor
    kept_BC: Tensor
    anchor_B: Tensor | None


def compute_loss(
    objective: Objective,
    logp_BC: Tensor,
    length_BC: Tensor,
    sampled_BC: Tensor,
    valid_BC: Tensor,
    ref_logp_BC: Tensor | None = None,
) -> LossOutput:
    """The objective's loss per example, Eq. 5, 7, 11 of the paper and METHOD 3.

    logp_BC, ref_logp_BC: log π(y|x) in nats, summed over tokens with the end of sequence; column 0 the positive.
    length_BC: tokens per completion. sampled_BC: this step's negatives (False in column 0). valid_BC: real columns.
    """
    if objective.needs_reference and ref_logp_BC is None:
        raise ConfigError(f"reward '{objective.reward}' needs reference log-probs: none were given")
    if objective.comparison == "none" and objective.anchor == "none":
        # The reward plays no part in the loss; keep a reference-free one for the logs.
        reward_BC = REWARDS["simpo_no_ln"](logp_BC, None, length_BC, objective.beta)
    else:
        reward_BC = REWARDS[objective.reward](logp_BC, ref_logp_BC, length_BC, objective.beta)
    kept_BC = sampled_BC & valid_BC
    contributes_B = None
    if objective.filter:
        kept_BC = kept_BC & (reward_BC.detach() - reward_BC.detach()[:, :1] <= objective.gamma)
        contributes_B = kept_BC.any(1)

    loss_B = COMPARISONS[objective.comparison](reward_BC, kept_BC, objective.gamma)
    anchor_B = ANCHORS[objective.anchor](reward_BC, ref_logp_BC, valid_BC, objective)
    if anchor_B is not None:
        loss_B = loss_B + F.softplus(-(reward_BC[:, 0] - anchor_B - objective.gamma))
    if objective.nll_weight:
        nll_B = -logp_BC[:, 0] / length_BC[:, 0] if objective.nll_per_token else -logp_BC[:, 0]
        loss_B = loss_B + objective.nll_weight * nll_B
    if contributes_B is not None:
        loss_B = loss_B.masked_fill(~contributes_B, 0.0)
    return LossOutput(loss_B, reward_BC, kept_BC, anchor_B)
