"""`sirius rank`: requests in JSON lines ranked by a trained model of a run, or by any causal language model.

How a request is answered, here and in `recommending`, `reranking` and `serving`: a `Request` holds a history and
candidates. A scorer checks and scores lists of them: `TitleScorer` with a language model, which reads titles,
`CatalogueScorer` with a ranker that knows its catalogue's items only. `Served` is a scorer, or a recommender on top of
one, with its name and what its answers depend on. To a file, an `Answerer` (`rankers.answers`) turns what `Served`
responds into lines, in one or several processes (`recipes.answering`); over HTTP, the engine (`serving.engine`) calls
the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from sirius_rec.data.fingerprint import table_fingerprint
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.option_errors import nearest
from sirius_rec.rankers.answers import Answerer, Check, Respond, Unknown, ranking
from sirius_rec.rankers.requests import RANKING, RECOMMENDING, Request, checked
from sirius_rec.rankers.trivial import Popularity
from sirius_rec.recipes.job import log
from sirius_rec.recipes.listing import Listing, listed_titles, listing_of
from sirius_rec.recipes.methods import Method, build_methods
from sirius_rec.recipes.models import configured_context
from sirius_rec.recipes.prompt_file import in_words, prompt_form
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.scorers import CatalogueScorer, Scorer, TitleScorer
from sirius_rec.schema import ITEM_ID, TITLE


@dataclass(frozen=True)
class Served:
    """A loaded ranker or recommender. name: for people. recipe: what its answers depend on. respond: gives for each
    request what `says` names: scores of its candidates, or an answer, the best items of a catalogue. check, unknown,
    unread: as in `Answerer`.
    """

    name: str
    recipe: dict[str, Any]
    respond: Respond
    check: Check
    unknown: Unknown | None = None
    unread: Callable[[], set[str]] = set
    says: Literal["scores", "answers"] = "scores"

    def score(self, requests: list[Request]) -> list[Any]:
        """Scores of each request's candidates; TypeError of a recommender, which has none."""
        if self.says != "scores":
            raise TypeError(f"{self.name} recommends from a catalogue: call respond, which says the items")
        return self.respond(requests)

    def answers(self, requests: Sequence[Request], top: int | None = None) -> list[dict[str, Any]]:
        """What `sirius rank`, or `sirius recommend`, answers, in order of the requests, whose `line` does not matter.

        History items that are not known are dropped and counted ("unknown"); where nothing is left of a history,
        popularity answers ("by"). What cannot be answered is {"line": …, "error": why}. top: candidates in an answer,
        None for all of them; a recommender was told when it was loaded (TypeError).
        """
        if self.says != "scores" and top is not None:
            raise TypeError(f"{self.name} answers with as many items as it was loaded for: leave top out")
        answerer = Answerer(self.respond, self.check, self.unknown, skip_bad=True)
        if self.says == "scores":
            answerer = ranking(answerer, top)
        form = RANKING if self.says == "scores" else RECOMMENDING
        return answerer([checked(request, number, form) for number, request in enumerate(requests, 1)]).lines


def load_run_ranker(
    run: Run,
    *,
    method: str | None = None,
    seed: int | None = None,
    checkpoint: str = "best",
    titles: bool = False,
    items: Path | str | None = None,
) -> Served:
    """A ranker of a run: any method that is trained; by default what had the highest HR@1 on validation slates.

    checkpoint: `best` or `last`. titles: requests hold titles (a language model also ranks titles that the catalogue
    lacks), not item ids. items: a table of item_id and title that requests may name beside the run's; it takes a
    method that reads titles. Raises RunError if nothing of that name and seed is trained.
    """
    quiet()
    check_checkpoint(checkpoint)
    _refuse_both(items, titles)
    chosen, seed = chosen_method(run, method, seed, *(() if items is None else READS_TITLES))
    listing = listing_of(run, items)
    scorer = scorer_of_run(run, chosen, chosen.ranker(run, seed, checkpoint), listing, titles=titles)
    name, recipe = described(run, chosen, seed, checkpoint, titles=titles)
    unknown = unknown_to(run, scorer, listing, titles=titles)
    return Served(name, recipe | listing.recipe, scorer.score, scorer.check, unknown, scorer.unread)


