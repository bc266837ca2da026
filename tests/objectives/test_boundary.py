"""Boundary negatives and scaled pairs (DynamicPO): by hand, by brute force over all clusterings; their gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.boundary import boundary_negatives, pair_scale
from sirius_rec.objectives.losses import Objective, compute_loss
from sirius_rec.objectives.presets import build_objective


def kept(*columns: int, width: int = 6) -> torch.Tensor:
    mask = torch.zeros(1, width, dtype=torch.bool)
    mask[0, list(columns)] = True
    return mask


def test_those_at_or_above_the_positive() -> None:
    logp = torch.tensor([[-3.0, -4.0, -3.0, -2.0, -9.0, -1.0]])
    assert boundary_negatives(logp, kept(1, 2, 3, 4)).nonzero()[:, 1].tolist() == [2, 3]  # column 5 was not drawn


def test_the_highest_of_three_clusters_where_none_is() -> None:
    logp = torch.tensor([[0.0, -9.0, -1.0, -5.0, -1.2, -9.3]])
    assert boundary_negatives(logp, kept(1, 2, 3, 4, 5)).nonzero()[:, 1].tolist() == [2, 4]
    assert boundary_negatives(logp, kept(1, 3)).nonzero()[:, 1].tolist() == [3]
    assert boundary_negatives(logp, kept(5)).nonzero()[:, 1].tolist() == [5]
    assert not boundary_negatives(logp, kept()).any()


def highest_of_the_best_clustering(values: list[float]) -> set[int]:
    """Indices of the highest part over all ways to cut the sorted values in three (two, one) parts."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    parts = min(3, len(values))
    best: tuple[float, int] = (math.inf, 0)
    for cuts in itertools.combinations(range(1, len(values)), parts - 1):
        edges = [0, *cuts, len(values)]
        cost = sum(float(np.var([values[i] for i in order[a:b]])) * (b - a) for a, b in itertools.pairwise(edges))
        if cost < best[0] - 1e-9:
            best = (cost, edges[1])
    return set(order[: best[1]])


@pytest.mark.parametrize("seed", range(30))
def test_clusters_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, width = 8, 9
    logp = torch.tensor(-rng.gamma(1.0, 8.0, size=(rows, width)) - 0.01 - 300 * (seed % 2))
    logp[:, 0] = 0.0
    mask = torch.tensor(rng.random((rows, width)) < 0.6)
    mask[:, 0] = False
    found = boundary_negatives(logp, mask)
    for row in range(rows):
        columns = mask[row].nonzero()[:, 0].tolist()
        expected = highest_of_the_best_clustering([logp[row, c].item() for c in columns]) if columns else set()
        assert found[row].nonzero()[:, 0].tolist() == sorted(columns[i] for i in expected)


def test_scales_by_hand() -> None:
    """Positive −2; boundary −1 (a = −1, b = −1 + 6 = 5) and −2 (a = 0, b = 4); others −5 and −7, mean −6."""
    logp = torch.tensor([[-2.0, -1.0, -2.0, -5.0, -7.0, -0.1]])
    boundary = boundary_negatives(logp, kept(1, 2, 3, 4))
    scale = pair_scale(logp, kept(1, 2, 3, 4), boundary, spread=0.5, margin=2.0)[0].tolist()
    assert scale[1] == pytest.approx(1 + 0.5 * math.tanh((-1 - 5 - 2) / 6), rel=1e-6)
    assert scale[2] == pytest.approx(1 + 0.5 * math.tanh((0 - 4 - 2) / 4), rel=1e-6)
    assert scale[0] == scale[3] == scale[4] == scale[5] == 1
    # all are boundary ones: their own mean stands for the others'
    alone = pair_scale(logp, kept(1), kept(1), spread=0.5, margin=0.0)[0, 1].item()
    assert alone == pytest.approx(1 + 0.5 * math.tanh((-1 - 0) / 1), rel=1e-6)


@pytest.mark.parametrize("comparison", ["pairwise", "softmax", "mean"])
def test_scales_multiply_margins_and_are_constants(comparison: str) -> None:
    objective = Objective(comparison=comparison, negatives=4, boundary=True, beta_spread=0.5, beta_margin=1.0, beta=0.7)
    logp = torch.tensor([[-2.0, -1.0, -2.0, -5.0, -7.0, -0.1]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-2.5, -3.0, -1.0, -4.0, -7.5, -0.2]], dtype=torch.float64)
    mask, valid, length = kept(1, 2, 3, 4), torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 6)
    out = compute_loss(objective, logp, length, mask, valid, ref)
    assert out.kept_BC.nonzero()[:, 1].tolist() == [1, 2]
    s = pair_scale(logp.detach(), mask, out.kept_BC, spread=0.5, margin=1.0)[0]
    own = logp.detach().clone().requires_grad_()
    reward = 0.7 * (own - ref)[0]
    z = [s[j] * (reward[0] - reward[j]) for j in (1, 2)]
    expected = {
        "pairwise": sum(torch.nn.functional.softplus(-one) for one in z) / 2,
        "softmax": torch.log1p(sum(torch.exp(-one) for one in z)),
        "mean": torch.nn.functional.softplus(-sum(z) / 2),
    }[comparison]
    torch.testing.assert_close(out.loss_B[0], expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, x)[0] for value, x in ((out.loss_B[0], logp), (expected, own)))
    )


def test_without_spread_it_is_the_same_loss_on_fewer_negatives() -> None:
    logp = torch.tensor([[-2.0, -1.0, -2.0, -5.0, -7.0, -0.1]], dtype=torch.float64)
    ref, valid, length = torch.zeros_like(logp), torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 6)
    some = compute_loss(Objective(comparison="softmax", boundary=True), logp, length, kept(1, 2, 3, 4), valid, ref)
    fewer = compute_loss(Objective(comparison="softmax"), logp, length, kept(1, 2), valid, ref)
    assert some.loss_B.item() == fewer.loss_B.item()


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("sft", {"boundary": True}, "boundary chooses among sampled negatives"),
        ("simpo_no_ln", {"boundary": True}, "boundary and filter both choose"),
        ("dpo", {"beta_spread": 0.5}, "it needs boundary: true"),
        ("dpo", {"boundary": True, "beta_margin": 3.0}, "beta_margin 3.0 has no effect without beta_spread"),
        ("dpo", {"boundary": True, "beta_spread": 1.0}, "from 0 to below 1"),
    ],
)
def test_what_does_not_go_together(loss: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective(loss, **options)
