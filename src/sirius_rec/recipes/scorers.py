"""What scores requests: a language model, which reads titles, or a ranker that knows its catalogue's items only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sirius_rec.data.titles import tidy_title
from sirius_rec.errors import PromptError
from sirius_rec.rankers.catalogue.search import Found
from sirius_rec.rankers.catalogue.trie import Trie
from sirius_rec.rankers.llm import LLMRanker
from sirius_rec.rankers.requests import Request


class TitleScorer:
    """Scores requests with a language model, by log π(title | prompt) in nats.

    texts: item id → title; None where requests hold titles themselves. max_history: only so many of the newest items
    are shown, as in training.
    """

    def __init__(
        self, model: Any, encoder: Any, form: Any, texts: dict[str, str] | None, *, max_history: int, **scoring: Any
    ) -> None:
        from sirius_rec.scoring.packed import context_of

        self.model, self.encoder, self.form, self.texts = model, encoder, form, texts
        self.max_history, self.scoring = max_history, scoring
        # Title → what stands for it in prompts; others stand for themselves.
        self.prompted: dict[str, str] = {}
        # Titles that a backbone from scratch has read; None where it has read more than a catalogue.
        self.catalogue: set[str] | None = None
        self._never_read: set[str] = set()
        self._last: tuple[str, list[int]] = ("", [])
        self.context = context_of(model)
        # Tokens of the longest title that an answer may hold, where it is not one of the request's candidates.
        self.longest: int | None = None

    @property
    def reads_any(self) -> bool:
        """Whether requests may hold any title, of the catalogue or not."""
        return self.texts is None

    def check(self, request: Request) -> str | None:
        """Why a request cannot be scored: an unknown item, a title without tokens, a prompt beyond the context."""
        if self.texts is not None:
            for item in (*self._shown(request), *request.candidates):
                if item not in self.texts:
                    return f"item {item!r} is not in the catalogue: leave it out, or list it with its title (--items)"
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


class CatalogueScorer:
    """Scores requests with a ranker that knows the items of its catalogue only. names: of the items, by dense number.

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

    reads_any = False  # as in `TitleScorer`

    def name(self, item: str) -> str:
        return tidy_title(item) if self.titles else item

    def knows(self, item: str) -> bool:
        return self.name(item) in self.number

    def unread(self) -> set[str]:
        """As in `TitleScorer`: none, since `check` refuses what it does not know."""
        return set()

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


def _numbered(
    shown: Sequence[tuple[Sequence[str], Sequence[str]]], number: dict[str, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return (
        [np.array([number[i] for i in history], dtype=np.int64) for history, _ in shown],
        [np.array([number[i] for i in slate], dtype=np.int64) for _, slate in shown],
    )


Scorer = TitleScorer | CatalogueScorer
