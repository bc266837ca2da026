"""What objectives are composed of: what they need, which parts go together, and which presets are whose base."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.losses import Objective, compute_loss
from sirius_rec.objectives.parts import ANCHORS, COMPARISONS, LINKS, REWARDS, Anchor, Link, Reward
from sirius_rec.objectives.presets import LOSSES, build_objective


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"beta": -1.0}, "beta must be positive"),
        ({"beta": math.nan}, "beta must be a finite number, got nan"),
        ({"beta": math.inf}, "beta must be a finite number"),
        ({"reward": "simpo", "gamma": -0.1}, "gamma must not be negative, got -0.1"),
        ({"reward": "simpo", "gamma": math.nan}, "gamma must be a finite number"),
        ({"gamma": 0.5}, "gamma belongs to the SimPO family"),
        ({"nll_weight": -1.0}, "nll_weight must not be negative"),
        ({"anchor_margin": -1.0}, "anchor_margin must not be negative"),
        ({"anchor_constant": math.nan}, "anchor_constant must be a finite number"),
        ({"reward": "simpo", "anchor": "reference"}, "the reference anchor needs reward 'dpo', not 'simpo'"),
        ({"reward": "ppo"}, "unknown reward 'ppo': choose one of dpo, dpo_ln, simpo, simpo_no_ln"),
        ({"comparison": "max"}, "unknown comparison 'max'"),
        ({"anchor": "first"}, "unknown anchor 'first'"),
        ({"negatives": 0}, "negatives must be a whole number from 1, or 'all', got 0"),
        ({"negatives": 1.5}, "negatives must be a whole number"),
        ({"negatives": "some"}, "negatives must be a whole number"),
        ({"negatives": True}, "negatives must be a whole number from 1, or 'all', got True"),
        ({"anchor_constant": 10.0}, "anchor_constant 10.0 has no effect on anchor 'none': use anchor 'constant', or"),
        ({"anchor": "reference", "anchor_constant": -1.0}, "has no effect on anchor 'reference'"),
        ({"anchor": "slate", "anchor_constant": 1.0}, "has no effect on anchor 'slate': use anchor 'constant'"),
        ({"anchor": "constant", "anchor_margin": 5.0}, "anchor_margin 5.0 has no effect on anchor 'constant': use"),
        ({"nll_per_token": True}, "nll_per_token has no effect without nll_weight: set one above 0"),
        ({"comparison": "none", "filter": True, "nll_weight": 1.0}, "filter drops sampled negatives"),
        ({"comparison": "none"}, "nothing to train on"),
    ],
)
def test_impossible_objectives_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Objective(**options)
    assert "\n" not in str(caught.value)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown loss 'sofmax_dpo', did you mean 'softmax_dpo'\?"):
        build_objective("sofmax_dpo")
    with pytest.raises(ConfigError, match=r"unknown loss 'qqq'.*Known: sft, sft_continued, dpo,"):
        build_objective("qqq")
    with pytest.raises(ConfigError, match="unknown loss option 'betta'"):
        build_objective("dpo", betta=1.0)


def test_overrides_go_through_the_same_checks() -> None:
    assert build_objective("simpo", gamma=None, beta=2.0) == Objective(reward="simpo", gamma=0.6, beta=2.0)
    with pytest.raises(ConfigError, match="gamma belongs to the SimPO family"):
        build_objective("dpo", gamma=0.4)
    with pytest.raises(ConfigError, match="reference anchor needs reward 'dpo'"):
        build_objective("simpo", anchor="reference")


def test_an_override_that_takes_a_presets_part_away_takes_its_numbers_too() -> None:
    """Options of the part that is gone are not kept in silence."""
    with pytest.raises(ConfigError, match=r"anchor_constant 3\.0 has no effect on anchor 'none'"):
        build_objective("simpo_sirius", anchor="none", anchor_constant=3.0)
    with pytest.raises(ConfigError, match="nll_per_token has no effect without nll_weight"):
        build_objective("rpo", nll_weight=0.0)
    assert build_objective("rpo", nll_weight=0.0, nll_per_token=False) == build_objective("dpo")


def test_what_an_objective_needs() -> None:
    assert build_objective("dpo").needs_reference
    assert not build_objective("sft").needs_reference
    assert not build_objective("sft").uses_negatives
    assert not build_objective("softmax_ref_free").needs_reference
    assert build_objective("softmax_dpo_all").needs_slate
    assert build_objective("simpo_no_ln_sirius_slate").needs_slate
    assert not build_objective("softmax_dpo_sirius").needs_slate


BASES = {
    "dpo_sirius": "dpo",
    "softmax_dpo_sirius": "softmax_dpo",
    "simpo_sirius": "simpo",
    "simpo_no_ln_sirius": "simpo_no_ln",
    "simpo_no_ln_sirius_slate": "simpo_no_ln",
}


def test_every_anchored_preset_has_its_base_among_the_presets() -> None:
    """Of all pairs of presets exactly these: `sft` and `softmax_dpo_all` are the base of none."""
    built = {name: build_objective(name) for name in LOSSES}
    assert {(b, a) for a in built for b in built if built[b].is_base_of(built[a])} == {(b, a) for a, b in BASES.items()}
    assert set(BASES) == {name for name, objective in built.items() if objective.anchor != "none"}


def test_a_base_is_the_same_in_all_but_the_anchor() -> None:
    base = build_objective("simpo", beta=2.0)
    anchored = build_objective("simpo_sirius", beta=2.0, anchor_constant=10.0)
    assert anchored.base() == base == base.base()
    assert base.is_base_of(anchored) and base.is_base_of(build_objective("simpo", beta=2.0, anchor="slate"))
    assert base.is_base_of(build_objective("simpo", beta=2.0, anchor="slate", anchor_margin=3.0))
    for other in ({"beta": 1.0}, {"gamma": 0.4}, {"comparison": "softmax"}, {"negatives": 2}, {"nll_weight": 1.0}):
        assert not build_objective("simpo", **{"beta": 2.0, **other}).is_base_of(anchored)
    assert not anchored.is_base_of(base) and not base.is_base_of(base) and not anchored.is_base_of(anchored)


def test_an_anchor_alone_has_no_base() -> None:
    alone = Objective(reward="simpo", comparison="none", anchor="constant")
    assert alone.base() is None
    assert not any(build_objective(name).is_base_of(alone) for name in LOSSES)


def test_parts_are_compared_by_value() -> None:
    """A configuration's strings are objects of their own."""
    none = "".join(["no", "ne"])
    assert not build_objective("dpo").is_base_of(build_objective("dpo", anchor=none))
    assert build_objective("dpo").is_base_of(build_objective("dpo_sirius"))
    logp, length = torch.tensor([[-2.0, -3.0]]), torch.ones(1, 2)
    sampled = torch.tensor([[False, True]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    losses = [
        compute_loss(
            Objective(comparison=word, anchor=word, reward="dpo", nll_weight=1.0), logp, length, sampled, valid
        )
        for word in ("none", none)
    ]
    assert torch.equal(losses[0].loss_B, losses[1].loss_B)


LENGTH = torch.ones(1, 3)
LOGP = torch.tensor([[-4.0, -5.0, -3.8]])
REF = torch.tensor([[-4.5, -4.0, -5.0]])
SAMPLED = torch.tensor([[False, True, False]])
VALID = torch.ones(1, 3, dtype=torch.bool)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def clipped(logp_BC: Tensor, ref_logp_BC: Tensor | None, length_BC: Tensor, beta: float) -> Tensor:
    assert ref_logp_BC is not None
    return beta * (logp_BC - ref_logp_BC).clamp(-0.25, 0.25)


def test_an_own_reward_with_a_reference_takes_the_sirius_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 2 · (0.25, −0.25): z = 1; r_i − r_0 = 0.5 + 2 · (−4.5)."""
    monkeypatch.setitem(REWARDS, "clip", Reward(clipped, needs_reference=True, takes_reference_anchor=True))
    objective = build_objective("dpo_sirius", reward="clip", beta=2.0)
    assert objective.needs_reference
    out = compute_loss(objective, LOGP, LENGTH, SAMPLED, VALID, REF)
    assert out.loss_B.item() == pytest.approx(softplus(-1.0) + softplus(8.5))
    with pytest.raises(ConfigError, match="reward 'clip', anchor 'reference': the objective needs reference log-probs"):
        compute_loss(objective, LOGP, LENGTH, SAMPLED, VALID)
    assert Objective(reward="clip", dpop_lambda=1.0).needs_reference
    with pytest.raises(ConfigError, match="a reward with a reference takes gamma 0"):
        Objective(reward="clip", gamma=0.5)
    monkeypatch.setitem(REWARDS, "clip", Reward(clipped, needs_reference=True))
    with pytest.raises(ConfigError, match="the reference anchor needs reward 'dpo', not 'clip': use anchor 'constant'"):
        Objective(reward="clip", anchor="reference")


def test_an_own_link_says_its_anchor_and_its_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    def tilted(margin: Tensor, objective: Any) -> Tensor:
        return -margin * (1 - objective.label_smoothing)

    monkeypatch.setitem(LINKS, "tilted", Link(tilted, anchor=LINKS["logistic"].function, takes_smoothing=True))
    objective = Objective(link="tilted", anchor="reference", label_smoothing=0.25)
    out = compute_loss(objective, LOGP, LENGTH, SAMPLED, VALID, REF)
    assert out.loss_B.item() == pytest.approx(-0.75 * 1.5 + softplus(4.0))
    monkeypatch.setitem(LINKS, "tilted", Link(tilted))
    with pytest.raises(ConfigError, match="link 'tilted' takes no anchor: use 'logistic' or 'hinge'"):
        Objective(link="tilted", anchor="reference")
    with pytest.raises(ConfigError, match=r"label_smoothing 0\.2 has no effect on link 'tilted'"):
        Objective(link="tilted", label_smoothing=0.2)


def test_an_own_comparison_is_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def hardest(reward_BC: Tensor, kept_BC: Tensor, gamma: float, link: Any) -> Tensor:
        worst_B = reward_BC.masked_fill(~kept_BC, -math.inf).amax(1)
        loss_B: Tensor = link(reward_BC[:, 0] - worst_B - gamma)
        return loss_B

    monkeypatch.setitem(COMPARISONS, "hardest", hardest)
    out = compute_loss(Objective(comparison="hardest", negatives=2), LOGP, LENGTH, VALID, VALID, REF)
    assert out.loss_B.item() == pytest.approx(softplus(0.7))  # r_i − r_j = 0.5 − 1.2; the positive is no negative


def test_an_own_anchor_is_a_constant_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """r_0 = r_i + c: the margin is −c, whose gradient flows through r_i alone."""

    def ahead(reward_BC: Tensor, ref_logp_BC: Tensor | None, valid_BC: Tensor, objective: Any) -> Tensor:
        return reward_BC[:, 0] + objective.anchor_constant

    monkeypatch.setitem(ANCHORS, "ahead", Anchor(ahead, takes=("anchor_constant",), needs_slate=True))
    objective = Objective(reward="simpo", comparison="none", anchor="ahead", anchor_constant=1.0)
    logp = LOGP.clone().requires_grad_()
    out = compute_loss(objective, logp, LENGTH, SAMPLED, VALID)
    assert objective.needs_slate and out.anchor_B is not None and not out.anchor_B.requires_grad
    assert out.loss_B.item() == pytest.approx(softplus(1.0))
    (grad,) = torch.autograd.grad(out.loss_B.sum(), logp)
    assert grad[0].tolist() == pytest.approx([-1 / (1 + math.exp(-1.0)), 0, 0])
    with pytest.raises(
        ConfigError, match=r"anchor_margin 1\.0 has no effect on anchor 'ahead': use anchor 'slate', or"
    ):
        Objective(reward="simpo", anchor="ahead", anchor_margin=1.0)
    monkeypatch.setitem(ANCHORS, "ahead", Anchor(lambda reward_BC, *others: reward_BC[:, :1]))
    with pytest.raises(ConfigError, match=r"anchor 'ahead' has shape \[1, 1\] where \[1\] is needed"):
        compute_loss(Objective(reward="simpo", anchor="ahead"), LOGP, LENGTH, SAMPLED, VALID)
    monkeypatch.setitem(ANCHORS, "ahead", Anchor(ahead, needs_reference=True))
    assert Objective(reward="simpo", anchor="ahead").needs_reference


def test_a_bare_function_in_a_table_is_told_what_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "clip", clipped)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"REWARDS\['clip'\] is a function: write REWARDS\['clip'\] = Reward\(…\)"):
        Objective(reward="clip")


def test_a_link_that_means_over_pairs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one number would be every example's loss in silence."""
    monkeypatch.setitem(
        LINKS, "mean", Link(lambda margin, objective: -margin.mean(), anchor=LINKS["logistic"].function)
    )
    logp = torch.tensor([[-1.0, -2.0], [-3.0, -5.0]])
    drawn, every = torch.tensor([[False, True]] * 2), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"link 'mean' has shape \[\] where \[2"):
        compute_loss(Objective(reward="simpo_no_ln", link="mean"), logp, torch.ones(2, 2), drawn, every)
