"""What the paper claims in numbers beside what they are: areas, Example 1, errata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sirius_rec.theory.preference import BRADLEY_TERRY, PreferenceModel
from sirius_rec.theory.regions import COORDINATES, area, guaranteed_anchor, monte_carlo_area

EPSILONS = (0.1, 0.2, 0.5, 0.99)
# Section 3.2 prints one figure per ε, "of the (p_ij, p_ik) space".
PRINTED_AREAS = {0.5: 0.303, 0.99: 0.638}
EXAMPLE_1 = (-6.0, -6.5, -4.0)
# The r_k with which Example 1's printed figures come out.
EXAMPLE_1_AS_MEANT = (-6.0, -6.5, -3.0)


def area_table(
    epsilons: Sequence[float] = EPSILONS, model: PreferenceModel = BRADLEY_TERRY, *, points: int, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per ε and coordinate system: area, Monte Carlo with its standard error, the paper's figure."""
    rows: list[dict[str, Any]] = []
    for epsilon in epsilons:
        for coordinates in COORDINATES:
            estimate = monte_carlo_area(epsilon, coordinates, model, points=points, seed=seed)
            rows.append(
                {
                    "epsilon": epsilon,
                    "coordinates": coordinates,
                    "area": area(epsilon, coordinates, model),
                    "monte_carlo": estimate.value,
                    "stderr": estimate.stderr,
                    "printed": PRINTED_AREAS.get(epsilon) if model is BRADLEY_TERRY else None,
                }
            )
    return rows


def example_1(model: PreferenceModel = BRADLEY_TERRY) -> list[dict[str, Any]]:
    """Example 1 with its printed rewards, and with the r_k = −3 that its printed figures belong to."""
    rows = []
    for rewards in (EXAMPLE_1, EXAMPLE_1_AS_MEANT):
        r_i, r_j, r_k = rewards
        rows.append(
            {
                "rewards": list(rewards),
                "p_ij": float(model.p(np.array(r_i - r_j))),
                "p_ik": float(model.p(np.array(r_i - r_k))),
                "sensitivity": float(np.exp(model.log_sensitivity(r_i, r_j, r_k))),
            }
        )
    return rows


def errata() -> list[dict[str, str]]:
    """Each claim of the paper that does not hold as printed: where, what it says, what holds, how to check it."""
    given, meant = example_1()
    ik, kj = area(0.5, "p_ij,p_ik"), area(0.5, "p_ij,p_kj")
    anchor = float(guaranteed_anchor(0.0, 4.0, 0.5))
    return [
        {
            "where": "Section 3.2, after Proposition 3",
            "says": "at ε = 0.5 the region occupies 30.3 % of the (p_ij, p_ik) space",
            "holds": f"{kj:.1%} is the area in (p_ij, p_kj), which the proof integrates over; "
            f"in (p_ij, p_ik) it is {ik:.1%}",
            "check": "uniform random points in either square (column Monte Carlo)",
        },
        {
            "where": "Example 1",
            "says": "(−6, −6.5, −4) gives p_ik ≈ 0.04 and a derivative of 0.19, inside the 0.2-region",
            "holds": f"p_ik = {given['p_ik']:.3f} and {given['sensitivity']:.3f}, outside; with r_k = −3 it is "
            f"{meant['p_ik']:.3f} and {meant['sensitivity']:.3f}, inside",
            "check": "σ(−2) = 1/(1 + e²); σ′(−2)/σ′(0.5)",
        },
        {
            "where": "Example 1",
            "says": "enlarging r_i − r_j from 0.5 to 4 leaves p_ik almost unchanged",
            "holds": "if r_j moves, p_ik does not change at all (it does not depend on r_j); if r_i moves by 3.5, "
            f"p_ik rises from {given['p_ik']:.3f} to {float(BRADLEY_TERRY.p(np.array(1.5))):.3f}. "
            "The derivative says nothing about steps of that size",
            "check": "σ(r_i − r_k) before and after",
        },
        {
            "where": "Theorem 2",
            "says": "one anchor keeps every misordered p_ik out of any ε-insensitive region",
            "holds": "for a given ε, and so for all ε < 1 at once with r_0 ≥ N; for ε ≥ 1 the anchor depends on ε, and "
            "no fixed one serves all",
            "check": f"guaranteed_anchor: r_i = 0, N = 4, ε = 0.5 needs r_0 > {anchor:.2f}; ε → ∞ needs r_0 → ∞",
        },
        {
            "where": "Section 4.3, DPO",
            "says": "−β log π_ref(y_i|x) bounds the rewards of unsampled negatives (approximately)",
            "holds": "for negatives that the reference ranks above the positive, as the derivation assumes; for the "
            "others the bound is −β log π_ref(y_k|x), which is larger: they may lie above the anchor",
            "check": "r_k = β log π_θ(y_k|x) − β log π_ref(y_k|x) with π_ref(y_k|x) < π_ref(y_i|x)",
        },
        {
            "where": "D.1",
            "says": "with t negatives the chance that p_ik is insensitive to all of them is f(ε)^t",
            "holds": "the chance is the mean over pairs (i, k) of f_ik(ε)^t, at least f(ε)^t: the negatives of one "
            "positive share r_i − r_k, so they are not independent",
            "check": "Jensen's inequality; simulate triples with a common (i, k)",
        },
        {
            "where": "B.2, step 2",
            "says": "p′(x) → 0 follows from strict monotonicity",
            "holds": "a bounded increasing p may have ever narrower bumps of slope; the theorem needs p′ to have a "
            "limit (it falls with |x| in Bradley–Terry and Thurstone)",
            "check": "δ_n in the proof may shrink to 0, so the sum of the ε_0 δ_n may stay bounded",
        },
    ]
