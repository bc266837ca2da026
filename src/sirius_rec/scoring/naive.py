"""Naive scoring: one ordinary causal row per (prompt, candidate). Slow, and the oracle for `packed`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sirius_rec.scoring.rows import PromptCompletions


def naive_logps(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int, device: torch.device) -> Tensor:
    """log π(y|x) of every candidate, [B, C] in nats, summed over tokens with the end of sequence; absent ones 0."""
    texts = [(list(row.prompt), list(ids)) for row in rows for ids in row.completions]
    width = max(len(prompt) + len(ids) for prompt, ids in texts)
    input_ids_RT = torch.full((len(texts), width), pad_id, dtype=torch.long)
    seen_RT = torch.zeros((len(texts), width), dtype=torch.long)
    scored_RT = torch.zeros((len(texts), width), dtype=torch.bool)
    for r, (prompt, ids) in enumerate(texts):
        n = len(prompt) + len(ids)
        input_ids_RT[r, :n] = torch.tensor(prompt + ids)
        seen_RT[r, :n] = 1
        scored_RT[r, len(prompt) : n] = True
    input_ids_RT, seen_RT, scored_RT = (t.to(device) for t in (input_ids_RT, seen_RT, scored_RT))
    logits_RTV = model(input_ids=input_ids_RT, attention_mask=seen_RT, use_cache=False).logits[:, :-1].float()
    # Ids of the prompt are not predicted, and may stand for inputs that no logit belongs to (hybrid prompts).
    target_RT = input_ids_RT.masked_fill(~scored_RT, 0)[:, 1:]
    token_logp_RT = torch.log_softmax(logits_RTV, -1).gather(2, target_RT[..., None])[..., 0]
    logp_R = token_logp_RT.masked_fill(~scored_RT[:, 1:], 0.0).sum(1)
    widest = max(len(row.completions) for row in rows)
    per_row = torch.split(logp_R, [len(row.completions) for row in rows])
    return torch.stack([torch.nn.functional.pad(logp_C, (0, widest - len(logp_C))) for logp_C in per_row])
