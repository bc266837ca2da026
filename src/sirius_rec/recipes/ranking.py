"""`sirius rank`: requests in JSON lines ranked by a trained model of a run, or by any causal language model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.data.sources.files import load_items
from sirius_rec.data.store import Dataset
from sirius_rec.data.titles import distinct_titles, tidy_title
from sirius_rec.errors import DataError, PromptError, RunError
from sirius_rec.option_errors import nearest
from sirius_rec.rankers.answers import Unknown
from sirius_rec.rankers.catalogue.search import Found
from sirius_rec.rankers.catalogue.trie import Trie
from sirius_rec.rankers.llm import LLMRanker
from sirius_rec.rankers.requests import Request
from sirius_rec.rankers.trivial import Popularity
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods import Method, build_methods
from sirius_rec.recipes.models import context_of
from sirius_rec.recipes.prompt_file import in_words, prompt_form
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.schema import ITEM_ID, TITLE


@dataclass(frozen=True)
class Served:
    """A loaded ranker. name: for people. recipe: what its answers depend on. score: scores per candidate; where it
    recommends from a catalogue, what answers say. check, unknown, unread: as in `Answering`.
    """

    name: str
    recipe: dict[str, Any]
    score: Callable[[list[Request]], list[Any]]
    check: Callable[[Request], str | None]
    unknown: Unknown | None = None
    unread: Callable[[], set[str]] = set


def load_run_ranker(run: Run, *, method: str | None, seed: int | None, checkpoint: str, titles: bool) -> Served:
    """A ranker of a run: any method that is trained; by default what had the highest HR@1 on validation slates.

    titles: requests hold titles (a language model also ranks titles that the catalogue lacks), not item ids.
    Raises RunError if nothing of that name and seed is trained.
    """
    quiet()
    chosen, seed = chosen_method(run, method, seed)
    ranker = chosen.ranker(run, seed, checkpoint)
    name, recipe = described(run, chosen, seed, checkpoint, titles=titles)
    requests = run_requests(run, chosen, ranker, titles=titles)
    return served_requests(run, name, recipe, requests, titles=titles)


def served_requests(
    run: Run, name: str, recipe: dict[str, Any], requests: TextRequests | CatalogueRequests, *, titles: bool
) -> Served:
    """How `load_run_ranker` answers requests. name, recipe: of `described`."""
    if isinstance(requests, TextRequests):
        unknown = None if titles else _unknown(run, titles)
        return Served(name, recipe, requests.score, requests.check, unknown, requests.unread)
    return Served(name, recipe, requests.score, requests.check, _unknown(run, titles))


def run_requests(run: Run, method: Method, ranker: Any, *, titles: bool) -> TextRequests | CatalogueRequests:
    """Requests for a method's loaded ranker, by item id or by title."""
    if method.reads_titles:
        return text_requests(run, ranker, titles=titles)
    items = CatalogueRequests(ranker, method.key, names(run, titles), titles=titles, length=method.request_length(run))
    if method.uses_backbone:
        items.max_history, items.context = run.config.data.window.max_history, context_of(run.config)
    return items


def described(run: Run, method: Method, seed: int, checkpoint: str, *, titles: bool) -> tuple[str, dict[str, Any]]:
    """What people call a method's ranker, and what its answers depend on."""
    files = weights_of(method.folder(run, seed) / checkpoint) or weights_of(method.folder(run, seed))
    recipe = {"run": str(run.folder.path.resolve()), "data": run.dataset.fingerprint, "method": method.key,
              "seed": seed, "checkpoint": checkpoint, "weights": files, "titles": titles}  # fmt: skip
    name = f"{method.key} of seed {seed}" if method.random else method.key
    return f"{name} ({checkpoint} checkpoint)" if method.reads_titles else name, recipe


