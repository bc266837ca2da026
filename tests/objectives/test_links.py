"""Links, the guard of DPOP and observed rewards: values by hand, limits, and what goes with what."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.losses import LossOutput, Objective, compute_loss
from sirius_rec.objectives.parts import ANCHORS, COMPARISONS, LINKS, REWARDS
from sirius_rec.objectives.presets import LOSSES, build_objective

# One positive, two sampled negatives, one unsampled candidate. DPO rewards at β = 1: −0.5, 0.25, −1.5, 1.
LOGP = torch.tensor([[-5.0, -3.75, -6.5, -4.0]], dtype=torch.float64)
REF = torch.tensor([[-4.5, -4.0, -5.0, -5.0]], dtype=torch.float64)
LENGTH = torch.tensor([[2, 4, 3, 5]])
ANCHORED = [name for name, link in LINKS.items() if link.anchor is not None]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def loss_of(objective: Objective, n: int = 1, logp: Tensor = LOGP, observed: float | None = None) -> LossOutput:
    columns = torch.arange(4)
    sampled, valid = ((columns > 0) & (columns <= n))[None], torch.ones(1, 4, dtype=torch.bool)
    reward = None if observed is None else torch.tensor([observed], dtype=torch.float64)
    return compute_loss(objective, logp, LENGTH, sampled, valid, REF, reward)


def value(objective: Objective, n: int = 1, observed: float | None = None) -> float:
    return float(loss_of(objective, n, observed=observed).loss_B.item())


def with_gradient(objective: Objective, n: int, observed: float | None = None) -> tuple[float, Tensor]:
    logp = LOGP.clone().requires_grad_()
    loss = loss_of(objective, n, logp, observed).loss_B.sum()
    return loss.item(), torch.autograd.grad(loss, logp)[0]


def smoothing(link: str) -> dict[str, Any]:
    return {"link": link, "label_smoothing": 0.2 if LINKS[link].takes_smoothing else 0.0}


def by_hand(link: str, z: float, beta: float = 1.0) -> float:
    """Each link written out, ε = 0.2."""
    return {
        "logistic": softplus(-z),
        "hinge": max(0.0, 1 - z),
        "squared": (z / beta - 1 / (2 * beta)) ** 2,
        "smoothed": 0.8 * softplus(-z) + 0.2 * softplus(z),
        "robust": (0.8 * softplus(-z) - 0.2 * softplus(z)) / 0.6,
        "linear": -z,
    }[link]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("link", LINKS)
def test_pairs_by_hand(link: str, beta: float) -> None:
    """z = β(−0.5 − 0.25) and β(−0.5 + 1.5); softmax: −log(e^{0.75β} + e^{−β})."""
    objective = Objective(beta=beta, **smoothing(link))
    pairs = (by_hand(link, -0.75 * beta, beta) + by_hand(link, beta, beta)) / 2
    assert value(objective, 2) == pytest.approx(pairs, rel=1e-12)
    together = -math.log(math.exp(0.75 * beta) + math.exp(-beta))
    softmax = Objective(beta=beta, comparison="softmax", **smoothing(link))
    assert value(softmax, 2) == pytest.approx(by_hand(link, together, beta), rel=1e-12)


@pytest.mark.parametrize("link", [link for link in LINKS if link != "linear"])
def test_gamma_is_taken_from_the_margin_before_the_link(link: str) -> None:
    """log π: −5 + 3.75 − 0.3 = −1.55."""
    objective = Objective(reward="simpo_no_ln", gamma=0.3, **smoothing(link))
    assert value(objective) == pytest.approx(by_hand(link, -1.55), rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_ipo_is_the_papers_square_in_log_ratios_per_token(beta: float) -> None:
    """h = −0.5/2 − 0.25/4 = −0.3125; (h − 1/(2β))². In sums, the paper's equation to the letter, h = −0.75."""
    assert value(build_objective("ipo", beta=beta)) == pytest.approx((-0.3125 - 1 / (2 * beta)) ** 2, rel=1e-12)
    sums = build_objective("ipo", beta=beta, reward="dpo")
    assert value(sums) == pytest.approx((-0.75 - 1 / (2 * beta)) ** 2, rel=1e-12)


def test_slic_hinge_by_hand() -> None:
    """z = −0.75 → 1.75, z = 1 → 0; β = 0.5: 1.375 and 0.5."""
    assert value(build_objective("slic_hinge"), 2) == pytest.approx(1.75 / 2)
    assert value(build_objective("slic_hinge", beta=0.5), 2) == pytest.approx((1.375 + 0.5) / 2)
    _, grad = with_gradient(build_objective("slic_hinge"), 2)
    assert grad.tolist() == [[-0.5, 0.5, 0.0, 0.0]], "the pair that is far enough apart is left alone"


