"""The benches `step`, `score` and `memory`: trees against what others do. Equal results are checked first."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sirius_rec.bench import flops
from sirius_rec.bench.rivals import AT_A_TIME, SCORERS, dpo_loss, sft_loss, trl_loss
from sirius_rec.bench.shapes import (
    CPU_SHAPE,
    EOS,
    PAD,
    SMOLLM2_135M,
    LogShape,
    Shape,
    build_model,
    log_rows,
    random_rows,
)
from sirius_rec.bench.timing import compared, interleaved, ratio
from sirius_rec.errors import ScoringError
from sirius_rec.scoring.packed import use_tree_attention
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import count_nodes
from sirius_rec.training.memory import allocated_peak

Say = Callable[[str], None]
Rows = list[dict[str, Any]]
BETA = 1.0
# Shape of the rows → examples of a step: whole runs of users' rows.
STEPS: dict[LogShape, int] = {
    **{LogShape(20, k): n for k, n in ((0, 80), (1, 80), (3, 40), (19, 20))},
    **{LogShape(50, k): n for k, n in ((0, 80), (1, 80), (3, 40))},
    LogShape(10, 1, anchored=False): 80,
    LogShape(50, 1, slate_shown=True): 40,
}
# The same on the shape of a real language model, where it is the layers that cost, and not the output.
REAL_STEPS: dict[LogShape, int] = {LogShape(20, 1): 40}
# TRL pads all rows of a batch to the longest: it is measured once, with these.
_TRL = LogShape(20, 1)


def _prepared(shape: Shape) -> Any:
    """A model on the kernel that runs use on CPU; for ordinary rows it is plain sdpa."""
    model = build_model(shape)
    use_tree_attention(model)
    return model


def require_equal(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """ScoringError if a rival does not compute the same as trees: then there is nothing to compare."""
    worst = float((found.detach() - expected.detach()).abs().max())
    if not worst <= tolerance:
        raise ScoringError(f"{name} differs from trees by {worst:.3g}: their times cannot be compared")


def _step(network: Any, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Forward and backward of a micro-batch, from no gradients to none; returns its loss."""

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()
        network.zero_grad()
        return loss.detach()

    return step


