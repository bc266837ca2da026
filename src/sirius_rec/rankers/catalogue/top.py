"""Top K of a catalogue for many prompts: by search, or by scoring every title where that is less work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from sirius_rec.errors import ConfigError, PromptError, ScoringError
from sirius_rec.rankers.catalogue.prefixes import prefixes_of
from sirius_rec.rankers.catalogue.search import Found, Frontier, search
from sirius_rec.rankers.catalogue.trie import Ints, Trie
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import context_of, in_mode, unwrapped
from sirius_rec.scoring.rows import BATCH_TOKENS, PromptCompletions
from sirius_rec.scoring.scorer import require_agreement, resolve_mode, resolve_scoring, score_rows

Way = Literal["auto", "search", "exhaustive"]
USERS, WIDTH = 8, 16  # searched at once, and prefixes of each opened per step
# A search that opens so many times what is expected would go on through most of the trie: the model is sure of nothing,
# as after training that pushed all titles down. Scoring everything is then less work.
_HOPELESS = 8
# A forward pass costs as much as so many tokens more: its weights are read once, however few tokens there are.
_PASS = 16
# Of models, the ways whose scores were compared with separate passes.
_CHECKED: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def expected_cost(trie: Trie, k: int, width: int = WIDTH) -> tuple[float, float]:
    """Tokens behind the prompt that a search and that exhaustive scoring compute, passes counted in tokens.

    A search opens the prefixes of its K titles, and as good as a step's width of others at each depth: counted on
    SmolLM2 and Last.fm 52, 97 and 437 prefixes for K = 1, 10 and 100, where this expects 65, 99 and 440.
    """
    depth = float(trie.depth_N[trie.leaves()].mean())
    steps = (depth - 1) * (k + width) / width
    return min(steps * width, trie.n_inner - 1) + _PASS * steps, trie.n_inner - 1


def top_k(
    model: Any,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    k: int,
    *,
    pad_id: int,
    leave_out: Sequence[Ints] | None = None,
    way: Way = "auto",
    width: int = WIDTH,
    users: int = USERS,
    max_opened: int | None = None,
    max_tokens: int = BATCH_TOKENS,
    bf16: bool = False,
    scoring: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> list[Found]:
    """The K titles of largest log π(title | prompt) for each prompt, with whether they are proved to be.

    leave_out: items of each user that are no answers; where fewer than K others are left, all of them are the answer.
    way: `auto` chooses by `expected_cost`, and scores everything where a search opens far more than that. width, users:
    prefixes opened per user and step, and users at once. max_opened: prefixes opened for a user at most; what was found
    by then is given with exact=False. max_tokens: of prompts read in one pass (one prompt may exceed it). bf16,
    scoring: as in `score_rows`. progress: gets how many prompts are done, 0 while one takes long.

    Scores of prefixes in half precision depend a little on what else is in a pass; exact is said of the computed ones.
    """
    check_request(model, trie, prompts, k)
    if leave_out is not None and (len(leave_out) != len(prompts) or any(np.ndim(items) != 1 for items in leave_out)):
        raise ConfigError(f"leave_out: a list of item numbers for each of the {len(prompts)} prompts is needed")
    naive = resolve_mode(model, scoring) == "naive"
    found: dict[int, Found] = {}
    out_U = [places_of(trie, () if leave_out is None else leave_out[u]) for u in range(len(prompts))]
    opened, whole = expected_cost(trie, k, width)
    falls_back = way == "auto" and max_opened is None
    budget: float = math.inf if max_opened is None else max_opened
    if falls_back:
        budget = int(min(whole / 2, _HOPELESS * opened))  # of half a prefix a search would wait for ever
    scored = (falls_back and opened > whole) or (way == "exhaustive" and max_opened is None)

    def score_all(some: Sequence[int], report: Callable[[int], None] | None) -> None:
        every = _exhaustive(model, trie, [prompts[u] for u in some], k, [out_U[u] for u in some], pad_id=pad_id,
                            max_tokens=max_tokens, bf16=bf16, mode=scoring, progress=report)  # fmt: skip
        for u, result in zip(some, every, strict=True):
            found[u] = result
            if resolve_scoring(model, scoring) != "naive":
                check_found(model, trie, prompts[u : u + 1], [result], pad_id, "exhaustive", bf16=bf16)

    with evaluating(model):
        for some in [list(range(len(prompts)))] if scored else groups(prompts, users, max_tokens):
            if scored:
                score_all(some, progress)
                continue
            prefixes = prefixes_of(model, [prompts[u] for u in some], pad_id, bf16=bf16, naive=naive)
            results = search(prefixes, [Frontier(trie, k, out_U[u], budget) for u in some], width, progress)
            found |= dict(zip(some, results, strict=True))
            if not naive:
                check_found(model, trie, [prompts[u] for u in some], results, pad_id, "searched", bf16=bf16)
            hopeless = [u for u in some if not found[u].exact] if falls_back else []
            if hopeless:  # they were counted
                score_all(hopeless, progress and (lambda n: progress(0)))
            # A model that is unsure of everything is so of everybody.
            scored = len(hopeless) > len(some) / 2
    return [found[u] for u in range(len(prompts))]


def check_request(model: Any, trie: Trie, prompts: Sequence[Sequence[int]], k: int) -> None:
    """ConfigError for a K that the catalogue does not have; PromptError for a prompt that leaves no room for titles."""
    if not 1 <= k <= trie.n_titles:
        raise ConfigError(f"top {k} of a catalogue of {trie.n_titles} items: ask for 1 to {trie.n_titles}")
    context = context_of(model)
    longest = max(map(len, prompts), default=0) + trie.longest - 1
    if context is not None and longest > context:
        raise PromptError(
            f"prompt and longest title take {longest} tokens, the context is {context}: show fewer items of the history"
        )


def places_of(trie: Trie, items: Any) -> Ints:
    numbers = np.asarray(items, dtype=np.int64)
    wrong = numbers[(numbers < 0) | (numbers >= trie.n_titles)]
    if wrong.size:
        raise ConfigError(f"item number {wrong[0]} is to be left out, the catalogue has 0 … {trie.n_titles - 1}")
    return np.unique(trie.place_I[numbers])


def groups(prompts: Sequence[Sequence[int]], users: int, max_tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts of like length, so that little is padded, in groups that are searched at once."""
    group: list[int] = []
    for u in sorted(range(len(prompts)), key=lambda u: len(prompts[u])):
        if group and (len(group) == users or (len(group) + 1) * len(prompts[u]) > max_tokens):
            yield group
            group = []
        group.append(u)
    if group:
        yield group


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout; afterwards the model is in its own mode and on its own attention kernel again."""
    base = unwrapped(model)
    before = base.config._attn_implementation
    try:
        with in_mode(model, training=False):
            yield
    finally:
        if base.config._attn_implementation != before:
            base.set_attn_implementation(before)


def _exhaustive(
    model: Any,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    k: int,
    out_U: Sequence[Ints],
    *,
    progress: Callable[[int], None] | None,
    **scoring: Any,
) -> Iterator[Found]:
    """Every title of the catalogue scored, in one tree for each prompt."""
    titles = [trie.tokens(int(leaf)) for leaf in trie.leaves()]
    for prompt, out in zip(prompts, out_U, strict=True):
        place_C = np.setdiff1d(np.arange(trie.n_titles), out)
        if not len(place_C):
            yield Found(np.empty(0, dtype=np.int64), np.empty(0), True, -math.inf, 0)
            continue
        row = PromptCompletions(prompt, [titles[place] for place in place_C])
        # Prompts may be those of this process alone, as a miner's are.
        options = {name: value for name, value in scoring.items() if name != "pad_id"}
        scores_C = score_rows(model, [row], scoring["pad_id"], together=False, **options)[0]
        if np.isnan(scores_C).any():
            raise ScoringError("a log-prob is not a number: the model's weights are damaged")
        items_C = trie.item_S[place_C].astype(np.int64)
        best = np.lexsort((items_C, -scores_C))[:k]
        yield Found(items_C[best], scores_C[best].astype(np.float64), True, -math.inf, trie.n_inner - 1)
        if progress:
            progress(1)


def check_found(
    model: Any,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    found: Sequence[Found],
    pad_id: int,
    how: str,
    *,
    bf16: bool,
) -> None:
    """ScoringError if separate passes give the first titles of the first list other scores.

    Once for each model and way to find them, since a mask that is wrong says nothing.
    """
    lists = [(prompt, result) for prompt, result in zip(prompts, found, strict=True) if len(result.items)]
    if how in _CHECKED.get(model, ()) or not lists:
        return
    (prompt, first), device, leaf_S = lists[0], next(model.parameters()).device, trie.leaves()
    row = PromptCompletions(prompt, [trie.tokens(int(leaf_S[trie.place_I[item]])) for item in first.items[:3]])
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        naive = naive_logps(model, [row], pad_id, device)[0]
    require_agreement(model, torch.from_numpy(first.scores[:3]).to(naive), naive, how, half=bf16)
    _CHECKED.setdefault(model, set()).add(how)