def test_dpop_by_hand() -> None:
    """r_i = −0.5 is below the reference: with λ = 3 the pair is compared at −0.5 − 1.5 − 0.25 = −2.25."""
    objective = build_objective("dpop", dpop_lambda=3.0)
    out = loss_of(objective)
    assert out.loss_B.item() == pytest.approx(softplus(2.25), rel=1e-12)
    assert out.reward_BC[0].tolist() == [-0.5, 0.25, -1.5, 1.0], "what is logged is the reward itself"
    assert value(build_objective("dpop")) == pytest.approx(25.75, abs=1e-9)  # λ = 50: 0.75 + 25
    # log σ(β(Δ − λ max(0, log π_ref − log π))): β scales the penalty, too
    assert value(build_objective("dpop", dpop_lambda=3.0, beta=0.4)) == pytest.approx(softplus(0.4 * 2.25), rel=1e-12)


def test_dpop_leaves_positives_above_their_reference_alone() -> None:
    """And the negatives are compared as they are: the guard is the positive's."""
    logp = LOGP.clone()
    logp[0, 0] = -4.0  # r_i = 0.5
    for n in (1, 2):
        guarded, plain = (loss_of(build_objective(name), n, logp).loss_B.item() for name in ("dpop", "dpo"))
        assert guarded == plain


SMALL = 1e-12
LIMITS = [
    (("robust_dpo", {"label_smoothing": 0.0}), ("dpo", {})),
    (("cdpo", {"label_smoothing": 0.0}), ("dpo", {})),
    (("dpop", {"dpop_lambda": 0.0}), ("dpo", {})),
    (("robust_dpo", {"label_smoothing": SMALL}), ("dpo", {})),
    (("cpo", {"nll_weight": 0.0}), ("simpo_no_ln", {"gamma": 0.0, "filter": False})),
    (("reward_weighted_sft", {"reward_temperature": 1e12}), ("sft", {})),
    (("ipo", {"link": "logistic", "reward": "dpo"}), ("dpo", {})),
    (("slic_hinge", {"link": "logistic"}), ("dpo", {})),
    (("simper", {"reward": "simpo", "link": "logistic", "gamma": 0.6}), ("simpo", {})),
]


@pytest.mark.parametrize(("general", "special"), LIMITS)
@pytest.mark.parametrize("n", [1, 2])
def test_limits(general: tuple[str, dict[str, Any]], special: tuple[str, dict[str, Any]], n: int) -> None:
    both = (build_objective(name, **options) for name, options in (general, special))
    (a, grad_a), (b, grad_b) = (with_gradient(objective, n, observed=0.7) for objective in both)
    assert a == pytest.approx(b, rel=1e-9)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.49])
def test_the_robust_link_is_right_on_average_over_flipped_labels(epsilon: float) -> None:
    """(1 − ε) ℓ(z) + ε ℓ(−z) = −log σ(z): the reason for it."""
    z = torch.linspace(-6, 6, 25, dtype=torch.float64)
    objective = Objective(link="robust", label_smoothing=epsilon)
    mean = (1 - epsilon) * LINKS["robust"].function(z, objective) + epsilon * LINKS["robust"].function(-z, objective)
    torch.testing.assert_close(mean, torch.nn.functional.softplus(-z))


