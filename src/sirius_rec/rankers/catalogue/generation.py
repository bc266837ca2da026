"""Titles written under the constraint of a catalogue's trie: greedy and beam search, as recommenders commonly answer.

Every answer is a title (ValidRatio 1), but a beam gives up prefixes that may lead to better titles. It is the rival of
the exact search, on the same cache and masks, so that they differ in what they open alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sirius_rec.errors import ConfigError
from sirius_rec.rankers.catalogue.prefixes import prefixes_of
from sirius_rec.rankers.catalogue.search import Found, Frontier, Step, search
from sirius_rec.rankers.catalogue.top import USERS, check_found, check_request, evaluating, groups, places_of
from sirius_rec.rankers.catalogue.trie import Ints, Trie
from sirius_rec.scoring.rows import BATCH_TOKENS
from sirius_rec.scoring.scorer import resolve_mode


class Beam(Frontier):
    """The `beams` best titles found so far, and the `beams` best prefixes of one length; all others are given up.

    Sums of log-probs without a length penalty: it ranks as the exact search does. It ends where no prefix is above
    the last of its titles, since sums only fall. lost: the best prefix given up.
    """

    lost = -math.inf

    def take(self, width: int) -> Step:
        step = super().take(self.k)
        self.lost = float(self.bounds.max(initial=self.lost))
        self.nodes, self.parents, self.bounds = self.nodes[:0], self.parents[:0], self.bounds[:0]
        return step

    def found(self) -> Found:
        exact = self.lost < self.worst or self.lost == -math.inf
        return Found(self.items, self.scores, exact, -math.inf if exact else self.lost, self.opened)


def constrained_generate(
    model: Any,
    trie: Trie,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    beams: int = 1,
    leave_out: Sequence[Ints] | None = None,
    users: int = USERS,
    max_tokens: int = BATCH_TOKENS,
    bf16: bool = False,
    scoring: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> list[Found]:
    """Up to `beams` titles of the catalogue for each prompt, best first; one beam is greedy.

    Deterministic whatever the checkpoint's generation config says: it is not asked. leave_out and the rest: as in
    `top.top_k`. Exact is said of a list that no prefix given up could have changed.
    """
    if beams < 1:
        raise ConfigError(f"{beams} beams: ask for at least 1")
    check_request(model, trie, prompts, 1)
    naive = resolve_mode(model, scoring) == "naive"
    found: list[Found | None] = [None] * len(prompts)
    with evaluating(model):
        for some in groups(prompts, users, max_tokens):
            prefixes = prefixes_of(model, [prompts[u] for u in some], pad_id, bf16=bf16, naive=naive)
            out = [places_of(trie, () if leave_out is None else leave_out[u]) for u in some]
            results = search(prefixes, [Beam(trie, beams, places) for places in out], beams, progress)
            for u, result in zip(some, results, strict=True):
                found[u] = result
            if not naive:
                check_found(model, trie, [prompts[u] for u in some], results, pad_id, "searched", bf16=bf16)
    return [result for result in found if result is not None]


def recall(exact: Found, given: Found) -> float:
    """The share of an exact list that another one holds."""
    return float(np.isin(exact.items, given.items).mean()) if len(exact.items) else 1.0