def text_requests(run: Run, ranker: Any, *, titles: bool) -> TextRequests:
    """Requests for a run's language model, by item id or by title."""
    requests = TextRequests(
        ranker.model, ranker.encoder, ranker.template,
        None if titles else dict(zip(item_ids(run.dataset), run.dataset.titles, strict=True)),
        max_history=run.config.data.window.max_history, scoring=ranker.scoring, batch_tokens=ranker.batch_tokens,
        bf16=ranker.bf16,
    )  # fmt: skip
    if run.config.prompts.fields:
        requests.prompted = dict(zip(run.dataset.titles, run.shown, strict=True))
    if titles and run.config.backbone.name == "tiny":  # it has read nothing but this catalogue
        requests.catalogue = set(run.dataset.titles)
    return requests


def names(run: Run, titles: bool) -> list[str]:
    """How requests name the items of the catalogue, by dense number."""
    return run.dataset.titles if titles else item_ids(run.dataset)


def _unknown(run: Run, titles: bool) -> Unknown:
    popularity = Popularity().fit(run.dataset.train_sequences(), run.dataset.n_items)
    items = CatalogueRequests(popularity, "popularity", names(run, titles), titles=titles)
    return Unknown(lambda item: items.name(item) in items.number, items.score)


def chosen_method(
    run: Run,
    key: str | None,
    seed: int | None,
    can: Callable[[Method], bool] = lambda method: True,
    what: str = "rank requests",
) -> tuple[Method, int]:
    """The method and seed asked for, or the best on validation slates among those that fit, and `can` do it.

    what: that which they can do. RunError where none does: it is not trained, or cannot.
    """
    methods = build_methods(run.config)
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
        asked = " ".join([key or "a model", *([f"of seed {seed}"] if seed is not None else [])])
        near = nearest(key, methods) if key is not None and key not in methods else ""
        raise RunError(f"{run.folder.path}: {asked} is not trained{near if 'mean' in near else ''}; there is {have}")
    return max(fitting, key=lambda pair: fitting[pair])


def listed_titles(items: Path) -> tuple[list[str], list[str]]:
    """Ids and titles of a table of items for a plain model; equal titles are told apart as in a preparation.

    DataError for an item without a title. Numbers behind equal titles go by the order of the table, so whoever lists
    other items than the model was trained on is told of them.
    """
    frame, untitled, _ = load_items(items, {}, "drop")
    if untitled:
        raise DataError(f"{items}: item {untitled[0]!r} has no title: give it one, or leave it out")
    shown, renamed = distinct_titles(frame[TITLE].to_list())
    if renamed:
        log(f"warning: {items}: {len(renamed)} titles are those of an earlier item and got a number, such as "
            f"{shown[renamed[0]]!r}: a model of a run knows them as its data/items.parquet has them")  # fmt: skip
    return frame[ITEM_ID].to_list(), shown


def load_plain_model(name: str, **options: Any) -> Served:
    """Any causal language model by hub id, folder (of SiriusTrainer, say) or GGUF file; requests hold titles.

    options: of `plain_requests`.
    """
    requests, recipe = plain_requests(name, **options)
    log(f"{name} is a plain model: histories and candidates are read as titles")
    return Served(in_words(name, recipe), recipe, requests.score, requests.check)


def plain_requests(
    name: str,
    *,
    template: str | None = None,
    shows_slate: bool | None = None,
    max_history: int | None = None,
    chat: bool | None = None,
    dtype: str = "float32",
) -> tuple[TextRequests, dict[str, Any]]:
    """Requests by title for a plain model, and what answers depend on.

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
    requests = TextRequests(model, encoder, asked.form, None, max_history=asked.max_history)
    recipe = {"model": name, "weights": weights_of(folder), "dtype": dtype, **asked.recipe}
    return requests, recipe


def weights_of(folder: Path) -> list[list[Any]]:
    """Name, bytes and time (ns) of a folder's weight files: whether answers come from the same ones. [] of a hub id."""
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


