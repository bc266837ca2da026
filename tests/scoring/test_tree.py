"""Trees by hand, against sets of prefixes, and through their chunks; sizes for kernels that are compiled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.errors import ScoringError
from sirius_rec.scoring import chunks
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import CandidateTree, build_tree, count_nodes, padded

# Two prompts with a common beginning; "Red" (20) is the beginning of "Red House" (20 21); 2 ends a title.
ROWS = [
    PromptCompletions([10, 11], [[20, 2], [20, 21, 2]]),
    PromptCompletions([10, 11, 12], [[30, 2]]),
    PromptCompletions([10, 11], [[20, 2]]),
]


def test_a_tree_by_hand() -> None:
    """10 ─ 11 ─┬─ 12 ─ 30
    └─ 20 ─ 21      in order of ids: 10 11 12 30 20 21."""
    tree = build_tree(ROWS)
    assert tree.token_T.tolist() == [10, 11, 12, 30, 20, 21]
    assert tree.depth_T.tolist() == [0, 1, 2, 3, 2, 3]
    assert tree.exit_T.tolist() == [6, 6, 4, 4, 6, 6]
    # Read off: 20 (three times) behind 11, 2 (twice) and 21 behind 20, 2 behind 21; 30 behind 12, 2 behind 30.
    assert tree.keep_N.tolist() == [1, 2, 3, 4, 5]
    tokens = list(
        zip(tree.keep_N[tree.source_M].tolist(), tree.target_M.tolist(), tree.candidate_M.tolist(), strict=True)
    )
    assert sorted(tokens) == [
        (1, 20, 0), (1, 20, 1), (1, 20, 4), (2, 30, 2), (3, 2, 2), (4, 2, 0), (4, 2, 4), (4, 21, 1), (5, 2, 1),
    ]  # fmt: skip
    assert tree.source_M.tolist() == sorted(tree.source_M.tolist())
    assert tree.length_BC.tolist() == [[2, 3], [2, 1], [2, 1]]
    assert tree.valid_BC.tolist() == [[True, True], [True, False], [True, False]]
    assert tree.n_positions == 4
    assert tree.n_nodes == count_nodes(ROWS) == 6


ids = st.integers(3, 6)  # few, so that much is shared
texts = st.lists(ids, min_size=1, max_size=7)
titles = st.lists(ids, max_size=4).map(lambda title: [*title, 2])
rows_of_texts = st.lists(
    st.builds(PromptCompletions, texts, st.lists(titles, min_size=1, max_size=4)), min_size=1, max_size=6
)


def paths(tree: CandidateTree) -> list[tuple[int, ...]]:
    """The text of every node, by its intervals alone: the tokens of all nodes that it sees."""
    node_T = torch.arange(tree.n_nodes)
    seen_TT = (node_T <= node_T[:, None]) & (node_T[:, None] < tree.exit_T)
    return [tuple(tree.token_T[seen_T].tolist()) for seen_T in seen_TT]


@given(rows_of_texts)
@settings(max_examples=200)
def test_nodes_are_the_distinct_prefixes(rows: list[PromptCompletions]) -> None:
    tree = build_tree(rows)
    found = paths(tree)
    inputs = [(*row.prompt, *y[:-1]) for row in rows for y in row.completions]
    prefixes = {text[:n] for text in inputs for n in range(1, len(text) + 1)}
    assert sorted(found) == sorted(prefixes)
    assert tree.depth_T.tolist() == [len(path) - 1 for path in found]
    assert count_nodes(rows) == len(prefixes)
    assert tree.n_positions == max(map(len, inputs))


@given(rows_of_texts)
@settings(max_examples=200)
def test_every_token_is_read_off_what_comes_before_it(rows: list[PromptCompletions]) -> None:
    tree = build_tree(rows)
    found, columns = paths(tree), tree.valid_BC.shape[1]
    read = sorted(
        (candidate, found[tree.keep_N[source]], target)
        for source, target, candidate in zip(
            tree.source_M.tolist(), tree.target_M.tolist(), tree.candidate_M.tolist(), strict=True
        )
    )
    assert read == sorted(
        (b * columns + c, (*row.prompt, *y[:n]), y[n])
        for b, row in enumerate(rows)
        for c, y in enumerate(row.completions)
        for n in range(len(y))
    )
    assert len(set(tree.keep_N.tolist())) == len(tree.keep_N)
    assert set(tree.source_M.tolist()) == set(range(len(tree.keep_N)))


@given(rows_of_texts, st.integers(1, 9))
@settings(max_examples=200)
def test_chunks_are_given_what_their_nodes_see(rows: list[PromptCompletions], width: int) -> None:
    """Whatever the width and the device, every node's query sees exactly the nodes on its path, once each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", width)
        tree = build_tree(rows)
    for groups in (tree.groups, chunks.for_device(tree.groups, "cuda")):
        assert_seen(tree, groups)


