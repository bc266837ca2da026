"""Does a gradient step on a sampled pair (i, j) move an unsampled pair (i, k) as Eq. 10 says? Measured, not assumed.

Eq. 10 and 15 say ∂p_ik/∂p_ij = p′(r_i − r_k) / p′(r_i − r_j), which holds where r_i alone moves. A real step moves the
weights, and with them r_j and r_k too. So each example gets a real step, and the change of every p_ik is compared with
sensitivity × change of p_ij.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from sirius_rec.errors import DataError, ScoringError
from sirius_rec.evaluation.intervals import GroupBootstrap
from sirius_rec.objectives.losses import Objective, compute_loss
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import logps, resolve_mode
from sirius_rec.theory.preference import BRADLEY_TERRY

DESCENT = 1e-3  # nats by which the step lowers its own loss, to first order
# Nats that no reward may move further: where a pair is far apart, its loss hardly changes, and a step that lowers it by
# DESCENT would throw rewards about by whole nats, for which derivatives do not speak.
LARGEST_MOVE = 2e-3
REGIONS = ((0.0, 0.1), (0.1, 0.5), (0.5, 1.0), (1.0, np.inf))
_SHRINKS = 40
COLUMNS = ("example", "r_i", "r_j", "r_k", "moved_i", "moved_j", "moved_k")

Triples = dict[str, np.ndarray]


def probe_influence(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    objective: Objective,
    *,
    ref_logps: Sequence[np.ndarray] | None = None,
    descent: float = DESCENT,
    largest_move: float = LARGEST_MOVE,
    seed: int = 0,
    mode: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Triples:
    """One gradient step per row from the same weights; rewards before it and how far it moved them.

    rows: slates of at least three candidates, the positive first. objective: its comparison is taken on one sampled
    negative j (drawn by seed), without filter, its anchor and NLL as they are. ref_logps: where the reward needs them.
    The step is θ − η∇L over the parameters that train, with η = descent / |∇L|², or less so that no reward of the slate
    moves by more than largest_move. Weights are put back after each.

    Returns COLUMNS as float64[N], one entry per triple (i, j, k) of each row, rewards as the objective defines them.
    Raises DataError for a slate too small or a gradient that is zero or not finite, naming the row.
    """
    if not objective.uses_negatives:
        raise DataError("influence: this objective compares no pairs; probe one that does")
    if objective.needs_reference and ref_logps is None:
        raise ScoringError("influence: this reward needs reference log-probs")
    objective = replace(objective, negatives=1, filter=False, reward_temperature=None)
    mode = resolve_mode(model, mode)
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p.detach().clone() for p in trained]
    rng = np.random.default_rng(seed)
    was_training = model.training
    model.eval()
    triples: list[np.ndarray] = []
    try:
        for number, row in enumerate(rows):
            width = len(row.completions)
            if width < 3:
                raise DataError(f"influence: row {number} has {width} candidates; it takes a third to see influence on")
            j = int(rng.integers(1, width))
            score = _rewards(model, row, pad_id, objective, None if ref_logps is None else ref_logps[number], j, mode)
            loss, before_C = score()
            slopes = torch.autograd.grad(loss, trained, allow_unused=True)
            size = float(sum((g.double() ** 2).sum() for g in slopes if g is not None))
            if size == 0 and objective.link == "hinge":  # as far apart as it asks for: no step, no triples
                continue
            if not np.isfinite(size) or size == 0:
                raise DataError(f"influence: row {number} has a gradient of size {size}")
            step = descent / size
            for _ in range(_SHRINKS):
                after_C = _after(trained, slopes, weights, step, score)
                moved = float(np.abs(after_C - before_C).max())
                if moved <= largest_move:
                    break
                # Not proportional where rewards overflowed or the step left the region in which it is.
                step *= max(0.9 * largest_move / moved, 1e-3) if np.isfinite(moved) else 1e-3
            else:
                raise DataError(f"influence: row {number}: no step is small enough to move rewards by {largest_move}")
            triples.append(_triples(number, j, before_C, after_C))
            if progress:
                progress(1)
    finally:
        model.train(was_training)
    table = np.concatenate(triples) if triples else np.empty((0, len(COLUMNS)))
    return {name: table[:, n] for n, name in enumerate(COLUMNS)}


def _after(
    trained: Sequence[Tensor], slopes: Sequence[Tensor | None], weights: Sequence[Tensor], step: float, score: Any
) -> np.ndarray:
    """Rewards after a step; the weights are put back whatever happens."""
    try:
        with torch.no_grad():
            for p, g in zip(trained, slopes, strict=True):
                if g is not None:
                    p.sub_(g * step)
            after_C: np.ndarray = score()[1]
            return after_C
    finally:
        with torch.no_grad():
            for p, value in zip(trained, weights, strict=True):
                p.copy_(value)


def _rewards(
    model: nn.Module, row: PromptCompletions, pad_id: int, objective: Objective, ref: Any, j: int, mode: str
) -> Callable[[], tuple[Tensor, np.ndarray]]:
    """A function of the current weights: the loss on (i, j), and float64[C] rewards of the slate."""
    width = len(row.completions)
    device = next(model.parameters()).device
    length_BC = torch.tensor([[float(len(c)) for c in row.completions]], device=device)
    valid_BC = torch.ones(1, width, dtype=torch.bool, device=device)
    sampled_BC = torch.zeros_like(valid_BC)
    sampled_BC[0, j] = True
    ref_BC = None if ref is None else torch.as_tensor(np.asarray(ref), device=device)[None]

    def score() -> tuple[Tensor, np.ndarray]:
        logp_BC = logps(model, [row], pad_id, mode)
        # In float64 from here on: rewards are differences of log-probs, and their changes are small.
        out = compute_loss(
            objective,
            logp_BC.double(),
            length_BC.double(),
            sampled_BC,
            valid_BC,
            None if ref_BC is None else ref_BC.double(),
        )
        return out.loss_B.mean(), out.reward_BC[0].detach().cpu().numpy().astype(np.float64)

    return score


def _triples(number: int, j: int, before_C: np.ndarray, after_C: np.ndarray) -> np.ndarray:
    """[C − 2, COLUMNS] of one slate."""
    moved_C = after_C - before_C
    ks = np.delete(np.arange(1, len(before_C)), j - 1)
    out = np.empty((len(ks), len(COLUMNS)))
    out[:] = (number, before_C[0], before_C[j], 0.0, moved_C[0], moved_C[j], 0.0)
    out[:, 3], out[:, 6] = before_C[ks], moved_C[ks]
    return out


def summarise_influence(triples: Mapping[str, np.ndarray], *, seed: int = 0) -> dict[str, Any]:
    """How well sensitivity × Δp_ij predicts Δp_ik, over all triples and by region of the sensitivity.

    n: triples. predicted, measured: mean |Δp_ik| relative to mean |Δp_ij|. slope: of measured on predicted through 0,
    with a 95 % bootstrap interval over examples. r2: share of the measured change explained by the prediction as it
    stands, 1 − Σ(measured − predicted)² / Σ measured² (negative: worse than predicting no change). agree: share of
    equal signs.

    Over all triples the slope is that of the largest predictions: those of saturated pairs, where p_ij is flatter than
    p_ik and the sensitivity above 1. So "unsaturated" and "saturated" have the same on either side of 1. Overall also
    spearman, the rank correlation of measured |Δp_ik/Δp_ij| with the sensitivity, and moved_i, moved_j, moved_k: mean
    changes of the rewards relative to the mean change of the margin r_i − r_j.
    """
    r_i, r_j, r_k = (np.asarray(triples[name]) for name in ("r_i", "r_j", "r_k"))
    if not len(r_i):
        raise DataError("influence: no triples; give rows with at least three candidates")
    new_i, new_j, new_k = (np.asarray(triples[f"r_{x}"]) + triples[f"moved_{x}"] for x in "ijk")
    p = BRADLEY_TERRY.p
    change_ij = p(new_i - new_j) - p(r_i - r_j)
    measured = p(new_i - new_k) - p(r_i - r_k)
    sensitivity = np.exp(BRADLEY_TERRY.log_sensitivity(r_i, r_j, r_k))
    predicted = sensitivity * change_ij
    groups = triples["example"]
    out: dict[str, Any] = {
        "examples": len(np.unique(groups)),
        **_agreement(predicted, measured, change_ij, groups, seed),
        "spearman": _rank_correlation(sensitivity, measured, change_ij),
    }
    margin = float(np.mean(triples["moved_i"] - triples["moved_j"]))
    for x in "ijk":
        out[f"moved_{x}"] = float(np.mean(triples[f"moved_{x}"])) / margin if margin else None

    def within(low: float, high: float) -> dict[str, Any]:
        inside = (sensitivity >= low) & (sensitivity < high)
        part: dict[str, Any] = {"low": low, "high": None if np.isinf(high) else high, "n": int(inside.sum())}
        if inside.any():
            part |= _agreement(predicted[inside], measured[inside], change_ij[inside], groups[inside], seed)
        return part

    out["regions"] = [within(low, high) for low, high in REGIONS]
    out["unsaturated"], out["saturated"] = within(0.0, 1.0), within(1.0, np.inf)
    return out


def _agreement(
    predicted: np.ndarray, measured: np.ndarray, change_ij: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, Any]:
    square, product = float((predicted**2).sum()), float((predicted * measured).sum())
    total, unit = float((measured**2).sum()), float(np.abs(change_ij).mean())
    plan = GroupBootstrap(len(predicted), groups, seed=seed)
    low = high = None
    if plan.n_groups > 1 and square > 0:
        drawn = plan.means(np.stack([predicted * measured, predicted**2]))
        low, high = (float(q) for q in np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975]))
    return {
        "n": len(predicted),
        "predicted": float(np.abs(predicted).mean()) / unit if unit else None,
        "measured": float(np.abs(measured).mean()) / unit if unit else None,
        "slope": product / square if square else None,
        "slope_low": low,
        "slope_high": high,
        "r2": 1 - float(((measured - predicted) ** 2).sum()) / total if total else None,
        "agree": float((np.sign(predicted) == np.sign(measured)).mean()),
    }


def _rank_correlation(sensitivity: np.ndarray, measured: np.ndarray, change_ij: np.ndarray) -> float | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(measured / change_ij)
    fine = np.isfinite(ratio)
    if fine.sum() < 3 or np.ptp(sensitivity[fine]) == 0 or np.ptp(ratio[fine]) == 0:
        return None
    return float(stats.spearmanr(sensitivity[fine], ratio[fine]).statistic)
