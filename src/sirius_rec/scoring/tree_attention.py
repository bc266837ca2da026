"""Attention over packed rows in several calls: the columns where every row is still prompt, and the rest in chunks.

The first part is plain causal attention, which kernels run without a mask and without its upper triangle. A chunk of
the rest needs the tree mask, and of the columns before it only the prompts and its own candidates. The same sums as one
masked call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sirius_rec.scoring.rows import Chunk, PackedBatch

# The name under which transformers knows it.
TREE_ATTENTION = "tree_split"


@dataclass(frozen=True)
class _Tree:
    """prompt_end: as in `PackedBatch`. chunks: each with its own mask, [B, 1, its rows, what it is given]."""

    prompt_end: int
    chunks: list[tuple[Chunk, Tensor]]


def register() -> None:
    """Make the kernel known to transformers; once is enough, more does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(TREE_ATTENTION, _attend)
    AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """[B, T, heads, width]. A mask with fewer rows than queries covers the last of them; those before are causal.

    A mask that `in_chunks` made of more than one chunk carries them; one without (or that lost them) is taken whole.
    """
    from transformers.integrations import sdpa_attention

    attend: Any = sdpa_attention.sdpa_attention_forward
    options.pop("is_causal", None)
    if attention_mask is None or attention_mask.shape[-2] == query.shape[2]:
        return attend(module, query, key, value, attention_mask, **options)[0], None
    at = query.shape[2] - attention_mask.shape[-2]
    outputs = [attend(module, query[:, :, :at], key[:, :, :at], value[:, :, :at], None, is_causal=True, **options)[0]]
    tree: _Tree | None = getattr(attention_mask, "tree", None)
    if tree is None:
        outputs.append(attend(module, query[:, :, at:], key, value, attention_mask, is_causal=False, **options)[0])
        return torch.cat(outputs, 1), None
    for chunk, mask in tree.chunks:
        seen = [_seen(states, tree.prompt_end, chunk, 2) for states in (key, value)]
        own = query[:, :, chunk.first : chunk.end]
        outputs.append(attend(module, own, *seen, mask, is_causal=False, **options)[0])
    return torch.cat(outputs, 1), None


def _seen(states: Tensor, prompt_end: int, chunk: Chunk, dim: int) -> Tensor:
    """Along `dim` what a chunk is given: the prompts' columns, and back … end − 1."""
    if chunk.back <= prompt_end:
        return states.narrow(dim, 0, chunk.end)
    return torch.cat([states.narrow(dim, 0, prompt_end), states.narrow(dim, chunk.back, chunk.end - chunk.back)], dim)


def in_chunks(config: Any, masks: Any, batch: PackedBatch) -> Any:
    """Leave out of full-attention masks the rows in which every row of the batch is prompt; cut the others in chunks.

    Windowed masks stay whole: inside a window the prompt is not plainly causal.
    """
    if isinstance(masks, dict):
        return {**masks, "full_attention": _cut(masks["full_attention"], batch)}
    one_window = config.model_type in ("mistral", "phi3") and config.sliding_window is not None
    return masks if one_window else _cut(masks, batch)


def _cut(mask_B1TT: Tensor, batch: PackedBatch) -> Tensor:
    if not batch.chunks:
        return mask_B1TT
    rest = mask_B1TT[:, :, batch.n_prompt :]
    if len(batch.chunks) > 1:
        # An attribute, because a model takes nothing but a tensor here and hands it on as it is.
        rest.tree = _Tree(  # type: ignore[attr-defined]
            batch.prompt_end,
            [(p, _seen(mask_B1TT[:, :, p.first : p.end], batch.prompt_end, p, 3)) for p in batch.chunks],
        )
    return rest
