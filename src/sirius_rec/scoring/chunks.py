"""A tree's nodes in chunks for attention: each chunk is given the ancestors of its first node, and itself.

No later node of a chunk has an ancestor outside of these: in depth-first order, whatever lies above it and before the
chunk lies above the chunk's first node, too. So a chunk of W nodes costs W · (depth + W), and nothing that grows with
the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Wide enough for batched products to run at a good rate, and narrow against the prompts that each chunk sees.
CHUNK = 32
# Chunks share a call where their keys differ by less than this share.
_PADDED = 0.1
# On a GPU, which is done with a call before the next one is launched, they share one as long as all of it, fillings
# included, is so many times what it holds: a few calls to a layer in place of a dozen or two. Keys are copied once per
# chunk and kept for the backward pass, so that more filling would cost memory.
_FILLED_ON_GPU = 1.4
# CUDA's kernels copy a mask whose rows are not so many numbers long, or a multiple of them, in every layer.
_ALIGNED = 16


@dataclass(frozen=True)
class ChunkGroup:
    """G chunks of W queries with K keys each, short ones filled up.

    query_GW: nodes; the tree's last node fills up the last chunk. key_GK: nodes that a chunk is given; 0 fills up.
    seen_GWK: which key each query sees.
    """

    query_GW: Tensor
    key_GK: Tensor
    seen_GWK: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = True) -> ChunkGroup:
        return ChunkGroup(*(tensor.to(device, non_blocking=non_blocking) for tensor in vars(self).values()))


def for_device(groups: tuple[ChunkGroup, ...], device: torch.device | str) -> tuple[ChunkGroup, ...]:
    """The groups of a tree on the CPU, as many as its device does well with."""
    if torch.device(device).type == "cpu":
        return groups
    together: list[list[ChunkGroup]] = []
    for group in groups:
        if together and _area([*together[-1], group]) <= _FILLED_ON_GPU * sum(
            part.seen_GWK.numel() for part in (*together[-1], group)
        ):
            together[-1].append(group)
        else:
            together.append([group])
    return tuple(map(_joined, together))


def _area(groups: list[ChunkGroup]) -> int:
    """Queries times keys of all chunks in one group."""
    count = sum(len(group.query_GW) for group in groups)
    return count * max(g.query_GW.shape[1] for g in groups) * max(g.key_GK.shape[1] for g in groups)


def _joined(groups: list[ChunkGroup]) -> ChunkGroup:
    """All chunks in one group, filled up with keys that nobody sees, and with each chunk's first query again."""
    width = max(group.query_GW.shape[1] for group in groups)
    most = max(group.key_GK.shape[1] for group in groups)
    most += -most % _ALIGNED
    queries, keys, seen = [], [], []
    for group in groups:
        column = torch.arange(width).where(torch.arange(width) < group.query_GW.shape[1], 0)
        more = (0, most - group.key_GK.shape[1])
        queries.append(group.query_GW[:, column])
        keys.append(torch.nn.functional.pad(group.key_GK, more))
        seen.append(torch.nn.functional.pad(group.seen_GWK[:, column], more))
    return ChunkGroup(torch.cat(queries), torch.cat(keys), torch.cat(seen))


class ChunkBorders:
    """Collects the ancestors of every chunk's first node while a tree is walked text by text."""

    def __init__(self, n_nodes: int) -> None:
        self.width = min(CHUNK, n_nodes)
        self.n_nodes = n_nodes
        self.ancestors: list[np.ndarray] = []

    def note(self, path: np.ndarray, start: int, depth: int, end: int) -> None:
        """path: nodes of the current text by depth, of which start … end − 1, from `depth` on, are new."""
        first = len(self.ancestors) * self.width
        while first < end:
            self.ancestors.append(path[: depth + first - start].copy())
            first += self.width

    def groups(self, exit_T: np.ndarray) -> tuple[ChunkGroup, ...]:
        """Chunks with about as many keys each, together; the longest first."""
        size = np.array([len(nodes) for nodes in self.ancestors]) + self.width
        order = np.argsort(-size, kind="stable")
        together: list[list[int]] = []
        for c in order.tolist():
            if together and size[c] >= (1 - _PADDED) * size[together[-1][0]]:
                together[-1].append(c)
            else:
                together.append([c])
        return tuple(self._group(np.array(sorted(chunks)), exit_T) for chunks in together)

    def _group(self, chunks: np.ndarray, exit_T: np.ndarray) -> ChunkGroup:
        own_GW = chunks[:, None] * self.width + np.arange(self.width)
        query_GW = np.minimum(own_GW, self.n_nodes - 1)
        above = [self.ancestors[c] for c in chunks]
        n_above = np.array([len(nodes) for nodes in above])
        key_GK = np.zeros((len(chunks), int(n_above.max()) + self.width), dtype=np.int64)
        key_GK[:, : self.width] = query_GW
        real_GK = np.zeros(key_GK.shape, dtype=bool)
        real_GK[:, : self.width] = own_GW < self.n_nodes
        given = np.arange(key_GK.shape[1] - self.width) < n_above[:, None]
        key_GK[:, self.width :][given] = np.concatenate(above)
        real_GK[:, self.width :] = given
        before_GWK = key_GK[:, None, :] <= query_GW[:, :, None]
        seen_GWK = before_GWK & (query_GW[:, :, None] < exit_T[key_GK][:, None, :]) & real_GK[:, None, :]
        return ChunkGroup(*map(torch.from_numpy, (query_GW, key_GK, seen_GWK)))
