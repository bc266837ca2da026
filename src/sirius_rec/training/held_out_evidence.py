"""Loss and evidence over evaluation rows whose log-probs are known, with the sampled negatives of a fixed draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sirius_rec.evaluation.metrics import METRICS, per_example
from sirius_rec.objectives.evidence import evidence
from sirius_rec.objectives.losses import Objective, compute_loss, rounding_of
from sirius_rec.training.averages import Averages
from sirius_rec.training.records import check_enough, draw_of

_AT_ONCE = 512  # rows


def rank_metrics(logps: Sequence[np.ndarray]) -> dict[str, float]:
    """Means of HR@K, NDCG@K and MRR of completion 0 by log π."""
    return dict(per_example(list(logps), np.zeros(len(logps), dtype=np.int64)).select(METRICS).mean().to_dicts()[0])


@torch.no_grad()
def held_out_evidence(
    objective: Objective,
    rows: Sequence[Any],
    logps: Sequence[np.ndarray],
    *,
    ref_logps: Sequence[np.ndarray] | None,
    observed: Sequence[float] | None,
    epsilons: Sequence[float],
    seed: int,
) -> dict[str, float]:
    """Means by name. logps, ref_logps: log π of every completion of every row; observed: each row's observed reward."""
    negatives = objective.negatives if objective.uses_negatives else min(1, min(map(len, logps)) - 1)
    fewest, number = min((len(row.completions) - 1, number) for number, row in enumerate(rows))
    check_enough(negatives, fewest, f"record {number}")
    averages = Averages()
    width = max(len(logp_C) for logp_C in logps)
    for start in range(0, len(rows), _AT_ONCE):
        numbered = enumerate(rows[start : start + _AT_ONCE], start)
        part = [draw_of(r, row, negatives, "all", seed, 0) for r, row in numbered]
        logp_BC, ref_BC = torch.zeros(len(part), width), torch.zeros(len(part), width)
        length_BC = torch.ones(len(part), width)
        valid_BC = torch.zeros(len(part), width, dtype=torch.bool)
        sampled_BC = torch.zeros(len(part), width, dtype=torch.bool)
        for b, d in enumerate(part):
            n = len(d.columns)
            logp_BC[b, :n] = torch.from_numpy(logps[d.row][d.columns])
            length_BC[b, :n] = torch.tensor([len(rows[d.row].completions[c]) for c in d.columns])
            valid_BC[b, :n] = True
            sampled_BC[b, 1 : 1 + d.n_sampled] = True
            if ref_logps is not None:
                ref_BC[b, :n] = torch.from_numpy(ref_logps[d.row][d.columns])
        out = compute_loss(
            objective,
            logp_BC,
            length_BC,
            sampled_BC,
            valid_BC,
            None if ref_logps is None else ref_BC,
            None if observed is None else torch.tensor([observed[d.row] for d in part]),
        )
        rounding = rounding_of(objective.shown_reward, objective.beta)
        averages.add(evidence(out.reward_BC, logp_BC, sampled_BC, valid_BC, epsilons, rounding))
        averages.add({"loss": (out.loss_B.sum(), torch.tensor(float(len(part))))})
    return averages.means()
