"""Attention over packed rows in two calls: the columns where every row is still prompt, and the rest.

The first part is plain causal attention, which kernels run without a mask and without its upper triangle; only the rest
needs the tree mask. The same sums as one masked call, at about half of its cost where prompts are long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """[B, T, heads, width]. A mask with fewer rows than queries covers the last of them; those before are causal."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as attend

    options.pop("is_causal", None)
    if attention_mask is None or attention_mask.shape[-2] == query.shape[2]:
        return attend(module, query, key, value, attention_mask, **options)[0], None
    at = query.shape[2] - attention_mask.shape[-2]
    prompt = attend(
        module, query[:, :, :at], key[:, :, :at], value[:, :, :at], None, is_causal=True, **options
    )[0]  # fmt: skip
    rest = attend(module, query[:, :, at:], key, value, attention_mask, is_causal=False, **options)[0]
    return torch.cat([prompt, rest], 1), None


def without_prompt_rows(config: Any, masks: Any, n_prompt: int) -> Any:
    """Leave out of full-attention masks the first `n_prompt` rows, in which every row of the batch is prompt.

    Windowed masks stay whole: inside a window the prompt is not plainly causal.
    """
    if isinstance(masks, dict):
        return {**masks, "full_attention": _cut(masks["full_attention"], n_prompt)}
    one_window = config.model_type in ("mistral", "phi3") and config.sliding_window is not None
    return masks if one_window else _cut(masks, n_prompt)


def _cut(mask_B1TT: Tensor, n_prompt: int) -> Tensor:
    return mask_B1TT[:, :, n_prompt:] if n_prompt < mask_B1TT.shape[2] else mask_B1TT
