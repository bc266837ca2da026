"""What a model is told about a tree of candidates: a node sees its ancestors and itself, never its siblings.

A wrong mask fails silently, so masks are chosen from the model's configuration and unknown architectures refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sirius_rec.errors import ScoringError
from sirius_rec.scoring.tree import CandidateTree
from sirius_rec.scoring.tree_attention import TREE_ATTENTION, planned_mask

# Architectures whose forward was checked to take a ready mask and positions that are depths (tests/parity).
_FULL_ATTENTION = frozenset({"llama", "gpt2", "gpt_neox", "gemma", "olmo2", "granite"})
_ONE_WINDOW = frozenset({"mistral", "phi3", "qwen3_moe", "ministral3"})
_MASK_PER_LAYER_TYPE = frozenset(
    {"qwen2", "qwen3", "gemma2", "gemma3_text", "gemma4_text", "olmo3", "smollm3", "cohere2", "gpt_oss"}
)
SUPPORTED = _FULL_ATTENTION | _ONE_WINDOW | _MASK_PER_LAYER_TYPE
# Architectures with recurrent layers, which no mask makes read a tree, but whose caches were checked to go on behind a
# prompt (tests/parity): with any number of tokens, or where more than one would forget the state, token by token.
_GO_ON = frozenset(
    {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "kimi_linear", "olmo_hybrid", "lfm2", "lfm2_moe", "lfm3"}
    | {"mamba2", "falcon_h1", "bamba", "granitemoehybrid", "nemotron_h", "zamba2"}
)
STEP_BY_STEP = frozenset({"mamba", "falcon_mamba", "jamba", "minimax"})
FORKED = _GO_ON | STEP_BY_STEP
_ATTENTION = frozenset({"sdpa", "eager", "flex_attention", TREE_ATTENTION})


def refusal(config: Any) -> str | None:
    """Why scoring in trees is not known to be right for a model of this configuration; None where it is."""
    if config.model_type in FORKED:
        return f"architecture '{config.model_type}' hands a state from token to token, past every mask"
    if config.model_type not in SUPPORTED:
        return f"architecture '{config.model_type}' has not been checked (checked: {', '.join(sorted(SUPPORTED))})"
    if config._attn_implementation not in _ATTENTION:
        return f"attention '{config._attn_implementation}' takes no tree mask: load the model with 'sdpa' or 'eager'"
    if getattr(config, "use_bidirectional_attention", None):
        return "the model attends in both directions"
    if "dynamic" in _rope_types(config):
        return "its rotary positions change with the row's length (dynamic scaling)"
    return None


def can_be_forked(config: Any) -> bool:
    """Whether candidates are known to be scored rightly from copies of the prompt's cache."""
    return config.model_type in FORKED and not _rope_types(config) & {"dynamic", "longrope"}


def _rope_types(config: Any) -> set[str]:
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return {str(part.get("rope_type", "default")) for part in parts}


def first_range(config: Any) -> int | None:
    """Positions up to which LongRoPE keeps its short factors; None for models without it.

    Beyond, the factors of all rows of a batch follow its longest row, and log-probs depend on which rows share a batch.
    """
    if "longrope" not in _rope_types(config):
        return None
    return int(config.rope_parameters["original_max_position_embeddings"])


def attention_masks(config: Any, tree: CandidateTree, dtype: torch.dtype) -> Any:
    """What to pass as `attention_mask`: a tensor, for flex attention a BlockMask; or a dict of them by layer type.

    Windows are counted in depth, not in places of the layout: a candidate's tokens may stand far from its prompt's, but
    come just behind it in the text.
    """
    reason = refusal(config)
    if reason:
        raise ScoringError(f"packed scoring refused: {reason}; set scoring: naive")
    limit = first_range(config)
    if limit is not None and tree.n_positions > limit:
        raise ScoringError(
            f"a row of {tree.n_positions} tokens leaves the first range of the model's rotary positions ({limit} "
            "tokens), where log-probs depend on what else is in the batch: use shorter histories, or scoring: naive"
        )
    window = getattr(config, "sliding_window", None)
    make = _MAKERS.get(config._attn_implementation, _dense_bias)
    if config.model_type in _MASK_PER_LAYER_TYPE:
        return {"full_attention": make(tree, None, dtype), "sliding_attention": make(tree, window, dtype)}
    return make(tree, window if config.model_type in _ONE_WINDOW else None, dtype)


def cached_masks(config: Any, seen_UWL: Tensor, distance_UWL: Tensor, dtype: torch.dtype) -> Any:
    """What to pass as `attention_mask` for W new positions behind a cache; L counts the cached keys and the new ones.

    seen_UWL: which keys a position may see. distance_UWL: how many tokens before it they stand in the text.
    """
    as_bias = config._attn_implementation == "eager"

    def ready(window: int | None) -> Tensor:
        seen = seen_UWL if window is None else seen_UWL & (distance_UWL < window)
        if not as_bias:
            return seen[:, None]
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return bias.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    window = getattr(config, "sliding_window", None)
    if config.model_type in _MASK_PER_LAYER_TYPE:
        return {"full_attention": ready(None), "sliding_attention": ready(window)}
    return ready(window if config.model_type in _ONE_WINDOW else None)


def _dense(tree: CandidateTree, window: int | None) -> Tensor:
    """[T, T]: which node (column) a node (row) sees."""
    node_T = torch.arange(tree.n_nodes, device=tree.exit_T.device)
    seen_TT = (node_T <= node_T[:, None]) & (node_T[:, None] < tree.exit_T)
    if window is not None:
        seen_TT &= tree.depth_T[:, None] - tree.depth_T < window
    return seen_TT


def _dense_bias(tree: CandidateTree, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, 1, T, T], added to the scores: eager attention adds whatever it is given."""
    bias = torch.zeros((tree.n_nodes, tree.n_nodes), dtype=dtype, device=tree.exit_T.device)
    return bias.masked_fill_(~_dense(tree, window), torch.finfo(dtype).min)[None, None]


def _block_mask(tree: CandidateTree, window: int | None, dtype: torch.dtype) -> Any:
    """The tree for flex attention, which skips blocks that no node sees and asks entry by entry only inside others.

    Which blocks these are follows from the intervals alone: the nodes of a block of keys are seen from that block on,
    up to the last of their exits. `create_block_mask` would look at all T² entries for it.
    """
    from torch.nn.attention.flex_attention import BlockMask

    exit_T, depth_T = tree.exit_T, tree.depth_T

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = (k <= q) & (q < exit_T[k])
        return inside if window is None else inside & (depth_T[q] - depth_T[k] < window)

    ends = exit_T.cpu().numpy().reshape(-1, BLOCK)
    own = np.arange(len(ends))
    some = (own <= own[:, None]) & (own[:, None] * BLOCK < ends.max(1))  # rows are queries
    whole = (own < own[:, None]) & ((own[:, None] + 1) * BLOCK <= ends.min(1)) & (window is None)
    partial, full = (_listed(blocks, exit_T.device) for blocks in (some & ~whole, whole))
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=seen)


BLOCK = 128


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, [1, 1, n], and which, those first, [1, 1, n, n]."""
    counts = torch.from_numpy(blocks.sum(1).astype(np.int32))
    which = torch.from_numpy(np.argsort(~blocks, axis=1, kind="stable").astype(np.int32))
    return counts[None, None].to(device), which[None, None].to(device)


_MAKERS: dict[str, Callable[[CandidateTree, int | None, torch.dtype], Any]] = {
    "eager": _dense_bias,
    "flex_attention": _block_mask,
    TREE_ATTENTION: planned_mask,
}
