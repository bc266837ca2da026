"""`sirius serve`: the models of a run, or any causal language model, as what the HTTP service answers with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sirius_rec.data.sources.files import require_file
from sirius_rec.errors import ConfigError
from sirius_rec.rankers.answers import Unknown, finite
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes.listing import Listing, listed_titles, listing_of
from sirius_rec.recipes.methods import Method
from sirius_rec.recipes.ranking import (
    READS_TITLES,
    check_checkpoint,
    chosen_method,
    scorer_of_model,
    scorer_of_run,
    unknown_to,
)
from sirius_rec.recipes.recommending import (
    Searched,
    Shelf,
    ranks_catalogue,
    recommender_of_run,
    unknown_to_shelf,
)
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.scorers import Scorer, TitleScorer
from sirius_rec.scoring.prefix_cache import PrefixCache
from sirius_rec.serving.guard import App
from sirius_rec.serving.models import Catalogue, Loaded, Model, Responder, Size
from sirius_rec.serving.options import MIB, Batching, Service
from sirius_rec.serving.server import application

_OPTIONS = "SIRIUS_SERVE_OPTIONS"
_KEPT_TITLES = 100_000  # token ids of titles that an encoder keeps


@dataclass(frozen=True)
class Source:
    """What is served. model: a run folder, or a language model by hub id, folder or file. methods: keys of a run's
    methods, KEY@last or KEY@best for one checkpoint; () for the best on validation. plain: options of
    `scorer_of_model`; None of a run. items: a plain model's catalogue, or what a run's methods that read titles rank
    beside its own."""

    model: str
    methods: tuple[str, ...] = ()
    seed: int | None = None
    checkpoint: str = "best"
    titles: bool = False
    plain: Mapping[str, Any] | None = None
    items: str | None = None
    service: Service = field(default_factory=Service)


def load(source: Source) -> Loaded:
    """Everything that is served, read from disk. RunError for what is not trained, ConfigError for a method twice."""
    quiet()
    return _of_run(source) if source.plain is None else _of_plain_model(source)


def check(source: Source) -> None:
    """Raise what `load` would say of names alone, before anything is loaded or listens."""
    if source.items is not None:
        require_file(Path(source.items), "items file")
    if source.plain is None:
        run = Run.open(source.model)
        for _, checkpoint in _chosen(run, source):
            check_checkpoint(checkpoint, f"--method {', '.join(source.methods)}: checkpoint")


def _wanted(source: Source) -> list[tuple[str | None, str]]:
    wanted: list[tuple[str | None, str]] = []
    for name in source.methods:
        key, _, checkpoint = name.partition("@")
        wanted.append((key, checkpoint or source.checkpoint))
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"--method: {' '.join(source.methods)} names one method twice")
    return wanted or [(None, source.checkpoint)]


def _chosen(run: Run, source: Source) -> list[tuple[tuple[Method, int], str]]:
    """Methods with their seeds, and checkpoints. With `items` one of them at least reads titles, or RunError."""
    able = READS_TITLES if source.items is not None and not source.methods else ()
    chosen = [(chosen_method(run, key, source.seed, *able), checkpoint) for key, checkpoint in _wanted(source)]
    if source.items is not None and not any(method.reads_titles for (method, _), _ in chosen):
        chosen_method(run, chosen[0][0][0].key, source.seed, *READS_TITLES)  # which says what can
    return chosen


def _of_run(source: Source) -> Loaded:
    run = Run.open(source.model)
    listing = listing_of(run, source.items)
    models: dict[str, Model] = {}
    forgetting: list[Callable[[], None]] = []
    for (method, seed), checkpoint in _chosen(run, source):
        training = method.trained_as(run, seed)  # before: a training that ends meanwhile is not this one
        ranker = method.ranker(run, seed, checkpoint)
        _own_weights(getattr(ranker, "model", None))
        name = method.key if checkpoint == source.checkpoint else f"{method.key}@{checkpoint}"
        about = {"method": method.key, "label": method.label, "seed": seed, "checkpoint": checkpoint,
                 "training": training}  # fmt: skip
        scorer = scorer_of_run(run, method, ranker, listing, titles=source.titles)
        unknown = unknown_to(run, scorer, listing, titles=source.titles)
        recommend, why_not = _recommending(run, method, ranker, listing, source)
        models[name] = _model(name, about, scorer, unknown, recommend, why_not, source.service.batching, forgetting)
    catalogue = Catalogue(listing.ids, listing.titles, open=source.titles)
    about = {"run": run.folder.path.name, "fingerprint": run.dataset.fingerprint}
    return _warm(Loaded(models, catalogue, about, partial(_all, forgetting)))


def _recommending(
    run: Run, method: Method, ranker: Any, listing: Listing, source: Source
) -> tuple[Responder | None, str]:
    if not ranks_catalogue(method):
        return None, f"{method.key} ranks slates only: it cannot recommend from the catalogue"
    known = len(listing.ids) if method.reads_titles else listing.own
    shelf = Shelf(listing.ids[:known], listing.titles[:known], titles_given=source.titles, top=1, exclude_seen=False)
    try:
        recommender = recommender_of_run(run, method, ranker, listing, shelf, None)
    except ConfigError as error:  # its prompts list the candidates
        return None, str(error)
    scorer = recommender.scorer
    _quiet(scorer)
    unknown = unknown_to_shelf(run, scorer, listing, shelf)
    return Responder(recommender.respond, scorer.check, unknown, _size(scorer), shelf.ask), ""


def _of_plain_model(source: Source) -> Loaded:
    options = dict(source.plain or {})
    scorer, recipe = scorer_of_model(source.model, **options)
    _own_weights(scorer.model)
    name = Path(source.model).name
    forgetting: list[Callable[[], None]] = []
    recommend, why_not = None, "name a catalogue with --items to recommend from it"
    ids: list[str] = []
    shown: list[str] = []
    unknown, titles = None, source.titles or source.items is None
    if source.items is not None:
        ids, shown = listed_titles(Path(source.items))
        shelf = Shelf(ids, shown, titles_given=titles, top=1, exclude_seen=False)
        if not titles:
            scorer.texts = dict(zip(ids, shown, strict=True))
            unknown = Unknown(shelf.number.__contains__, None)
        if scorer.form.shows_slate:
            why_not = "its prompts list the candidates, and a catalogue is too long a list: give --no-slate"
        else:
            own = TitleScorer(scorer.model, scorer.encoder, scorer.form, scorer.texts, max_history=scorer.max_history)
            searched = Searched(shelf, own, None)
            recommend, why_not = Responder(searched.respond, own.check, unknown, _size(own), shelf.ask), ""
    about = {"label": name, "template": scorer.form.name, "weights": recipe["weights"]}
    models = {name: _model(name, about, scorer, unknown, recommend, why_not, source.service.batching, forgetting)}
    catalogue = Catalogue(ids, shown, open=titles)
    return _warm(Loaded(models, catalogue, {"run": name}, partial(_all, forgetting)))


def _model(
    name: str,
    about: Mapping[str, Any],
    scorer: Scorer,
    unknown: Unknown | None,
    recommend: Responder | None,
    why_not: str,
    batching: Batching,
    forgetting: list[Callable[[], None]],
) -> Model:
    cache = None
    if isinstance(scorer, TitleScorer):
        _quiet(scorer)
        forgetting.append(partial(scorer.encoder.forget, _KEPT_TITLES))
        if batching.prefix_cache:
            cache = PrefixCache(batching.prefix_cache * MIB)
            scorer.scoring["prefixes"] = cache
    rank = Responder(scorer.score, scorer.check, unknown, _size(scorer))
    return Model(name, about, isinstance(scorer, TitleScorer), rank, recommend, why_not, partial(_counts, cache))


def _all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _counts(cache: PrefixCache | None) -> dict[str, int]:
    if cache is None:
        return {}
    counts = cache.counts
    return {"whole": counts.whole, "part": counts.part, "none": counts.none, "reused": counts.reused,
            "computed": counts.computed, "bytes": cache.n_bytes}  # fmt: skip


def _quiet(scorer: Scorer) -> None:
    """Collect no titles for warnings: a service meets ever more of them."""
    if isinstance(scorer, TitleScorer):
        scorer.catalogue = None


def _own_weights(model: Any) -> None:
    """Copy weights out of the files that they are mapped from: `cp` over those would change answers at once, and to
    those of neither model."""
    import torch

    if isinstance(model, torch.nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()


def _size(scorer: Scorer) -> Callable[[Request], Size]:
    if not isinstance(scorer, TitleScorer):
        return lambda request: Size()
    return lambda request: Size(*scorer.size(request))


def _warm(loaded: Loaded) -> Loaded:
    """Answer once with every model, so that its self-check and its first allocations delay nobody, and a model that
    cannot answer is never swapped in."""
    names = (loaded.catalogue.titles if loaded.catalogue.open else loaded.catalogue.ids) or ("A title", "Another")
    request = Request(1, (names[0],), tuple(names[1:3]) or (names[0],))
    for model in loaded.models.values():
        if model.rank.check(request) is None:
            for scores in model.rank.respond([request]):
                finite(request, scores, ())
    return loaded


# Workers are processes of their own, which read what to serve from their environment.
_SOURCE = TypeAdapter(Source)


def worker() -> App:
    """The application of a worker; `hand_on` was called in its parent."""
    source = _SOURCE.validate_json(os.environ[_OPTIONS])
    if source.service.workers > 1:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // source.service.workers))
    return application(partial(load, source), source.service)


def hand_on(source: Source) -> str:
    """Put a source where workers find it; the name of what makes their application."""
    os.environ[_OPTIONS] = _SOURCE.dump_json(source).decode()
    return f"{__name__}:{worker.__name__}"
