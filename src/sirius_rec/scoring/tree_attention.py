"""Attention over a tree of candidates in chunks, each of which is given the keys that it may see and no others.

Known to transformers as an attention implementation of its own; without a tree it is sdpa.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sirius_rec.errors import ScoringError
from sirius_rec.scoring.tree import CandidateTree

# The name under which transformers knows it.
TREE_ATTENTION = "candidate_tree"


@dataclass(frozen=True)
class _Plan:
    """query_Q: nodes chunk by chunk, fillings included; place_T: where in it each node stands.

    key_X: the nodes of all keys of all chunks. seen: [G, 1, W, K] which of them each query sees, one for each group of
    chunks.
    """

    query_Q: Tensor
    place_T: Tensor
    key_X: Tensor
    seen: list[Tensor]
    _added: dict[torch.dtype, list[Tensor]] = field(default_factory=dict)

    def added(self, dtype: torch.dtype) -> list[Tensor]:
        """`seen` as sdpa adds it to scores: 0 and −∞, made once for all layers instead of by each."""
        if dtype not in self._added:
            self._added[dtype] = [
                torch.zeros(s.shape, dtype=dtype, device=s.device).masked_fill_(~s, -torch.inf) for s in self.seen
            ]
        return self._added[dtype]


@cache
def _untraced() -> Any:
    return torch.compiler.disable(_attend)  # type: ignore[no-untyped-call]


def register() -> None:
    """Make the kernel known to transformers; once is enough, more does no harm.

    Layers that are compiled (`compile_layers`) call it as it is: torch.compile cannot see what a mask carries along.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(TREE_ATTENTION, _untraced())
    AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)


def planned_mask(tree: CandidateTree, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, 1, 1, 1]: what the model hands on to every layer, with the chunks as an attribute.

    An attribute, because a model takes nothing but a tensor here and hands it on as it is.
    """
    seen = []
    for group in tree.groups:
        seen_GWK = group.seen_GWK
        if window is not None:
            distance_GWK = tree.depth_T[group.query_GW][:, :, None] - tree.depth_T[group.key_GK][:, None, :]
            seen_GWK = seen_GWK & (distance_GWK < window)
        seen.append(seen_GWK[:, None])
    key_X = torch.cat([group.key_GK.flatten() for group in tree.groups])
    query_Q = torch.cat([group.query_GW.flatten() for group in tree.groups])
    place_T = torch.empty_like(tree.depth_T)
    # A filling repeats a node: whichever of its places is kept, the result is the same.
    place_T[query_Q] = torch.arange(len(query_Q), device=query_Q.device)
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=query_Q.device)
    mask.plan = _Plan(query_Q, place_T, key_X, seen)  # type: ignore[attr-defined]
    return mask


def behind_cache(mask: Tensor, new_N: Tensor, place_T: Tensor, column_T: Tensor) -> Tensor:
    """The mask of a tree of which some nodes are in the model's cache, for a pass over the others.

    mask: `planned_mask` of chunks whose queries are the nodes that run. new_N: those nodes. place_T: the place of each
    node among them. column_T: where its key stands, the cached ones first.
    """
    plan: _Plan = mask.plan  # type: ignore[attr-defined]
    moved = torch.ones_like(mask)
    moved.plan = _Plan(place_T[plan.query_Q], plan.place_T[new_N], column_T[plan.key_X], plan.seen)  # type: ignore[attr-defined]
    return moved


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """query [1, heads, T, width] → [1, T, heads, width]. Raises ScoringError for a tree whose chunks were lost."""
    plan: _Plan | None = getattr(attention_mask, "plan", None)
    if plan is None:
        if attention_mask is not None and attention_mask.shape[-1] < key.shape[2]:
            raise ScoringError("a wrapper around the model copied its attention mask: set scoring: naive")
        return _kernel(module, query, key, value, attention_mask, options), None
    options.pop("is_causal", None)
    query_TND, key_TND, value_TND = (states[0].transpose(0, 1) for states in (query, key, value))
    own = _selected(query_TND, plan.query_Q, [seen.shape[0] * seen.shape[2] for seen in plan.seen])
    sizes = [seen.shape[0] * seen.shape[3] for seen in plan.seen]
    keys, values = (_selected(states_TND, plan.key_X, sizes) for states_TND in (key_TND, value_TND))
    outputs = []
    masks = plan.seen if _by_products(options) else plan.added(_dtype_of_scores(query))
    for mask_G1WK, *given in zip(masks, own, keys, values, strict=True):
        states = [s.view(len(mask_G1WK), -1, *s.shape[1:]).transpose(1, 2) for s in given]
        outputs.append(_kernel(module, states[0], states[1], states[2], mask_G1WK, options).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.place_T)[None], None


def _dtype_of_scores(query: Tensor) -> torch.dtype:
    """What sdpa computes in, and a mask of another type would be cast to in every layer."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _selected(states_TND: Tensor, node_X: Tensor, sizes: list[int]) -> Iterable[Tensor]:
    """The states of nodes, in parts of these sizes. Under gradients selected at once and split, because the gradient of
    every selection is a tensor as large as all nodes; else one part after the other, which takes less memory."""
    if torch.is_grad_enabled():
        return torch.split(states_TND.index_select(0, node_X), sizes)
    return (states_TND.index_select(0, part_x) for part_x in torch.split(node_X, sizes))


def _by_products(options: dict[str, Any]) -> bool:
    """Whether scores are capped or heads have sinks, which sdpa cannot do."""
    return options.get("softcap") is not None or options.get("s_aux") is not None


def _kernel(
    module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """[B, T, heads, width]: sdpa, which also takes `seen` as numbers to add, or products and a softmax."""
    from transformers.integrations import sdpa_attention

    if not _by_products(options):
        attend: Any = sdpa_attention.sdpa_attention_forward
        return attend(module, query, key, value, seen, **options)[0]  # type: ignore[no-any-return]
    softcap, sinks_N = options.get("softcap"), options.get("s_aux")
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = (sdpa_attention.repeat_kv(states, groups) for states in (key, value))
    scores_BNTK = query @ key.transpose(2, 3) * options["scaling"]
    if softcap is not None:
        scores_BNTK = softcap * torch.tanh(scores_BNTK / softcap)
    if seen is None:  # plainly causal; behind a cache the queries are the last of the keys
        n_queries, n_keys = scores_BNTK.shape[-2:]
        seen = torch.ones((n_queries, n_keys), dtype=torch.bool, device=query.device).tril(n_keys - n_queries)
    # Not −∞: padding on the left sees nothing, and its NaN would reach everyone through its values.
    scores_BNTK = scores_BNTK.float().masked_fill(~seen, torch.finfo(torch.float32).min)
    if sinks_N is not None:
        sinks_BNT1 = sinks_N.float()[None, :, None, None].expand(*scores_BNTK.shape[:3], 1)
        scores_BNTK = torch.cat([scores_BNTK, sinks_BNT1], -1)
    weights_BNTK = scores_BNTK.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    weights_BNTK = torch.dropout(weights_BNTK, options.get("dropout", 0.0), module.training)
    return (weights_BNTK @ value).transpose(1, 2)