def check_checkpoint(checkpoint: str, where: str = "checkpoint") -> None:
    """ConfigError for a checkpoint that no training leaves."""
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"{where} '{checkpoint}': checkpoints are best and last")


def scorer_of_run(run: Run, method: Method, ranker: Any, listing: Listing, *, titles: bool) -> Scorer:
    """What scores requests with a method's loaded ranker, by item id or by title."""
    if method.reads_titles:
        return title_scorer(run, ranker, listing, titles=titles)
    names = listing.names(titles=titles)[: listing.own]
    scorer = CatalogueScorer(ranker, method.key, names, titles=titles, length=method.request_length(run))
    if method.uses_backbone:
        scorer.max_history, scorer.context = run.config.data.window.max_history, configured_context(run.config)
    return scorer


def described(run: Run, method: Method, seed: int, checkpoint: str, *, titles: bool) -> tuple[str, dict[str, Any]]:
    """What people call a method's ranker, and what its answers depend on."""
    files = weights_of(method.folder(run, seed) / checkpoint) or weights_of(method.folder(run, seed))
    recipe = {"run": str(run.folder.path.resolve()), "data": run.dataset.fingerprint, "method": method.key,
              "seed": seed, "checkpoint": checkpoint, "weights": files, "titles": titles}  # fmt: skip
    name = f"{method.key} of seed {seed}" if method.random else method.key
    return f"{name} ({checkpoint} checkpoint)" if method.reads_titles else name, recipe


def title_scorer(run: Run, ranker: Any, listing: Listing, *, titles: bool) -> TitleScorer:
    """What scores requests with a run's language model, by item id or by title."""
    scorer = TitleScorer(
        ranker.model, ranker.encoder, ranker.template,
        None if titles else dict(zip(listing.ids, listing.titles, strict=True)),
        max_history=run.config.data.window.max_history, scoring=ranker.scoring, batch_tokens=ranker.batch_tokens,
        bf16=ranker.bf16,
    )  # fmt: skip
    if run.config.prompts.fields:
        scorer.prompted = dict(zip(listing.titles, [*run.shown, *listing.new_shown], strict=True))
    if (titles or listing.new_shown) and run.config.backbone.name == "tiny":  # it has read nothing but this catalogue
        scorer.catalogue = set(run.dataset.titles)
    return scorer


def unknown_to(
    run: Run,
    scorer: Scorer,
    listing: Listing,
    *,
    titles: bool,
    respond: Callable[[CatalogueScorer], Respond] = lambda popular: popular.score,
) -> Unknown | None:
    """What to do with items that a scorer does not know: popularity answers for a history of nothing else. None for
    what reads any title.

    respond: how popularity answers, given what scores by it.
    """
    if scorer.reads_any:
        return None
    names = listing.names(titles=titles)
    if not isinstance(scorer, TitleScorer):
        names = names[: listing.own]
    popularity = Popularity().fit(run.dataset.train_sequences(), len(names))
    popular = CatalogueScorer(popularity, "popularity", names, titles=titles)
    return Unknown(popular.knows, respond(popular))


# What may have items added to its catalogue, and what it can do.
READS_TITLES = (lambda method: method.reads_titles, "rank items that training never met")


