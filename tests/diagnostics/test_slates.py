"""Slate measures against SciPy and by hand, on slates of different sizes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sirius_rec.diagnostics.slates import hits, slate_entropy, slate_kl, slate_measures, target_rank, top_choice
from sirius_rec.errors import DataError

RNG = np.random.default_rng(0)
POLICY = [-5 * RNG.random(n) for n in (3, 5, 2)]
REFERENCE = [-5 * RNG.random(n) for n in (3, 5, 2)]


def shares(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def test_kl_and_entropy() -> None:
    kl = [stats.entropy(shares(p), shares(q)) for p, q in zip(POLICY, REFERENCE, strict=True)]
    np.testing.assert_allclose(slate_kl(POLICY, REFERENCE), kl)
    np.testing.assert_allclose(slate_entropy(POLICY), [stats.entropy(shares(p)) for p in POLICY])


def test_kl_ignores_a_constant_and_is_zero_at_home() -> None:
    shifted = [row - 3.0 for row in POLICY]
    np.testing.assert_allclose(slate_kl(shifted, POLICY), 0.0, atol=1e-12)
    np.testing.assert_allclose(slate_kl(shifted, REFERENCE), slate_kl(POLICY, REFERENCE))


def test_a_candidate_that_the_policy_rules_out() -> None:
    kl = slate_kl([np.array([-1.0, -1e4])], [np.array([-1.0, -1.0])])
    assert kl.tolist() == pytest.approx([np.log(2)])


def test_ranks_and_choices() -> None:
    rows = [np.array([-1.0, -2.0, -3.0]), np.array([-3.0, -1.0, -2.0]), np.array([-1.0, -1.0])]
    assert target_rank(rows).tolist() == [1.0, 3.0, 1.5]
    assert hits(rows).tolist() == [1.0, 0.0, 0.5]
    assert top_choice(rows).tolist() == [0, 1, 0]


def test_measures_together() -> None:
    popularity = [np.arange(len(row), dtype=float) for row in POLICY]
    found = slate_measures(POLICY, REFERENCE, popularity)
    assert found["distance"] == pytest.approx(np.sqrt(slate_kl(POLICY, REFERENCE).mean()))
    drift = np.mean([p[0] - q[0] for p, q in zip(POLICY, REFERENCE, strict=True)])
    assert found["logp_drift"] == pytest.approx(drift)
    assert found["top_popularity"] == pytest.approx(top_choice(POLICY).mean())
    assert "top_popularity" not in slate_measures(POLICY, REFERENCE)


def test_bad_rows() -> None:
    with pytest.raises(DataError, match="row 1: NaN"):
        slate_entropy([np.array([-1.0]), np.array([np.nan, -1.0])])
    with pytest.raises(DataError, match="row 0: empty"):
        slate_entropy([np.array([])])
    with pytest.raises(DataError, match="different slates"):
        slate_kl(POLICY, [*REFERENCE[:2], np.zeros(3)])