class TextRequests:
    """Scores requests by log π(title | prompt), in nats.

    texts: item id → title; None where requests hold titles themselves. max_history: only so many of the newest items
    are shown, as in training.
    """

    def __init__(
        self, model: Any, encoder: Any, form: Any, texts: dict[str, str] | None, *, max_history: int, **scoring: Any
    ) -> None:
        from sirius_rec.scoring.packed import unwrapped

        self.model, self.encoder, self.form, self.texts = model, encoder, form, texts
        self.max_history, self.scoring = max_history, scoring
        # Title → what stands for it in prompts; others stand for themselves.
        self.prompted: dict[str, str] = {}
        # Titles that a backbone from scratch has read; None where it has read more than a catalogue.
        self.catalogue: set[str] | None = None
        self._never_read: set[str] = set()
        self._last: tuple[str, list[int]] = ("", [])
        self.context = getattr(unwrapped(model).config, "max_position_embeddings", None)
        # Tokens of the longest title that an answer may hold, where it is not one of the request's candidates.
        self.longest: int | None = None

    def check(self, request: Request) -> str | None:
        """Why a request cannot be scored: an unknown item, a title without tokens, a prompt beyond the context."""
        if self.texts is not None:
            for item in (*self._shown(request), *request.candidates):
                if item not in self.texts:
                    return f"item {item!r} is not in the catalogue; give titles with --titles, or leave it out"
        from sirius_rec.training.inputs import embedding_count

        titles = [self._title(item) for item in (*self._shown(request), *request.candidates)]
        candidates = titles[len(titles) - len(request.candidates) :]
        twice = next((title for n, title in enumerate(candidates) if title in candidates[:n]), None)
        if twice is not None:
            return f"candidate {twice!r} is duplicated"
        try:
            encoded = [self.encoder.completion(title) for title in titles]
            prompt = self._prompt_ids(self._prompt(request))
        except PromptError as error:
            return str(error)
        for title, ids in zip(titles, encoded, strict=True):
            if self.encoder.special.intersection(ids[:-1]):
                return f"title {title!r} contains a special token of the tokenizer: change the title"
        highest = max(i for ids in (prompt, *encoded) for i in ids)
        if highest >= (size := embedding_count(self.model)):
            return f"token id {highest} lies outside the model's {size} embeddings"
        longest = self.longest or max(map(len, encoded[len(titles) - len(request.candidates) :]))
        if self.context is not None and len(prompt) + longest - 1 > self.context:
            return (
                f"prompt and longest candidate take {len(prompt) + longest - 1} tokens, the context is {self.context}"
            )
        return None

    def size(self, request: Request) -> tuple[str, int, int]:
        """The prompt, its tokens, and those that the model reads of the candidates."""
        prompt = self._prompt(request)
        candidates = (self.encoder.completion(self._title(item)) for item in request.candidates)
        return prompt, len(self._prompt_ids(prompt)), sum(len(ids) - 1 for ids in candidates)

    def unread(self) -> set[str]:
        """Titles met since the last call that a backbone from scratch has never read."""
        found, self._never_read = self._never_read, set()
        return found

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Token ids; those of the last prompt are kept, which is asked for by `check` and `size`."""
        if self._last[0] != prompt:
            self._last = prompt, self.encoder.prompt(prompt)
        return self._last[1]

    def _shown(self, request: Request) -> tuple[str, ...]:
        """The newest items of the history."""
        return request.history[max(0, len(request.history) - self.max_history) :]

    def name(self, item: str) -> str:
        """How names of items are compared: titles as those in training, ids as they are."""
        return tidy_title(item) if self.texts is None else item

    def _title(self, item: str) -> str:
        return self.name(item) if self.texts is None else self.texts[item]

    def _prompt(self, request: Request) -> str:
        history = self._in_prompts(self._title(item) for item in self._shown(request))
        return str(self.form.render(history, self._in_prompts(self._title(item) for item in request.candidates)))

    def _in_prompts(self, titles: Iterable[str]) -> list[str]:
        return [self.prompted.get(title, title) for title in titles]

    def _ranker(self, titles: Sequence[str]) -> LLMRanker:
        if self.catalogue is not None:
            self._never_read.update(title for title in titles if title not in self.catalogue)
        shown = self._in_prompts(titles)
        return LLMRanker(self.model, self.encoder, self.form, titles, shown=shown, **self.scoring)

    def score(self, requests: list[Request]) -> list[Any]:
        shown = [([self._title(i) for i in self._shown(r)], [self._title(i) for i in r.candidates]) for r in requests]
        titles = list(dict.fromkeys(title for history, slate in shown for title in (*history, *slate)))
        number = {title: n for n, title in enumerate(titles)}
        return self._ranker(titles).score(*_numbered(shown, number))

    def top_k(self, requests: list[Request], trie: Trie, k: int, **options: Any) -> list[Found]:
        """What is best of a catalogue for each request's history; options of `LLMRanker.top_k`."""
        shown = [[self._title(item) for item in self._shown(request)] for request in requests]
        titles = list(dict.fromkeys(title for history in shown for title in history))
        number = {title: n for n, title in enumerate(titles)}
        histories, _ = _numbered([(history, ()) for history in shown], number)
        return self._ranker(titles).top_k(trie, histories, k, **options)