def assert_seen(tree: CandidateTree, groups: tuple[chunks.ChunkGroup, ...]) -> None:
    found = paths(tree)
    queried = []
    for group in groups:
        for query_W, key_K, seen_WK in zip(group.query_GW, group.key_GK, group.seen_GWK, strict=True):
            for query, seen_K in zip(query_W.tolist(), seen_WK, strict=True):
                keys = key_K[seen_K].tolist()
                assert len(set(keys)) == len(keys)
                assert tuple(tree.token_T[sorted(keys)].tolist()) == found[query]
                queried.append(query)
    assert set(queried) == set(range(tree.n_nodes))


def test_a_gpu_gets_few_groups() -> None:
    """Keys from one chunk's to 40 chunks': a dozen groups and more on a CPU, where area counts, not calls."""
    tree = build_tree([PromptCompletions([5] * n + [6], [[n % 7, 2]]) for n in range(1, 1200, 31)])
    few = chunks.for_device(tree.groups, "cuda")
    assert len(tree.groups) > 12 and 1 < len(few) <= 5
    assert chunks.for_device(tree.groups, "cpu") is tree.groups
    assert len(tree.to("meta").groups) == len(few)
    area, more = (sum(group.seen_GWK.numel() for group in groups) for groups in (tree.groups, few))
    assert area < more < 1.41 * area


def test_groups_of_other_widths_are_joined_whole() -> None:
    """Behind a cache a long chunk may hold one query, and the next ones more: none of theirs may be lost."""
    long, wide = (
        chunks.ChunkGroup(torch.arange(g * w).view(g, w), torch.arange(k).repeat(g, 1), torch.rand(g, w, k) < 0.5)
        for g, w, k in ((1, 1, 40), (9, 4, 36))
    )
    (joined,) = chunks.for_device((long, wide), "cuda")
    assert joined.seen_GWK.shape == (10, 4, 48)  # 40, filled up to what CUDA's kernels take as it is
    assert joined.query_GW[0].tolist() == [0, 0, 0, 0] and (joined.seen_GWK[0, :, :40] == long.seen_GWK[0]).all()
    assert (joined.query_GW[1:] == wide.query_GW).all()
    assert (joined.seen_GWK[1:, :, :36] == wide.seen_GWK).all() and not joined.seen_GWK[1:, :, 36:].any()
    assert not joined.seen_GWK[0, :, 40:].any()


def test_padding_comes_in_few_sizes_and_sees_itself_alone() -> None:
    tree = padded(build_tree(ROWS))
    assert (tree.n_nodes, len(tree.depth_T), len(tree.exit_T)) == (128, 128, 128)
    assert paths(tree)[:6] == paths(build_tree(ROWS))
    assert paths(tree)[6:] == [(0,)] * 122
    sizes = set()
    for n in range(1, 5000, 61):
        row = PromptCompletions([5] * n, [[2]])
        made = padded(build_tree([row])).n_nodes
        sizes.add(made)
        assert made < max(1.25 * n, n + 128)
    assert sorted(sizes) == [
        128,
        256,
        384,
        512,
        640,
        768,
        896,
        1024,
        1280,
        1536,
        1792,
        2048,
        2560,
        3072,
        3584,
        4096,
        5120,
    ]


def test_what_cannot_be_a_tree() -> None:
    for rows in ([], [PromptCompletions([], [[2]])], [PromptCompletions([1], [])], [PromptCompletions([1], [[]])]):
        with pytest.raises(ScoringError, match="a tree needs rows"):
            build_tree(rows)


def test_moving_takes_everything_along() -> None:
    moved = build_tree(ROWS).to("meta")
    assert {tensor.device.type for tensor in vars(moved).values() if isinstance(tensor, torch.Tensor)} == {"meta"}
    assert {tensor.device.type for group in moved.groups for tensor in vars(group).values()} == {"meta"}
