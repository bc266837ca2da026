"""`sirius recommend`: the best of a whole catalogue for histories in JSON lines, exact with a language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sirius_rec.bench.catalogue import CatalogueTask
from sirius_rec.data.fingerprint import table_fingerprint
from sirius_rec.errors import ConfigError, PromptError
from sirius_rec.rankers.answers import Unknown, finite
from sirius_rec.rankers.catalogue.trie import catalogue_trie
from sirius_rec.rankers.requests import Request
from sirius_rec.rankers.trivial import Popularity
from sirius_rec.recipes.listing import Listing, listed_titles, listing_of
from sirius_rec.recipes.methods import Method
from sirius_rec.recipes.prompt_file import EXPORTED, in_words
from sirius_rec.recipes.ranking import (
    READS_TITLES,
    Served,
    check_checkpoint,
    chosen_method,
    described,
    scorer_of_model,
    title_scorer,
    unknown_to,
)
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.scorers import CatalogueScorer, Scorer, TitleScorer
from sirius_rec.schema import HISTORY, ITEM_ID
from sirius_rec.training.inputs import embedding_count


class Shelf:
    """A catalogue of which the best are recommended: ids and titles by item number.

    titles_given: requests hold titles. top: items of an answer; fewer where fewer are left. exclude_seen: what the
    history holds is no answer, shown to the model or not. ConfigError for a `top` that the catalogue does not have.
    """

    def __init__(
        self, ids: Sequence[str], titles: Sequence[str], *, titles_given: bool, top: int, exclude_seen: bool
    ) -> None:
        self.ids, self.titles, self.titles_given = ids, titles, titles_given
        self.ask(top, exclude_seen)
        self.names = titles if titles_given else ids
        self.number = {name: n for n, name in enumerate(self.names)}

    def ask(self, top: int, exclude_seen: bool) -> None:
        """What the next answers hold; ConfigError as when it was made."""
        if not 1 <= top <= len(self.ids):
            raise ConfigError(f"--top {top}: the catalogue has {len(self.ids)} items: ask for 1 to {len(self.ids)}")
        self.top, self.exclude_seen = top, exclude_seen

    def left_out(self, requests: Sequence[Request], tidy: Any) -> list[np.ndarray]:
        """Item numbers that are no answers. tidy: how names are compared. What the catalogue lacks needs no mention."""
        out = []
        for request in requests:
            unwanted = {*request.exclude, *(request.history if self.exclude_seen else ())}
            known = {self.number.get(tidy(name)) for name in unwanted} - {None}
            out.append(np.array(sorted(n for n in known if n is not None), dtype=np.int64))
        return out

    def answer(
        self, request: Request, items: Sequence[int], scores: Any, *, exact: bool = True, opened: int = 0
    ) -> dict[str, Any]:
        return {
            "items": [self.ids[i] for i in items],
            "titles": [self.titles[i] for i in items],
            "scores": finite(request, scores, range(len(items))),
            "exact": exact,
            "opened": opened,
        }


class Searched:
    """A language model's recommendations, searched for in the trie of the catalogue."""

    def __init__(self, shelf: Shelf, scorer: TitleScorer, max_opened: int | None) -> None:
        """ConfigError for prompts that list candidates, PromptError for ids beyond the embeddings; as `build_trie`."""
        if scorer.form.shows_slate:
            raise ConfigError(
                "this model's prompts list the candidates, and a catalogue is too long a list: train with "
                "prompts.slate: false, or name another method"
            )
        self.shelf, self.scorer, self.max_opened = shelf, scorer, max_opened
        self.trie = catalogue_trie(scorer.encoder, shelf.titles)
        if (highest := int(self.trie.token_N.max())) >= (size := embedding_count(scorer.model)):
            raise PromptError(f"titles of the catalogue: token id {highest} lies outside the model's {size} embeddings")
        scorer.longest = self.trie.longest

    def respond(self, requests: list[Request]) -> list[dict[str, Any]]:
        out = self.shelf.left_out(requests, self.scorer.name)
        found = self.scorer.top_k(requests, self.trie, self.shelf.top, leave_out=out, max_opened=self.max_opened)
        answers = []
        for request, result in zip(requests, found, strict=True):
            items = result.items.tolist()
            said = self.shelf.answer(request, items, result.scores, exact=result.exact, opened=result.opened)
            if not result.exact and math.isfinite(result.bound):
                said["bound"] = round(result.bound, 6)
            answers.append(said)
        return answers


def best_first(request: Request, scores: Any) -> np.ndarray:
    """Places by falling score, ties in the order given. ScoringError for NaN or infinity, which have no place."""
    finite(request, scores, ())
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")


class Scored:
    """Recommendations of a ranker that scores every item.

    popularity_I: what decides between equal scores, before the order of the catalogue: a formula has 0 for all items
    where it has met none of a history in training.
    """

    def __init__(self, shelf: Shelf, scorer: CatalogueScorer, popularity_I: Any = None) -> None:
        self.shelf, self.scorer = shelf, scorer
        known = np.zeros(len(shelf.ids)) if popularity_I is None else popularity_I
        self._order_I = np.argsort(-known, kind="stable")

    def respond(self, requests: list[Request]) -> list[dict[str, Any]]:
        left = [self._order_I[~np.isin(self._order_I, out)] for out in self.shelf.left_out(requests, self.scorer.name)]
        answers = []
        for request, items, scores in zip(requests, left, self.scorer.score_items(requests, left), strict=True):
            best = best_first(request, scores)[: self.shelf.top]
            answers.append(self.shelf.answer(request, items[best].tolist(), np.asarray(scores)[best]))
        return answers


