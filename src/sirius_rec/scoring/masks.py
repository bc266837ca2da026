"""Tree attention masks for packed rows: a completion sees the prompt and itself, never its siblings.

A wrong mask fails silently, so masks are chosen from the model's configuration and unknown architectures refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sirius_rec.errors import ScoringError
from sirius_rec.scoring.rows import PAD_SEGMENT, PROMPT_SEGMENT
from sirius_rec.scoring.tree_attention import TREE_ATTENTION

# Architectures whose forward was checked to take a ready 4-D mask and restarted positions (tests/parity).
_FULL_ATTENTION = frozenset({"llama", "gpt2", "gpt_neox", "gemma"})
_ONE_WINDOW = frozenset({"mistral", "phi3"})
_MASK_PER_LAYER_TYPE = frozenset({"qwen2", "qwen3", "gemma2", "gemma3_text"})
SUPPORTED = _FULL_ATTENTION | _ONE_WINDOW | _MASK_PER_LAYER_TYPE
_ATTENTION = frozenset({"sdpa", "eager", "flex_attention", TREE_ATTENTION})


def refusal(config: Any) -> str | None:
    """Why packed scoring is not known to be right for a model of this configuration; None where it is."""
    if config.model_type not in SUPPORTED:
        return f"architecture '{config.model_type}' has not been checked (checked: {', '.join(sorted(SUPPORTED))})"
    if config._attn_implementation not in _ATTENTION:
        return f"attention '{config._attn_implementation}' takes no tree mask: load the model with 'sdpa' or 'eager'"
    if config._attn_implementation == TREE_ATTENTION and getattr(config, "attn_logit_softcapping", None):
        return "its logits are capped inside the attention, which sdpa kernels do not do: load the model with 'eager'"
    if getattr(config, "use_bidirectional_attention", None):
        return "the model attends in both directions"
    rope = getattr(config, "rope_parameters", None) or {}
    if any("dynamic" in str(part) or "longrope" in str(part) for part in (rope, *_values(rope))):
        return "its rotary positions change with the row's length (dynamic or longrope scaling)"
    return None


def _values(mapping: Any) -> tuple[Any, ...]:
    return tuple(mapping.values()) if isinstance(mapping, dict) else ()


def _as_bias(allowed_BTT: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T]: additive for eager, which adds whatever it is given; else bool."""
    if attention != "eager":
        return allowed_BTT[:, None]
    bias = torch.zeros(allowed_BTT.shape, dtype=dtype, device=allowed_BTT.device)
    return bias.masked_fill_(~allowed_BTT, torch.finfo(dtype).min)[:, None]


def _block_mask(segment_BT: Tensor, position_BT: Tensor, window: int | None) -> Any:
    """The same mask for flex attention, which asks for it entry by entry and skips blocks without any."""
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own, other = segment_BT[b, q], segment_BT[b, k]
        seen = ((own == other) | ((other == PROMPT_SEGMENT) & (own != PAD_SEGMENT))) & (q >= k)
        return seen if window is None else seen & (position_BT[b, q] - position_BT[b, k] < window)

    n_rows, width = segment_BT.shape
    return create_block_mask(allowed, n_rows, None, width, width, device=segment_BT.device)


def attention_masks(config: Any, segment_BT: Tensor, position_BT: Tensor, dtype: torch.dtype) -> Any:
    """What to pass as `attention_mask`: [B, 1, T, T] (for flex attention a BlockMask), or a dict of them by layer type.

    Windows are counted in positions, not in columns: candidate c's tokens stand far from the prompt's in the row,
    but just behind it in the text.
    """
    reason = refusal(config)
    if reason:
        raise ScoringError(f"packed scoring refused: {reason}; set scoring: naive")
    window = getattr(config, "sliding_window", None)
    attention = config._attn_implementation
    if attention == "flex_attention":
        if config.model_type in _MASK_PER_LAYER_TYPE:
            return {
                "full_attention": _block_mask(segment_BT, position_BT, None),
                "sliding_attention": _block_mask(segment_BT, position_BT, window),
            }
        return _block_mask(segment_BT, position_BT, window if config.model_type in _ONE_WINDOW else None)
    columns = torch.arange(segment_BT.shape[1], device=segment_BT.device)
    same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
    prompt_BTT = (segment_BT == PROMPT_SEGMENT)[:, None, :] & (segment_BT != PAD_SEGMENT)[:, :, None]
    # Padding rows see their own kind, themselves included: a fully masked row is NaN under eager attention.
    full_BTT = (same_BTT | prompt_BTT) & (columns[:, None] >= columns[None, :])
    layer_types = set(getattr(config, "layer_types", None) or ())
    windowed_BTT = full_BTT
    if window is not None:
        windowed_BTT = full_BTT & (position_BT[:, :, None] - position_BT[:, None, :] < window)
    if config.model_type in _MASK_PER_LAYER_TYPE:
        return {
            "full_attention": _as_bias(full_BTT, attention, dtype),
            "sliding_attention": _as_bias(windowed_BTT, attention, dtype),
        }
    assert config.model_type in _ONE_WINDOW or "sliding_attention" not in layer_types
    return _as_bias(windowed_BTT if config.model_type in _ONE_WINDOW else full_BTT, attention, dtype)