def test_the_smoothed_link_is_least_where_the_label_is_as_sure_as_it_claims() -> None:
    """At σ(z) = 1 − ε, z = log 4 for ε = 0.2."""
    objective = Objective(link="smoothed", label_smoothing=0.2)
    z = torch.tensor(math.log(4), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(LINKS["smoothed"].function(z, objective), z)
    assert slope.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_observed_rewards_weigh_examples(scale: float) -> None:
    """exp(r/λ): twice the temperature, the root of the weight; any loss can be weighted so."""
    weighted = build_objective("reward_weighted_sft", reward_temperature=scale)
    assert value(weighted, observed=3.0) == pytest.approx(math.exp(3.0 / scale) * 5.0, rel=1e-12)
    assert value(weighted, observed=0.0) == pytest.approx(5.0)
    dpo = build_objective("dpo", reward_temperature=scale)
    assert value(dpo, observed=-1.0) == pytest.approx(math.exp(-1.0 / scale) * softplus(0.75), rel=1e-12)
    with pytest.raises(ConfigError, match="observed rewards: none were given"):
        loss_of(weighted)


@pytest.mark.parametrize("comparison", ["pairwise", "softmax"])
@pytest.mark.parametrize("link", ANCHORED)
def test_an_anchor_goes_with_its_link(link: str, comparison: str) -> None:
    """r_0 = 0.3: z_0 = −0.8, by the link itself, or by −log σ where the link is for labels that may be wrong."""
    options: dict[str, Any] = {"comparison": comparison, **smoothing(link)}
    anchored = Objective(anchor="constant", anchor_constant=0.3, **options)
    term = max(0.0, 1.8) if link == "hinge" else softplus(0.8)
    assert value(anchored, 2) - value(Objective(**options), 2) == pytest.approx(term, rel=1e-12)
    # an anchor that is passed by far costs nothing and pulls nothing
    far = Objective(anchor="constant", anchor_constant=-1e6, **options)
    (a, grad_a), (b, grad_b) = with_gradient(far, 2), with_gradient(Objective(**options), 2)
    assert a == b and torch.equal(grad_a, grad_b)
    assert Objective(**options).is_base_of(anchored)


def test_the_hinge_with_the_reference_anchor_is_a_likelihood_term() -> None:
    """r_i − r_0 = β log π_θ(y_i) never reaches 1: max(0, 1 − z_0) = 1 − β log π_θ(y_i), NLL with weight β."""
    anchored, nll = build_objective("slic_hinge", anchor="reference"), build_objective("slic_hinge", nll_weight=1.0)
    (a, grad_a), (b, grad_b) = with_gradient(anchored, 2), with_gradient(nll, 2)
    assert a == pytest.approx(b + 1.0)
    torch.testing.assert_close(grad_a, grad_b)


def test_the_guarded_reward_is_what_meets_the_anchor() -> None:
    """r_i = −0.5 − 3 · 0.5 = −2 against 0.3; the slate anchor is over rewards as they are: 1."""
    base = value(build_objective("dpop", dpop_lambda=3.0))
    constant = build_objective("dpop", dpop_lambda=3.0, anchor="constant", anchor_constant=0.3)
    assert value(constant) - base == pytest.approx(softplus(2.3), rel=1e-12)
    slate = build_objective("dpop", dpop_lambda=3.0, anchor="slate")
    assert value(slate) - base == pytest.approx(softplus(3.0), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link": "log"}, "unknown link 'log': choose one of logistic, hinge, squared, smoothed, robust, linear"),
        ({"link": "robust", "label_smoothing": 0.5}, "label_smoothing must be below 0.5, got 0.5"),
        ({"link": "robust", "label_smoothing": -0.1}, "label_smoothing must not be negative, got -0.1"),
        ({"link": "robust", "label_smoothing": math.nan}, "label_smoothing must be a finite number, got nan"),
        ({"label_smoothing": 0.1}, "label_smoothing 0.1 has no effect on link 'logistic': use link 'smoothed' or 'rob"),
        ({"dpop_lambda": -1.0}, "dpop_lambda must not be negative, got -1.0"),
        ({"dpop_lambda": 1.0, "reward": "simpo"}, "dpop_lambda holds the positive at its reference: it needs reward"),
        ({"dpop_lambda": 1.0, "comparison": "none", "nll_weight": 1.0}, "dpop_lambda holds the positive at its ref"),
        ({"reward_temperature": 0.0}, "reward_temperature must be positive, got 0.0"),
        ({"reward_temperature": math.inf}, "reward_temperature must be a finite number, got inf"),
        (
            {"link": "squared", "anchor": "reference"},
            "link 'squared' takes no anchor: use 'logistic' or 'hinge' or",
        ),
        ({"link": "linear", "anchor": "slate"}, "link 'linear' takes no anchor"),
        ({"link": "linear", "reward": "simpo", "gamma": 0.5}, "gamma 0.5 shifts a linear loss and changes nothing"),
        (
            {"link": "hinge", "comparison": "weighted_positive"},
            "'weighted_positive' takes the logistic loss's own weig",
        ),
        ({"reward": "dpo_ln", "anchor": "reference"}, "the reference anchor needs reward 'dpo', not 'dpo_ln'"),
        ({"reward": "dpo_ln", "gamma": 0.5}, "gamma belongs to the SimPO family"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Objective(**options)
    assert "\n" not in str(caught.value)


def test_presets_say_what_they_are_and_whose() -> None:
    assert all(preset.formula and preset.source for preset in LOSSES.values())
    assert len({preset.label for preset in LOSSES.values()}) == len(LOSSES)


def test_the_page_of_losses_names_every_part_and_places_every_preset() -> None:
    """docs/losses.md: each part in its table, each preset either equal to TRL's or with a reason why not."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    parts, parity = page.split("## Equal to TRL")
    for table in (REWARDS, LINKS, COMPARISONS, ANCHORS):
        assert all(f"| `{name}` |" in parts for name in table)
    assert all(f"`{f.name}`" in page for f in fields(Objective) if f.name not in ("negatives", *Objective().parts()))
    assert all(f"`{name}`" in parity for name in LOSSES)
