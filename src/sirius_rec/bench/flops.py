"""Floating-point operations: what a tree's layout takes, and the bound: every distinct prefix computed once."""

from __future__ import annotations

from collections.abc import Sequence

from sirius_rec.bench.shapes import Shape
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import build_tree


def _pair(shape: Shape) -> int:
    """Of one query and one key in all layers: their product and the value's share, two operations per number."""
    return 4 * shape.hidden * shape.layers


def _dense(shape: Shape, tokens: int, kept: int) -> int:
    return 2 * (tokens * shape.layer_weights + kept * shape.head_weights)


def bound(shape: Shape, rows: Sequence[PromptCompletions]) -> int:
    """Forward operations if every distinct prefix is computed once and sees only what it may see."""
    tree = build_tree(rows)
    pairs = int(tree.depth_T.sum()) + tree.n_nodes
    return _dense(shape, tree.n_nodes, len(tree.keep_N)) + pairs * _pair(shape)


def attention_over_bound(rows: Sequence[PromptCompletions]) -> float:
    """Pairs of query and key that the chunks take, over those that the tree needs."""
    tree = build_tree(rows)
    return sum(group.seen_GWK.numel() for group in tree.groups) / (int(tree.depth_T.sum()) + tree.n_nodes)


def layout(shape: Shape, rows: Sequence[PromptCompletions]) -> int:
    """Forward operations of `scoring.tree_attention`: each chunk takes all keys that it is given, fillings included."""
    tree = build_tree(rows)
    pairs = sum(group.seen_GWK.numel() for group in tree.groups)
    return _dense(shape, tree.n_nodes, len(tree.keep_N)) + pairs * _pair(shape)


def separate(shape: Shape, rows: Sequence[PromptCompletions], *, full_logits: bool = False) -> int:
    """Forward operations of one row per candidate, unpadded, causal attention over the lower triangle."""
    total = 0
    for row in rows:
        for ids in row.completions:
            n = len(row.prompt) + len(ids) - 1
            total += _dense(shape, n, n if full_logits else len(ids)) + n * (n + 1) // 2 * _pair(shape)
    return total
