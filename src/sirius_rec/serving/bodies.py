"""What clients send, and how answers look: Jina's and Cohere's form of reranking, and our own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from sirius_rec.rankers.requests import RANKING, RECOMMENDING, BadRequest, Form, Request, request_of
from sirius_rec.serving.models import Catalogue, Model
from sirius_rec.serving.options import Limits

Item = StrictStr | StrictInt
_TOP = 10  # recommended unless it is said


class Refused(Exception):
    """A request that is not answered: the status, and one line that says why. retry: seconds until it may be. ends:
    whether the connection does, too, because nobody knows where the next request begins."""

    def __init__(
        self, status: int, why: str, retry: int | None = None, outcome: str = "bad_request", *, ends: bool = False
    ) -> None:
        super().__init__(why)
        self.status, self.why, self.retry, self.outcome, self.ends = status, why, retry, outcome, ends


class Document(BaseModel):
    """A candidate as Jina's and Cohere's clients send it."""

    text: StrictStr


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: StrictStr | None = Field(None, description="Of /v1/models. Default: the first.")
    history: list[Item] | None = Field(None, description="Ids or titles of what the user chose, oldest first.")


class RerankBody(_Body):
    """Either query and documents, or history and candidates."""

    query: StrictStr | list[StrictStr] | None = Field(
        None, description="The user's history as text: one title per line, oldest first; or a list of them."
    )
    documents: list[StrictStr | Document] | None = Field(None, description="Candidates as text: titles.")
    candidates: list[Item] | None = Field(None, description="Ids or titles to rank.")
    top_n: StrictInt | None = Field(None, ge=1, description="Only the best so many.")
    return_documents: StrictBool | None = Field(None, description="Repeat the texts in the answer.")
    # What those clients may send besides; titles are short, so that nothing is cut, and it changes nothing.
    max_tokens_per_doc: StrictInt | None = Field(None, description="Has no effect: titles are never cut.")
    max_chunks_per_doc: StrictInt | None = Field(None, description="Has no effect.")
    truncation: StrictBool | None = Field(None, description="Has no effect.")
    priority: StrictInt | None = Field(None, description="Has no effect.")


class RecommendBody(_Body):
    top_n: StrictInt | None = Field(None, ge=1, description="Items of the answer. Default: 10, or all that there are.")
    exclude: list[Item] | None = Field(None, description="Ids or titles that are no answer.")
    exclude_seen: StrictBool = Field(False, description="What the history holds is no answer either.")


Body = TypeVar("Body", RerankBody, RecommendBody)


@dataclass(frozen=True)
class Asked:
    """A request with what its answer needs. documents: the candidates as they were given. top: None for all."""

    request: Request
    model: str | None
    top: int | None
    documents: list[str]
    return_documents: bool = False
    exclude_seen: bool = False


def parse_rerank(body: bytes, limits: Limits, catalogue: Catalogue, number: int, *, documents: bool) -> Asked:
    """A body of /rerank. number: of the request. documents: whether texts are repeated unless it is said.

    Refused, with 400 or 413, for what is no such request.
    """
    given = _valid(RerankBody, body)
    if (given.query is None) != (given.documents is None) or (given.history is None) != (given.candidates is None):
        raise Refused(400, "give query and documents, or history and candidates")
    if (given.documents is None) == (given.candidates is None):
        raise Refused(400, "give either query and documents, or history and candidates, and not both")
    text = given.documents is not None
    if given.documents is not None:
        history: Sequence[Any] = _lines(given.query)
        candidates: Sequence[Any] = [d if isinstance(d, str) else d.text for d in given.documents]
    else:
        history, candidates = given.history or [], given.candidates or []
    _within(limits, history=history, candidates=candidates)
    record = {"history": _named(catalogue, history, text), "candidates": _named(catalogue, candidates, text)}
    named = record["candidates"]
    shown = [str(c) if text else catalogue.title(n) or n for c, n in zip(candidates, named, strict=True)]
    wanted = documents if given.return_documents is None else given.return_documents
    return Asked(_request(number, record, RANKING), given.model, given.top_n, shown, wanted)


def parse_recommend(body: bytes, limits: Limits, catalogue: Catalogue, number: int) -> Asked:
    """A body of /recommend; as `parse_rerank`."""
    given = _valid(RecommendBody, body)
    if given.history is None:
        raise Refused(400, "history is missing; give a list")
    most = min(limits.top, len(catalogue))
    top = min(_TOP, most) if given.top_n is None else given.top_n
    if top > most:
        raise Refused(400, f"top_n {top}: ask for 1 to {most}")
    exclude = given.exclude or []
    _within(limits, history=given.history, exclude=exclude)
    record = {"history": _named(catalogue, given.history, False), "exclude": _named(catalogue, exclude, False)}
    request = _request(number, record, RECOMMENDING)
    return Asked(request, given.model, top, [], exclude_seen=given.exclude_seen)


def _valid(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # The branches of a union are no fields of the sender's.
        where = ".".join(str(part) for part in first["loc"] if str(part) in kind.model_fields or isinstance(part, int))
        if first["type"] == "extra_forbidden":
            where = str(first["loc"][-1])[:60]
            raise Refused(400, f"unknown field {where!r}; known are {', '.join(kind.model_fields)}") from None
        message = " ".join(first["msg"].split())
        raise Refused(400, f"{where}: {message}" if where else message) from None


def _lines(query: str | list[str] | None) -> list[str]:
    lines = query.splitlines() if isinstance(query, str) else query or []
    return [line.strip() for line in lines if line.strip()]


def _within(limits: Limits, **lists: Sequence[Any]) -> None:
    for name, items in lists.items():
        most = limits.candidates if name == "candidates" else limits.history
        if len(items) > most:
            raise Refused(413, f"{name} has {len(items)} entries; at most {most} are taken")
        longest = max((len(str(item)) for item in items), default=0)  # an id may be a number of any length
        if longest > limits.text:
            raise Refused(413, f"{name} holds a text of {longest} characters; at most {limits.text} are taken")


def _named(catalogue: Catalogue, items: Sequence[Any], text: bool) -> list[str]:
    return [catalogue.name(str(item), text=text) for item in items]


def _request(number: int, record: dict[str, Any], form: Form) -> Request:
    request = request_of(number, record, form)
    if isinstance(request, BadRequest):
        raise Refused(400, request.why)
    return request


def relevance(scores: Sequence[float], *, log_probs: bool) -> list[float]:
    """Scores of a slate in [0, 1]. Of log-probs, the softmax: the probability that it is this one, given the slate.

    Other scores have no such meaning: the slate's worst is 0 and its best 1; where all are equal, all are 0.5.

    >>> relevance([math.log(0.2), math.log(0.6)], log_probs=True)
    [0.25, 0.75]
    >>> relevance([3, 1, 2], log_probs=False)
    [1.0, 0.0, 0.5]
    """
    low, high = float(min(scores)), float(max(scores))
    if not log_probs:
        return [(float(s) - low) / (high - low) if high > low else 0.5 for s in scores]
    shares = [math.exp(float(s) - high) for s in scores]
    total = math.fsum(shares)
    return [round(share / total, 12) for share in shares]


def reranked(
    asked: Asked, model: Model, catalogue: Catalogue, scores: Sequence[float], ordered: dict[str, Any], popular: bool
) -> list[dict[str, Any]]:
    """`results` of an answer, best first. ordered: what `sirius rank` says of the same scores."""
    log_probs = model.log_probs and not popular
    shares = relevance(scores, log_probs=log_probs)
    index = {name: n for n, name in enumerate(asked.request.candidates)}
    results = []
    for name, score in list(zip(ordered["candidates"], ordered["scores"], strict=True))[: asked.top]:
        at = index[name]
        result: dict[str, Any] = {"index": at, "relevance_score": shares[at]}
        result["log_prob" if log_probs else "score"] = score
        if (known := catalogue.id(name)) is not None:
            result |= {"id": known, "title": catalogue.title(name)}
        if asked.return_documents:
            result["document"] = {"text": asked.documents[at]}
        results.append(result)
    return results
