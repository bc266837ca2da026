"""The whole method on one page: reward × link × comparison × anchor (+ λ·NLL).

Tensors are [B, C]: B examples, C scored candidates, column 0 the positive y_i. log-probs in nats. The parts, with their
equations, are in `parts`; the objectives that have names, in `presets`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain
from numbers import Real
from typing import get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.boundary import boundary_negatives, pair_scale
from sirius_rec.objectives.parts import ANCHORS, COMPARISONS, LINKS, REWARDS, Anchor, Link, LinkFn, Reward

# Each part's table, and what its entries are.
PARTS: dict[str, tuple[Mapping[str, object], type | None]] = {
    "reward": (REWARDS, Reward),
    "link": (LINKS, Link),
    "comparison": (COMPARISONS, None),
    "anchor": (ANCHORS, Anchor),
}


@dataclass(frozen=True)
class Objective:
    """One training objective, composed.

    reward: `dpo`, `dpo_ln` (per token), `simpo`, `simpo_no_ln` or `inverse_perplexity`.
    link: what a margin costs: `logistic`, `hinge`, `squared`, `smoothed`, `robust` or `linear`.
    comparison: `none`, `pairwise`, `softmax`, `mean` or `weighted_positive` (logistic link only).
    anchor: `none`, `reference` (DPO reward only), `constant`, `slate`; none for the links `squared` and `linear`.
    Parts that were entered in the tables of `objectives.parts` have their names there.
    beta: reward scale, > 0 (1.0; TRL's default is 0.1). gamma: target margin ≥ 0; 0 for the DPO family.
    negatives: how many are drawn from the slate anew each epoch, or "all".
    nll_weight: λ ≥ 0 of λ·(−log π_θ(y_i|x)), summed over tokens unless nll_per_token.
    filter: drop negatives with r_j − r_i > γ; an example that loses all of them contributes nothing (E.3.1).
    anchor_constant: c of the `constant` anchor. anchor_margin: ≥ 0, added to the `slate` anchor. 0 with any other.
    boundary: compare with the negatives near the decision boundary alone (DynamicPO). beta_spread: 0 ≤ s < 1, how much
    β differs between pairs by how far they are apart, with beta_margin nats as the middle; 0 is one β for all.
    label_smoothing: ε of the links `smoothed` and `robust`, 0 ≤ ε < 0.5; at 0 both are `logistic`.
    dpop_lambda: λ ≥ 0; a positive below its reference is compared with r_i − λ max(0, −r_i) instead of r_i (DPOP).
    reward_temperature: λ > 0 of the weight exp(r / λ) of an example whose observed reward is r; None: all weigh 1.
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
    link: str = "logistic"
    label_smoothing: float = 0.0
    dpop_lambda: float = 0.0
    boundary: bool = False
    beta_spread: float = 0.0
    beta_margin: float = 0.0
    reward_temperature: float | None = None

    def __post_init__(self) -> None:
        if problem := next(chain(_unknown_parts(self), _bad_numbers(self), _misfits(self)), None):
            raise ConfigError(problem)

    @property
    def needs_reference(self) -> bool:
        """Whether log π_ref enters the loss."""
        return REWARDS[self.shown_reward].needs_reference or ANCHORS[self.anchor].needs_reference

    @property
    def shown_reward(self) -> str:
        """The reward that is computed and logged: β log π_θ(y|x) where it plays no part in the loss."""
        return self.reward if self.comparison != "none" or self.anchor != "none" else "simpo_no_ln"

    @property
    def needs_slate(self) -> bool:
        """Whether every candidate of the slate must be scored in each step."""
        return ANCHORS[self.anchor].needs_slate or (self.negatives == "all" and self.comparison != "none")

    @property
    def needs_observed(self) -> bool:
        """Whether examples are weighted by an observed reward."""
        return self.reward_temperature is not None

    @property
    def uses_negatives(self) -> bool:
        """Whether sampled negatives enter the loss."""
        return self.comparison != "none"

    def parts(self) -> dict[str, str]:
        """The names of what it is composed of."""
        return {part: getattr(self, part) for part in PARTS}

    def base(self) -> Objective | None:
        """The same objective without the anchor; None where nothing else is trained on."""
        if self.comparison == "none" and not self.nll_weight:
            return None
        return replace(self, anchor="none", anchor_constant=0.0, anchor_margin=0.0)

    def is_base_of(self, other: Objective) -> bool:
        """Whether `other` is this objective plus an anchor."""
        return self.anchor == "none" and other.anchor != "none" and self.base() == other.base()


def _unknown_parts(objective: Objective) -> Iterator[str]:
    for name, (table, kind) in PARTS.items():
        value = getattr(objective, name)
        if value not in table:
            yield f"unknown {name} '{value}': choose one of {', '.join(table)}"
        elif kind is not None and not isinstance(table[value], kind):
            where = f"{name.upper()}S['{value}']"
            yield f"{where} is a {type(table[value]).__name__}: write {where} = {kind.__name__}(…), of objectives.parts"


def _bad_numbers(objective: Objective) -> Iterator[str]:
    values = {f.name: getattr(objective, f.name) for f in fields(Objective)}
    hints = get_type_hints(Objective)
    numbers = {name: value for name, value in values.items() if float in (hints[name], *get_args(hints[name]))}
    for name, value in numbers.items():
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            yield f"{name} must be a finite number, got {value!r}"
    for name in ("beta", "reward_temperature"):
        if numbers[name] is not None and not numbers[name] > 0:
            yield f"{name} must be positive, got {numbers[name]}"
    for name in ("gamma", "nll_weight", "anchor_margin", "label_smoothing", "dpop_lambda"):
        if numbers[name] < 0:
            yield f"{name} must not be negative, got {numbers[name]}"
    if not 0 <= objective.beta_spread < 1:
        yield f"beta_spread must be from 0 to below 1, got {objective.beta_spread}: beyond it pairs are turned round"
    if objective.label_smoothing >= 0.5:
        yield f"label_smoothing must be below 0.5, got {objective.label_smoothing}: half of the labels would be wrong"
    drawn = objective.negatives
    if drawn != "all" and (isinstance(drawn, bool) or not isinstance(drawn, int) or drawn < 1):
        yield f"negatives must be a whole number from 1, or 'all', got {drawn!r}"


def _misfits(objective: Objective) -> Iterator[str]:
    """Parts and numbers that have no meaning together."""
    o = objective
    reward, link, anchor = REWARDS[o.reward], LINKS[o.link], ANCHORS[o.anchor]
    if reward.needs_reference and o.gamma:
        yield f"gamma belongs to the SimPO family: a reward with a reference takes gamma 0, got {o.gamma}"
    if o.anchor == "reference" and not reward.takes_reference_anchor:
        those = _either(n for n, part in REWARDS.items() if part.takes_reference_anchor)
        yield f"the reference anchor needs reward {those}, not '{o.reward}': use anchor 'constant'"
    if o.anchor != "none" and link.anchor is None:
        those = _either(n for n, part in LINKS.items() if part.anchor is not None)
        yield f"link '{o.link}' takes no anchor: use {those}"
    if o.link == "linear" and o.gamma:
        yield f"gamma {o.gamma} shifts a linear loss and changes nothing: leave it at 0"
    if o.comparison == "weighted_positive" and o.link != "logistic":
        yield f"comparison 'weighted_positive' takes the logistic loss's own weights: link '{o.link}' has none here"
    if o.label_smoothing and not link.takes_smoothing:
        those = _either(n for n, part in LINKS.items() if part.takes_smoothing)
        yield f"label_smoothing {o.label_smoothing} has no effect on link '{o.link}': use link {those}"
    if o.dpop_lambda and not REWARDS[o.shown_reward].needs_reference:
        those = _either(n for n, part in REWARDS.items() if part.needs_reference)
        yield f"dpop_lambda holds the positive at its reference: it needs reward {those} and a comparison"
    if o.boundary and o.comparison == "none":
        yield "boundary chooses among sampled negatives: it needs a comparison with them"
    if o.boundary and o.filter:
        yield "boundary and filter both choose negatives: take one of them"
    if o.beta_spread and not o.boundary:
        yield f"beta_spread {o.beta_spread} looks from boundary negatives to the others: it needs boundary: true"
    if o.beta_margin and not o.beta_spread:
        yield f"beta_margin {o.beta_margin} has no effect without beta_spread: set one above 0, or leave it at 0"
    if o.filter and o.comparison == "none":
        yield "filter drops sampled negatives: it needs a comparison with them"
    for name, value in (("anchor_constant", o.anchor_constant), ("anchor_margin", o.anchor_margin)):
        if value and name not in anchor.takes:
            those = _either(n for n, part in ANCHORS.items() if name in part.takes)
            yield f"{name} {value} has no effect on anchor '{o.anchor}': use anchor {those}, or leave it at 0"
    if o.nll_per_token and not o.nll_weight:
        yield "nll_per_token has no effect without nll_weight: set one above 0, or nll_per_token: false"
    if o.comparison == "none" and o.anchor == "none" and not o.nll_weight:
        yield "nothing to train on: comparison 'none' needs an anchor or nll_weight > 0"


def _either(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


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
    observed_B: Tensor | None = None,
) -> LossOutput:
    """The objective's loss per example, Eq. 5, 7, 11 of the paper and METHOD 3.

    logp_BC, ref_logp_BC: log π(y|x) in nats, summed over tokens with the end of sequence; column 0 the positive.
    length_BC: tokens per completion. sampled_BC: bool, this step's negatives; column 0 is none, whatever it says.
    valid_BC: bool, real columns. observed_B: rewards that were observed, where the objective weights examples by them.

    Raises ConfigError for tensors of another shape or type, and where the objective needs a tensor that is missing.

    >>> from sirius_rec.objectives.presets import build_objective
    >>> logp, reference = torch.tensor([[-4.0, -6.0]]), torch.tensor([[-5.0, -5.0]])
    >>> drawn, every = torch.tensor([[False, True]]), torch.tensor([[True, True]])
    >>> out = compute_loss(build_objective("dpo"), logp, torch.tensor([[2, 2]]), drawn, every, reference)
    >>> out.reward_BC.tolist(), round(out.loss_B.item(), 4)  # −log σ(1 − (−1))
    ([[1.0, -1.0]], 0.1269)
    """
    _check_tensors(objective, logp_BC, length_BC, sampled_BC, valid_BC, ref_logp_BC, observed_B)
    reward_BC = reward_of(objective.shown_reward, logp_BC, ref_logp_BC, length_BC, objective.beta)
    kept_BC = sampled_BC & valid_BC & (torch.arange(logp_BC.shape[1], device=logp_BC.device) > 0)
    contributes_B = None
    if objective.filter:
        kept_BC = kept_BC & (reward_BC.detach() - reward_BC.detach()[:, :1] <= objective.gamma)
        contributes_B = kept_BC.any(1)
    compared_BC = _guarded(reward_BC, objective.dpop_lambda)
    if objective.boundary:
        among_BC, kept_BC = kept_BC, boundary_negatives(logp_BC, kept_BC)
        if objective.beta_spread:
            spread, middle = objective.beta_spread, objective.beta_margin
            scale_BC = pair_scale(logp_BC, among_BC, kept_BC, spread=spread, margin=middle)
            # A negative's margin is scaled by moving it, whatever the comparison does with margins.
            compared_BC = compared_BC[:, :1] - scale_BC * (compared_BC[:, :1] - compared_BC)

    link, anchor = LINKS[objective.link], ANCHORS[objective.anchor]

    def linked(function: LinkFn, margin: Tensor) -> Tensor:
        loss = function(margin, objective)
        _check_shape(f"link '{objective.link}'", loss, margin.shape)
        return loss

    loss_B = COMPARISONS[objective.comparison](
        compared_BC, kept_BC, objective.gamma, lambda margin: linked(link.function, margin)
    )
    _check_shape(f"comparison '{objective.comparison}'", loss_B, logp_BC.shape[:1])
    anchor_B = anchor.function(reward_BC, ref_logp_BC, valid_BC, objective)
    if anchor_B is not None:
        _check_shape(f"anchor '{objective.anchor}'", anchor_B, logp_BC.shape[:1])
        anchor_B = anchor_B.detach()
        assert link.anchor is not None, "refused when the objective is made"
        loss_B = loss_B + linked(link.anchor, compared_BC[:, 0] - anchor_B - objective.gamma)
    if objective.nll_weight:
        nll_B = -logp_BC[:, 0] / length_BC[:, 0] if objective.nll_per_token else -logp_BC[:, 0]
        loss_B = loss_B + objective.nll_weight * nll_B
    if objective.reward_temperature is not None and observed_B is not None:
        loss_B = loss_B * torch.exp(observed_B / objective.reward_temperature)
    if contributes_B is not None:
        loss_B = loss_B.masked_fill(~contributes_B, 0.0)
    return LossOutput(loss_B, reward_BC, kept_BC, anchor_B)


def reward_of(name: str, logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    """The reward `name` of `REWARDS`, [B, C]: nats times β, summed or per token as it says (Eq. 3 and 6)."""
    reward = REWARDS[name]
    reward_BC = reward.function(logp_BC, ref_logp_BC if reward.needs_reference else None, length_BC, beta)
    _check_shape(f"reward '{name}'", reward_BC, logp_BC.shape)
    return reward_BC


def rounding_of(name: str, beta: float) -> float:
    """How far the reward `name` moves with a nat of log π where it is a difference from a reference, which policy and
    reference as one make 0 but for rounding; 0 for other rewards. Per token it is less, by |y|."""
    return beta if REWARDS[name].needs_reference else 0.0


def _check_shape(what: str, tensor: Tensor, shape: torch.Size) -> None:
    """What would broadcast in silence."""
    if tensor.shape != shape:
        raise ConfigError(f"{what} has shape {list(tensor.shape)} where {list(shape)} is needed")


def _check_tensors(
    objective: Objective,
    logp_BC: Tensor,
    length_BC: Tensor,
    sampled_BC: Tensor,
    valid_BC: Tensor,
    ref_logp_BC: Tensor | None,
    observed_B: Tensor | None,
) -> None:
    """ConfigError for what is missing, shapes and types alone: values would make the host wait for the device."""
    if objective.needs_reference and ref_logp_BC is None:
        parts = f"reward '{objective.reward}', anchor '{objective.anchor}'"
        raise ConfigError(f"{parts}: the objective needs reference log-probs, and none were given: ref_logp_BC")
    if objective.needs_observed and observed_B is None:
        raise ConfigError("reward_temperature weights examples by their observed rewards: none were given")
    if logp_BC.dim() != 2 or logp_BC.shape[1] == 0 or not logp_BC.is_floating_point():
        raise ConfigError(f"logp_BC: give a float tensor [B, C], got {logp_BC.dtype} {list(logp_BC.shape)}")
    for name, mask in (("sampled_BC", sampled_BC), ("valid_BC", valid_BC)):
        if mask.dtype != torch.bool:
            raise ConfigError(f"{name} is {mask.dtype}: give a mask of torch.bool, {name}.bool()")
    for name, tensor in (
        ("length_BC", length_BC),
        ("sampled_BC", sampled_BC),
        ("valid_BC", valid_BC),
        ("ref_logp_BC", ref_logp_BC),
    ):
        if tensor is not None:
            _check_shape(name, tensor, logp_BC.shape)
    if observed_B is not None:
        _check_shape("observed_B", observed_B, logp_BC.shape[:1])


def _guarded(reward_BC: Tensor, dpop_lambda: float) -> Tensor:
    """r_i − λ max(0, −r_i) for the positive: DPOP takes λ β max(0, log π_ref(y_i|x) / π_θ(y_i|x)) from the margin."""
    if not dpop_lambda:
        return reward_BC
    positive_B1 = reward_BC[:, :1] - dpop_lambda * F.relu(-reward_BC[:, :1])
    return torch.cat([positive_B1, reward_BC[:, 1:]], 1)