def chosen_method(
    run: Run,
    key: str | None,
    seed: int | None,
    can: Callable[[Method], bool] = lambda method: True,
    what: str = "rank requests",
) -> tuple[Method, int]:
    """The method and seed asked for, or the best on validation slates among those that fit, and `can` do it; of a final
    fit, which has no such slates, the one that it was made for.

    what: that which they can do. RunError where none does: it is not trained, or cannot.
    """
    methods = build_methods(run.config)
    if key is None and (origin := run.folder.origin()) is not None:
        key = origin["method"]
    able = [m for m in methods.values() if not m.remote and can(m)]
    trained = {(m, s): m.validation_hit(run, s) for m in able for s in m.seeds if m.is_done(run, s)}
    fitting = {
        (m, s): hit or 0.0
        for (m, s), hit in trained.items()
        if seed in (None, s) and (key == m.key or (key is None and hit is not None))
    }
    if not fitting:
        have = ", ".join(f"{m.key} (seed {s})" for m, s in trained) or "nothing yet"
        unable = methods.get(key or "")
        if unable is not None and unable not in able:
            raise RunError(f"{run.folder.path}: {key} cannot {what}; trained and able to: {have}")
        if key is None and any(seed in (None, s) for _, s in trained):
            raise RunError(
                f"{run.folder.path}: nothing was measured on validation slates, as formulas are not, so none is best: "
                f"name one with --method ({have})"
            )
        asked = " ".join([key or "a model", *([f"of seed {seed}"] if seed is not None else [])])
        near = nearest(key, methods) if key is not None and key not in methods else ""
        raise RunError(f"{run.folder.path}: {asked} is not trained{near if 'mean' in near else ''}; there is {have}")
    return max(fitting, key=lambda pair: fitting[pair])


def _refuse_both(items: Path | str | None, titles: bool) -> None:
    if titles and items is not None:
        raise ConfigError("--items: with --titles any title is read, in the catalogue or not: leave one of them out")


def load_plain_model(name: str, *, items: Path | str | None = None, titles: bool = False, **options: Any) -> Served:
    """Any causal language model by hub id, folder (of SiriusTrainer, say) or GGUF file.

    items: a table of item_id and title, whose ids requests hold; without one they hold titles, and `titles` says
    nothing. options: of `scorer_of_model`.
    """
    _refuse_both(items, titles)
    listed = None if items is None else dict(zip(*listed_titles(Path(items)), strict=True))
    scorer, recipe = scorer_of_model(name, **options)
    if listed is None:
        log(f"{name} is a plain model: histories and candidates are read as titles")
        return Served(in_words(name, recipe), recipe, scorer.score, scorer.check)
    scorer.texts = listed
    recipe["items"] = table_fingerprint(pl.DataFrame({ITEM_ID: list(listed), TITLE: list(listed.values())}))
    unknown = Unknown(listed.__contains__, None)
    return Served(in_words(name, recipe), recipe, scorer.score, scorer.check, unknown)


def scorer_of_model(
    name: str,
    *,
    template: str | None = None,
    shows_slate: bool | None = None,
    max_history: int | None = None,
    chat: bool | None = None,
    dtype: str = "float32",
) -> tuple[TitleScorer, dict[str, Any]]:
    """What scores requests by title with a plain model, and what answers depend on.

    chat: prompts as user turns of the tokenizer's chat template. What is None is as an exported model's file says
    (`prompt_file.prompt_form`). dtype: float32 or bfloat16, of the weights.
    """
    import torch

    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.training.backbones import adapter_base, is_adapter, load_backbone, load_tokenizer, load_trained
    from sirius_rec.training.gguf import model_folder

    quiet()
    folder = Path(model_folder(name))
    asked = prompt_form(
        folder if folder.is_dir() else name,
        template=template,
        shows_slate=shows_slate,
        max_history=max_history,
        chat=chat,
    )
    tokenizer = load_tokenizer(name)
    if is_adapter(folder):
        model = load_trained(folder, adapter_base(folder), dtype=dtype)
    else:
        model = load_backbone(name, dtype=dtype)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder(tokenizer, chat=asked.chat)
    scorer = TitleScorer(model, encoder, asked.form, None, max_history=asked.max_history)
    return scorer, {"model": name, "weights": weights_of(folder), "dtype": dtype, **asked.recipe}


def weights_of(folder: Path) -> list[list[Any]]:
    """Name, bytes and time (ns) of a folder's weight files: whether answers come from the same ones. [] of a hub id."""
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
