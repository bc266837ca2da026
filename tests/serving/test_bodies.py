"""The forms of requests and answers: Jina's, Cohere's and our own, what is refused, and what relevance_score means."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from sirius_rec.serving.bodies import Refused, parse_recommend, parse_rerank, relevance
from sirius_rec.serving.models import Catalogue
from sirius_rec.serving.options import Limits

CATALOGUE = Catalogue(["a", "b", "c"], ["Air", "Blur", "a"], open=False)


def parse(body: Any, limits: Limits = Limits(), catalogue: Catalogue = CATALOGUE) -> Any:
    return parse_rerank(json.dumps(body).encode(), limits, catalogue, 1, documents=True)


def test_a_query_is_a_history_of_one_title_per_line() -> None:
    for query in ("Air\n\n  Blur \nunheard of", ["Air", "Blur", "unheard of"]):
        asked = parse({"query": query, "documents": ["Blur", {"text": "Air"}], "top_n": 1})
        assert asked.request.history == ("a", "b", "unheard of")
        assert asked.request.candidates == ("b", "a")
        assert (asked.top, asked.documents, asked.return_documents) == (1, ["Blur", "Air"], True)
    assert parse({"query": "", "documents": ["Air"]}).request.history == ()


def test_a_name_that_is_both_an_id_and_a_title() -> None:
    """Where texts are sent it is the title, elsewhere the id."""
    assert parse({"query": "a", "documents": ["Air"]}).request.history == ("c",)
    assert parse({"history": ["a"], "candidates": ["Blur"]}).request.history == ("a",)
    open_ = Catalogue(["a"], ["Air"], open=True)
    assert parse({"history": ["a"], "candidates": ["Air"]}, catalogue=open_).request.history == ("a",)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "give either query and documents, or history and candidates"),
        ({"query": "Air"}, "give query and documents, or history and candidates"),
        ({"query": "Air", "candidates": ["a"]}, "give query and documents"),
        ({"query": "", "documents": ["Air"], "history": [], "candidates": ["a"]}, "and not both"),
        ({"history": [], "candidates": []}, "candidates is empty; there is nothing to rank"),
        ({"history": [], "candidates": ["a", "a"]}, "candidate 'a' is duplicated"),
        ({"query": "", "documents": ["Air", "a", "Air"]}, "candidate 'a' is duplicated"),
        ({"history": [True], "candidates": ["a"]}, "history.0"),
        ({"history": [1.5], "candidates": ["a"]}, "history.0"),
        ({"history": [""], "candidates": ["a"]}, "history holds ''"),
        ({"history": "Air", "candidates": ["a"]}, "history: Input should be a valid array"),
        ({"history": [], "candidates": ["a"], "top_n": 0}, "top_n: Input should be greater than or equal to 1"),
        ({"history": [], "candidates": ["a"], "top_k": 2}, "unknown field 'top_k'; known are model, history"),
        ([], "Input should be an object"),
    ],
)
def test_refusals(body: Any, why: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(body)
    assert caught.value.status == 400 and why in caught.value.why and "\n" not in caught.value.why


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"history": ["\\ud800"], "candidates": ["a"]}', b"[" * 10**5])
def test_what_is_no_json(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse_rerank(raw, Limits(), CATALOGUE, 1, documents=True)
    assert caught.value.status == 400 and "\n" not in caught.value.why


def test_limits() -> None:
    limits = Limits(candidates=2, history=1, text=5)
    for body, why in (
        ({"history": [], "candidates": ["a", "b", "c"]}, "candidates has 3 entries; at most 2"),
        ({"history": ["a", "b"], "candidates": ["a"]}, "history has 2 entries; at most 1"),
        ({"history": ["longer"], "candidates": ["a"]}, "a text of 6 characters; at most 5"),
        ({"history": [], "candidates": [1234567]}, "a text of 7 characters; at most 5"),
    ):
        with pytest.raises(Refused, match=why) as caught:
            parse(body, limits)
        assert caught.value.status == 413


def test_recommend() -> None:
    def asked(**body: Any) -> Any:
        return parse_recommend(json.dumps(body).encode(), Limits(), CATALOGUE, 1)

    found = asked(history=["Air"], exclude=["Blur", "c"], top_n=2, exclude_seen=True)
    assert (found.request.history, found.request.exclude) == (("a",), ("b", "c"))
    assert (found.top, found.exclude_seen) == (2, True)
    for body, why in (
        ({"top_n": 1}, "history is missing"),
        ({"history": ["a"], "top_n": 4}, "top_n 4: ask for 1 to 3"),
    ):
        with pytest.raises(Refused, match=why):
            asked(**body)


def test_relevance_is_the_softmax_of_log_probs() -> None:
    shares = relevance([math.log(0.02), math.log(0.05), math.log(0.03)], log_probs=True)
    assert shares == pytest.approx([0.2, 0.5, 0.3])
    assert sum(relevance([-1e4, -1e4 - 1, 0.0], log_probs=True)) == pytest.approx(1)
    assert relevance([7.0], log_probs=True) == [1.0]


def test_relevance_of_other_scores_keeps_their_order() -> None:
    assert relevance([900, 1000, 100], log_probs=False) == pytest.approx([8 / 9, 1, 0])
    assert relevance([2, 2], log_probs=False) == [0.5, 0.5]


def test_answers_of_each_form(running: Callable[..., Any]) -> None:
    service = running()
    body = {"model": "lm", "query": "Air", "documents": ["Can", {"text": "Blur"}, "Öx"], "top_n": 2}
    answer = service.post("/v1/rerank", body).json()
    assert [(r["index"], r["document"], r["id"], r["title"]) for r in answer["results"]] == [
        (1, {"text": "Blur"}, "i1", "Blur"), (0, {"text": "Can"}, "i2", "Can"),
    ]  # fmt: skip
    assert [r["log_prob"] for r in answer["results"]] == [-2.0, -3.0]
    whole = 1 + math.exp(-1) + math.exp(-4)  # all three count, though two are shown
    assert [r["relevance_score"] for r in answer["results"]] == pytest.approx([1 / whole, math.exp(-1) / whole])
    assert answer["model"] == "lm" and answer["usage"] == {"total_tokens": 11, "prompt_tokens": 10}
    assert all("document" not in r for r in service.post("/v2/rerank", body).json()["results"])
    silent = service.post("/rerank", {**body, "return_documents": False}).json()["results"]
    assert all("document" not in r for r in silent)
    own = service.post("/v1/rerank", {"history": ["i0"], "candidates": ["i2", "Blur", "i5"]}).json()["results"]
    assert [r["document"]["text"] for r in own] == ["Blur", "Can", "Öx"]
    counts = service.post("/v1/rerank", {**body, "model": "counts"}).json()["results"]
    assert [(r["index"], r["relevance_score"], r["score"]) for r in counts] == [(2, 1.0, 2.0), (1, 0.5, 1.0)]


def test_unknown_history_is_dropped_and_said(running: Callable[..., Any]) -> None:
    service = running()
    some = service.post("/v1/rerank", {"history": ["who?", "i1"], "candidates": ["i2", "i3"]}).json()
    assert some["unknown"] == 1 and [r["log_prob"] for r in some["results"]] == [-3.0, -4.0]
    none = service.post("/v1/rerank", {"history": ["who?"], "candidates": ["i2", "i3"]}).json()
    assert none["by"] == "popularity" and [r["index"] for r in none["results"]] == [1, 0]
    assert [r["relevance_score"] for r in none["results"]] == [1.0, 0.0]


def test_recommend_over_http(running: Callable[..., Any]) -> None:
    service = running()
    one, two, no = service.together(
        ("POST", "/v1/recommend", {"json": {"history": ["i1"], "top_n": 2}}),
        ("POST", "/v1/recommend", {"json": {"history": ["i1"], "top_n": 3}}),
        ("POST", "/v1/recommend", {"json": {"history": ["i1"], "model": "counts"}}),
    )
    assert (one.json()["items"], two.json()["items"]) == (["i0", "i1"], ["i0", "i1", "i2"])
    assert one.json()["exact"] is True
    assert (no.status_code, no.json()) == (422, {"detail": "slates only"})