def load_run_recommender(
    run: Run,
    *,
    method: str | None = None,
    seed: int | None = None,
    checkpoint: str = "best",
    titles: bool = False,
    top: int = 10,
    exclude_seen: bool = False,
    max_opened: int | None = None,
    items: Path | str | None = None,
) -> Served:
    """Recommendations from a run's catalogue, by any method that can rank all of it; by default the best on validation.

    checkpoint, titles: as in `load_run_ranker`. top: items of an answer. exclude_seen: leaves out what the history
    holds. max_opened: prefixes that a search may open for a request, as in `top_k`. items: a table of item_id and title
    to recommend from beside the run's, by a method that reads titles. RunError if none is trained.
    """
    quiet()
    check_checkpoint(checkpoint)
    able = (ranks_catalogue, "rank a whole catalogue") if items is None else READS_TITLES
    chosen, seed = chosen_method(run, method, seed, *able)
    listing = listing_of(run, items)
    shelf = Shelf(listing.ids, listing.titles, titles_given=titles, top=top, exclude_seen=exclude_seen)
    name, recipe = described(run, chosen, seed, checkpoint, titles=titles)
    recipe |= {"exclude_seen": exclude_seen, "max_opened": max_opened, **listing.recipe}
    ranker = chosen.ranker(run, seed, checkpoint)
    recommender = recommender_of_run(run, chosen, ranker, listing, shelf, max_opened)
    scorer = recommender.scorer
    unknown = unknown_to_shelf(run, scorer, listing, shelf)
    return Served(name, recipe, recommender.respond, scorer.check, unknown, scorer.unread, says="answers")


def recommender_of_run(
    run: Run, method: Method, ranker: Any, listing: Listing, shelf: Shelf, max_opened: int | None
) -> Searched | Scored:
    """What recommends from a run's catalogue with a method's loaded ranker."""
    if method.reads_titles:
        return Searched(shelf, title_scorer(run, ranker, listing, titles=shelf.titles_given), max_opened)
    popularity = Popularity().fit(run.dataset.train_sequences(), run.dataset.n_items)
    scorer = CatalogueScorer(ranker, method.key, shelf.names, titles=shelf.titles_given)
    return Scored(shelf, scorer, popularity.counts)


def unknown_to_shelf(run: Run, scorer: Scorer, listing: Listing, shelf: Shelf) -> Unknown | None:
    """`unknown_to` where items are recommended, and popularity recommends them too."""
    return unknown_to(
        run, scorer, listing, titles=shelf.titles_given, respond=lambda popular: Scored(shelf, popular).respond
    )


def ranks_catalogue(method: Method) -> bool:
    """Whether it can rank a whole catalogue."""
    return method.reads_titles or (method.ranks_catalogue and not method.uses_backbone)


def load_plain_recommender(
    name: str, items: Path, *, titles: bool, top: int, exclude_seen: bool, max_opened: int | None, **options: Any
) -> Served:
    """Recommendations of any causal language model from a table of item_id and title. options: of `scorer_of_model`."""
    ids, shown = listed_titles(items)
    shelf = Shelf(ids, shown, titles_given=titles, top=top, exclude_seen=exclude_seen)
    scorer, recipe = scorer_of_model(name, **options)
    if scorer.form.name == EXPORTED and scorer.form.shows_slate:
        raise ConfigError(f"{name}: its prompts list the candidates, and a catalogue is too long a list: rank slates")
    scorer.form, recipe["slate"] = replace(scorer.form, shows_slate=False), False
    if not titles:
        scorer.texts = dict(zip(ids, shown, strict=True))
    searched = Searched(shelf, scorer, max_opened)
    # The trie's key says which titles there are, in which order, but not what they are called in requests and answers.
    named = table_fingerprint(pl.DataFrame({ITEM_ID: ids}))
    recipe |= {"trie": searched.trie.key, "ids": named, "titles": titles,
               "exclude_seen": exclude_seen, "max_opened": max_opened}  # fmt: skip
    unknown = None if titles else Unknown(shelf.number.__contains__, None)
    return Served(in_words(name, recipe), recipe, searched.respond, scorer.check, unknown, says="answers")


def bench_task(run: Run, *, users: int, seed: int = 0) -> CatalogueTask:
    """The run's best language model, its catalogue, and the prompts of some test rows: what `bench catalogue` times."""
    chosen, of = chosen_method(run, None, None, lambda method: method.reads_titles, "search titles")
    ranker = chosen.ranker(run, of, "best")
    if ranker.template.shows_slate:
        raise ConfigError(f"{run.folder.path}: its prompts list the candidates: name a run with prompts.slate: false")
    histories = run.dataset.examples("test")[HISTORY].to_list()
    rows = np.random.default_rng(seed).permutation(len(histories))[:users]
    shown = [np.array(histories[r][-run.config.data.window.max_history :]) for r in rows]
    prompts = ranker.encoder.prompts(ranker.prompts(shown, [np.empty(0, dtype=np.int64)] * len(shown)))
    name = f"{run.folder.path.name}, {chosen.key}"
    return CatalogueTask(
        name, ranker.model, catalogue_trie(ranker.encoder, run.dataset.titles), prompts, ranker.encoder.pad_id
    )
