"""The search for the top K against scoring everything: on exact tables of log-probs, and on random models."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sirius_rec.errors import ConfigError, PromptError, ScoringError
from sirius_rec.rankers.catalogue import top
from sirius_rec.rankers.catalogue.generation import Beam, constrained_generate
from sirius_rec.rankers.catalogue.prefixes import _as_logps
from sirius_rec.rankers.catalogue.search import Found, Frontier, search
from sirius_rec.rankers.catalogue.top import expected_cost, groups, top_k
from sirius_rec.rankers.catalogue.trie import Trie, trie_of
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.rows import PromptCompletions

EOS, VOCAB = 2, 24
CPU = torch.device("cpu")


def trie_from(titles: Sequence[Sequence[int]]) -> Trie:
    flat = np.array([i for ids in titles for i in ids], dtype=np.int32)
    names = [f"title {n}" for n in range(len(titles))]
    return trie_of(flat, np.array(list(map(len, titles))), names, special={EOS}, key="k")


def random_titles(rng: random.Random, n: int, longest: int = 5, tokens: int = VOCAB) -> list[list[int]]:
    """Single tokens, titles that begin others, shared beginnings; in no order."""
    found: set[tuple[int, ...]] = set()
    for _ in range(n):
        start = rng.choice(sorted(found)) if found and rng.random() < 0.5 else ()
        found.add((*start[:3], *(rng.randrange(3, tokens) for _ in range(rng.randint(1, longest - 3)))))
    titles = [[*ids, EOS] for ids in sorted(found)]
    rng.shuffle(titles)
    return titles


class Table:
    """Prefixes whose log-probs are quarters of nats, so that sums are exact and ties are many; 0 among them."""

    def __init__(self, users: int, seed: int) -> None:
        self.users, self.seed = list(range(users)), seed
        self.paths: list[list[tuple[int, ...]]] = [[] for _ in range(users)]
        self.read: list[tuple[int, tuple[int, ...]]] = []

    def logp(self, user: int, path: tuple[int, ...], token: int) -> float:
        return -random.Random(f"{self.seed} {user} {path} {token}").choice([0, 0, 1, 2, 3, 6]) / 4

    def total(self, user: int, ids: Sequence[int]) -> float:
        return sum(self.logp(user, tuple(ids[:n]), token) for n, token in enumerate(ids))

    def begin(self, source_M: Any, target_M: Any) -> Any:
        return np.array([self.logp(self.users[u], (), t) for u, t in zip(source_M, target_M, strict=True)])

    def open(self, user_n: Any, parent_n: Any, token_n: Any, source_M: Any, target_M: Any) -> Any:
        assert (np.diff(user_n) >= 0).all()
        assert (np.diff(source_M) >= 0).all()
        opened, places = [], []
        for user, parent, token in zip(user_n, parent_n, token_n, strict=True):
            path = (*(() if parent < 0 else self.paths[user][parent]), int(token))
            places.append(len(self.paths[user]))
            self.paths[user].append(path)
            opened.append((self.users[user], path))
        self.read += opened
        return np.array(places), np.array([self.logp(*opened[s], t) for s, t in zip(source_M, target_M, strict=True)])

    def keep(self, users: Sequence[int]) -> None:
        self.users, self.paths = [self.users[u] for u in users], [self.paths[u] for u in users]


def best_of(scores: Sequence[float], k: int, out: Sequence[int] = ()) -> list[int]:
    """Items by stable sorting of all scores."""
    left = [item for item in range(len(scores)) if item not in set(out)]
    return sorted(left, key=lambda item: -scores[item])[:k]


def places(trie: Trie, items: Sequence[int]) -> Any:
    return np.sort(trie.place_I[np.array(items, dtype=int)])


@pytest.mark.parametrize("seed", range(120))
def test_it_finds_what_sorting_everything_finds_ties_in_the_order_of_items(seed: int) -> None:
    rng = random.Random(seed)
    titles = random_titles(rng, rng.choice([1, 5, 40, 120]))
    trie, users = trie_from(titles), rng.randint(1, 4)
    outs = [rng.sample(range(len(titles)), rng.randint(0, len(titles) // 2)) for _ in range(users)]
    outs[0] = list(range(len(titles))) if seed % 10 == 0 else outs[0]  # nothing is left
    for k in (1, 10, 100):
        table = Table(users, seed)
        found = search(table, [Frontier(trie, k, places(trie, out)) for out in outs], rng.choice([1, 3, 16]))
        for user, (out, result) in enumerate(zip(outs, found, strict=True)):
            scores = [table.total(user, ids) for ids in titles]
            want = best_of(scores, k, out)
            assert result.items.tolist() == want
            assert result.scores.tolist() == [scores[item] for item in want]
            assert result.exact and result.bound == -math.inf
            read = [path for u, path in table.read if u == user]
            assert result.opened == len(read) == len(set(read))
            # Nothing is opened that leads only to what is left out.
            ways = {tuple(ids[:n]) for item, ids in enumerate(titles) if item not in out for n in range(len(ids))}
            assert set(read) <= ways


def test_one_at_a_time_it_opens_what_may_still_matter_and_nothing_else() -> None:
    """Every prefix above the K-th score must be opened by any exact method; those on it for a tie."""
    for seed in range(20):
        titles = random_titles(random.Random(seed), 80)
        trie, table = trie_from(titles), Table(1, seed)
        (found,) = search(table, [Frontier(trie, 10, places(trie, []))], 1)
        worst = found.scores[-1]
        prefixes = {tuple(ids[:n]) for ids in titles for n in range(1, len(ids))}
        must = {path for path in prefixes if table.total(0, path) >= worst}
        assert {path for _, path in table.read} == must
        assert found.opened == len(must)


def test_a_budget_says_how_far_it_came() -> None:
    short = 0
    for seed in range(30):
        titles = random_titles(random.Random(seed), 80)
        trie = trie_from(titles)
        for budget in (1, 7, 20):
            table = Table(2, seed)
            found = search(table, [Frontier(trie, 10, places(trie, []), budget) for _ in range(2)], 4)
            for user, result in enumerate(found):
                scores = [table.total(user, ids) for ids in titles]
                assert result.opened <= budget
                assert result.scores.tolist() == [scores[item] for item in result.items]
                if result.exact:
                    assert result.items.tolist() == best_of(scores, 10)
                    continue
                short += 1
                assert result.opened == budget
                missed = [scores[item] for item in range(len(titles)) if item not in result.items.tolist()]
                worst = result.scores[-1] if len(result.items) == 10 else -math.inf
                assert max(missed) <= max(result.bound, worst)
                # What stands above the bound is certain.
                sure = [item for item in result.items.tolist() if scores[item] > result.bound]
                assert sure == best_of(scores, 10)[: len(sure)]
    assert short > 50


def test_a_beam_that_gave_up_a_tie_is_not_exact() -> None:
    """A prefix on the last score of the list may lead to an earlier item of that score, which would stand before it."""
    exact = on_the_edge = 0
    for seed in range(150):
        rng = random.Random(seed)
        titles = random_titles(rng, rng.choice([5, 40, 120]))
        trie = trie_from(titles)
        for beams in (1, 3, 8):
            table, beam = Table(1, seed), Beam(trie, beams, places(trie, []))
            (found,) = search(table, [beam], beams)
            want = best_of([table.total(0, ids) for ids in titles], beams)
            assert not found.exact or found.items.tolist() == want
            exact += found.exact
            on_the_edge += beam.lost == beam.worst > -math.inf and found.items.tolist() != want
    assert exact > 50 and on_the_edge > 5


def test_log_probs_that_rounding_put_above_zero_are_zero() -> None:
    """Else a title would stand above the bound of its own prefix, and the search might not open it."""
    assert _as_logps(torch.tensor([3e-7, 0.0, -2.5])).tolist() == [0.0, 0.0, -2.5]


def test_prompts_are_read_in_groups_of_like_length_within_the_budget() -> None:
    prompts = [[3] * n for n in (30, 10, 10, 5, 10, 100)]
    assert list(groups(prompts, 8, 40)) == [[3, 1, 2, 4], [0], [5]]  # 4 × 10; 30 alone; one prompt may exceed it
    assert list(groups(prompts, 2, 10_000)) == [[3, 1], [2, 4], [0, 5]]
    assert list(groups([], 8, 40)) == []


def model_of(seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3,
        "attn_implementation": "sdpa",
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**config, **options})).eval()


def prompts_of(rng: random.Random, n: int) -> list[list[int]]:
    return [[rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 12))] for _ in range(n)]


@torch.no_grad()
def all_scores(model: Any, prompts: Sequence[list[int]], titles: Sequence[list[int]]) -> Any:
    return naive_logps(model, [PromptCompletions(prompt, titles) for prompt in prompts], 0, CPU).double().numpy()


def require_top(found: Found, scores: Any, k: int, out: Sequence[int] = ()) -> None:
    """The K best scores, and items that have them: as sorting everything, up to rounding."""
    want = best_of(scores.tolist(), k, out)
    np.testing.assert_allclose(found.scores, scores[want], atol=2e-5)
    np.testing.assert_allclose(scores[found.items], found.scores, atol=2e-5)
    assert len(set(found.items.tolist())) == len(want)
    assert not set(found.items.tolist()) & set(out)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("seed", range(200))
def test_random_models_and_catalogues(seed: int) -> None:
    """Every way: on the cache, prompt and prefix anew, and everything scored."""
    rng = random.Random(seed)
    titles = random_titles(rng, rng.choice([3, 20, 120]))
    model, trie, prompts = model_of(seed), trie_from(titles), prompts_of(rng, 3)
    outs = [rng.sample(range(len(titles)), rng.randint(0, len(titles) // 2)) for _ in prompts]
    scores = all_scores(model, prompts, titles)
    for k in {min(k, len(titles)) for k in (1, 10, 100)}:
        ways: list[dict[str, Any]] = [
            {"way": "search", "width": rng.choice([1, 4, 16]), "users": rng.choice([1, 2, 8])}
        ]
        if k == 10 or seed % 5 == 0:
            ways += [{"way": "exhaustive"}, {"way": "search", "scoring": "naive"}, {}]
        for options in ways:
            found = top_k(model, trie, prompts, k, pad_id=0, leave_out=[np.array(o) for o in outs], **options)
            for user, result in enumerate(found):
                assert result.exact
                require_top(result, scores[user], k, outs[user])


@pytest.mark.parametrize("way", ["search", "exhaustive"])
@pytest.mark.parametrize("scoring", ["auto", "naive"])
def test_constant_logits_tie_in_the_order_of_items(way: Any, scoring: str) -> None:
    """Every title of n tokens has −n log V: shortest first, and those in the order of the catalogue."""
    rng = random.Random(3)
    titles = random_titles(rng, 60)
    model, trie = model_of(0), trie_from(titles)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for k in (1, 10, len(titles)):
        for result in top_k(model, trie, prompts_of(rng, 3), k, pad_id=0, way=way, scoring=scoring):
            want = sorted(range(len(titles)), key=lambda item: len(titles[item]))[:k]
            assert result.items.tolist() == want
            np.testing.assert_allclose(result.scores, [-len(titles[i]) * math.log(VOCAB) for i in want], rtol=1e-6)


def test_a_peaked_model_opens_few_prefixes() -> None:
    titles = random_titles(random.Random(5), 600)
    trie, prompts = trie_from(titles), prompts_of(random.Random(0), 4)
    model = model_of(1, initializer_range=1.0)
    for found in top_k(model, trie, prompts, 3, pad_id=0, way="search", width=1):
        assert found.opened < 0.2 * trie.n_inner


def test_progress_order_and_mode() -> None:
    rng = random.Random(1)
    titles, prompts, done = random_titles(rng, 50), prompts_of(rng, 7), list[int]()
    model = model_of(0).train()
    together = top_k(model, trie_from(titles), prompts, 5, pad_id=0, users=3, way="search", progress=done.append)
    assert model.training
    assert sum(done) == 7 and done.count(0) > 3, "a step that ends no search is silent"
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = top_k(model, trie_from(titles), [prompt], 5, pad_id=0, way="search")
        assert alone.items.tolist() == found.items.tolist()
    assert top_k(model, trie_from(titles), [], 5, pad_id=0) == []


def test_the_cheaper_way_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One-token titles in a small catalogue are scored, a large catalogue is searched, a budget asks for a search."""
    small = trie_from([[n, EOS] for n in range(3, 20)])
    large = trie_from([[a, b, c, EOS] for a in range(3, 20) for b in range(3, 20) for c in range(3, 20)])
    assert expected_cost(small, 10)[1] == 17
    assert expected_cost(small, 10)[0] > 17
    assert expected_cost(large, 10)[1] == 17 + 17**2 + 17**3
    assert expected_cost(large, 10)[0] < 200
    ways: list[str] = []
    for name in ("search", "_exhaustive"):
        kept = getattr(top, name)
        monkeypatch.setattr(top, name, lambda *a, n=name, f=kept, **o: ways.append(n) or f(*a, **o))
    model = model_of(0)
    top_k(model, small, [[3, 4]], 3, pad_id=0)
    top_k(model, large, [[3, 4]], 3, pad_id=0)
    top_k(model, small, [[3, 4]], 3, pad_id=0, max_opened=2)
    assert ways == ["_exhaustive", "search", "search"]


