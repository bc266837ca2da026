"""Measures over whole held-out slates: rank, distance from the reference, entropy, popularity of the choice.

Every row is a slate's log-probs with the target first. Distributions are those over the slate: log π(y|x) of its
candidates, renormalised to sum to 1 (all other texts are left out), so KL and entropy are exact over the slate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import DataError
from sirius_rec.evaluation.metrics import per_example

Floats = npt.NDArray[np.float64]
Rows = Sequence[npt.NDArray[Any]]


def padded(logp_R: Rows) -> Floats:
    """float64[R, C]: rows padded by −inf. DataError for a row that is empty or holds NaN."""
    width = max(map(len, logp_R), default=0)
    out = np.full((len(logp_R), width), -np.inf)
    for r, row in enumerate(logp_R):
        if len(row) == 0 or np.isnan(row).any():
            raise DataError(f"held-out row {r}: {'empty' if len(row) == 0 else 'NaN among its log-probs'}")
        out[r, : len(row)] = row
    return out


def log_shares(logp_RC: Floats) -> Floats:
    """log of the renormalised distribution over each slate; padding stays −inf."""
    return logp_RC - np.logaddexp.reduce(logp_RC, axis=1, keepdims=True)


def slate_kl(policy_R: Rows, reference_R: Rows) -> Floats:
    """[R]: KL(π_θ‖π_ref) over each slate, nats, ≥ 0."""
    p, q = log_shares(padded(policy_R)), log_shares(padded(reference_R))
    if p.shape != q.shape or (np.isinf(p) != np.isinf(q)).any():
        raise DataError("policy and reference were scored on different slates")
    difference = np.where(np.isinf(p), 0.0, p - np.where(np.isinf(q), 0.0, q))
    return np.asarray(np.maximum((np.exp(p) * difference).sum(axis=1), 0.0))


def slate_entropy(logp_R: Rows) -> Floats:
    """[R]: entropy over each slate, nats."""
    shares = log_shares(padded(logp_R))
    return np.asarray(-(np.exp(shares) * np.where(np.isinf(shares), 0.0, shares)).sum(axis=1))


def hits(logp_R: Rows) -> Floats:
    """[R]: HR@1 per row, ties in expectation."""
    return per_example(list(logp_R), np.zeros(len(logp_R), dtype=np.int64))["hr@1"].to_numpy()


def target_rank(logp_R: Rows) -> Floats:
    """[R]: the target's rank, 1 the best; ties count half."""
    x = padded(logp_R)
    above = (x[:, 1:] > x[:, :1]).sum(axis=1)
    return np.asarray(1.0 + above + 0.5 * (x[:, 1:] == x[:, :1]).sum(axis=1))


def top_choice(logp_R: Rows) -> npt.NDArray[np.int64]:
    """[R]: column of the candidate ranked first (the earliest of ties)."""
    return np.asarray(padded(logp_R).argmax(axis=1))


def slate_measures(logp_R: Rows, reference_R: Rows, popularity_R: Rows | None = None) -> dict[str, float]:
    """Means over rows: rank, kl (nats), distance √kl (√nats), entropy (nats), logp_drift of the target (nats), and
    popularity of the top choice (what popularity_R says of each candidate, same order) where it is given.
    """
    kl = float(slate_kl(logp_R, reference_R).mean())
    drift = [float(row[0]) - float(ref[0]) for row, ref in zip(logp_R, reference_R, strict=True)]
    out = {
        "rank": float(target_rank(logp_R).mean()),
        "kl": kl,
        "distance": float(np.sqrt(kl)),
        "entropy": float(slate_entropy(logp_R).mean()),
        "logp_drift": float(np.mean(drift)),
    }
    if popularity_R is not None:
        tops = top_choice(logp_R)
        out["top_popularity"] = float(np.mean([row[c] for row, c in zip(popularity_R, tops, strict=True)]))
    return out
