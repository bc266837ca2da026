"""How often a verdict on two equal methods is wrong, and how often a real difference gets one, over few seeds.

    python benchmarks/verdict_coverage.py OUT.json [--trials 4000]

Hits of an arm and a baseline on the same users, from a latent normal score with parts of the user, of method and user,
of method, seed and user, and of method and seed. Spread: the standard deviation over seeds of a seed's difference of
HR@1, as a multiple of its standard error over users. A verdict is what `decision` says of `paired_test` and Holm's
adjustment. `wrong`: one test, no true difference. `wrong_of_three`: any of three arms against one baseline, after Holm.
`power`: a true difference of 3.6 standard errors, which a test that knew them would find in 95 %.
`satterthwaite`: the same two parts of the variance with Satterthwaite's degrees of freedom instead.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sirius_rec.evaluation.intervals import PairedTest, holm, paired_test
from sirius_rec.evaluation.results import decision
from sirius_rec.recipes.environment import processor, versions

USERS, FLIPS, ARMS = 300, 999, 3
SEEDS, SPREADS = (2, 3, 5, 10), (0, 1, 2, 4)
# Variances of the latent score: of a user, of a method on a user, of one seed of it on a user.
USER, METHOD, SEED = 1.0, 0.5, 0.5
_SD = np.sqrt(USER + METHOD + SEED)
_SLOPE = stats.norm.pdf(0) / _SD  # of HR@1 at 1/2 against a shift of the latent score
_EFFECT = 3.6


def hits(rng: np.random.Generator, seeds: int, shift: float, spread: float) -> np.ndarray:
    """Hits [1 + ARMS, seeds, users] of the baseline and the arms; shift: of the arms' latent scores."""
    user = rng.normal(0, np.sqrt(USER), USERS)
    method = rng.normal(0, np.sqrt(METHOD), (1 + ARMS, 1, USERS))
    seed = rng.normal(0, np.sqrt(SEED), (1 + ARMS, seeds, USERS))
    level = rng.normal(0, spread, (1 + ARMS, seeds, 1))
    level[1:] += shift
    return np.asarray(user + method + seed + level > 0, dtype=np.float64)


def errors(rng: np.random.Generator) -> tuple[float, float]:
    """Variance over users of one seed's difference of hits, and of the part that is the same in every seed."""
    differences = np.concatenate([h[1:2] - h[:1] for h in (hits(rng, 2, 0.0, 0.0) for _ in range(2_000))], axis=2)[0]
    return float(differences.var(axis=1).mean()), float(np.cov(differences)[0, 1])


def judged(tests: list[PairedTest]) -> list[str]:
    adjusted = [holm([getattr(test, name) for test in tests]) for name in ("p", "p_these_seeds")]
    entries = [
        {**asdict(test), "p_holm": p, "p_holm_these_seeds": these, "one_seed": False}
        for test, p, these in zip(tests, *adjusted, strict=True)
    ]
    return [decision(entry) for entry in entries]


def satterthwaite(difference_SU: np.ndarray) -> bool:
    """Whether the interval with Satterthwaite's degrees of freedom is off zero."""
    seeds = len(difference_SU)
    by_user = difference_SU.mean(axis=0).var(ddof=1) / USERS
    by_seed = difference_SU.mean(axis=1).var(ddof=1) / seeds
    df = (by_user + by_seed) ** 2 / (by_user**2 / (USERS - 1) + by_seed**2 / (seeds - 1))
    return bool(abs(difference_SU.mean()) > stats.t.ppf(0.975, df) * np.sqrt(by_user + by_seed))


def cell(seeds: int, spread: int, trials: int, variance: tuple[float, float]) -> dict[str, Any]:
    one, shared = (part / USERS for part in variance)
    over_seeds = spread * np.sqrt(one)  # sd of a seed's difference
    noise = over_seeds / (np.sqrt(2) * _SLOPE)
    error = np.sqrt(shared + (one - shared) / seeds + over_seeds**2 / seeds)
    counts = dict.fromkeys(("wrong", "wrong_of_three", "satterthwaite_wrong", "power", "satterthwaite_power"), 0)
    rng = np.random.default_rng([0, seeds, spread])
    for _ in range(trials):
        drawn = hits(rng, seeds, 0.0, noise)
        tests = [paired_test(arm, drawn[0], flips=FLIPS) for arm in drawn[1:]]
        counts["wrong"] += judged(tests[:1])[0] in ("better", "worse")
        counts["wrong_of_three"] += any(word in ("better", "worse") for word in judged(tests))
        counts["satterthwaite_wrong"] += satterthwaite(drawn[1] - drawn[0])
        drawn = hits(rng, seeds, _EFFECT * error / _SLOPE, noise)
        counts["power"] += judged([paired_test(drawn[1], drawn[0], flips=FLIPS)])[0] == "better"
        counts["satterthwaite_power"] += satterthwaite(drawn[1] - drawn[0])
    return {"seeds": seeds, "spread": spread, **{name: count / trials for name, count in counts.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=4_000)
    given = parser.parse_args()
    variance = errors(np.random.default_rng(1))
    cells = []
    for seeds in SEEDS:
        for spread in SPREADS:
            cells.append(cell(seeds, spread, given.trials, variance))
            print("  ".join(f"{name} {value:g}" for name, value in cells[-1].items()), flush=True)
    content = {
        "users": USERS, "trials": given.trials, "flips": FLIPS, "effect_in_standard_errors": _EFFECT,
        "shared_by_seeds": variance[1] / variance[0], "cells": cells, "processor": processor(), "versions": versions(),
    }  # fmt: skip
    given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
