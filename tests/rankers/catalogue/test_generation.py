"""Greedy and beam search over the trie against a plain implementation, and against the exact list."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sirius_rec.errors import ConfigError
from sirius_rec.rankers.catalogue.generation import constrained_generate, recall
from sirius_rec.rankers.catalogue.top import top_k
from sirius_rec.rankers.catalogue.trie import Trie, trie_of

EOS, VOCAB = 2, 24


def catalogue_of(seed: int, n: int = 80) -> tuple[list[list[int]], Trie]:
    rng = random.Random(seed)
    titles = sorted({tuple(rng.randrange(3, 12) for _ in range(rng.randint(1, 4))) for _ in range(n)})
    rows = [[*ids, EOS] for ids in titles]
    rng.shuffle(rows)
    flat = np.array([i for ids in rows for i in ids], dtype=np.int32)
    names = [str(n) for n in range(len(rows))]
    return rows, trie_of(flat, np.array(list(map(len, rows))), names, special={EOS}, key="k")


def model_of(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.4, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def naive_beam(model: Any, titles: list[list[int]], prompt: list[int], beams: int) -> list[int]:
    """Prefixes of one length after the other, each read anew; whole titles are kept aside."""
    live, done = [((), 0.0)], []
    while live:
        grown = []
        for path, total in live:
            logp = torch.log_softmax(model(input_ids=torch.tensor([[*prompt, *path]])).logits[0, -1], -1)
            for token in sorted({ids[len(path)] for ids in titles if tuple(ids[: len(path)]) == path}):
                grown.append(((*path, token), total + float(logp[token])))
        done = sorted([*done, *(g for g in grown if g[0][-1] == EOS)], key=lambda g: -g[1])[:beams]
        live = sorted((g for g in grown if g[0][-1] != EOS), key=lambda g: -g[1])
        live = [g for g in live if len(done) < beams or g[1] >= done[-1][1]][:beams]
    return [titles.index(list(path)) for path, _ in done]


@pytest.mark.parametrize("seed", range(12))
def test_it_is_beam_search_under_the_constraint(seed: int) -> None:
    titles, trie = catalogue_of(seed)
    model, prompts = model_of(seed), [[3, 4, 5], [7]]
    for beams in (1, 3, 20):
        for prompt, found in zip(
            prompts, constrained_generate(model, trie, prompts, pad_id=0, beams=beams), strict=True
        ):
            assert found.items.tolist() == naive_beam(model, titles, prompt, beams)
            (best,) = top_k(model, trie, [prompt], min(beams, len(titles)), pad_id=0)
            same = found.items.tolist() == best.items.tolist()
            assert same or not found.exact
            assert same or found.bound >= best.scores[-1]


def test_wide_beams_find_the_exact_list_and_narrow_ones_may_not() -> None:
    lost = []
    for seed in range(12):
        _, trie = catalogue_of(seed, 200)
        model = model_of(seed)
        exact = top_k(model, trie, [[3, 4]], 5, pad_id=0, way="search")[0]
        narrow, wide = (constrained_generate(model, trie, [[3, 4]], pad_id=0, beams=n)[0] for n in (5, trie.n_titles))
        assert wide.items.tolist()[:5] == exact.items.tolist()
        assert wide.exact and not narrow.exact
        lost.append(recall(exact, narrow))
        # A beam's titles are titles with their own scores, so none can beat the exact list.
        assert (narrow.scores <= exact.scores[: len(narrow.scores)] + 1e-5).all()
    assert min(lost) < 1


def test_left_out_titles_and_the_checkpoint_that_would_sample() -> None:
    titles, trie = catalogue_of(0)
    model, out = model_of(0), [np.arange(0, len(titles), 2)]
    before = constrained_generate(model, trie, [[3]], pad_id=0, beams=4, leave_out=out)[0]
    assert not set(before.items.tolist()) & set(out[0].tolist())
    model.generation_config.update(do_sample=True, temperature=9.0, num_beams=7, repetition_penalty=3.0)
    after = constrained_generate(model, trie, [[3]], pad_id=0, beams=4, leave_out=out, scoring="naive")[0]
    assert after.items.tolist() == before.items.tolist()
    with pytest.raises(ConfigError, match="0 beams: ask for at least 1"):
        constrained_generate(model, trie, [[3]], pad_id=0, beams=0)


def test_recall_by_hand() -> None:
    _, trie = catalogue_of(1)
    model = model_of(1)
    one, four = (top_k(model, trie, [[3]], k, pad_id=0)[0] for k in (1, 4))
    assert recall(four, one) == 0.25
    assert recall(one, four) == 1.0
