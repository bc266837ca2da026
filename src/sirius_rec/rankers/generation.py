"""Greedy answers: what the model says when nobody grounds it, and whether it is a title of the slate at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from sirius_rec.prompts.encoding import Encoder, normalise_title
from sirius_rec.rankers.protocol import Answer
from sirius_rec.scoring.packed import in_mode, unwrapped


def judge(text: str, slate: Sequence[str], target: str) -> Answer:
    """Whole titles only: "Red" is no answer where the slate has "Red House Painters", nor the other way round.

    >>> judge(" red ", ["Red", "Red House Painters"], "Red")
    Answer(text=' red ', valid=True, hit=True)
    >>> judge("Red House", ["Red", "Red House Painters"], "Red").valid
    False
    """
    said = normalise_title(text)
    matches = [title for title in slate if normalise_title(title) == said]
    valid = len(matches) == 1
    return Answer(text, valid, valid and matches[0] == target)


def _said(ids: list[int], encoder: Encoder, slate: Sequence[str]) -> str:
    """The text of generated ids: the candidate they spell exactly, else what the tokenizer makes of them.

    Not every tokenizer gives back what it was given (byte-level ones garble added tokens with accents).
    """
    for title in slate:
        if encoder.completion(title)[:-1] == ids:
            return title
    return str(encoder.tokenizer.decode(ids, skip_special_tokens=True))


@torch.no_grad()
def generate_answers(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[str],
    slates: Sequence[Sequence[str]],
    targets: Sequence[str],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Greedy answers to prompts, in their order; an answer may be as long as the longest title of the batch's slates.

    slates: titles per prompt. targets: the right title per prompt.
    """
    device = next(model.parameters()).device
    inherited, base = unwrapped(model).generation_config, unwrapped(model)
    try:
        # `generate` fills what a configuration leaves open from the checkpoint's own, which may suppress or stop.
        base.generation_config = GenerationConfig()
        with in_mode(model, training=False):
            return _generated(model, encoder, prompts, slates, targets, batch_size, device, progress)
    finally:
        base.generation_config = inherited


def _generated(
    model: Any,
    encoder: Encoder,
    prompts: Sequence[str],
    slates: Sequence[Sequence[str]],
    targets: Sequence[str],
    batch_size: int,
    device: torch.device,
    progress: Callable[[int], None] | None,
) -> list[Answer]:
    prompt_ids = encoder.prompts(prompts)
    order = sorted(range(len(prompts)), key=lambda r: len(prompt_ids[r]))
    out: list[Answer | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompt_ids[r]) for r in rows)
        input_ids_BT = torch.full((len(rows), width), encoder.pad_id)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for b, r in enumerate(rows):  # left-padded: answers start in one column
            input_ids_BT[b, width - len(prompt_ids[r]) :] = torch.tensor(prompt_ids[r])
            mask_BT[b, width - len(prompt_ids[r]) :] = 1
        longest = max(len(encoder.completion(title)) for r in rows for title in slates[r])
        said_BT = model.generate(
            input_ids=input_ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            generation_config=GenerationConfig(
                max_new_tokens=longest,
                do_sample=False,
                eos_token_id=encoder.eos_id,
                pad_token_id=encoder.pad_id,
            ),
        )[:, width:].cpu()
        for b, r in enumerate(rows):
            ids = said_BT[b].tolist()
            ids = ids[: ids.index(encoder.eos_id)] if encoder.eos_id in ids else ids
            out[r] = judge(_said(ids, encoder, slates[r]), slates[r], targets[r])
        if progress:
            progress(len(rows))
    return [answer for answer in out if answer is not None]
