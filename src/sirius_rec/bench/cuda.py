"""The same on a GPU: a Llama-2-7B of random weights under LoRA in bfloat16, steps against separate rows, and its MFU.

One command, no network, at most 8 minutes; without a device it says so and is done. Each way takes as many rows at once
as the device has memory for, as its users would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sirius_rec.bench import flops
from sirius_rec.bench.measures import BETA, require_equal
from sirius_rec.bench.rivals import SCORERS, Scorer, dpo_loss
from sirius_rec.bench.shapes import LLAMA_2_7B, PAD, Shape, build_model, random_rows
from sirius_rec.bench.timing import compared, interleaved
from sirius_rec.errors import ScoringError
from sirius_rec.scoring.attention import probe_attention
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.backbones import add_lora

Rows = list[dict[str, Any]]
# Dense bfloat16 operations per second by the makers' data sheets, without sparsity.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "4090": 165e12, "3090": 71e12}
BATCHES = {1: 16, 3: 16, 19: 8}
_LIMIT_S = 420.0
_PROBED = 2  # rows on which kernels are timed, before anybody knows how many fit
_WAYS = ("trees", "completion_logits")


def peak_of(name: str) -> float | None:
    """Operations per second of a device by its name; None for one that is not in the table."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def lora_step_operations(forward: int) -> int:
    """A step under LoRA: forward, and a backward pass through frozen weights, which gives no gradients of them.

    The adapter's own operations (below 1 %) are left out, so that the utilisation is not over-stated.
    """
    return 2 * forward


def step_in_parts(scorer: Scorer, model: Any, rows: Sequence[PromptCompletions], ref_BC: Tensor, at_once: int) -> None:
    """A step's gradients of the mean loss, summed over micro-batches of `at_once` rows; they are dropped again."""
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        loss = dpo_loss(scorer(model, rows[part], PAD), ref_BC[part], BETA)
        (loss * len(rows[part]) / len(rows)).backward()
    model.zero_grad()


def most_at_once(step: Callable[[int], object], n_rows: int) -> int:
    """The largest half, quarter … of the rows for which a step has the memory, which also warms up."""
    size = n_rows
    while True:
        try:
            step(size)
            return size
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise ScoringError("cuda: the device has no memory for a step of one row") from error
        size = (size + 1) // 2
        torch.cuda.empty_cache()


def bench_cuda(
    *,
    quick: bool,
    say: Callable[[str], None],
    shape: Shape = LLAMA_2_7B,
    device: str | None = None,
    batches: dict[int, int] | None = None,
) -> Rows:
    """Training steps with K negatives on `device` (the CUDA device, where there is one)."""
    device = device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        say("cuda: skipped, torch sees no CUDA device")
        return []
    name = torch.cuda.get_device_name() if device == "cuda" else device
    started = time.monotonic()
    half = torch.bfloat16 if device == "cuda" else torch.float32
    model = add_lora(build_model(shape, dtype=half, device=device), rank=32).train()
    out: Rows = []
    for k, n_rows in (batches or BATCHES).items():
        if time.monotonic() - started > _LIMIT_S:
            say(f"cuda: K={k} left out, the time is up")
            break
        rows = random_rows(max(n_rows // 2, 1) if quick else n_rows, k + 1, vocabulary=shape.vocabulary)
        probe = probe_attention(model, rows[:_PROBED], PAD)
        with torch.no_grad():
            ours, theirs = (torch.cat([SCORERS[way](model, [row], PAD) for row in rows]) for way in _WAYS)
        require_equal("completion_logits", theirs / theirs.abs().max(), ours / theirs.abs().max(), 0.02)
        steps = {way: partial(step_in_parts, SCORERS[way], model, rows, theirs) for way in _WAYS}
        at_once = {way: most_at_once(run, len(rows)) for way, run in steps.items()}
        runs = {way: partial(run, at_once[way]) for way, run in steps.items()}
        seconds = interleaved(runs, rounds=2 if quick else 5, device=device)
        (row,) = compared(seconds, bench="cuda", k=k, slate=None, prompts=len(rows), device=name, at_once=at_once)
        needed = lora_step_operations(flops.bound(shape, rows))
        peak = peak_of(name)
        row["tflops"] = round(needed / float(np.median(seconds["trees"])) / 1e12, 3)
        row["mfu"] = None if peak is None else round(row["tflops"] * 1e12 / peak, 4)
        row["attention"], row["attention_seconds"] = probe.chosen, probe.seconds
        row["attention_refused"] = probe.refused
        say(f"cuda K={k}: {row['ratio']:.2f}×, {row['tflops']:.1f} TFLOP/s needed, MFU {row['mfu']}, {probe.chosen}")
        out.append(row)
    return out
