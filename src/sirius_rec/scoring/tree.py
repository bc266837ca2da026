"""Rows of a batch as one radix tree of token ids: every distinct prefix is one node, whoever it belongs to.

Rows share the instruction, a user's growing history, the prompt of a slate, and the beginnings of titles. A node sees
its ancestors and itself, its position is its depth, and a candidate's log-prob is the sum along its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from sirius_rec.errors import ScoringError
from sirius_rec.scoring.chunks import ChunkBorders, ChunkGroup, for_device
from sirius_rec.scoring.rows import PromptCompletions


@dataclass(frozen=True)
class CandidateTree:
    """T nodes, depth first: the nodes below t are t + 1 … exit_T[t] − 1. B rows with up to C candidates.

    token_T, depth_T: the node's token and its distance from the root, which is its position in the text.
    exit_T: the first node that is not below t. Node t sees node s exactly if s ≤ t < exit_T[s].
    keep_N: the nodes that predict a scored token, in order.
    source_M, target_M, candidate_M: token m of all completions, in order of where it is read off, keep_N[source_M[m]]:
        it is target_M[m], and belongs to row b's candidate c, candidate_M[m] = b · C + c.
    length_BC: |y| in tokens, the end of sequence included; 1 for absent candidates, so that dividing is safe.
    valid_BC: real candidates.
    n_positions: tokens of the longest text. groups: the nodes in chunks, with the nodes that each may see.
    """

    token_T: Tensor
    depth_T: Tensor
    exit_T: Tensor
    keep_N: Tensor
    source_M: Tensor
    target_M: Tensor
    candidate_M: Tensor
    length_BC: Tensor
    valid_BC: Tensor
    n_positions: int
    groups: tuple[ChunkGroup, ...]

    @property
    def n_nodes(self) -> int:
        return len(self.token_T)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> CandidateTree:
        """The same tree with its tensors on a device, its chunks in as many groups as suit it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {n: v.to(device, non_blocking=non_blocking) for n, v in values.items() if isinstance(v, Tensor)}
        groups = for_device(self.groups, device) if self.token_T.device.type == "cpu" else self.groups
        groups = tuple(group.to(device, non_blocking=non_blocking) for group in groups)
        return CandidateTree(**{**values, **moved, "groups": groups})


@dataclass(frozen=True)
class _Texts:
    """Distinct texts as the model reads them, sorted, so that texts with a common beginning are neighbours.

    ids_SL: padded with −1. length_S. shared_S: how many tokens text s has in common with the one before it.
    of_Y: the text of candidate y, counted over all rows.
    """

    ids_SL: np.ndarray
    length_S: np.ndarray
    shared_S: np.ndarray
    of_Y: np.ndarray


