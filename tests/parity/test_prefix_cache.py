"""Scoring behind cached prompts = scoring without a cache = separate passes, for every supported architecture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.scoring import chunks
from sirius_rec.scoring import tree as tree_module
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import tree_logps
from sirius_rec.scoring.prefix_cache import PrefixCache
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import score_rows
from sirius_rec.scoring.tree import build_tree


def _trees() -> Any:
    """The architectures of the trees' own test, which lies beside this file and is no package."""
    path = Path(__file__).with_name("test_trees_equal_naive.py")
    spec = importlib.util.spec_from_file_location("trees_equal_naive", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TREES = _trees()
MANY = 1 << 30


@pytest.fixture(autouse=True)
def narrow_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4)


def other_slates(rows: list[PromptCompletions], seed: int) -> list[PromptCompletions]:
    """The same prompts with slates of other titles, in another order."""
    rng = np.random.default_rng(seed)
    titles = [ids for row in rows for ids in row.completions]
    picked = [rng.permutation(len(titles))[:4] for _ in rows]
    new = [PromptCompletions(row.prompt, [titles[i] for i in at]) for row, at in zip(rows, picked, strict=True)]
    return [new[i] for i in rng.permutation(len(new))]


def expected(model: Any, rows: list[PromptCompletions]) -> torch.Tensor:
    with torch.no_grad():
        return tree_logps(model, build_tree(rows))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", TREES.ARCHITECTURES)
def test_cached_equals_uncached(name: str, lora: bool) -> None:
    """A batch of new users, other slates of the same, and users both known and new whose prompts begin alike."""
    model, cache = TREES.build(name, None, lora), PrefixCache(MANY)
    rows = TREES.random_rows()
    grown = [PromptCompletions([*row.prompt, 5, 9], row.completions) for row in rows[:2]]
    short = [PromptCompletions(rows[0].prompt[:3], rows[0].completions)]
    for batch in (rows[:2], other_slates(rows, 1), [*rows, *grown, *short], other_slates([*grown, *rows], 2)):
        found = cache.logps(model, batch)
        torch.testing.assert_close(found, expected(model, batch), atol=1e-5, rtol=0)
        with torch.no_grad():
            naive = naive_logps(model, batch, 0, torch.device("cpu"))
        assert (found - naive).abs().max() <= 1e-4
    assert cache.counts.whole >= len(rows) and cache.counts.part and cache.counts.none


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_groups_as_a_gpu_gets_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a cache chunks are of several widths, and are filled up in that, too."""
    want = TREES.build(name)
    few: list[tuple[int, int]] = []

    def for_device(groups: tuple[chunks.ChunkGroup, ...], device: Any) -> tuple[chunks.ChunkGroup, ...]:
        joined = chunks.for_device(groups, "cuda")
        few.append((len(groups), len(joined)))
        return joined

    model, cache = TREES.build(name), PrefixCache(MANY)
    rows = TREES.random_rows(3)
    for batch in (rows[:2], other_slates(rows, 1), other_slates(rows, 2)):
        expected_BC = expected(want, batch)
        with monkeypatch.context() as patch:
            patch.setattr(tree_module, "for_device", for_device)
            torch.testing.assert_close(cache.logps(model, batch), expected_BC, atol=1e-5, rtol=0)
    assert any(joined < groups for groups, joined in few)


@pytest.mark.parametrize("seed", range(6))
def test_random_trees(seed: int) -> None:
    model, cache = TREES.build("llama"), PrefixCache(MANY)
    rows = TREES.random_rows(seed, users=(1, 2, 5, 16)[seed % 4])
    rng = np.random.default_rng(seed)
    for turn in range(4):
        batch = other_slates([rows[i] for i in rng.permutation(len(rows))[: 1 + seed + turn]], seed + turn)
        torch.testing.assert_close(cache.logps(model, batch), expected(model, batch), atol=1e-5, rtol=0)


def test_a_second_slate_runs_its_candidates_alone() -> None:
    """What the model reads: nodes of the tree first, then those of the titles and the prompt's last token."""
    model, cache = TREES.build("llama"), PrefixCache(MANY)
    read: list[int] = []
    forward = model.forward
    model.forward = lambda **inputs: read.append(inputs["input_ids"].shape[1]) or forward(**inputs)
    prompt = list(range(3, 23))
    cache.logps(model, [PromptCompletions(prompt, [[30, 31, 2], [30, 32, 2]])])
    cache.logps(model, [PromptCompletions(prompt, [[40, 41, 42, 2], [2]])])
    assert read == [20 + 3, 1 + 3]
    assert (cache.counts.none, cache.counts.whole, cache.counts.reused, cache.counts.computed) == (1, 1, 19, 21)


def test_the_oldest_make_room() -> None:
    model = TREES.build("llama")
    rows = [PromptCompletions([3 + n, *range(10, 20)], [[4, 2]]) for n in range(4)]
    probe = PrefixCache(MANY)
    probe.logps(model, rows[:1])
    # keys and values of two layers, two heads of 8, 11 tokens in float32
    assert probe.n_bytes == 2 * 2 * 2 * 8 * 11 * 4
    cache = PrefixCache(2 * probe.n_bytes + 10)
    for row in (*rows[:2], rows[0], rows[2]):  # the second is the oldest when room is needed
        cache.logps(model, [row])
    assert (len(cache), cache.n_bytes, cache.counts.evicted) == (2, 2 * probe.n_bytes, 1)
    before = cache.counts.whole
    cache.logps(model, [rows[0]])
    assert cache.counts.whole == before + 1
    cache.logps(model, [rows[1]])
    assert cache.counts.whole == before + 1
    shared = PrefixCache(2 * probe.n_bytes + 10)
    for row in rows[:2]:
        shared.logps(model, [row])
    longer = PromptCompletions([*rows[0].prompt[:9], 40, 41], [[4, 2]])  # what only lends its beginning is used, too
    shared.logps(model, [longer])
    before = shared.counts.whole
    shared.logps(model, [rows[0]])
    assert shared.counts.whole == before + 1
    for batch in (rows, rows[::-1]):  # more prompts at once than there is room for
        torch.testing.assert_close(cache.logps(model, batch), expected(model, batch), atol=1e-5, rtol=0)
        assert cache.n_bytes <= cache.max_bytes
    nothing = PrefixCache(10)
    torch.testing.assert_close(nothing.logps(model, rows), expected(model, rows), atol=1e-5, rtol=0)
    assert len(nothing) == 0 == nothing.n_bytes


def test_score_rows_takes_a_cache_and_does_without_where_it_cannot() -> None:
    for name, attention in (("llama", None), ("llama", "eager")):
        model, cache = TREES.build(name, attention), PrefixCache(MANY)
        rows = TREES.random_rows(3, users=5)
        plain = score_rows(model, rows, 0, max_tokens=40)
        for _ in range(2):
            for found, want in zip(score_rows(model, rows, 0, max_tokens=40, prefixes=cache), plain, strict=True):
                np.testing.assert_allclose(found, want, atol=1e-5)
        assert bool(len(cache)) == (attention is None)
    model, cache = TREES.build("llama"), PrefixCache(MANY)
    score_rows(model, rows, 0, mode="naive", prefixes=cache)
    assert not len(cache)


def test_forgetting() -> None:
    model, cache = TREES.build("llama"), PrefixCache(MANY)
    rows = TREES.random_rows()
    cache.logps(model, rows)
    cache.clear()
    assert (len(cache), cache.n_bytes) == (0, 0)
    torch.testing.assert_close(cache.logps(model, rows), expected(model, rows), atol=1e-5, rtol=0)
