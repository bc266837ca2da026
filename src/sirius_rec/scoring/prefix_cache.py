"""Keys and values of prompts kept between calls: what a prompt begins with is not computed again.

A batch is the same candidate tree as without a cache. Its nodes that are cached are given to the model as what it has
read already, and all others run as they would. So a second slate for one history costs its candidates alone, and
batches of many users, some of them known, stay one forward pass.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sirius_rec.scoring.chunks import ChunkGroup
from sirius_rec.scoring.head import scoring_head
from sirius_rec.scoring.masks import attention_masks
from sirius_rec.scoring.packed import tree_logps, unwrapped, use_tree_attention
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import CandidateTree, build_tree
from sirius_rec.scoring.tree_attention import TREE_ATTENTION, behind_cache

Ints = npt.NDArray[np.int64]
_ID = 4  # bytes of a token id in a key


@dataclass(frozen=True)
class _Entry:
    """What the model remembers of a prompt: keys and values [1, heads, T, width] of each layer."""

    layers: list[tuple[Tensor, Tensor]]
    n_bytes: int


@dataclass
class CacheCounts:
    """Prompts that were there (all but the last token, which always runs), in part, or not; and their tokens."""

    whole: int = 0
    part: int = 0
    none: int = 0
    reused: int = 0
    computed: int = 0
    evicted: int = 0


@dataclass
class PrefixCache:
    """Prompts' keys and values within `max_bytes`; the least recently used go first. For one model and one thread.

    n_bytes: what the kept tensors take. counts: since it was made.
    """

    max_bytes: int
    n_bytes: int = 0
    counts: CacheCounts = field(default_factory=CacheCounts)
    _entries: OrderedDict[bytes, _Entry] = field(default_factory=OrderedDict)
    _sorted: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget everything: the model's weights are others now."""
        self._entries.clear()
        self._sorted.clear()
        self.n_bytes = 0

    @torch.no_grad()
    def logps(self, model: nn.Module, rows: Sequence[PromptCompletions]) -> Tensor:
        """`scoring.packed.tree_logps` of the rows' tree, [B, C] in nats, with cached beginnings of prompts left out.

        Where the model runs on another attention kernel than that for trees, nothing is cached.
        """
        device = next(model.parameters()).device
        tree = build_tree(rows)
        if use_tree_attention(model) != TREE_ATTENTION:
            return tree_logps(model, tree.to(device))
        paths = _prompt_paths(tree, rows)
        found = [self._longest(_key(row.prompt)) for row in rows]
        past, cached_T = _cached_nodes(tree, paths, found)
        for path, (_, n) in zip(paths, found, strict=True):
            self._count(len(path), n)
        from transformers import DynamicCache

        cache = DynamicCache()  # without the model's configuration, no layer forgets what leaves its window
        for layer, (keys, values) in enumerate(past.layers):
            cache.update(keys, values, layer)
        logp_BC = _run(model, tree, cache, cached_T, past)
        self._keep(rows, paths, cache, _columns(cached_T, past))
        return logp_BC

    def _count(self, n_prompt: int, n_known: int) -> None:
        self.counts.reused += n_known
        self.counts.computed += n_prompt - n_known
        kind = "none" if not n_known else "whole" if n_known == n_prompt - 1 else "part"
        setattr(self.counts, kind, getattr(self.counts, kind) + 1)

    def _longest(self, key: bytes) -> tuple[_Entry | None, int]:
        """The entry with the longest common beginning, and its tokens, the prompt's last one never with them.

        In sorted order it is a neighbour of where the prompt would stand.
        """
        at = bisect_left(self._sorted, key)
        best, length = None, 0
        for neighbour in self._sorted[max(at - 1, 0) : at + 1]:
            if (n := min(_common(key, neighbour), len(key) // _ID - 1)) > length:
                best, length = neighbour, n
        if best is None:
            return None, 0
        self._entries.move_to_end(best)
        return self._entries[best], length

    def _keep(self, rows: Sequence[PromptCompletions], paths: Sequence[Ints], cache: Any, column_T: Ints) -> None:
        """Copies of the prompts' columns; the oldest entries make room."""
        for row, path in zip(rows, paths, strict=True):
            key = _key(row.prompt)
            if key in self._entries:
                self._entries.move_to_end(key)
                continue
            columns = torch.from_numpy(column_T[path]).to(cache.layers[0].keys.device)
            layers = [(c.keys.index_select(2, columns), c.values.index_select(2, columns)) for c in cache.layers]
            size = sum(t.numel() * t.element_size() for pair in layers for t in pair)
            if size > self.max_bytes:
                continue
            while self.n_bytes + size > self.max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[key] = _Entry(layers, size)
            insort(self._sorted, key)
            self.n_bytes += size

    def _drop(self, key: bytes) -> None:
        self.n_bytes -= self._entries.pop(key).n_bytes
        del self._sorted[bisect_left(self._sorted, key)]
        self.counts.evicted += 1


def _key(prompt: Sequence[int]) -> bytes:
    """Big-endian, so that bytes sort as the ids do."""
    return np.asarray(prompt, dtype=">i4").tobytes()


def _common(a: bytes, b: bytes) -> int:
    """Tokens that two keys have in common from their beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.frombuffer(a[:n], np.uint8) != np.frombuffer(b[:n], np.uint8))
    return (int(different[0]) if len(different) else n) // _ID


def _prompt_paths(tree: CandidateTree, rows: Sequence[PromptCompletions]) -> list[Ints]:
    """The nodes of each row's prompt, by depth."""
    width = tree.valid_BC.shape[1]
    last_B = np.full(len(rows), tree.n_nodes, dtype=np.int64)
    # Of what is read off for a row, the first in depth-first order is its prompt's last token.
    np.minimum.at(last_B, tree.candidate_M.numpy() // width, tree.keep_N.numpy()[tree.source_M.numpy()])
    exit_T = tree.exit_T.numpy()
    return [np.flatnonzero(exit_T[: last + 1] > last) for last in last_B]


@dataclass(frozen=True)
class _Past:
    """nodes: of the tree that are cached, in the order of the columns of `layers`."""

    nodes: Ints
    layers: list[tuple[Tensor, Tensor]]


def _cached_nodes(
    tree: CandidateTree, paths: Sequence[Ints], found: Sequence[tuple[_Entry | None, int]]
) -> tuple[_Past, npt.NDArray[np.bool_]]:
    """What the cache has of the tree, each node once; what predicts a scored token runs again."""
    cached_T = np.zeros(tree.n_nodes, dtype=bool)
    taken_T = np.zeros(tree.n_nodes, dtype=bool)
    taken_T[tree.keep_N.numpy()] = True
    nodes: list[Ints] = []
    parts: list[tuple[_Entry, Ints]] = []
    for path, (entry, n) in zip(paths, found, strict=True):
        depths = np.flatnonzero(~taken_T[path[:n]])
        if entry is None or not len(depths):
            continue
        nodes.append(path[depths])
        taken_T[path[depths]] = cached_T[path[depths]] = True
        parts.append((entry, depths))
    if not parts:
        return _Past(np.empty(0, dtype=np.int64), []), cached_T
    device = parts[0][0].layers[0][0].device
    chosen = [(entry, torch.from_numpy(depths).to(device)) for entry, depths in parts]
    layers = [
        (
            torch.cat([entry.layers[layer][0].index_select(2, at) for entry, at in chosen], 2),
            torch.cat([entry.layers[layer][1].index_select(2, at) for entry, at in chosen], 2),
        )
        for layer in range(len(parts[0][0].layers))
    ]
    return _Past(np.concatenate(nodes), layers), cached_T


def _columns(cached_T: npt.NDArray[np.bool_], past: _Past) -> Ints:
    """Where each node's key stands behind the pass: the cached ones first, then the others in their order."""
    column_T = np.empty(len(cached_T), dtype=np.int64)
    column_T[past.nodes] = np.arange(len(past.nodes))
    column_T[~cached_T] = len(past.nodes) + np.arange(int((~cached_T).sum()))
    return column_T


def _run(model: nn.Module, tree: CandidateTree, cache: Any, cached_T: npt.NDArray[np.bool_], past: _Past) -> Tensor:
    """[B, C] log π from the nodes that are not cached, which the cache grows by."""
    base, device = unwrapped(model), next(model.parameters()).device
    new_N = np.flatnonzero(~cached_T)
    place_T = np.cumsum(~cached_T) - 1  # among those that run
    groups = [group for group in (_uncached(group, cached_T) for group in tree.groups) if group is not None]
    narrow = replace(tree, groups=tuple(groups)).to(device)
    new, column_T, own_T = (torch.from_numpy(a).to(device) for a in (new_N, _columns(cached_T, past), place_T))
    masks = attention_masks(base.config, narrow, base.dtype)
    if isinstance(masks, dict):
        masks = {kind: behind_cache(mask, new, own_T, column_T) for kind, mask in masks.items()}
    else:
        masks = behind_cache(masks, new, own_T, column_T)
    inputs: dict[str, Any] = {
        "input_ids": narrow.token_T[new][None],
        "position_ids": narrow.depth_T[new][None],
        "attention_mask": masks,
        "past_key_values": cache,
        "use_cache": True,
    }
    if getattr(base.config, "output_router_logits", False):  # for a loss of theirs that reads the mask as 2-D
        inputs["output_router_logits"] = False
    with scoring_head(base, own_T[narrow.keep_N], narrow.source_M, narrow.target_M):
        token_logp_M: Tensor = model(**inputs).logits[0].float()
    shape = narrow.valid_BC.shape
    return token_logp_M.new_zeros(shape.numel()).index_add(0, narrow.candidate_M, token_logp_M).view(shape)


def _uncached(group: ChunkGroup, cached_T: npt.NDArray[np.bool_]) -> ChunkGroup | None:
    """A group's chunks in which something runs, its cached queries replaced by the chunk's first that does."""
    query_GW = group.query_GW.numpy()
    runs_GW = ~cached_T[query_GW]
    some = runs_GW.any(1)
    if not some.any():
        return None
    runs_GW, query_GW = runs_GW[some], query_GW[some]
    column_GW = np.where(runs_GW, np.arange(query_GW.shape[1]), runs_GW.argmax(1)[:, None])
    # As wide as the chunk in which most runs; a filling repeats a query, and whichever is kept, the result is the same.
    order_GW = np.argsort(~runs_GW, axis=1, kind="stable")[:, : int(runs_GW.sum(1).max())]
    column_GW = np.take_along_axis(column_GW, order_GW, 1)
    query = torch.from_numpy(np.take_along_axis(query_GW, column_GW, 1))
    chunks = torch.from_numpy(np.flatnonzero(some))
    seen_GWK = group.seen_GWK[chunks]
    seen = seen_GWK.gather(1, torch.from_numpy(column_GW)[:, :, None].expand(-1, -1, seen_GWK.shape[2]))
    return ChunkGroup(query, group.key_GK[chunks], seen)
