"""Naive scoring: one ordinary causal row per (prompt, candidate). Slow, and the oracle for `packed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sirius_rec.scoring.masks import first_range
from sirius_rec.scoring.packed import takes_logits_to_keep, unwrapped
from sirius_rec.scoring.rows import PromptCompletions


def naive_logps(
    model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int, device: torch.device, *, all_logits: bool = False
) -> Tensor:
    """log π(y|x) of every candidate, [B, C] in nats, summed over tokens with the end of sequence; absent ones 0.

    One forward pass (under LongRoPE at most two), whose size `scorer.score_rows` bounds. Logits are computed
    from where the shortest prompt ends, where the model allows it; all_logits: everywhere, as others do it.
    """
    texts = [(list(row.prompt), list(ids)) for row in rows for ids in row.completions]
    logp_R = torch.zeros(len(texts), device=device)
    for numbers in _alike(unwrapped(model).config, [len(prompt) + len(ids) for prompt, ids in texts]):
        logp_R[numbers] = _text_logps(model, [texts[r] for r in numbers], pad_id, device, all_logits=all_logits)
    widest = max(len(row.completions) for row in rows)
    per_row = torch.split(logp_R, [len(row.completions) for row in rows])
    return torch.stack([torch.nn.functional.pad(logp_C, (0, widest - len(logp_C))) for logp_C in per_row])


def _alike(config: Any, lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of texts that may share a pass: under LongRoPE the longest decides for all, so short ones go apart."""
    limit = first_range(config)
    long = [limit is not None and n > limit for n in lengths]
    groups = [[r for r, is_long in enumerate(long) if is_long == which] for which in (False, True)]
    return [numbers for numbers in groups if numbers]


def _text_logps(
    model: nn.Module,
    texts: Sequence[tuple[list[int], list[int]]],
    pad_id: int,
    device: torch.device,
    *,
    all_logits: bool,
) -> Tensor:
    """[R] log π of each text's completion, in one forward pass."""
    width = max(len(prompt) + len(ids) for prompt, ids in texts)
    input_ids_RT = torch.full((len(texts), width), pad_id, dtype=torch.long)
    # All ones: what is causal never looks at padding on the right. Masked out, a padding row may see nothing inside a
    # window, become NaN under eager attention, and through its values make all others NaN.
    seen_RT = torch.ones((len(texts), width), dtype=torch.long)
    scored_RT = torch.zeros((len(texts), width), dtype=torch.bool)
    for r, (prompt, ids) in enumerate(texts):
        n = len(prompt) + len(ids)
        input_ids_RT[r, :n] = torch.tensor(prompt + ids)
        scored_RT[r, len(prompt) : n] = True
    input_ids_RT, seen_RT, scored_RT = (t.to(device) for t in (input_ids_RT, seen_RT, scored_RT))
    # Column `first` is the first that is scored in any row; it is predicted by the one before it, the last by none.
    first = min(len(prompt) for prompt, _ in texts)
    selection = {} if all_logits or not takes_logits_to_keep(model) else {"logits_to_keep": width - first + 1}
    logits_RTV = model(input_ids=input_ids_RT, attention_mask=seen_RT, use_cache=False, **selection).logits
    logits_RKV = logits_RTV[:, first - 1 - width : -1].float()
    # Ids of the prompt are not predicted, and may stand for inputs that no logit belongs to (hybrid prompts).
    target_RK = input_ids_RT.masked_fill(~scored_RT, 0)[:, first:]
    token_logp_RK = torch.log_softmax(logits_RKV, -1).gather(2, target_RK[..., None])[..., 0]
    return token_logp_RK.masked_fill(~scored_RT[:, first:], 0.0).sum(1)


def in_parts(rows: Sequence[PromptCompletions], max_tokens: int) -> tuple[list[PromptCompletions], list[int]]:
    """Rows whose candidates' separate rows exceed `max_tokens`, cut into several with the same prompt; whose each is.

    A part of one candidate may exceed it.
    """
    parts: list[PromptCompletions] = []
    owner: list[int] = []
    for r, row in enumerate(rows):
        room = max(max_tokens // (row.longest_path + 1), 1)
        for start in range(0, len(row.completions), room):
            parts.append(PromptCompletions(row.prompt, row.completions[start : start + room]))
            owner.append(r)
    return parts, owner
