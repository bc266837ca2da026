"""What training will need at most, in bytes, said before it starts.

Weights, gradients and the optimiser's state are counted. What a step needs beside them depends on the architecture, its
kernels, adapters and checkpointing: it is measured on a few of the longest rows and continued from there.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from sirius_rec.scoring import head
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import in_mode, takes_logits_to_keep, tree_logps, unwrapped, use_tree_attention
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import build_tree, count_nodes

_FEW = 4  # rows that are measured, as far apart as can be: neighbours share most; more are continued in a straight line


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process.

    logits: those held at one time in float32, with their gradient. activations: all else that a step needs beside
    weights, gradients and optimiser. rows, tokens: size of the micro-batch; tokens that the model computes for it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    rows: int
    tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def line(self) -> str:
        """One line for people."""
        unit, size = ("GiB", 2**30) if self.total >= 2**30 else ("MiB", 2**20)
        parts = {k: v / size for k, v in asdict(self).items() if k not in ("rows", "tokens")}
        breakdown = ", ".join(f"{name} {part:.1f}" for name, part in parts.items())
        return (
            f"memory: a step takes about {self.total / size:.1f} {unit} of tensors ({breakdown}; {self.rows} rows with "
            f"{self.tokens} tokens at once), beside the {resident() / 2**30:.1f} GiB that this process holds now"
        )


def resident() -> int:
    """Bytes of memory that this process holds: Python, the framework, the data, and weights on the CPU."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # not Linux: the most that it ever held
        import resource

        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return held if sys.platform == "darwin" else held * 1024


def allocated_peak(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors at one time while `run` runs, beyond those there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler announces its start and stop on stderr otherwise; it reads this when it is first used.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with warnings.catch_warnings():
        # Of torch 2.11, which says it of every profile; there is but one cycle.
        warnings.filterwarnings("ignore", message=".*clears events at the end of each cycle")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    now = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def step_peak(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    *,
    scoring: str = "packed",
    bf16: bool = False,
    accumulates: bool = False,
) -> int:
    """Bytes that a forward and backward pass over `rows` needs beside weights and optimiser.

    Gradients are included; with `accumulates` they are there before, as after another micro-batch, and do not count.
    """
    device = next(model.parameters()).device
    tree = build_tree(rows).to(device)

    def run() -> None:
        with torch.enable_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logp_BC = naive_logps(model, rows, pad_id, device) if scoring == "naive" else tree_logps(model, tree)
        logp_BC.sum().backward()

    try:
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if accumulates and weight.requires_grad else None
        with in_mode(model, training=True):  # checkpointing acts in training only
            return allocated_peak(run, device)
    finally:
        model.zero_grad(set_to_none=True)


def _logits(model: nn.Module, rows: Sequence[PromptCompletions], scoring: str) -> int:
    """Bytes of logits and their gradient at one time."""
    vocabulary = int(unwrapped(model).config.get_text_config().vocab_size)
    if scoring == "packed":
        entries = len(build_tree(rows).keep_N) * vocabulary
        return 8 * (entries if entries <= head.KEPT else head.CHUNK)
    keeps = takes_logits_to_keep(model)
    positions = (len(r.completions) * (1 + max(map(len, r.completions))) if keeps else r.length(scoring) for r in rows)
    return 8 * vocabulary * sum(positions)


def _tokens(rows: Sequence[PromptCompletions], scoring: str) -> int:
    return sum(row.length(scoring) for row in rows) if scoring == "naive" else count_nodes(rows)


def estimate(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    *,
    scoring: str = "packed",
    shards: int = 1,
    bf16: bool = False,
) -> MemoryEstimate:
    """What a training step with the micro-batch `rows` needs at most.

    model: as it will be trained (adapter, checkpointing switched on), on its device, without gradients; it is left so.
    rows: with as many candidates as are scored. scoring: `packed` or `naive`, as resolved.
    shards: over how many processes weights, gradients and optimiser are split (FSDP); 1 where each holds them all. The
    optimiser is AdamW: two numbers per trained weight, in the weight's precision. A few rows are measured, and what
    they need beside gradients and logits is continued by their tokens. They are measured with gradients there: those of
    a few rows come as their activations go, and what is left of a peak less the gradients would be next to nothing.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    n_tokens = _tokens(rows, scoring)

    def rest(some: Sequence[PromptCompletions]) -> int:
        peak = step_peak(model, some, pad_id, scoring=scoring, bf16=bf16, accumulates=True)
        return max(peak - _logits(model, some, scoring), 0)

    dense = scoring == "packed" and use_tree_attention(model) == "eager"  # takes memory with the square of the tokens
    few = rows if dense or len(rows) <= _FEW else [rows[len(rows) * n // _FEW] for n in range(_FEW)]
    activations = rest(few)
    if len(rows) > len(few):
        fewer = few[: _FEW // 2]
        tokens, less = _tokens(few, scoring), _tokens(fewer, scoring)
        if tokens - less < tokens // 8:  # rows that share nearly all say nothing about what a token takes
            activations = activations * n_tokens // tokens
        else:
            activations += max(activations - rest(fewer), 0) * (n_tokens - tokens) // (tokens - less)
    return MemoryEstimate(
        weights=weights // shards,
        gradients=trained // shards,
        optimizer=2 * trained // shards,
        activations=activations,
        logits=_logits(model, rows, scoring),
        rows=len(rows),
        tokens=n_tokens,
    )
