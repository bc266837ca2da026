"""Prompts with their completions, laid out as packed rows.

One row = [prompt, y_1 without its last token, …, y_C without its last token], right-padded. The last token of a
completion is never an input, and every completion's first token is read off the last prompt position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
import torch
from torch import Tensor

PROMPT_SEGMENT = 0
PAD_SEGMENT = -1
# Wide enough for matrix products to run at their full rate, and narrow against the prompts that each chunk sees.
CHUNK = 96


@dataclass(frozen=True)
class PromptCompletions:
    """Token ids of one prompt and of its candidates; each completion ends with the end-of-sequence token."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    @property
    def packed_length(self) -> int:
        return len(self.prompt) + sum(len(ids) - 1 for ids in self.completions)

    @property
    def longest_path(self) -> int:
        """Positions that the longest prompt-plus-completion takes up: what must fit into the model's context."""
        return len(self.prompt) + max(len(ids) for ids in self.completions) - 1

    def length(self, scoring: str) -> int:
        """Tokens that a model gets: `packed`, or `naive`, one row for each candidate, padded to the longest."""
        return len(self.completions) * (self.longest_path + 1) if scoring == "naive" else self.packed_length


@dataclass(frozen=True)
class Chunk:
    """Columns first … end − 1 of a batch. All that they may see lies in the prompts' columns and in back … end − 1."""

    first: int
    end: int
    back: int


@dataclass(frozen=True)
class PackedBatch:
    """B packed rows of T tokens with C candidates; M completion tokens in all, candidate by candidate, row by row.

    input_ids_BT, position_ids_BT: positions restart after the prompt in every completion.
    segment_BT: 0 the prompt, c + 1 candidate c, −1 padding.
    keep_BT: positions whose logits are needed; N of them, counted row by row.
    keep_BP, slot_N: the same as columns, each row filled up to P with column 0, and where in its B · P places each of
        the N stands: for devices on which counting a mask means waiting.
    source_M: which of the N predicts token m. target_M: that token. candidate_M: the b · C + c that it belongs to.
    length_BC: |y| in tokens, the end of sequence included; 1 for absent candidates, so that dividing is safe.
    valid_BC: real candidates. n_prompt: first columns that are prompt in every row.
    prompt_end: first column that is prompt in no row. chunks: the columns from n_prompt on, in runs.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    segment_BT: Tensor
    keep_BT: Tensor
    keep_BP: Tensor
    slot_N: Tensor
    source_M: Tensor
    target_M: Tensor
    candidate_M: Tensor
    length_BC: Tensor
    valid_BC: Tensor
    n_prompt: int
    prompt_end: int
    chunks: tuple[Chunk, ...]

    def to(self, device: torch.device | str) -> PackedBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: v.to(device, non_blocking=True) for name, v in values.items() if isinstance(v, Tensor)}
        return PackedBatch(**{**values, **tensors})


def _flat(sequences: Sequence[Sequence[int]], lengths: np.ndarray) -> np.ndarray:
    return np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=int(lengths.sum()))


def _within(lengths: np.ndarray) -> np.ndarray:
    """0 … n − 1 for each n in turn: the place of every element inside its own sequence."""
    within: np.ndarray = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return within


def _chunks(first: int, end: int, start_Y: np.ndarray, end_Y: np.ndarray) -> tuple[Chunk, ...]:
    """Chunks of about `CHUNK` columns; a candidate cut by a border in any row is seen whole from the later chunk."""
    borders = [first, *range(first + CHUNK, end - CHUNK // 2, CHUNK), end] if end > first else []
    back = [int(start_Y[(start_Y < at) & (end_Y > at)].min(initial=at)) for at in borders[:-1]]
    return tuple(map(Chunk, borders, borders[1:], back))


def _kept(prompt_B: np.ndarray, inputs_B: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """The last prompt position and all behind it, as `PackedBatch` has them: mask, columns, places in the columns."""
    columns, kept_B = np.arange(width), inputs_B + 1
    within_N, row_N = _within(kept_B), np.repeat(np.arange(len(kept_B)), kept_B)
    keep_BP = np.zeros((len(kept_B), int(kept_B.max())), dtype=np.int64)
    keep_BP[row_N, within_N] = prompt_B[row_N] - 1 + within_N
    keep_BT = (columns >= prompt_B[:, None] - 1) & (columns < (prompt_B + inputs_B)[:, None])
    return {"keep_BT": keep_BT, "keep_BP": keep_BP, "slot_N": row_N * keep_BP.shape[1] + within_N}


def pack(rows: Sequence[PromptCompletions], pad_id: int) -> PackedBatch:
    """Lay out rows (any lengths, any number of candidates each) as one right-padded batch.

    Array by array, never token by token: this runs in every step. Y counts the real candidates of all rows.
    """
    if not rows:
        raise ValueError("an empty batch has no layout")
    prompt_B = np.array([len(row.prompt) for row in rows])
    count_B = np.array([len(row.completions) for row in rows])
    completions = [ids for row in rows for ids in row.completions]
    length_Y = np.array([len(ids) for ids in completions])
    shape = (len(rows), int(count_B.max()))
    row_Y, column_Y = np.repeat(np.arange(len(rows)), count_B), _within(count_B)
    # Inputs of a row's earlier candidates: the last token of each is none.
    ahead_Y = np.cumsum(length_Y - 1) - (length_Y - 1)
    ahead_Y -= np.repeat(ahead_Y[np.cumsum(count_B) - count_B], count_B)
    inputs_B = np.bincount(row_Y, weights=length_Y - 1).astype(np.int64)
    width = int((prompt_B + inputs_B).max())

    input_ids_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    segment_BT = np.full((len(rows), width), PAD_SEGMENT, dtype=np.int64)
    at = (np.repeat(np.arange(len(rows)), prompt_B), _within(prompt_B))
    input_ids_BT[at] = _flat([row.prompt for row in rows], prompt_B)
    position_ids_BT[at] = at[1]
    segment_BT[at] = PROMPT_SEGMENT

    of_M, within_M = np.repeat(np.arange(len(length_Y)), length_Y), _within(length_Y)
    row_M, target_M = row_Y[of_M], _flat(completions, length_Y)
    behind_M = ahead_Y[of_M] + within_M
    read = within_M < length_Y[of_M] - 1
    at = (row_M[read], (prompt_B[row_M] + behind_M)[read])
    input_ids_BT[at] = target_M[read]
    position_ids_BT[at] = (prompt_B[row_M] + within_M)[read]
    segment_BT[at] = column_Y[of_M][read] + 1

    # Every completion's first token is read off the last prompt position.
    source_M = (np.cumsum(inputs_B + 1) - inputs_B - 1)[row_M] + np.where(within_M == 0, 0, behind_M)
    length_BC, valid_BC = np.ones(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    length_BC[row_Y, column_Y], valid_BC[row_Y, column_Y] = length_Y, True
    arrays = {
        "input_ids_BT": input_ids_BT,
        "position_ids_BT": position_ids_BT,
        "segment_BT": segment_BT,
        **_kept(prompt_B, inputs_B, width),
        "source_M": source_M,
        "target_M": target_M,
        "candidate_M": row_M * shape[1] + column_Y[of_M],
        "length_BC": length_BC,
        "valid_BC": valid_BC,
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    first, start_Y = int(prompt_B.min()), prompt_B[row_Y] + ahead_Y
    chunks = _chunks(first, width, start_Y, start_Y + length_Y - 1)
    return PackedBatch(**tensors, n_prompt=first, prompt_end=int(prompt_B.max()), chunks=chunks)