def item_ids(dataset: Dataset) -> list[str]:
    return list(map(str, dataset.items[ITEM_ID].to_list()))


def _numbered(
    shown: Sequence[tuple[Sequence[str], Sequence[str]]], number: dict[str, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return (
        [np.array([number[i] for i in history], dtype=np.int64) for history, _ in shown],
        [np.array([number[i] for i in slate], dtype=np.int64) for _, slate in shown],
    )


class CatalogueRequests:
    """Requests for a ranker that knows the items of its catalogue only. names: of the items, by dense number.

    titles: the names are titles, treated as those in training. max_history, context, length: of what prompts a model:
    only so many of the newest items are shown, and `length` gives the tokens of a history and slate.
    """

    def __init__(
        self,
        ranker: Any,
        method: str,
        names: Sequence[str],
        *,
        titles: bool = False,
        length: Callable[[list[int], list[int]], int] | None = None,
    ) -> None:
        self.ranker, self.method, self.titles, self.length = ranker, method, titles, length
        self.number = {name: n for n, name in enumerate(names)}
        self.max_history: int | None = None
        self.context: int | None = None

    def name(self, item: str) -> str:
        return tidy_title(item) if self.titles else item

    def _named(self, request: Request) -> tuple[list[str], list[str]]:
        history = [self.name(item) for item in request.history]
        if self.max_history is not None:
            history = history[max(0, len(history) - self.max_history) :]
        return history, [self.name(item) for item in request.candidates]

    def check(self, request: Request) -> str | None:
        """Why a request cannot be scored: an item outside the catalogue, or a prompt beyond the context."""
        history, candidates = self._named(request)
        unknown = next((item for item in (*history, *candidates) if item not in self.number), None)
        if unknown is not None:
            return f"item {unknown!r} is not in the catalogue, which {self.method} cannot rank"
        twice = next((item for n, item in enumerate(candidates) if item in candidates[:n]), None)
        if twice is not None:
            return f"candidate {twice!r} is duplicated"
        if self.context is not None and self.length is not None:
            tokens = self.length([self.number[i] for i in history], [self.number[i] for i in candidates])
            if tokens > self.context:
                return f"prompt and longest candidate take {tokens} tokens, the context is {self.context}"
        return None

    def score(self, requests: list[Request]) -> list[Any]:
        return list(self.ranker.score(*_numbered([self._named(request) for request in requests], self.number)))

    def score_items(self, requests: Sequence[Request], items: Sequence[np.ndarray]) -> list[Any]:
        """Scores of candidates given by their numbers, as when a whole catalogue is ranked."""
        histories, _ = _numbered([(self._named(request)[0], ()) for request in requests], self.number)
        return list(self.ranker.score(histories, list(items)))
