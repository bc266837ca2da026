"""Attention over packed rows in several calls: the columns where every row is still prompt, and the rest in pieces.

The first part is plain causal attention, which kernels run without a mask and without its upper triangle. A piece of
the rest needs the tree mask, and of the columns before it only the prompts and its own candidates. The same sums as one
masked call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sirius_rec.scoring.rows import PackedBatch

# The name under which transformers knows it.
SPLIT = "tree_split"


def register() -> None:
    """Make the kernel known to transformers; once is enough, more does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(SPLIT, _attend)
    AttentionMaskInterface.register(SPLIT, sdpa_mask)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """[B, T, heads, width]. A mask with fewer rows than queries covers the last of them; those before are causal.

    A mask that `in_pieces` made carries the pieces of its rows; one that lost them is taken whole.
    """
    from transformers.integrations import sdpa_attention

    attend: Any = sdpa_attention.sdpa_attention_forward
    options.pop("is_causal", None)
    if attention_mask is None or attention_mask.shape[-2] == query.shape[2]:
        return attend(module, query, key, value, attention_mask, **options)[0], None
    at = query.shape[2] - attention_mask.shape[-2]
    found = [attend(module, query[:, :, :at], key[:, :, :at], value[:, :, :at], None, is_causal=True, **options)[0]]
    batch: PackedBatch | None = getattr(attention_mask, "tree_batch", None)
    masks: list[Tensor] = getattr(attention_mask, "tree_pieces", [])
    if batch is None:
        found.append(attend(module, query[:, :, at:], key, value, attention_mask, is_causal=False, **options)[0])
        return torch.cat(found, 1), None
    for piece, mask in zip(batch.pieces, masks, strict=True):
        seen = [_seen(states, batch.prompt_end, piece.back, piece.end, 2) for states in (key, value)]
        own = query[:, :, piece.first : piece.end]
        found.append(attend(module, own, *seen, mask, is_causal=False, **options)[0])
    return torch.cat(found, 1), None


def _seen(states: Tensor, prompt_end: int, back: int, end: int, dim: int) -> Tensor:
    """Along `dim` the prompts' columns, and back … end − 1."""
    if back <= prompt_end:
        return states.narrow(dim, 0, end)
    return torch.cat([states.narrow(dim, 0, prompt_end), states.narrow(dim, back, end - back)], dim)


def in_pieces(config: Any, masks: Any, batch: PackedBatch) -> Any:
    """Leave out of full-attention masks the rows in which every row of the batch is prompt; cut the others in pieces.

    Windowed masks stay whole: inside a window the prompt is not plainly causal.
    """
    if isinstance(masks, dict):
        return {**masks, "full_attention": _cut(masks["full_attention"], batch)}
    one_window = config.model_type in ("mistral", "phi3") and config.sliding_window is not None
    return masks if one_window else _cut(masks, batch)


def _cut(mask_B1TT: Tensor, batch: PackedBatch) -> Tensor:
    if not batch.pieces:
        return mask_B1TT
    rest = mask_B1TT[:, :, batch.n_prompt :]
    if len(batch.pieces) > 1:
        # Attributes, because a model takes nothing but a tensor here and hands it on as it is.
        rest.tree_batch = batch  # type: ignore[attr-defined]
        rest.tree_pieces = [  # type: ignore[attr-defined]
            _seen(mask_B1TT[:, :, piece.first : piece.end], batch.prompt_end, piece.back, piece.end, 3)
            for piece in batch.pieces
        ]
    return rest
