"""The scorer that training, evaluation and the reference cache share: packed where known to be right, else naive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sirius_rec.errors import ScoringError
from sirius_rec.scoring.masks import refusal
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import packed_logps, unwrapped
from sirius_rec.scoring.rows import PromptCompletions, pack

MODES = ("auto", "packed", "naive")


def resolve_mode(model: nn.Module, mode: str) -> str:
    """`packed` or `naive` for the asked `mode`; raises ScoringError if packed was demanded and is not known right."""
    if mode not in MODES:
        raise ScoringError(f"unknown scoring '{mode}': choose one of {', '.join(MODES)}")
    reason = refusal(unwrapped(model).config)
    if mode == "packed" and reason:
        raise ScoringError(f"packed scoring refused: {reason}; set scoring: naive")
    return "naive" if mode == "naive" or reason else "packed"


def logps(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int, mode: str) -> Tensor:
    """log π(y|x), [B, C] in nats, by the resolved `mode`, on the model's device; with gradient where enabled."""
    device = next(model.parameters()).device
    if mode == "naive":
        return naive_logps(model, rows, pad_id, device)
    return packed_logps(model, pack(rows, pad_id).to(device))


def self_check(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> float:
    """Largest |packed − naive| log-prob over `rows` (nats); raises ScoringError beyond what rounding explains.

    float32: 1e-3. Half precision: 2 % of the log-prob plus 0.1 nat, which a wrong mask still exceeds by far.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packed_BC = logps(model, rows, pad_id, "packed")
        naive_BC = logps(model, rows, pad_id, "naive")
    model.train(was_training)
    difference_BC = (packed_BC - naive_BC).abs()
    half = unwrapped(model).dtype in (torch.bfloat16, torch.float16)
    allowed_BC = 0.1 + 0.02 * naive_BC.abs() if half else torch.full_like(naive_BC, 1e-3)
    worst = float(difference_BC.max())
    if not bool((difference_BC <= allowed_BC).all()):
        raise ScoringError(
            f"packed scoring disagrees with separate forward passes by {worst:.3g} nats on the first rows: "
            "set scoring: naive and report the architecture"
        )
    return worst


def token_batches(rows: Sequence[PromptCompletions], max_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within `max_tokens` (at least one row each)."""
    order = sorted(range(len(rows)), key=lambda r: rows[r].packed_length)
    batches: list[list[int]] = []
    for r in order:
        if batches and rows[r].packed_length * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(r)
        else:
            batches.append([r])
    return batches


@torch.no_grad()
def score_rows(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    *,
    mode: str = "auto",
    max_tokens: int = 8192,
    bf16: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """log π(y|x) of every candidate of every row, in row order: one float32 array of C values (nats) per row.

    Rows are batched by length; `max_tokens` bounds a batch's padded tokens. `bf16`: compute float32
    weights in bfloat16, as training with bf16 does; policy and reference must agree on it. `progress` gets the
    rows just done, by all processes.

    In a process group every process scores its share and all get all scores: call it in all of them, on the same rows.
    """
    mode = resolve_mode(model, mode)
    was_training = model.training
    model.eval()
    rank, processes = _place_in_group()
    batches = token_batches(rows, max_tokens)
    own: dict[int, np.ndarray] = {}
    for start in range(0, len(batches), processes):
        # Who has no batch left scores the first one again, for nobody: a sharded model needs all its processes.
        mine = start + rank < len(batches)
        batch = batches[start + rank if mine else 0]
        with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=bf16):
            logp_BC = logps(model, [rows[r] for r in batch], pad_id, mode).float().cpu().numpy()
        if mine:
            own |= {r: logp_BC[b, : len(rows[r].completions)].copy() for b, r in enumerate(batch)}
        if progress:
            progress(sum(map(len, batches[start : start + processes])))
    model.train(was_training)
    return _from_all(own, len(rows), processes)


def _place_in_group() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _from_all(own: dict[int, np.ndarray], n_rows: int, processes: int) -> list[np.ndarray]:
    """The scores of all processes in row order; ScoringError unless every row was scored exactly once."""
    shares: list[dict[int, np.ndarray]] = [own]
    if processes > 1:
        shares = [{} for _ in range(processes)]
        torch.distributed.all_gather_object(shares, own)
    together = {r: logp_C for share in shares for r, logp_C in share.items()}
    if sorted(together) != list(range(n_rows)) or sum(map(len, shares)) != n_rows:
        raise ScoringError(f"{processes} processes scored {sum(map(len, shares))} rows instead of {n_rows}")
    return [together[r] for r in range(n_rows)]
