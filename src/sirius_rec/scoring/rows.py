"""Prompts with their completions, laid out as packed rows.

One row = [prompt, y_1 without its last token, …, y_C without its last token], right-padded. The last token of a
completion is never an input, and every completion's first token is read off the last prompt position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

PROMPT_SEGMENT = 0
PAD_SEGMENT = -1


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


@dataclass(frozen=True)
class PackedBatch:
    """B packed rows of T tokens; L is the longest completion.

    input_ids_BT, position_ids_BT: positions restart after the prompt in every completion.
    segment_BT: 0 the prompt, c + 1 candidate c, −1 padding.
    keep_BT: positions whose logits are needed; N of them, counted row by row.
    source_BCL: which of the N logit rows predicts token l of candidate c. target_BCL: that token.
    token_BCL: real tokens. valid_BC: real candidates.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    segment_BT: Tensor
    keep_BT: Tensor
    source_BCL: Tensor
    target_BCL: Tensor
    token_BCL: Tensor
    valid_BC: Tensor

    @property
    def length_BC(self) -> Tensor:
        """|y| in tokens, the end of sequence included; 1 for absent candidates, so that dividing is safe."""
        return self.token_BCL.sum(2).clamp(min=1)

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def pack(rows: Sequence[PromptCompletions], pad_id: int) -> PackedBatch:
    """Lay out rows (any lengths, any number of candidates each) as one right-padded batch."""
    n_rows = len(rows)
    n_candidates = max(len(row.completions) for row in rows)
    longest = max(len(ids) for row in rows for ids in row.completions)
    width = max(row.packed_length for row in rows)
    input_ids_BT = np.full((n_rows, width), pad_id, dtype=np.int64)
    position_ids_BT = np.zeros((n_rows, width), dtype=np.int64)
    segment_BT = np.full((n_rows, width), PAD_SEGMENT, dtype=np.int64)
    keep_BT = np.zeros((n_rows, width), dtype=bool)
    source_BCL = np.zeros((n_rows, n_candidates, longest), dtype=np.int64)
    target_BCL = np.zeros((n_rows, n_candidates, longest), dtype=np.int64)
    token_BCL = np.zeros((n_rows, n_candidates, longest), dtype=bool)
    valid_BC = np.zeros((n_rows, n_candidates), dtype=bool)
    kept_before = 0
    for b, row in enumerate(rows):
        n_prompt = len(row.prompt)
        input_ids_BT[b, :n_prompt] = row.prompt
        position_ids_BT[b, :n_prompt] = np.arange(n_prompt)
        segment_BT[b, :n_prompt] = PROMPT_SEGMENT
        keep_BT[b, n_prompt - 1] = True
        at = n_prompt
        for c, ids in enumerate(row.completions):
            n = len(ids)
            end = at + n - 1
            input_ids_BT[b, at:end] = ids[:-1]
            position_ids_BT[b, at:end] = np.arange(n_prompt, n_prompt + n - 1)
            segment_BT[b, at:end] = c + 1
            source_BCL[b, c, 0] = kept_before
            source_BCL[b, c, 1:n] = kept_before + 1 + np.arange(at, end) - n_prompt
            target_BCL[b, c, :n] = ids
            token_BCL[b, c, :n] = True
            at = end
        keep_BT[b, n_prompt:at] = True
        valid_BC[b, : len(row.completions)] = True
        kept_before += 1 + at - n_prompt
    arrays = (input_ids_BT, position_ids_BT, segment_BT, keep_BT, source_BCL, target_BCL, token_BCL, valid_BC)
    return PackedBatch(*(torch.from_numpy(array) for array in arrays))