def test_a_hopeless_search_is_given_up_for_scoring_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is sure of nothing: every title ties, and a search would open every prefix of every user."""
    large = trie_from([[a, b, c, EOS] for a in range(3, 20) for b in range(3, 20) for c in range(3, 20)])
    model = model_of(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    opened: list[tuple[str, int]] = []
    for name in ("search", "_exhaustive"):
        kept = getattr(top, name)

        def counted(*a: Any, n: str = name, f: Any = kept, **o: Any) -> Any:
            results = list(f(*a, **o))
            opened.append((n, max(found.opened for found in results)))
            return results

        monkeypatch.setattr(top, name, counted)
    done: list[int] = []
    prompts = prompts_of(random.Random(0), 5)
    found = top_k(model, large, prompts, 3, pad_id=0, users=2, progress=done.append)
    assert [name for name, _ in opened] == ["search", "_exhaustive", "_exhaustive", "_exhaustive"]
    assert opened[0][1] < large.n_inner / 2 and sum(done) == 5
    at = next(n for n, count in enumerate(done) if count)  # the search of the first two ends; they are scored then
    assert done[at : at + 3] == [2, 0, 0]
    assert all(one.exact and one.items.tolist() == [0, 1, 2] for one in found)
    monkeypatch.setattr(top, "_HOPELESS", 2.03)  # half a prefix more than whole ones is none
    assert expected_cost(large, 3)[0] * 2.03 % 1 > 0.1
    assert [one.items.tolist() for one in top_k(model, large, prompts[:2], 3, pad_id=0)] == [[0, 1, 2]] * 2
    with_budget = top_k(model, large, prompts[:1], 3, pad_id=0, max_opened=50)
    assert not with_budget[0].exact  # asked for, so it is kept
    assert opened[-1][0] == "search"


def test_what_cannot_be_asked_for() -> None:
    model, trie = model_of(0), trie_from([[3, EOS], [4, 5, EOS]])
    for k in (0, 3):
        with pytest.raises(ConfigError, match=f"top {k} of a catalogue of 2 items: ask for 1 to 2"):
            top_k(model, trie, [[3]], k, pad_id=0)
    with pytest.raises(PromptError, match="prompt and longest title take 65 tokens, the context is 64"):
        top_k(model, trie, [[3] * 63], 1, pad_id=0)
    with pytest.raises(ConfigError, match="item number 2 is to be left out, the catalogue has 0 … 1"):
        top_k(model, trie, [[3]], 1, pad_id=0, leave_out=[np.array([2])])
    for one_list in ([0, 1], [[0], [1]]):
        with pytest.raises(ConfigError, match="leave_out: a list of item numbers for each of the 1 prompts is needed"):
            top_k(model, trie, [[3]], 1, pad_id=0, leave_out=one_list)  # type: ignore[arg-type]
    with torch.no_grad():
        model.lm_head.weight[:] = math.nan
    for way in ("search", "exhaustive"):
        with pytest.raises(ScoringError, match="weights are damaged"):
            top_k(model, trie, [[3]], 1, pad_id=0, way=way)  # type: ignore[arg-type]


def test_what_is_wrong_is_refused_whichever_way_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from sirius_rec.rankers.catalogue import prefixes
    from sirius_rec.scoring import scorer

    kept: Callable[..., Any] = prefixes.cached_masks
    # Every prefix sees all that is in the cache, its siblings too.
    monkeypatch.setattr(prefixes, "cached_masks", lambda config, seen, *rest: kept(config, seen | True, *rest))
    trees: Callable[..., Any] = scorer.tree_logps
    noise = torch.Generator().manual_seed(1)
    monkeypatch.setattr(
        scorer,
        "tree_logps",
        lambda model, tree: (logp := trees(model, tree)) - 3 * torch.rand(logp.shape, generator=noise),
    )
    trie, prompts = trie_from(random_titles(random.Random(5), 100)), [[3, 4, 5], [3]]
    outs = [np.arange(trie.n_titles), np.arange(0)]  # the first list is empty, and says nothing
    for way, how in (("search", "searched"), ("exhaustive", "exhaustive")):
        model = model_of(0)
        for leave_out in (None, outs):
            with pytest.raises(ScoringError, match=f"{how} scoring disagrees with separate forward passes"):
                top_k(model, trie, prompts, 10, pad_id=0, way=way, leave_out=leave_out)  # type: ignore[arg-type]
        top_k(model, trie, prompts, 10, pad_id=0, way=way, scoring="naive")  # type: ignore[arg-type]
    with pytest.raises(ScoringError, match="searched scoring disagrees with separate forward passes"):
        constrained_generate(model_of(0), trie, prompts, pad_id=0, beams=3)


def test_each_way_is_checked_once_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """That trees are right says nothing of prefixes on a cache."""
    checked: list[int] = []
    kept = top.naive_logps
    monkeypatch.setattr(top, "naive_logps", lambda *a, **o: checked.append(1) or kept(*a, **o))
    model, trie = model_of(0), trie_from(random_titles(random.Random(5), 100))
    for way in ("exhaustive", "search", "exhaustive", "search"):
        top_k(model, trie, [[3, 4, 5], [3]], 10, pad_id=0, way=way)  # type: ignore[arg-type]
    assert len(checked) == 2
