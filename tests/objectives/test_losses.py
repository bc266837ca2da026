"""Every preset against numbers worked out by hand, limits, masks, gradients and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.losses import LossOutput, Objective, compute_loss
from sirius_rec.objectives.presets import LOSSES, build_objective

# One example: the positive and three sampled negatives, plus one unsampled candidate.
LOGP = torch.tensor([[-4.0, -5.0, -3.8, -7.0, -6.0]], dtype=torch.float64)
REF = torch.tensor([[-4.5, -4.0, -5.0, -6.0, -6.5]], dtype=torch.float64)
LENGTH = torch.tensor([[2, 4, 2, 7, 3]])
VALID = torch.ones(1, 5, dtype=torch.bool)


def sampled(n: int) -> Tensor:
    columns = torch.arange(5)
    return ((columns > 0) & (columns <= n))[None]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def observed(objective: Objective, rows: int = 1) -> Tensor | None:
    return torch.full((rows,), 0.7, dtype=torch.float64) if objective.needs_observed else None


def loss_of(objective: Objective, n: int, logp: Tensor = LOGP, ref: Tensor = REF) -> LossOutput:
    given = ref if objective.needs_reference else None
    return compute_loss(objective, logp, LENGTH, sampled(n), VALID, given, observed(objective))


# −log σ(x) = softplus(−x). β = 1 everywhere.
# DPO rewards log π − log π_ref: (0.5, −1, 1.2, −1, 0.5). Reference-free: log π. SimPO: (−2, −1.25, −1.9, −1, −2).
EXPECTED = {
    # −log π_i = 4
    "sft": 4.0,
    "sft_continued": 4.0,
    # r_i − r_j = 1.5
    "dpo": softplus(-1.5),
    # anchor: r_i − r_0 = β log π_θ(y_i) = −4
    "dpo_sirius": softplus(-1.5) + softplus(4.0),
    "dpo_nll": softplus(-1.5) + 4.0,
    # 4 nats over 2 tokens
    "rpo": softplus(-1.5) + 2.0,
    # weight σ(r_j − r_i) = σ(−1.5), times −r_i = −0.5
    "sft_reward_weighted": -0.5 / (1 + math.exp(1.5)),
    # log(1 + e^−1.5 + e^0.7 + e^−1.5)
    "softmax_dpo": math.log(1 + 2 * math.exp(-1.5) + math.exp(0.7)),
    "softmax_dpo_sirius": math.log(1 + 2 * math.exp(-1.5) + math.exp(0.7)) + softplus(4.0),
    # rewards −1, 1.2, −1 of the three, and 0.5
    "dmpo": softplus(-(0.5 + 0.8 / 3)),
    # the second alone is at or above the positive: by 0.2 nats, 2.2 above the others' mean of −6; r_i − r_j = −0.7
    "dynamicpo": softplus(0.7 * (1 + 0.5 * math.tanh((-0.2 - 2.2 - 6) / (0.2 + 2.2)))),
    # all four: one more term e^0
    "softmax_dpo_all": math.log(2 + 2 * math.exp(-1.5) + math.exp(0.7)),
    # r_i − r_j − γ = −0.75 − 0.6
    "simpo": softplus(1.35),
    # anchor 0: r_i − 0 − 0.6 = −2.6
    "simpo_sirius": softplus(1.35) + softplus(2.6),
    # −4 + 5 − 0.6 = 0.4
    "simpo_no_ln": softplus(-0.4),
    # −4 − 0 − 0.6
    "simpo_no_ln_sirius": softplus(-0.4) + softplus(4.6),
    # the slate's largest reward is −3.8: −4 + 3.8 − 0.6 = −0.8
    "simpo_no_ln_sirius_slate": softplus(-0.4) + softplus(0.8),
    "simpo_no_ln_nll": softplus(-0.4) + 4.0,
    # r_j − r_i = −1, 0.2, −3, −2
    "softmax_ref_free": math.log(1 + math.exp(-1) + math.exp(0.2) + math.exp(-3) + math.exp(-2)),
    # z = 1.5 is beyond 1; test_links has pairs that are not
    "slic_hinge": 0.0,
    # per token 0.25 and −0.25: z = 1/2 is the target; test_links has other β
    "ipo": 0.0,
    # ε = 0.1
    "cdpo": 0.9 * softplus(-1.5) + 0.1 * softplus(1.5),
    "robust_dpo": (0.9 * softplus(-1.5) - 0.1 * softplus(1.5)) / 0.8,
    # r_i = 0.5 is above the reference: DPO; test_links has one below
    "dpop": softplus(-1.5),
    # β log π_i − β log π_j = 1, and 4 nats
    "cpo": softplus(-1.0) + 4.0,
    # per token −2 and −1.25
    "simper": -math.exp(-2) + math.exp(-1.25),
    # e^0.7 times 4 nats
    "reward_weighted_sft": math.exp(0.7) * 4.0,
}


def test_every_preset_has_an_expected_value() -> None:
    assert set(EXPECTED) == set(LOSSES)


def count(objective: Objective) -> int:
    return 4 if objective.negatives == "all" else int(objective.negatives)


@pytest.mark.parametrize("name", LOSSES)
def test_value_by_hand(name: str) -> None:
    objective = build_objective(name)
    if "simpo" in name:
        assert objective.gamma == 0.6
    assert loss_of(objective, count(objective)).loss_B.item() == pytest.approx(EXPECTED[name], rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    """Analytic against numeric gradients, with anchors held at the values of the unmoved point."""
    objective = build_objective(name, beta=1.3)
    generator = torch.Generator().manual_seed(0)
    logp = (-5 + torch.randn(3, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    ref = -5 + torch.randn(3, 5, generator=generator, dtype=torch.float64)
    length = torch.randint(1, 6, (3, 5), generator=generator)
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    mask = sampled(count(objective)) & valid

    if objective.anchor == "slate":  # the anchor moves with the rewards for finite differences only: freeze it
        frozen = compute_loss(objective, logp, length, mask, valid).anchor_B
        assert frozen is not None

        def total(x: Tensor) -> Tensor:
            base = build_objective(name, beta=1.3, anchor="none")
            out = compute_loss(base, x, length, mask, valid)
            anchor = torch.nn.functional.softplus(-(out.reward_BC[:, 0] - frozen - objective.gamma))
            return out.loss_B + anchor.masked_fill(~out.kept_BC.any(1), 0.0)

        (by_hand,) = torch.autograd.grad(total(logp).sum(), logp)
        (ours,) = torch.autograd.grad(compute_loss(objective, logp, length, mask, valid).loss_B.sum(), logp)
        torch.testing.assert_close(ours, by_hand)
    elif objective.comparison == "weighted_positive" or objective.beta_spread:  # so do weights and scales: see below
        return
    else:

        def total(x: Tensor) -> Tensor:
            given = ref if objective.needs_reference else None
            return compute_loss(objective, x, length, mask, valid, given, observed(objective, 3)).loss_B

    assert torch.autograd.gradcheck(total, (logp,))


@pytest.mark.parametrize(
    ("reward", "gamma"),
    [("dpo", 0.0), ("dpo_ln", 0.0), ("simpo", 0.0), ("simpo", 0.7), ("simpo_no_ln", 0.0), ("simpo_no_ln", 0.7)],
)
def test_softmax_with_one_negative_is_pairwise(reward: str, gamma: float) -> None:
    values, grads = [], []
    for comparison in ("pairwise", "softmax"):
        logp = LOGP.clone().requires_grad_()
        loss = loss_of(Objective(reward=reward, comparison=comparison, gamma=gamma), 1, logp).loss_B.sum()
        values.append(loss.item())
        grads.append(torch.autograd.grad(loss, logp)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("comparison", ["pairwise", "softmax"])
def test_anchor_to_minus_infinity_is_the_base_loss(comparison: str) -> None:
    options: dict[str, Any] = {"reward": "simpo_no_ln", "comparison": comparison, "gamma": 0.6}
    base, anchored = LOGP.clone().requires_grad_(), LOGP.clone().requires_grad_()
    value = loss_of(Objective(**options), 3, base).loss_B.sum()
    limit = loss_of(Objective(**options, anchor="constant", anchor_constant=-1e6), 3, anchored).loss_B.sum()
    assert value.item() == limit.item()
    (g_base,), (g_limit,) = torch.autograd.grad(value, base), torch.autograd.grad(limit, anchored)
    torch.testing.assert_close(g_base, g_limit, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_margins_of_ten_thousand_stay_finite(name: str, dtype: torch.dtype, sign: float) -> None:
    objective = build_objective(name)
    logp = torch.tensor([[-1e4, -1.0, -2e4, -1e4, -5.0]], dtype=dtype) * sign
    if objective.reward == "inverse_perplexity":  # bounded for log-probs, of which none is above 0
        logp = -logp.abs()
    logp.requires_grad_()
    out = loss_of(objective, count(objective), logp, torch.zeros(1, 5, dtype=dtype))
    (grad,) = torch.autograd.grad(out.loss_B.sum(), logp)
    assert torch.isfinite(out.loss_B).all()
    assert torch.isfinite(grad).all()


def test_pairwise_is_the_mean_over_pairs() -> None:
    singles = []
    for j in (1, 2, 3):
        only = torch.zeros(1, 5, dtype=torch.bool)
        only[0, j] = True
        singles.append(compute_loss(Objective(), LOGP, LENGTH, only, VALID, REF).loss_B.item())
    assert loss_of(Objective(), 3).loss_B.item() == pytest.approx(sum(singles) / 3, rel=1e-12)
    # 1.5, −0.7, 1.5
    assert sum(singles) == pytest.approx(2 * softplus(-1.5) + softplus(0.7), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
@pytest.mark.parametrize(("reward", "gamma"), [("dpo", 0.0), ("simpo", 0.7), ("simpo_no_ln", 0.7)])
def test_weighted_positive_is_pairwise_without_the_push_on_negatives(reward: str, gamma: float, beta: float) -> None:
    """The same gradient on y_i, none on any y_j; three negatives, one of them ranked above the positive."""
    grads = []
    for comparison in ("pairwise", "weighted_positive"):
        logp = LOGP.clone().requires_grad_()
        objective = Objective(reward=reward, comparison=comparison, gamma=gamma, beta=beta)
        grads.append(torch.autograd.grad(loss_of(objective, 3, logp).loss_B.sum(), logp)[0])
    pairwise, weighted = grads
    torch.testing.assert_close(weighted[:, 0], pairwise[:, 0], rtol=1e-12, atol=0)
    assert pairwise[0, 1:4].all() and not weighted[0, 1:].any()


def test_reward_weighted_sft_by_hand() -> None:
    """w = mean σ(r_j − r_i) over differences −1.5, 0.7, −1.5; the gradient on log π_θ(y_i|x) is −β w."""
    weight = sum(1 / (1 + math.exp(-x)) for x in (-1.5, 0.7, -1.5)) / 3
    logp = LOGP.clone().requires_grad_()
    out = loss_of(build_objective("sft_reward_weighted"), 3, logp)
    assert out.loss_B.item() == pytest.approx(-weight * 0.5, rel=1e-12)
    (grad,) = torch.autograd.grad(out.loss_B.sum(), logp)
    assert grad[0, 0].item() == pytest.approx(-weight, rel=1e-12)
    frozen = torch.tensor(weight, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: -frozen * (x[:, 0] - REF[:, 0]), (logp,))


@pytest.mark.parametrize("comparison", ["pairwise", "softmax"])
def test_filter_drops_negatives_above_gamma(comparison: str) -> None:
    """β = 10: r_j − r_i = −10, 2, −30; with γ = 0.6 the second negative is dropped."""
    objective = Objective(reward="simpo_no_ln", comparison=comparison, gamma=0.6, filter=True, beta=10.0)
    logp = LOGP.clone().requires_grad_()
    out = loss_of(objective, 3, logp)
    assert out.kept_BC.tolist() == [[False, True, False, True, False]]
    pairs = [-10 + 0.6, -30 + 0.6]
    by_hand = (
        sum(softplus(x) for x in pairs) / 2 if comparison == "pairwise" else math.log1p(sum(math.exp(x) for x in pairs))
    )
    assert out.loss_B.item() == pytest.approx(by_hand, rel=1e-9)
    (grad,) = torch.autograd.grad(out.loss_B.sum(), logp)
    assert grad[0, 2] == 0


def test_filter_keeps_a_difference_of_exactly_gamma() -> None:
    logp = torch.tensor([[-4.0, -3.5, -3.0, -9.0, -9.0]], dtype=torch.float64)
    out = loss_of(Objective(reward="simpo_no_ln", gamma=0.5, filter=True), 2, logp)
    assert out.kept_BC[0, 1:3].tolist() == [True, False]


@pytest.mark.parametrize("comparison", ["pairwise", "softmax"])
def test_an_example_that_lost_all_negatives_contributes_nothing(comparison: str) -> None:
    """Neither comparison, nor anchor, nor NLL; the example beside it is unharmed."""
    objective = Objective(
        reward="simpo_no_ln", comparison=comparison, anchor="constant", gamma=0.6, nll_weight=2.0, filter=True
    )
    logp = torch.tensor([[-9.0, -1.0, -2.0], [-4.0, -5.0, -6.0]], dtype=torch.float64, requires_grad=True)
    length, valid = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
    mask = torch.tensor([[False, True, True]]).expand(2, 3)
    out = compute_loss(objective, logp, length, mask, valid)
    alone = compute_loss(objective, logp[1:], length[1:], mask[1:], valid[1:])
    assert out.loss_B[0] == 0
    assert out.loss_B[1].item() == pytest.approx(alone.loss_B.item()) != 0
    (grad,) = torch.autograd.grad(out.loss_B.sum(), logp)
    assert not grad[0].any()
    assert torch.isfinite(grad).all()
    assert grad[1].all()


@pytest.mark.parametrize("reward", ["simpo", "simpo_no_ln"])
def test_gamma_enters_comparison_and_anchor(reward: str) -> None:
    """r_i, r_j: SimPO −2, −1.25; w/o LN −4, −5. Anchor at 1: r_i − 1 − γ."""
    r_i, r_j = (-2.0, -1.25) if reward == "simpo" else (-4.0, -5.0)
    for gamma in (0.0, 1.0):
        out = loss_of(Objective(reward=reward, anchor="constant", anchor_constant=1.0, gamma=gamma), 1)
        by_hand = softplus(-(r_i - r_j - gamma)) + softplus(-(r_i - 1.0 - gamma))
        assert out.loss_B.item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("comparison", ["pairwise", "softmax"])
def test_dpo_with_sirius_is_dpo_plus_a_term_in_the_policy_alone(beta: float, comparison: str) -> None:
    """DPO + SIRIUS = DPO − log σ(β log π_θ(y_i|x)), in value and gradient (section 4.3)."""
    logp = LOGP.clone().requires_grad_()
    ours = loss_of(Objective(comparison=comparison, anchor="reference", beta=beta), 3, logp).loss_B.sum()
    base = loss_of(Objective(comparison=comparison, beta=beta), 3, logp).loss_B.sum()
    by_hand = base - torch.nn.functional.logsigmoid(beta * logp[0, 0])
    assert ours.item() == pytest.approx(by_hand.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, logp), torch.autograd.grad(by_hand, logp))


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"reward": "dpo", "anchor": "reference", "beta": 2.0}, 9.0),  # −2 · (−4.5)
        ({"reward": "simpo", "anchor": "constant", "anchor_constant": 10.0}, 10.0),
        ({"reward": "simpo_no_ln", "anchor": "slate", "beta": 2.0, "anchor_margin": 0.5}, -7.1),  # 2 · (−3.8) + 0.5
        ({"reward": "dpo", "anchor": "slate"}, 1.2),
    ],
)
def test_anchors_are_constants_for_the_gradient(options: dict[str, Any], value: float) -> None:
    logp, ref = LOGP.clone().requires_grad_(), REF.clone().requires_grad_()
    objective = Objective(**options)
    out = loss_of(objective, 1, logp, ref)
    assert out.anchor_B is not None
    assert out.anchor_B.item() == pytest.approx(value)
    assert not out.anchor_B.requires_grad
    # The slate's best and the unsampled candidates get no gradient through the anchor.
    (grad,) = torch.autograd.grad(out.loss_B.sum(), logp)
    assert not grad[0, 2:].any()


def test_slate_anchor_ignores_absent_candidates() -> None:
    valid = torch.tensor([[True, True, False, True, True]])
    out = compute_loss(Objective(reward="simpo_no_ln", anchor="slate"), LOGP, LENGTH, sampled(1), valid)
    assert out.anchor_B is not None
    assert out.anchor_B.item() == -4.0


def test_nll_summed_or_per_token() -> None:
    base = loss_of(Objective(), 1).loss_B.item()
    assert loss_of(Objective(nll_weight=0.5), 1).loss_B.item() == pytest.approx(base + 0.5 * 4.0)
    # |y_i| = 2
    per_token = loss_of(Objective(nll_weight=0.5, nll_per_token=True), 1).loss_B.item()
    assert per_token == pytest.approx(base + 0.5 * 2.0)


@pytest.mark.parametrize("name", LOSSES)
def test_padded_columns_have_no_influence(name: str) -> None:
    """Junk in two absent columns, even marked as sampled, changes neither value nor gradient."""
    objective = build_objective(name)
    logp = LOGP.clone().requires_grad_()
    plain = loss_of(objective, count(objective), logp)
    (grad,) = torch.autograd.grad(plain.loss_B.sum(), logp)

    def padded(x: Tensor, junk: float) -> Tensor:
        return torch.cat([x, torch.full((1, 2), junk, dtype=x.dtype)], 1)

    for junk in (0.0, 50.0, -50.0):
        wide = padded(LOGP, junk).requires_grad_()
        absent = torch.zeros(1, 2, dtype=torch.bool)
        out = compute_loss(
            objective,
            wide,
            torch.cat([LENGTH, torch.ones(1, 2, dtype=torch.long)], 1),
            torch.cat([sampled(count(objective)), ~absent], 1),
            torch.cat([VALID, absent], 1),
            padded(REF, -junk) if objective.needs_reference else None,
            observed(objective),
        )
        assert out.loss_B.item() == pytest.approx(plain.loss_B.item(), rel=1e-12)
        (wide_grad,) = torch.autograd.grad(out.loss_B.sum(), wide)
        torch.testing.assert_close(wide_grad, padded(grad, 0.0), rtol=1e-12, atol=1e-15)


def test_reference_is_demanded() -> None:
    with pytest.raises(ConfigError, match="needs reference log-probs"):
        compute_loss(Objective(), LOGP, LENGTH, sampled(1), VALID)


def test_the_positive_is_never_a_negative_of_itself() -> None:
    """A mask that says so everywhere: the mean over the true pairs alone, without their half weight of log 2."""
    out = compute_loss(Objective(), LOGP, LENGTH, sampled(3) | (torch.arange(5) == 0), VALID, REF)
    assert out.loss_B.item() == pytest.approx((2 * softplus(-1.5) + softplus(0.7)) / 3, rel=1e-12)
    assert out.kept_BC.tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_logp_BC": REF[:, :1]}, r"ref_logp_BC has shape \[1, 1\] where \[1, 5\] is needed"),
        ({"ref_logp_BC": REF[0]}, r"ref_logp_BC has shape \[5\]"),
        ({"length_BC": LENGTH[:, :1]}, r"length_BC has shape \[1, 1\]"),
        ({"sampled_BC": sampled(1).int()}, r"sampled_BC is torch.int32: give .*, sampled_BC.bool\(\)"),
        ({"valid_BC": VALID.float()}, r"valid_BC is torch.float32: give a mask of torch.bool"),
        ({"valid_BC": VALID[:, :4]}, r"valid_BC has shape \[1, 4\]"),
        ({"logp_BC": LOGP[0]}, r"logp_BC: give a float tensor \[B, C\], got torch.float64 \[5\]"),
        ({"logp_BC": LENGTH}, r"logp_BC: give a float tensor \[B, C\], got torch.int64"),
        ({"observed_B": torch.ones(1, 1)}, r"observed_B has shape \[1, 1\] where \[1\] is needed"),
    ],
)
def test_tensors_of_another_shape_or_type_are_refused(change: dict[str, Tensor], message: str) -> None:
    given = {"logp_BC": LOGP, "length_BC": LENGTH, "sampled_BC": sampled(1), "valid_BC": VALID, "ref_logp_BC": REF}
    with pytest.raises(ConfigError, match=message):
        compute_loss(Objective(), **{**given, **change})
