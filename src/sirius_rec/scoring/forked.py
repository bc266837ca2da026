"""Forked scoring: the prompt computed once, and what the model remembers of it copied for each candidate.

For models whose layers carry a state from token to token: a tree cannot be masked there, but every candidate may go on
from a copy of the state behind the prompt. Without gradient, because caches are changed in place.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sirius_rec.scoring.masks import STEP_BY_STEP
from sirius_rec.scoring.packed import takes_logits_to_keep, unwrapped
from sirius_rec.scoring.rows import PromptCompletions


class Passes(NamedTuple):
    """What is computed for a row behind its prompt: in how many forks, and how many columns each has at least."""

    forks: int = 1
    width: int = 1


def passes(row: PromptCompletions, max_tokens: int) -> Passes:
    """Forks of as many candidates as hold at most `max_tokens` positions, the copies of the prompt's included.

    A fork of one candidate may exceed it.
    """
    width = max(len(ids) for ids in row.completions) - 1
    room = max(max_tokens // (len(row.prompt) + width), 1)
    return Passes(-(-len(row.completions) // room), max(width, 1))


def common(several: Sequence[Passes]) -> Passes:
    """Enough for each of several rows: a sharded model needs as many forward passes in all its processes."""
    return Passes(max(p.forks for p in several), max(p.width for p in several))


@torch.no_grad()
def forked_logps(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    device: torch.device,
    size: Passes = Passes(),
) -> Tensor:
    """log π(y|x) of every candidate, [B, C] in nats, summed over tokens with the end of sequence; absent ones 0.

    A forward pass for each row's prompt, and one for each fork (or its every column, for models that take no more).
    """
    widest = max(len(row.completions) for row in rows)
    logp_BC = torch.zeros((len(rows), widest), device=device)
    for b, row in enumerate(rows):
        cache, next_V = _after_prompt(model, torch.tensor([list(row.prompt)], device=device))
        for part in np.array_split(np.arange(len(row.completions)), size.forks):
            # Who has no candidates left scores the first one again: all processes take as many passes.
            columns = part.tolist() or [0]
            some = [row.completions[c] for c in columns]
            fork = _Fork(copy.deepcopy(cache), len(row.prompt), next_V)
            logp_BC[b, columns] = _fork_logps(model, fork, some, pad_id, size.width)
    return logp_BC


class _Fork(NamedTuple):
    """cache: what the model remembers of a prompt of `n_prompt` tokens. next_V: log-probs of what comes behind it."""

    cache: Any
    n_prompt: int
    next_V: Tensor


def _after_prompt(model: nn.Module, prompt_1T: Tensor) -> tuple[Any, Tensor]:
    """The model's cache behind a prompt, and the log-probs of the token after it, [V]."""
    selection = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    out = model(input_ids=prompt_1T, use_cache=True, **selection)
    return getattr(out, _cache_name(model)), torch.log_softmax(out.logits[0, -1].float(), -1)


def _fork_logps(model: nn.Module, fork: _Fork, completions: Sequence[Sequence[int]], pad_id: int, width: int) -> Tensor:
    """[C] log π of completions that all go on from the same prompt."""
    device = fork.next_V.device
    count = len(completions)
    # Every kind of cache can be reordered, and an order may name its one row many times.
    fork.cache.reorder_cache(torch.zeros(count, dtype=torch.long, device=device))
    step_by_step = unwrapped(model).config.model_type in STEP_BY_STEP
    # Where more columns go on together, at least two: a single one takes a kernel for generation, which clamps the time
    # steps of some Mamba layers otherwise than training does.
    width = max(width, 1 if step_by_step else 2, *(len(ids) - 1 for ids in completions))
    # Padding needs no mask: it stands on the right, where nothing causal looks, and its states are thrown away.
    read_CW = torch.full((count, width), pad_id, dtype=torch.long)
    target_CW, scored_CW = torch.zeros_like(read_CW), torch.zeros_like(read_CW, dtype=torch.bool)
    for c, ids in enumerate(completions):
        n = len(ids) - 1
        read_CW[c, :n], target_CW[c, :n] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        scored_CW[c, :n] = True
    read_CW, target_CW, scored_CW = (t.to(device) for t in (read_CW, target_CW, scored_CW))
    logp_C = fork.next_V[torch.tensor([ids[0] for ids in completions], device=device)]
    inputs: dict[str, Any] = {_cache_name(model): fork.cache, "use_cache": True}
    position_W = torch.arange(fork.n_prompt, fork.n_prompt + width, device=device)
    takes_positions = "position_ids" in inspect.signature(unwrapped(model).forward).parameters
    step = 1 if step_by_step else width
    for start in range(0, width, step):
        at = slice(start, start + step)
        if takes_positions:
            inputs["position_ids"] = position_W[at].expand(count, -1)
        logits_CwV = model(input_ids=read_CW[:, at], **inputs).logits.float()
        found_Cw = logits_CwV.gather(2, target_CW[:, at, None])[..., 0] - logits_CwV.logsumexp(2)
        logp_C = logp_C + found_Cw.masked_fill(~scored_CW[:, at], 0.0).sum(1)
    return logp_C


def _cache_name(model: nn.Module) -> str:
    """What the architecture calls its cache, in and out."""
    takes = inspect.signature(unwrapped(model).forward).parameters
    return "past_key_values" if "past_key_values" in takes else "cache_params"
