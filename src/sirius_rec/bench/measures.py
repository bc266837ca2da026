"""The benches `step`, `score` and `memory`: packed rows against separate ones. Equal results are checked first."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sirius_rec.bench import flops
from sirius_rec.bench.rivals import SCORERS, dpo_loss, trl_loss
from sirius_rec.bench.shapes import CPU_SHAPE, EOS, PAD, Shape, build_model, random_rows
from sirius_rec.bench.timing import compared, interleaved, ratio
from sirius_rec.errors import ScoringError
from sirius_rec.scoring.attention import use_tree_attention
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.memory import allocated_peak

Say = Callable[[str], None]
Rows = list[dict[str, Any]]
BETA = 1.0
# Negatives → prompts in the micro-batch: about equally many tokens each. `quick` takes a quarter of them, in which the
# costs that do not grow with the batch (gradients of 13 million weights) weigh more: its ratios are lower.
STEP_BATCHES = {1: 16, 3: 8, 19: 2}
# Separate rows at a time, where they do not go all at once: as many as prompts and candidates make a usual micro-batch.
CHUNK = 20


def _prepared(shape: Shape) -> Any:
    """A model on the kernel that runs use on CPU; for ordinary rows it is plain sdpa."""
    model = build_model(shape)
    use_tree_attention(model)
    return model


def require_equal(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """ScoringError if a rival does not compute the same as packed rows: then there is nothing to compare."""
    worst = float((found.detach() - expected.detach()).abs().max())
    if not worst <= tolerance:
        raise ScoringError(f"{name} differs from packed rows by {worst:.3g}: their times cannot be compared")


def _steps(
    model: Any, rows: Sequence[PromptCompletions], names: Sequence[str], say: Say
) -> dict[str, Callable[[], Tensor]]:
    """Way → forward and backward of a micro-batch, which returns its loss; `update` → clipping and AdamW alone.

    The update is timed on its own: it is the same for all, and a user does it once per micro-batch at most.
    """
    with torch.no_grad():
        ref_BC = SCORERS["completion_logits"](model, rows, PAD) + 0.5 * torch.randn(
            len(rows), len(rows[0].completions), generator=torch.Generator().manual_seed(1)
        )

    def step_of(network: Any, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            loss = loss_of()
            loss.backward()
            network.zero_grad()
            return loss.detach()

        return step

    runs: dict[str, Callable[[], Tensor]] = {}
    for name in names:
        scorer = SCORERS[name]
        runs[name] = step_of(model, lambda scorer=scorer: dpo_loss(scorer(model, rows, PAD), ref_BC, BETA))
    runs["completion_logits_chunks"] = _step_in_chunks(model, rows, ref_BC)
    if len(rows[0].completions) == 2:
        own = copy.deepcopy(model)
        try:
            runs["trl"] = step_of(own, trl_loss(own, rows, ref_BC, BETA, tempfile.mkdtemp()))
        except ImportError as error:
            say(f"trl: skipped, {error}")
    runs["update"] = _update(copy.deepcopy(model))
    return runs


def _step_in_chunks(
    model: Any, rows: Sequence[PromptCompletions], ref_BC: Tensor, chunk: int = CHUNK
) -> Callable[[], Tensor]:
    """Forward and backward of separate rows, about `chunk` of them at a time, gradients accumulated."""
    some = max(chunk // len(rows[0].completions), 1)

    def step() -> Tensor:
        total = torch.zeros(())
        for at in range(0, len(rows), some):
            part = rows[at : at + some]
            logp_BC = SCORERS["completion_logits"](model, part, PAD)
            loss = dpo_loss(logp_BC, ref_BC[at : at + some], BETA) * (len(part) / len(rows))
            loss.backward()
            total += loss.detach()
        model.zero_grad()
        return total

    return step


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


def bench_step(*, quick: bool, say: Say, shape: Shape = CPU_SHAPE, batches: dict[int, int] | None = None) -> Rows:
    """A training step with K negatives, against TRL (K = 1), completion logits in two forms, and full logits."""
    model = _prepared(shape).train()
    out: Rows = []
    for k, n_rows in (batches or STEP_BATCHES).items():
        rows = random_rows(max(n_rows // 4, 1) if quick else n_rows, k + 1, vocabulary=shape.vocabulary)
        runs = _steps(model, rows, list(SCORERS), say)
        losses = {name: run() for name, run in runs.items()}
        for name in losses.keys() - {"update"}:
            require_equal(name, losses[name], losses["packed"], 1e-3)
        seconds = interleaved(runs, rounds=2 if quick else 5, warm_up=False)
        update = seconds.pop("update")
        fair = flops.separate(shape, rows) / flops.bound(shape, rows)
        found = compared(seconds, bench="step", k=k, slate=None, prompts=len(rows), flop_limit=round(fair, 2))
        for row in found:
            with_update = ratio(seconds[row["baseline"]] + update, seconds["packed"] + update)
            row["seconds_update"] = round(float(np.median(update)), 5)
            row |= {f"{key}_with_update": value for key, value in with_update.items()}
            say(
                f"step K={k}: {row['ratio']:.2f}× [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] {row['baseline']}"
                f", with an update after each {row['ratio_with_update']:.2f}×"
            )
        out += found
    return out


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


def _in_chunks(model: Any, rows: Sequence[PromptCompletions], chunk: int = CHUNK) -> Tensor:
    """Separate rows again, 20 at a time: nobody has to score 200 of them in one batch."""
    parts = [
        SCORERS["completion_logits"](model, [PromptCompletions(row.prompt, row.completions[at : at + chunk])], PAD)
        for row in rows
        for at in range(0, len(row.completions), chunk)
    ]
    return torch.cat(parts, 1).view(len(rows), -1)


def bench_score(
    *, quick: bool, say: Say, shape: Shape = CPU_SHAPE, slates: Sequence[int] = (20, 100), prompts: int = 2
) -> Rows:
    """log π of every candidate of a slate, against separate rows in three forms, and against generating one answer."""
    model = _prepared(shape).eval()
    out: Rows = []
    for slate in slates:
        rows = random_rows(1 if quick else prompts, slate, vocabulary=shape.vocabulary)
        with torch.no_grad():
            scores = {name: scorer(model, rows, PAD) for name, scorer in SCORERS.items()}
            for name, found in scores.items():
                require_equal(name, found, scores["packed"], 1e-3)

            runs: dict[str, Callable[[], object]] = {
                name: partial(scorer, model, rows, PAD) for name, scorer in SCORERS.items()
            }
            runs["completion_logits_chunks"] = partial(_in_chunks, model, rows)
            require_equal("completion_logits_chunks", _in_chunks(model, rows), scores["packed"], 1e-3)
            runs["generate"] = _generate(model, rows, 6)
            runs["generate"]()  # the others were warmed up by the check of their results
            seconds = interleaved(runs, rounds=2 if quick else 7, warm_up=False)
        fair = flops.separate(shape, rows) / flops.bound(shape, rows)
        found = compared(seconds, bench="score", k=None, slate=slate, prompts=len(rows), flop_limit=round(fair, 2))
        for row in found:
            say(
                f"score {slate}: {row['ratio']:.2f}× [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}] "
                f"{row['baseline']}"
            )
        out += found
    return out


def _pass(scorer: Any, model: Any, rows: Sequence[PromptCompletions]) -> None:
    """Forward and backward, from no gradients to no gradients."""
    scorer(model, rows, PAD).sum().backward()
    model.zero_grad(set_to_none=True)


def bench_memory(*, quick: bool, say: Say, shape: Shape = CPU_SHAPE, batches: dict[int, int] | None = None) -> Rows:
    """Peak bytes of tensors in a forward and backward pass beside the weights: allocator statistics, free of noise."""
    model = _prepared(shape).train()
    device = torch.device("cpu")
    out: Rows = []
    for k, n_rows in (batches or STEP_BATCHES).items():
        rows = random_rows(max(n_rows // 4, 1) if quick else n_rows, k + 1, vocabulary=shape.vocabulary)

        peaks = {name: allocated_peak(partial(_pass, s, model, rows), device) for name, s in SCORERS.items()}
        for name in ("completion_logits", "full_logits"):
            ratio = round(peaks[name] / peaks["packed"], 3)
            out.append(
                {
                    "bench": "memory", "k": k, "slate": None, "prompts": len(rows), "baseline": name,
                    "bytes_packed": peaks["packed"], "bytes_baseline": peaks[name],
                    "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio,
                }
            )  # fmt: skip
            say(f"memory K={k}: {peaks['packed'] / 2**20:.0f} MiB packed, {ratio:.2f}× of it {name}")
    return out