def _sorted_texts(rows: Sequence[PromptCompletions]) -> _Texts:
    """A text is a prompt and a completion without its last token, which is only predicted."""
    # Big-endian, so that bytes sort as the ids do; comparing bytes is far faster than comparing lists.
    prompts = [np.asarray(row.prompt, dtype=">i4").tobytes() for row in rows]
    texts = [
        prompt + np.asarray(ids[:-1], dtype=">i4").tobytes()
        for prompt, row in zip(prompts, rows, strict=True)
        for ids in row.completions
    ]
    distinct = sorted(set(texts))
    number = {text: s for s, text in enumerate(distinct)}
    length_S = np.array([len(text) // 4 for text in distinct])
    flat = np.frombuffer(b"".join(distinct), dtype=">i4")
    ids_SL = np.full((len(distinct), int(length_S.max())), -1, dtype=np.int64)
    ids_SL[np.arange(ids_SL.shape[1]) < length_S[:, None]] = flat
    equal = np.logical_and.accumulate(ids_SL[1:] == ids_SL[:-1], axis=1).sum(1)
    shared_S = np.concatenate([[0], np.minimum(equal, length_S[:-1])])
    return _Texts(ids_SL, length_S, shared_S, np.array([number[text] for text in texts]))


def count_nodes(rows: Sequence[PromptCompletions]) -> int:
    """How many nodes the tree of these rows has: the tokens that a model computes."""
    texts = _sorted_texts(rows)
    return int((texts.length_S - texts.shared_S).sum())


def build_tree(rows: Sequence[PromptCompletions]) -> CandidateTree:
    """The tree of rows of any lengths with any numbers of candidates.

    Raises ScoringError without rows, and for a prompt or a completion without a token.
    """
    whole = all(len(row.prompt) and len(row.completions) and all(map(len, row.completions)) for row in rows)
    if not rows or not whole:
        raise ScoringError("a tree needs rows, each with a prompt and completions of at least one token")
    texts = _sorted_texts(rows)
    new_S = texts.length_S - texts.shared_S
    start_S = np.cumsum(new_S) - new_S
    n_nodes = int(new_S.sum())
    own = np.arange(texts.ids_SL.shape[1])
    is_new_SL = (own >= texts.shared_S[:, None]) & (own < texts.length_S[:, None])
    token_T, depth_T = texts.ids_SL[is_new_SL], np.nonzero(is_new_SL)[1]

    count_B = [len(row.completions) for row in rows]
    completions = [ids for row in rows for ids in row.completions]
    length_Y = np.array([len(ids) for ids in completions])
    # Behind a text's last node ends the path of every candidate that reads it: its sources are the last |y| nodes.
    path = np.zeros(texts.ids_SL.shape[1], dtype=np.int64)  # nodes of the current text
    exit_T = np.full(n_nodes, n_nodes, dtype=np.int64)
    by_text = np.argsort(texts.of_Y, kind="stable")
    ends = np.searchsorted(texts.of_Y[by_text], np.arange(len(new_S)), side="right")
    sources: list[np.ndarray] = [path] * len(completions)
    borders = ChunkBorders(n_nodes)
    at = 0
    for s, (shared, length, start) in enumerate(zip(texts.shared_S, texts.length_S, start_S, strict=True)):
        if s:
            exit_T[path[shared : texts.length_S[s - 1]]] = start
        path[shared:length] = np.arange(start, start + length - shared)
        borders.note(path, int(start), int(shared), int(start + length - shared))
        for y in by_text[at : ends[s]]:
            sources[y] = path[length - length_Y[y] : length].copy()
        at = ends[s]

    keep_N, source_M = np.unique(np.concatenate(sources), return_inverse=True)
    by_source = np.argsort(source_M, kind="stable")
    shape = (len(rows), max(count_B))
    row_Y = np.repeat(np.arange(len(rows)), count_B)
    column_Y = np.concatenate([np.arange(n) for n in count_B])
    length_BC, valid_BC = np.ones(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    length_BC[row_Y, column_Y], valid_BC[row_Y, column_Y] = length_Y, True
    arrays = {
        "token_T": token_T,
        "depth_T": depth_T,
        "exit_T": exit_T,
        "keep_N": keep_N,
        "source_M": source_M[by_source],
        "target_M": np.concatenate([np.asarray(ids, dtype=np.int64) for ids in completions])[by_source],
        "candidate_M": np.repeat(row_Y * shape[1] + column_Y, length_Y)[by_source],
        "length_BC": length_BC,
        "valid_BC": valid_BC,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    groups = borders.groups(exit_T)
    return CandidateTree(**tensors, n_positions=texts.ids_SL.shape[1], groups=groups)


def padded(tree: CandidateTree) -> CandidateTree:
    """The same tree with nodes that see only themselves behind it, so that trees come in few sizes.

    Kernels that are compiled are compiled once per size: four to each doubling, and whole blocks of 128.
    """
    n, size = tree.n_nodes, 128
    while size < n:
        step = max(2 ** (size.bit_length() - 3), 128)
        size = (size // step + 1) * step
    if size == n:
        return tree
    pad = (0, size - n)
    more_T = torch.arange(n + 1, size + 1, device=tree.exit_T.device)
    return replace(
        tree,
        token_T=torch.nn.functional.pad(tree.token_T, pad),
        depth_T=torch.nn.functional.pad(tree.depth_T, pad),
        exit_T=torch.cat([tree.exit_T, more_T]),
    )
