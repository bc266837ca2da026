"""The evidence of a step against a triple loop over the NumPy oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.objectives.evidence import evidence, log_slope
from sirius_rec.objectives.losses import reward_of, rounding_of
from sirius_rec.theory.preference import BRADLEY_TERRY


def naive(
    reward: np.ndarray, logp: np.ndarray, sampled: np.ndarray, valid: np.ndarray, epsilons: tuple[float, ...]
) -> dict[str, tuple[float, float]]:
    """Plain loops over examples i, sampled j, unsampled k."""
    out: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        total = out.setdefault(name, [0.0, 0.0])
        total[0] += value
        total[1] += 1

    for b in range(len(reward)):
        negatives = [c for c in range(1, reward.shape[1]) if valid[b, c]]
        js = [c for c in negatives if sampled[b, c]]
        ks = [c for c in negatives if not sampled[b, c]]
        add("reward_positive", reward[b, 0])
        add("logp_positive", logp[b, 0])
        for j in js:
            add("reward_sampled", reward[b, j])
            add("reward_margin", reward[b, 0] - reward[b, j])
        for k in ks:
            add("reward_unsampled", reward[b, k])
            add("reward_margin_unsampled", reward[b, 0] - reward[b, k])
        for k in negatives:
            add("misordered", reward[b, k] > reward[b, 0])
            add("misranked", logp[b, k] > logp[b, 0])
        for epsilon in epsilons:
            for j in js:
                for k in ks:
                    inside = BRADLEY_TERRY.is_insensitive(reward[b, 0], reward[b, j], reward[b, k], epsilon)
                    add(f"insensitive@{epsilon:g}", float(inside))
                    if reward[b, k] > reward[b, 0]:
                        add(f"insensitive_misordered@{epsilon:g}", float(inside))
    return {name: (total, n) for name, (total, n) in out.items()}


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), n_sampled=st.integers(1, 4), scale=st.sampled_from([0.5, 3.0, 20.0]))
def test_against_triple_loops(seed: int, n_sampled: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (4, 7)
    reward = (scale * rng.standard_normal(shape)).astype(np.float32)
    logp = -np.abs(scale * rng.standard_normal(shape)).astype(np.float32)
    valid = np.arange(7) < rng.integers(2, 8, size=(4, 1))  # ragged rows
    sampled = (np.arange(7) >= 1) & (np.arange(7) <= n_sampled) & valid
    ours = evidence(*(torch.from_numpy(a) for a in (reward, logp, sampled, valid)), epsilons=(0.1, 0.5))
    expected = naive(reward.astype(float), logp.astype(float), sampled, valid, (0.1, 0.5))
    for name, (total, n) in ours.items():
        want = expected.get(name, (0.0, 0.0))
        assert float(n) == want[1], name
        assert float(total) == pytest.approx(want[0], rel=1e-4, abs=1e-3), name
    assert set(expected) <= set(ours)


def test_by_hand() -> None:
    """r = (−6 | −6.5 sampled | −4, −3 unsampled): derivatives 0.447 and 0.192 (METHOD 6)."""
    reward = torch.tensor([[-6.0, -6.5, -4.0, -3.0]])
    logp = torch.tensor([[-6.0, -6.5, -7.0, -3.0]])
    sampled = torch.tensor([[False, True, False, False]])
    out = evidence(reward, logp, sampled, torch.ones(1, 4, dtype=torch.bool), (0.1, 0.2, 0.5))
    values = {name: (float(total), float(n)) for name, (total, n) in out.items()}
    assert values["insensitive@0.1"] == (0, 2)
    assert values["insensitive@0.2"] == (1, 2)
    assert values["insensitive@0.5"] == (2, 2)
    assert values["insensitive_misordered@0.2"] == (1, 2)
    assert values["misordered"] == (2, 3)
    assert values["misranked"] == (1, 3)
    assert values["reward_margin"] == (0.5, 1)
    assert values["reward_margin_unsampled"] == (-5, 2)
    assert values["reward_positive"] == (-6, 1)


def test_without_unsampled_candidates_the_counts_are_zero() -> None:
    reward = torch.zeros(2, 3)
    sampled = torch.tensor([[False, True, True]]).expand(2, 3)
    out = evidence(reward, reward, sampled, torch.ones(2, 3, dtype=torch.bool), (0.1,))
    for name in ("insensitive@0.1", "reward_unsampled", "reward_margin_unsampled"):
        assert tuple(map(float, out[name])) == (0, 0)


def test_ties_are_neither_misordered_nor_misranked() -> None:
    flat = torch.zeros(1, 3)
    out = evidence(flat, flat, torch.tensor([[False, True, False]]), torch.ones(1, 3, dtype=torch.bool), (0.1,))
    assert float(out["misordered"][0]) == float(out["misranked"][0]) == 0


def test_a_positive_marked_as_sampled_or_absent_junk_does_not_count() -> None:
    reward = torch.tensor([[1.0, 0.0, float("nan")]])
    valid = torch.tensor([[True, True, False]])
    out = evidence(reward, reward, torch.ones(1, 3, dtype=torch.bool), valid, (0.5,))
    assert tuple(map(float, out["reward_margin"])) == (1, 1)
    assert tuple(map(float, out["misordered"])) == (0, 1)


def test_no_gradient_is_recorded() -> None:
    reward = torch.zeros(1, 3, requires_grad=True)
    out = evidence(reward, reward, torch.tensor([[False, True, False]]), torch.ones(1, 3, dtype=torch.bool), (0.5,))
    assert not any(total.requires_grad or n.requires_grad for total, n in out.values())


def test_log_slope_equals_the_oracle_far_out() -> None:
    x = torch.tensor([-1e4, -700.0, -1.0, 0.0, 2.0, 700.0, 1e4])
    np.testing.assert_allclose(log_slope(x).numpy(), BRADLEY_TERRY.log_slope(x.numpy()), rtol=1e-6)


def test_evidence_is_outside_the_graph() -> None:
    """It is kept for the logs of a whole step: with gradients it would keep every micro-batch's activations."""
    logp = torch.randn(2, 4, requires_grad=True)
    sampled = torch.tensor([[False, True, False, False]] * 2)
    sums = evidence(logp * 2, logp, sampled, torch.ones(2, 4, dtype=torch.bool), (0.1,))
    assert not any(total.requires_grad for total, _ in sums.values())


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_rounding_of_log_probs_is_no_misordered_pair(beta: float) -> None:
    """log π_i = −30 and −0.5: a pair is out of order beyond β · 3e-4, and of short texts beyond β · 1e-5."""
    logp = torch.tensor([[-30.0, -20.0, -20.0, -20.0], [-0.5, -0.5, -0.5, -0.5]])
    reward = beta * torch.tensor([[0.0, 0.0, 2e-4, 4e-4], [0.0, 0.0, 8e-6, 1.2e-5]])
    sampled = torch.tensor([[False, True, False, False]] * 2)
    out = evidence(reward, logp, sampled, torch.ones(2, 4, dtype=torch.bool), (0.1,), beta)
    assert tuple(map(float, out["misordered"])) == (2, 6)
    assert float(out["insensitive_misordered@0.1"][1]) == 2


def test_only_rewards_that_begin_at_zero_are_given_room_for_rounding() -> None:
    """exp(log π / |y|) of long texts lies far below the rounding of their log-probs, and is no rounding."""
    assert rounding_of("dpo", 0.5) == rounding_of("dpo_ln", 0.5) == 0.5
    assert rounding_of("simpo", 0.5) == rounding_of("inverse_perplexity", 0.5) == 0.0
    logp, length = torch.tensor([[-60.0, -50.0, -48.0]]), torch.full((1, 3), 6)
    reward = reward_of("inverse_perplexity", logp, None, length, 1.0)
    drawn, every = torch.tensor([[False, True, False]]), torch.ones(1, 3, dtype=torch.bool)
    out = evidence(reward, logp, drawn, every, (0.1,), rounding_of("inverse_perplexity", 1.0))
    assert tuple(map(float, out["misordered"])) == tuple(map(float, out["misranked"])) == (2, 2)
