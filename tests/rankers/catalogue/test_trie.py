"""The trie of titles against a dictionary of dictionaries, and what it refuses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec.errors import DataError, PromptError, RunError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.rankers.catalogue.trie import ROOT, Trie, build_trie, trie_key, trie_of

EOS = 2


def flat_trie(titles: list[list[int]], special: set[int] | None = None) -> Trie:
    flat = np.array([i for ids in titles for i in ids], dtype=np.int32)
    names = [f"title {n}" for n in range(len(titles))]
    return trie_of(flat, np.array(list(map(len, titles))), names, special=special or {EOS}, key="k")


def random_titles(rng: random.Random, n: int, vocabulary: int = 6, longest: int = 5) -> list[list[int]]:
    """Distinct, many beginning alike, some with ids beyond 2^15."""
    found = {tuple(rng.choice([3, 4, 5, 6, 7, 70_000][:vocabulary]) for _ in range(rng.randint(1, longest)))
             for _ in range(n)}  # fmt: skip
    titles = [[*ids, EOS] for ids in found]
    rng.shuffle(titles)
    return titles


def as_dict(titles: list[list[int]]) -> dict[int, Any]:
    root: dict[int, Any] = {}
    for ids in titles:
        at = root
        for token in ids:
            at = at.setdefault(token, {})
    return root


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_dictionary_of_its_titles(seed: int) -> None:
    rng = random.Random(seed)
    titles = random_titles(rng, rng.choice([1, 2, 10, 60]))
    trie = flat_trie(titles)
    inner = 0

    def same(node: int, expected: dict[int, Any], prefix: list[int]) -> None:
        nonlocal inner
        assert trie.tokens(node) == prefix
        assert trie.depth_N[node] == len(prefix)
        children, of = trie.children(np.array([node]))
        assert not of.any()
        assert trie.token_N[children].tolist() == sorted(expected)
        below = [item for item, ids in enumerate(titles) if ids[: len(prefix)] == prefix]
        assert sorted(trie.item_S[trie.first_N[node] : trie.end_N[node]].tolist()) == below
        assert bool(trie.is_leaf(np.array([node]))[0]) == (not expected)
        inner += bool(expected)
        for child in children.tolist():
            assert trie.parent_N[child] == node
            same(child, expected[int(trie.token_N[child])], [*prefix, int(trie.token_N[child])])

    same(ROOT, as_dict(titles), [])
    assert trie.n_inner == inner
    assert trie.n_titles == len(titles)
    assert trie.longest == max(map(len, titles))
    assert [trie.tokens(int(trie.leaves()[trie.place_I[item]])) for item in range(len(titles))] == titles


@pytest.mark.parametrize("seed", range(10))
def test_titles_left_below_a_node(seed: int) -> None:
    rng = random.Random(seed)
    titles = random_titles(rng, 40)
    trie = flat_trie(titles)
    out = rng.sample(range(len(titles)), rng.randint(0, len(titles)))
    nodes = np.arange(len(trie.token_N))
    left = trie.left(nodes, np.sort(trie.place_I[np.array(out, dtype=int)]))
    for node in nodes.tolist():
        prefix = trie.tokens(node)
        want = sum(ids[: len(prefix)] == prefix for item, ids in enumerate(titles) if item not in out)
        assert left[node] == want


def test_many_nodes_children_at_once() -> None:
    titles = random_titles(random.Random(0), 40)
    trie = flat_trie(titles)
    nodes = np.array([5, ROOT, 1, len(trie.token_N) - 1])
    children, of = trie.children(nodes)
    for n, node in enumerate(nodes):
        assert children[of == n].tolist() == np.flatnonzero(trie.parent_N == node).tolist()
    assert sorted(of.tolist()) == of.tolist()


def test_the_titles_of_a_tokenizer(tokenizer: Any, catalogue: tuple[str, ...]) -> None:
    encoder = Encoder(tokenizer)
    trie = build_trie(encoder, catalogue)
    leaves = trie.leaves()[trie.place_I]
    assert [trie.tokens(int(leaf)) for leaf in leaves] == [encoder.completion(title) for title in catalogue]
    assert encoder.completions(catalogue) == [encoder.completion(title) for title in catalogue]


def test_saved_and_loaded(tokenizer: Any, catalogue: tuple[str, ...], tmp_path: Path) -> None:
    encoder, path = Encoder(tokenizer), tmp_path / "trie.npz"
    made = build_trie(encoder, catalogue, path)
    written = path.stat().st_mtime_ns
    again = build_trie(encoder, catalogue, path)
    assert path.stat().st_mtime_ns == written
    for one, other in ((made, again), (made, Trie.load(path, trie_key(encoder, catalogue)))):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name))
            if isinstance(value, np.ndarray):
                assert value.dtype == getattr(other, name).dtype


def test_another_tokenizer_catalogue_or_order_is_another_trie(
    tokenizer: Any, catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "trie.npz"
    build_trie(Encoder(tokenizer), catalogue, path)
    with pytest.raises(RunError, match=r"trie\.npz: this trie was made of another catalogue or tokenizer"):
        build_trie(Encoder(tokenizer), catalogue[::-1], path)
    tokenizer.add_tokens(["Blur"])
    with pytest.raises(RunError, match=r"another catalogue or tokenizer.*: remove it, or name another file"):
        build_trie(Encoder(tokenizer), catalogue, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunError, match="cannot be read as a catalogue's trie"):
        build_trie(Encoder(tokenizer), catalogue, path)


def test_catalogues_that_are_refused(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    with pytest.raises(DataError, match="item number 1 has no title: give it one, or leave it out"):
        build_trie(encoder, ["Red", "", "Can"])
    with pytest.raises(DataError, match="it has no items"):
        build_trie(encoder, [])
    with pytest.raises(PromptError, match="title 'Red</s>Can' contains a special token"):
        build_trie(encoder, ["Air", "Red</s>Can"])
    with pytest.raises(PromptError, match="titles 'Air' and 'Air' have the same token ids"):
        build_trie(encoder, ["Air", "Can", "Air"])
    with pytest.raises(PromptError, match="titles 'title 0' and 'title 2' begin alike to the end of one of them"):
        flat_trie([[3, 4], [5, 4], [3]])
