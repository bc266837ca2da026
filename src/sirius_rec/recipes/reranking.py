"""`sirius recommend --retriever`: one method of a run finds candidates in the whole catalogue, another orders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sirius_rec.errors import ConfigError
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes.listing import listing_of
from sirius_rec.recipes.methods import Method, build_methods
from sirius_rec.recipes.ranking import Served, chosen_method, described, load_run_ranker
from sirius_rec.recipes.recommending import Shelf, best_first, unknown_to_shelf
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.scorers import CatalogueScorer


class Reranked:
    """The best of what a retriever found, by a ranker. size: candidates that the ranker gets, best first no longer.

    The list is that of `size` candidates, not of the catalogue, so it is never called exact.
    """

    def __init__(self, shelf: Shelf, retriever: CatalogueScorer, ranker: Served, size: int) -> None:
        self.shelf, self.retriever, self.ranker, self.size = shelf, retriever, ranker, size
        # What candidates may take at most, so that a request which does not fit is refused before it is answered.
        self._longest = tuple(sorted(shelf.names, key=lambda n: -len(shelf.titles[shelf.number[n]]))[:size])

    def check(self, request: Request) -> str | None:
        return self.retriever.check(request) or self.ranker.check(replace(request, candidates=self._longest))

    def respond(self, requests: list[Request]) -> list[dict[str, Any]]:
        found = self._retrieved(requests)
        asked = [
            replace(request, candidates=tuple(self.shelf.names[i] for i in items))
            for request, items in zip(requests, found, strict=True)
        ]
        some = [n for n, request in enumerate(asked) if request.candidates]
        scores = dict(zip(some, self.ranker.score([asked[n] for n in some]), strict=True)) if some else {}
        answers = []
        for n, (request, items) in enumerate(zip(requests, found, strict=True)):
            own = np.asarray(scores.get(n, ()), dtype=np.float64)
            best = best_first(request, own)[: self.shelf.top]
            answers.append(self.shelf.answer(request, items[best].tolist(), own[best], exact=False))
        return answers

    def _retrieved(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """Item numbers of each request's candidates, in the catalogue's order, so that equal scores go by number."""
        every = np.arange(len(self.shelf.ids))
        left = [np.setdiff1d(every, out) for out in self.shelf.left_out(requests, self.retriever.name)]
        scored = zip(requests, left, self.retriever.score_items(requests, left), strict=True)
        return [np.sort(items[best_first(request, scores)[: self.size]]) for request, items, scores in scored]


def retriever_of(run: Run, key: str) -> Method:
    """The method of a run that finds candidates. ConfigError where it cannot score the whole catalogue."""
    able = {m.key: m for m in build_methods(run.config).values() if m.ranks_catalogue and not m.uses_backbone}
    if key not in able:
        raise ConfigError(f"--retriever {key}: does not score the whole catalogue: name one of {', '.join(able)}")
    return able[key]


def load_run_reranker(
    run: Run,
    *,
    retriever: str,
    retrieve: int,
    method: str | None,
    seed: int | None,
    checkpoint: str,
    titles: bool,
    top: int,
    exclude_seen: bool,
) -> Served:
    """Recommendations in two steps, by two methods of a run: `retriever` finds `retrieve` candidates, `method` orders
    them (by default the best on validation).

    ConfigError where the retriever cannot score the whole catalogue, or finds fewer than `top`; RunError if one of the
    methods is not trained.
    """
    retriever_of(run, retriever)
    if retrieve < top:
        raise ConfigError(f"--retrieve {retrieve}: fewer candidates than --top {top}: ask for more")
    ranker = load_run_ranker(run, method=method, seed=seed, checkpoint=checkpoint, titles=titles)
    finder, own_seed = chosen_method(run, retriever, None)
    listing = listing_of(run)
    shelf = Shelf(listing.ids, listing.titles, titles_given=titles, top=top, exclude_seen=exclude_seen)
    name, recipe = described(run, finder, own_seed, "best", titles=titles)
    scorer = CatalogueScorer(finder.ranker(run, own_seed, "best"), finder.key, shelf.names, titles=titles)
    reranked = Reranked(shelf, scorer, ranker, retrieve)
    return Served(
        f"{ranker.name}, from the {retrieve} best of {name}",
        {"ranker": ranker.recipe, "retriever": recipe, "retrieve": retrieve, "exclude_seen": exclude_seen},
        reranked.respond, reranked.check, unknown_to_shelf(run, scorer, listing, shelf), ranker.unread, says="answers",
    )  # fmt: skip
