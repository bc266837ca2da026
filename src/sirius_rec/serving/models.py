"""What is served: loaded rankers with their names, and the catalogue that they know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sirius_rec.rankers.answers import Check, Respond, Unknown
from sirius_rec.rankers.requests import Request


@dataclass(frozen=True)
class Size:
    """Tokens of a request: of its prompt, and those that are read of its candidates. prompt: equal ones count once."""

    prompt: str = ""
    n_prompt: int = 0
    n_candidates: int = 0


@dataclass(frozen=True)
class Responder:
    """How a model answers one kind of request. respond: of a list of them, scores per candidate to rank, or what
    answers say to recommend. check: why a request cannot be answered. unknown: history items that are dropped. ask:
    what the next batch of a catalogue asks for (items, whether without those of the history)."""

    respond: Respond
    check: Check
    unknown: Unknown | None
    size: Callable[[Request], Size] = lambda request: Size()
    ask: Callable[[int, bool], None] = lambda top, exclude_seen: None


@dataclass(frozen=True)
class Model:
    """One ranker. key: how requests name it. about: what /v1/models says of it. log_probs: scores are log π(title |
    prompt), so that a slate's softmax is a probability. recommend: None where it cannot, `why_not` says why.
    cache: counts of its prefix cache by name."""

    key: str
    about: Mapping[str, Any]
    log_probs: bool
    rank: Responder
    recommend: Responder | None = None
    why_not: str = ""
    cache: Callable[[], Mapping[str, int]] = dict


class Catalogue:
    """ids and titles by item number. open: requests hold titles, and those that the catalogue lacks are ranked too."""

    def __init__(self, ids: Sequence[str], titles: Sequence[str], *, open: bool) -> None:
        self.ids, self.titles, self.open = ids, titles, open
        self._number = {item: n for n, item in enumerate(ids)}
        self._by_title = {title: n for n, title in enumerate(titles)}
        self._folded = [title.casefold() for title in titles]

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, given: str, *, text: bool) -> str:
        """An id for an id or title of the catalogue; anything else as it is. text: a title before an equal id."""
        if self.open:
            return given
        by_title = self._by_title.get(given)
        if given in self._number and not (text and by_title is not None):
            return given
        return given if by_title is None else self.ids[by_title]

    def title(self, name: str) -> str | None:
        """The title of a request's item; None where the catalogue lacks it."""
        if self.open:
            return name if name in self._by_title else None
        number = self._number.get(name)
        return None if number is None else self.titles[number]

    def id(self, name: str) -> str | None:
        """The id of a request's item; None where the catalogue lacks it."""
        number = (self._by_title if self.open else self._number).get(name)
        return None if number is None else self.ids[number]

    def search(self, text: str, limit: int) -> list[dict[str, str]]:
        """Items whose titles have all the words, those that begin with the text first; an id is found as a whole."""
        whole = text.strip()
        words = whole.casefold().split()
        found = [n for n, title in enumerate(self._folded) if all(word in title for word in words)]
        begins = " ".join(words)
        found.sort(key=lambda n: not self._folded[n].startswith(begins))
        if whole in self._number:
            found = [self._number[whole], *(n for n in found if n != self._number[whole])]
        return [{"id": self.ids[n], "title": self.titles[n]} for n in found[:limit]]


@dataclass(frozen=True)
class Loaded:
    """The models of a service, the first of which answers requests that name none. about: the run or folder."""

    models: Mapping[str, Model]
    catalogue: Catalogue
    about: Mapping[str, Any] = field(default_factory=dict)
    after_batch: Callable[[], None] = lambda: None

    @property
    def default(self) -> Model:
        return next(iter(self.models.values()))
