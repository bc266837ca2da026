"""The exact top K of a whole catalogue by log π(title | prompt), found without scoring the catalogue.

log π of a title is a sum over its tokens, none of which is above 0, so the sum of a prefix bounds every title that
begins with it. Best-first search opens the prefixes with the largest sums until K titles stand above all that is open:
then nothing unopened can belong to the top K, which is the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import ScoringError
from sirius_rec.rankers.catalogue.prefixes import Prefixes
from sirius_rec.rankers.catalogue.trie import ROOT, Ints, Trie


@dataclass(frozen=True)
class Found:
    """A user's list, best first; equal scores in the order of item numbers, as stable sorting of all scores has them.

    scores: log π in nats, summed over tokens with the end of sequence. exact: proved to be the top K. bound: a title
    that could still come onto the list scores at most this; −inf where none could. opened: prefixes read behind the
    prompt.
    """

    items: Ints
    scores: npt.NDArray[np.float64]
    exact: bool
    bound: float
    opened: int


class Frontier:
    """One user's search: the titles found so far, and the prefixes that are still open.

    out: places in the trie of titles to leave out, sorted. max_opened: prefixes that may be opened.
    """

    def __init__(self, trie: Trie, k: int, out: Ints, max_opened: float = math.inf) -> None:
        self.trie, self.k, self.out, self.max_opened = trie, k, out, max_opened
        self.items, self.scores = np.empty(0, dtype=np.int64), np.empty(0)
        self.nodes, self.parents = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        self.bounds = np.empty(0)
        self.opened = 0

    @property
    def worst(self) -> float:
        """What a title must reach to be on the list: the K-th score, −inf while there are fewer."""
        return float(self.scores[-1]) if len(self.scores) == self.k else -math.inf

    @property
    def done(self) -> bool:
        return not len(self.nodes) or self.opened >= self.max_opened

    def children(self, nodes: Ints) -> tuple[Ints, Ints]:
        """`Trie.children` with a title left below them: what is left out is never opened."""
        child_M, of_M = self.trie.children(nodes)
        if not len(self.out):
            return child_M, of_M
        left = self.trie.left(child_M, self.out) > 0
        return child_M[left], of_M[left]

    def take(self, width: int) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
        """The best open prefixes, now opened: their nodes, parents' places, and sums."""
        width = int(min(width, self.max_opened - self.opened))
        order = np.argsort(-self.bounds, kind="stable")
        best, rest = order[:width], order[width:]
        taken = self.nodes[best], self.parents[best], self.bounds[best]
        self.nodes, self.parents, self.bounds = self.nodes[rest], self.parents[rest], self.bounds[rest]
        self.opened += len(best)
        return taken

    def push(self, nodes: Ints, parents: Ints, sums: npt.NDArray[np.float64]) -> None:
        """Prefixes with their sums: whole titles go on the list, the others stay open while they may lead there.

        A prefix on the K-th score stays open: a title on it, of an earlier item, would stand before the K-th.
        """
        ends = self.trie.is_leaf(nodes)
        items = np.concatenate([self.items, self.trie.item_S[self.trie.first_N[nodes[ends]]]])
        scores = np.concatenate([self.scores, sums[ends]])
        best = np.lexsort((items, -scores))[: self.k]
        self.items, self.scores = items[best], scores[best]
        bounds = np.concatenate([self.bounds, sums[~ends]])
        open_ = bounds >= self.worst
        self.bounds = bounds[open_]
        self.nodes = np.concatenate([self.nodes, nodes[~ends]])[open_]
        self.parents = np.concatenate([self.parents, parents[~ends]])[open_]

    def found(self) -> Found:
        bound = float(self.bounds.max(initial=-math.inf))
        return Found(self.items, self.scores, not len(self.nodes), bound, self.opened)


def search(
    prefixes: Prefixes, frontiers: Sequence[Frontier], width: int, progress: Callable[[int], None] | None = None
) -> list[Found]:
    """Search for many users at once, one frontier each, opening up to `width` prefixes of each per step.

    progress: gets how many users each step was the last one of, 0 as well.
    """
    active = list(range(len(frontiers)))
    root = np.array([ROOT])
    grown = [(frontier.children(root), np.array([-1]), np.zeros(1)) for frontier in frontiers]
    source_M = np.repeat(active, [len(child_M) for (child_M, _), _, _ in grown])
    logp_M = prefixes.begin(source_M, _targets(frontiers[0].trie, grown))
    _push(frontiers, grown, logp_M)
    while active:
        still = [a for a, u in enumerate(active) if not frontiers[u].done]
        if progress:
            progress(len(active) - len(still))
        if not still:
            break
        if len(still) < len(active):
            prefixes.keep(still)
            active = [active[a] for a in still]
        own = [frontiers[u] for u in active]
        taken = [frontier.take(width) for frontier in own]
        count_U = [len(nodes) for nodes, _, _ in taken]
        children = [frontier.children(nodes) for frontier, (nodes, _, _) in zip(own, taken, strict=True)]
        start_U = np.cumsum(count_U) - count_U
        source_M = np.concatenate([of_M + start for (_, of_M), start in zip(children, start_U, strict=True)])
        node_n, parent_n = (np.concatenate([t[i] for t in taken]) for i in (0, 1))
        grown = [(edges, t[0], t[2]) for edges, t in zip(children, taken, strict=True)]
        trie = own[0].trie
        place_n, logp_M = prefixes.open(
            np.repeat(np.arange(len(own)), count_U), parent_n, trie.token_N[node_n].astype(np.int64), source_M,
            _targets(trie, grown),
        )  # fmt: skip
        grown = [
            (edges, place_n[start : start + count], sums)
            for (edges, _, sums), start, count in zip(grown, start_U, count_U, strict=True)
        ]
        _push(own, grown, logp_M)
    return [frontier.found() for frontier in frontiers]


# Of one user: (children, which opened prefix each is of), and of each opened prefix its place and sum.
_Grown = tuple[tuple[Ints, Ints], Ints, npt.NDArray[np.float64]]


def _targets(trie: Trie, grown: Sequence[_Grown]) -> Ints:
    """The tokens that lead to the children of all users."""
    return np.asarray(trie.token_N[np.concatenate([child_M for (child_M, _), _, _ in grown])], dtype=np.int64)


def _push(frontiers: Sequence[Frontier], grown: Sequence[_Grown], logp_M: npt.NDArray[np.float64]) -> None:
    if np.isnan(logp_M).any():
        raise ScoringError("a log-prob is not a number: the model's weights are damaged")
    at = 0
    for frontier, ((child_M, of_M), place_n, sum_n) in zip(frontiers, grown, strict=True):
        own_M = logp_M[at : at + len(child_M)]
        at += len(child_M)
        frontier.push(child_M, place_n[of_M], sum_n[of_M] + own_M)
