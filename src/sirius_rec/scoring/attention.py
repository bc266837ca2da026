"""Which attention kernel trees run on: the fastest of those that give the right log-probs and gradients here.

Chunks of a tree on sdpa run everywhere. flex attention needs no copies of keys and skips the blocks that no node may
see, which pays off in large trees on CUDA; torch gives it no backward pass on CPU. FlashAttention takes no mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sirius_rec.errors import ScoringError, first_line
from sirius_rec.scoring.masks import refusal
from sirius_rec.scoring.packed import in_half_precision, in_mode, tree_logps, unwrapped
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import self_check
from sirius_rec.scoring.tree import CandidateTree, build_tree
from sirius_rec.scoring.tree_attention import TREE_ATTENTION, register

CANDIDATES = (TREE_ATTENTION, "flex_attention")


@dataclass(frozen=True)
class Probe:
    """chosen: the kernel the model is on now. seconds: of passes over trees of several sizes. refused: why not."""

    chosen: str
    seconds: dict[str, float]
    refused: dict[str, str]


def _pass(model: nn.Module, tree: CandidateTree, trained: list[nn.Parameter]) -> list[Tensor]:
    """One forward and backward pass; the gradients, or the log-probs where nothing is trained."""
    if not trained:
        with torch.no_grad():
            return [tree_logps(model, tree)]
    return list(torch.autograd.grad(tree_logps(model, tree).sum(), trained))


def _same(actual: Sequence[Tensor], expected: Sequence[Tensor], half: bool) -> bool:
    """Equal as far as rounding allows, measured on all entries together."""
    error = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(actual, expected, strict=True))
    size = sum(float(b.float().square().sum()) for b in expected)
    return bool(error <= (0.05 if half else 1e-3) ** 2 * size)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The fastest of several runs after one that warms up (and compiles)."""
    best = float("inf")
    for number in range(repeats + 1):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            best = min(best, time.perf_counter() - started)
    return best


def probe_attention(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    *,
    candidates: Sequence[str] = CANDIDATES,
    bf16: bool = False,
    repeats: int = 3,
) -> Probe:
    """Time each kernel on trees of one, some and all `rows`, and leave the model on the fastest one that is right.

    A pass is forward and backward; kernels that are compiled for every size had their compilation before.
    Right means: log-probs equal to separate passes (`self_check`), gradients equal to those of the first right kernel
    (within 1e-3 of their norm; 5 % in half precision). bf16: compute float32 weights in bfloat16 meanwhile. Raises
    ScoringError where no kernel is right; where none is left but some had no memory, that error. The model stays where
    it is.
    """
    register()
    base = unwrapped(model)
    device = next(model.parameters()).device
    half = bf16 or in_half_precision(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    sizes = sorted({1, max(len(rows) // 2, 1), len(rows)})
    trees = [build_tree(rows[:n]).to(device) for n in sizes]
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    expected: list[Tensor] | None = None
    no_memory: torch.OutOfMemoryError | None = None
    for name in candidates:
        try:
            base.set_attn_implementation(name)
            reason = refusal(base.config)
            if reason:
                raise ScoringError(reason)
            self_check(model, rows, pad_id)
            with in_mode(model, training=False), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                actual = _pass(model, trees[-1], trained)
                if expected is not None and not _same(actual, expected, half):
                    raise ScoringError(f"its gradients differ from those of {next(iter(seconds))}")
                seconds[name] = sum(_seconds(partial(_pass, model, t, trained), device, repeats) for t in trees)
            expected = actual if expected is None else expected
        except torch.OutOfMemoryError as error:  # says nothing about being right; another kernel may need less
            no_memory, refused[name] = error.with_traceback(None), "out of memory"
        except Exception as error:  # a kernel may be missing, fail to compile, or be wrong
            refused[name] = first_line(error)
    if not seconds and no_memory is not None:
        raise no_memory
    if not seconds:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ScoringError(f"no attention kernel scores trees rightly here ({reasons}): set scoring: naive")
    chosen = min(seconds, key=lambda name: seconds[name])
    base.set_attn_implementation(chosen)
    return Probe(chosen, seconds, refused)
