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

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """A user's list, best first; equal scores in the order of item numbers, as stable sorting of all scores has them.

    scores: log π in nats, summed over tokens with the end of sequence. exact: proved to be the top K. bound: a title
    that could still come onto the list scores at most this; −inf where none could. opened: prefixes read behind the
    prompt.
    """

    items: Ints
    scores: Floats
    exact: bool
    bound: float
    opened: int


@dataclass(frozen=True)
class Step:
    """The n prefixes that one user opens at once, and their M children, about which the model is asked.

    node_n, child_M: nodes of the trie. parent_n: the place of the prefix that each is one token longer than, as
    `Prefixes.open` numbers what the user has opened; −1 for the prompt. sum_n: log π of each, in nats. of_M: which of
    the n each child is of, ascending.
    """

    node_n: Ints
    parent_n: Ints
    sum_n: Floats
    child_M: Ints
    of_M: Ints


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

    def root(self) -> Step:
        """The prompt, in the place of a prefix: its children are the first tokens of titles."""
        return self._step(np.array([ROOT]), np.array([-1]), np.zeros(1))

    def take(self, width: int) -> Step:
        """The best open prefixes, now opened."""
        width = int(min(width, self.max_opened - self.opened))
        order = np.argsort(-self.bounds, kind="stable")
        best, rest = order[:width], order[width:]
        step = self._step(self.nodes[best], self.parents[best], self.bounds[best])
        self.nodes, self.parents, self.bounds = self.nodes[rest], self.parents[rest], self.bounds[rest]
        self.opened += len(best)
        return step

    def _step(self, node_n: Ints, parent_n: Ints, sum_n: Floats) -> Step:
        """With the children that have a title left below them: what is left out is never opened."""
        child_M, of_M = self.trie.children(node_n)
        if len(self.out):
            left = self.trie.left(child_M, self.out) > 0
            child_M, of_M = child_M[left], of_M[left]
        return Step(node_n, parent_n, sum_n, child_M, of_M)

    def push(self, nodes: Ints, parents: Ints, sums: Floats) -> None:
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

    The model reads at once what all users open in a step. Say user 0 opens A and B, user 1 opens C, and in the trie A
    has the children Ab and Ac, B has Ba, C has Ca. Then the n = 3 prefixes A B C are of user_n = 0 0 1, and the M = 4
    children Ab Ac Ba Ca of source_M = 0 0 1 2. The model gives the log-prob of each child's last token behind its
    source; with the source's own sum this is the child's sum, with which it goes to its user's frontier.

    progress: gets how many users each step was the last one of, 0 as well.
    """
    trie, active = frontiers[0].trie, list(range(len(frontiers)))
    steps = [frontier.root() for frontier in frontiers]
    logp_M = prefixes.begin(*_asked(trie, steps))
    _push(frontiers, steps, np.full(len(steps), -1), logp_M)
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
        steps = [frontier.take(width) for frontier in own]
        user_n = np.repeat(np.arange(len(own)), [len(step.node_n) for step in steps])
        parent_n = np.concatenate([step.parent_n for step in steps])
        token_n = trie.token_N[np.concatenate([step.node_n for step in steps])].astype(np.int64)
        place_n, logp_M = prefixes.open(user_n, parent_n, token_n, *_asked(trie, steps))
        _push(own, steps, place_n, logp_M)
    return [frontier.found() for frontier in frontiers]


def _asked(trie: Trie, steps: Sequence[Step]) -> tuple[Ints, Ints]:
    """source_M and target_M of all users' children: which of all opened prefixes each is of, and its last token."""
    count_U = [len(step.node_n) for step in steps]
    start_U = np.cumsum(count_U) - count_U  # of each user's prefixes among those of all
    source_M = np.concatenate([step.of_M + start for step, start in zip(steps, start_U, strict=True)])
    target_M = trie.token_N[np.concatenate([step.child_M for step in steps])].astype(np.int64)
    return source_M, target_M


def _push(frontiers: Sequence[Frontier], steps: Sequence[Step], place_n: Ints, logp_M: Floats) -> None:
    """Give each frontier the children of its step. place_n: of all users' prefixes, as `Prefixes.open` gives them."""
    if np.isnan(logp_M).any():
        raise ScoringError("a log-prob is not a number: the model's weights are damaged")
    n = m = 0
    for frontier, step in zip(frontiers, steps, strict=True):
        own_n, own_M = place_n[n : n + len(step.node_n)], logp_M[m : m + len(step.child_M)]
        n, m = n + len(step.node_n), m + len(step.child_M)
        frontier.push(step.child_M, own_n[step.of_M], step.sum_n[step.of_M] + own_M)
