"""Floating-point operations: what packed rows take, and the bound, at which every distinct token is computed once."""

from __future__ import annotations

from collections.abc import Sequence

from sirius_rec.bench.shapes import Shape
from sirius_rec.scoring.rows import PromptCompletions, pack


def _pair(shape: Shape) -> int:
    """Of one query and one key in all layers: their product and the value's share, two operations per number."""
    return 4 * shape.hidden * shape.layers


def _dense(shape: Shape, tokens: int, kept: int) -> int:
    return 2 * (tokens * shape.layer_weights + kept * shape.head_weights)


def _kept(row: PromptCompletions) -> int:
    return 1 + sum(len(ids) - 1 for ids in row.completions)


def bound(shape: Shape, rows: Sequence[PromptCompletions]) -> int:
    """Forward operations if every token that anything depends on is computed once and sees only what it may see."""
    total = 0
    for row in rows:
        n = len(row.prompt)
        pairs = n * (n + 1) // 2
        for ids in row.completions:
            m = len(ids) - 1
            pairs += m * n + m * (m + 1) // 2
        total += _dense(shape, row.packed_length, _kept(row)) + pairs * _pair(shape)
    return total


def packed(shape: Shape, rows: Sequence[PromptCompletions]) -> int:
    """Forward operations of packed rows on `scoring.tree_attention`: padding computed, the rest masked.

    The columns that are prompt in every row take a triangle; each chunk of the others the columns that it is given.
    """
    batch = pack(rows, 0)
    n_rows, width = batch.input_ids_BT.shape
    pairs = batch.n_prompt * (batch.n_prompt + 1) // 2
    for chunk in batch.chunks:
        seen = min(batch.prompt_end, chunk.back) + chunk.end - chunk.back
        pairs += (chunk.end - chunk.first) * seen
    return _dense(shape, width * n_rows, sum(map(_kept, rows))) + n_rows * pairs * _pair(shape)


def separate(shape: Shape, rows: Sequence[PromptCompletions], *, full_logits: bool = False) -> int:
    """Forward operations of one row per candidate, unpadded, causal attention over the lower triangle."""
    total = 0
    for row in rows:
        for ids in row.completions:
            n = len(row.prompt) + len(ids) - 1
            total += _dense(shape, n, n if full_logits else len(ids)) + n * (n + 1) // 2 * _pair(shape)
    return total