def _steps(
    model: Any, rows: Sequence[PromptCompletions], names: Sequence[str], say: Say, *, trl: bool
) -> dict[str, Callable[[], Tensor]]:
    """Way → a step of softmax DPO, or of SFT where there are no negatives; `update` → clipping and AdamW alone.

    The update is timed on its own: it is the same for all, and a user does it once per micro-batch at most. Separate
    rows are computed about 20 at a time, their gradients added up, so that their memory is bounded.
    """
    columns = len(rows[0].completions)
    with torch.no_grad():
        noise_BC = 0.5 * torch.randn(len(rows), columns, generator=torch.Generator().manual_seed(1))
        ref_BC = SCORERS["trees"](model, rows, PAD) + noise_BC

    def loss_of(name: str, at: int = 0, end: int | None = None) -> Tensor:
        logp_BC = SCORERS[name](model, rows[at:end], PAD)
        return sft_loss(logp_BC) if columns == 1 else dpo_loss(logp_BC, ref_BC[at:end], BETA)

    def separate() -> Tensor:
        some, total = max(AT_A_TIME // columns, 1), torch.zeros(())
        for at in range(0, len(rows), some):
            n = len(rows[at : at + some])
            loss = loss_of("completion_logits", at, at + some) * (n / len(rows))
            loss.backward()
            total += loss.detach()
        model.zero_grad()
        return total

    runs = {name: _step(model, partial(loss_of, name)) for name in names}
    runs["completion_logits"] = separate
    if trl:
        own = copy.deepcopy(model)
        try:
            with tempfile.TemporaryDirectory() as folder:
                runs["trl"] = _step(own, trl_loss(own, rows, ref_BC, BETA, folder))
        except ImportError as error:
            say(f"trl: skipped, {error}")
    runs["update"] = _update(copy.deepcopy(model))
    return runs


def _update(model: Any) -> Callable[[], Tensor]:
    """Clipping and an update of AdamW on gradients that are already there; returns a zero in place of a loss."""
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1e-4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def update() -> Tensor:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return torch.zeros(())

    return update


def _tokens(name: str, rows: Sequence[PromptCompletions]) -> int:
    """Tokens that a way computes, without padding."""
    if name == "trees":
        return count_nodes(rows)
    if name == "packed_candidates":
        return sum(count_nodes([row]) for row in rows)
    return sum(len(row.prompt) + len(ids) - 1 for row in rows for ids in row.completions)


def bench_step(
    *, quick: bool, say: Say, shape: Shape | None = None, steps: Mapping[LogShape, int] | None = None
) -> Rows:
    """A training step with K negatives on a log's rows, each prefix once, against what others compute.

    Against candidates that share their prompt, separate rows with logits where needed, and once TRL. Unless told
    otherwise on the CPU shape, and on the shape of a real language model.
    """
    if shape is None and not quick:
        on_cpu_shape = bench_step(quick=False, say=say, shape=CPU_SHAPE, steps=steps)
        return on_cpu_shape + bench_step(quick=False, say=say, shape=SMOLLM2_135M, steps=REAL_STEPS)
    shape = shape or CPU_SHAPE
    model = _prepared(shape).train()
    out: Rows = []
    for log, n_rows in (steps or STEPS).items():
        rows = log_rows(log, max(n_rows // 4, 1) if quick else n_rows, vocabulary=shape.vocabulary)
        trl = log == _TRL and shape != SMOLLM2_135M
        runs = _steps(model, rows, ("trees", "packed_candidates"), say, trl=trl)
        losses = {name: run() for name, run in runs.items()}
        for name in losses.keys() - {"update"}:
            require_equal(name, losses[name], losses["trees"], 1e-3)
        seconds = interleaved(runs, rounds=2 if quick else 3, warm_up=False)
        out += _step_rows(shape, log, rows, seconds, say)
    return out


def _step_rows(
    shape: Shape, log: LogShape, rows: Sequence[PromptCompletions], seconds: dict[str, np.ndarray], say: Say
) -> Rows:
    """One row per rival: ratio of times, of tokens, and with an update of the weights after each step."""
    update = seconds.pop("update")
    found = compared(seconds, bench="step", shape=shape.name, **log.described(), prompts=len(rows))
    for row in found:
        name = row["baseline"]
        row["token_ratio"] = round(_tokens(name, rows) / _tokens("trees", rows), 3)
        if name == "completion_logits":
            row["flop_limit"] = round(flops.separate(shape, rows) / flops.bound(shape, rows), 3)
        elif name == "packed_candidates":
            row["flop_limit"] = round(sum(flops.bound(shape, [r]) for r in rows) / flops.bound(shape, rows), 3)
        with_update = ratio(seconds[name] + update, seconds["trees"] + update)
        row["seconds_update"] = round(float(np.median(update)), 5)
        row |= {f"{key}_with_update": value for key, value in with_update.items()}
        say(
            f"step, {shape.name}, history {log.history}, K={log.k}: {row['ratio']:.2f}× "
            f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] {name}, tokens {row['token_ratio']:.2f}×"
        )
    return found


def _generate(model: Any, rows: Sequence[PromptCompletions], new_tokens: int) -> Callable[[], object]:
    """Greedy answers of `new_tokens` tokens to the same prompts, in one left-padded batch."""
    from transformers import GenerationConfig

    width = max(len(row.prompt) for row in rows)
    ids_BT = torch.full((len(rows), width), PAD)
    seen_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, width - len(row.prompt) :] = torch.tensor(row.prompt)
        seen_BT[b, width - len(row.prompt) :] = 1
    config = GenerationConfig(
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=PAD, eos_token_id=EOS
    )
    return lambda: model.generate(input_ids=ids_BT, attention_mask=seen_BT, generation_config=config)


def bench_score(
    *, quick: bool, say: Say, shape: Shape = CPU_SHAPE, slates: Sequence[int] = (20, 100), prompts: int = 2
) -> Rows:
    """log π of every candidate of a slate, against separate rows in two forms, and against generating one answer."""
    model = _prepared(shape).eval()
    out: Rows = []
    for slate in slates:
        rows = random_rows(1 if quick else prompts, slate, vocabulary=shape.vocabulary)
        with torch.no_grad():
            scores = {name: scorer(model, rows, PAD) for name, scorer in SCORERS.items()}
            for name, found in scores.items():
                require_equal(name, found, scores["trees"], 1e-3)

            runs: dict[str, Callable[[], object]] = {
                name: partial(scorer, model, rows, PAD) for name, scorer in SCORERS.items()
            }
            runs["generate"] = _generate(model, rows, 6)
            runs["generate"]()  # the others were warmed up by the check of their results
            seconds = interleaved(runs, rounds=2 if quick else 7, warm_up=False)
        fair = flops.separate(shape, rows) / flops.bound(shape, rows)
        ratios = compared(seconds, bench="score", k=None, slate=slate, prompts=len(rows), flop_limit=round(fair, 2))
        for row in ratios:
            say(
                f"score {slate}: {row['ratio']:.2f}× [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] "
                f"{row['baseline']}"
            )
        out += ratios
    return out


def _pass(scorer: Any, model: Any, rows: Sequence[PromptCompletions]) -> None:
    """Forward and backward, from no gradients to no gradients."""
    scorer(model, rows, PAD).sum().backward()
    model.zero_grad(set_to_none=True)


def bench_memory(
    *,
    quick: bool,
    say: Say,
    shape: Shape = CPU_SHAPE,
    log: LogShape | None = None,
    vocabularies: Mapping[int, Sequence[str]] | None = None,
    n_rows: int = 40,
) -> Rows:
    """Peak bytes of tensors in a forward and backward pass beside the weights: allocator statistics, free of noise.

    log: histories of 20 and 3 negatives unless given. vocabularies: the rivals that are measured with each; separate
    rows with 152,000 logits each would not fit. For TRL a row has one negative, and its peak is compared with that of
    trees on the same rows.
    """
    log = log or LogShape(20, 3)
    both = ("packed_candidates", "completion_logits")
    out: Rows = []
    for vocabulary, rivals in (vocabularies or {32_000: both, 152_000: both[:1]}).items():
        model = _prepared(replace(shape, vocabulary=vocabulary)).train()
        rows = log_rows(log, max(n_rows // 4, 1) if quick else n_rows, vocabulary=vocabulary)
        pairs = [row.only((0, 1)) for row in rows]
        cpu = torch.device("cpu")
        ways = ("trees", *rivals)
        peaks = {name: allocated_peak(partial(_pass, SCORERS[name], model, rows), cpu) for name in ways}
        beside = dict.fromkeys(peaks, peaks["trees"])
        with suppress(ImportError):
            own = copy.deepcopy(model)
            with tempfile.TemporaryDirectory() as folder:
                loss = trl_loss(own, pairs, torch.zeros(len(rows), 2), BETA, folder)
            own.zero_grad(set_to_none=True)
            peaks["trl"] = allocated_peak(partial(_trl_pass, own, loss), cpu)
            beside["trl"] = allocated_peak(partial(_pass, SCORERS["trees"], model, pairs), cpu)
        for name in [name for name in peaks if name != "trees"]:
            found = round(peaks[name] / beside[name], 3)
            out.append(
                {
                    "bench": "memory", **log.described(), "k": 1 if name == "trl" else log.k,
                    "vocabulary": vocabulary, "prompts": len(rows), "baseline": name, "bytes_trees": beside[name],
                    "bytes_baseline": peaks[name], "ratio": found, "ratio_low": found, "ratio_high": found,
                }
            )  # fmt: skip
            say(f"memory, vocabulary {vocabulary}: {beside[name] / 2**20:.0f} MiB trees, {found:.2f}× of it {name}")
    return out


def _trl_pass(model: Any, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    model.zero_grad(set_to_none=True)
