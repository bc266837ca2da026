"""ChatRanker on a tiny language model served over the chat API, and the contract that rankers keep."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.errors import ScoringError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.templates import TEMPLATES
from sirius_rec.rankers.chat.client import ChatClient
from sirius_rec.rankers.chat.options import ChatOptions
from sirius_rec.rankers.chat.ranker import ChatRanker

FORM = TEMPLATES["music"]


def ranker(endpoint: Any, folder: Path, titles: Any, **options: Any) -> ChatRanker:
    made = ChatOptions(model="small", base_url=endpoint.base_url, backoff=0.01, **options)
    return ChatRanker(ChatClient(made, folder), FORM, titles)


def by_length(prompt: str) -> str:
    """A model with a rule: longer titles first, read off the prompt's list of candidates."""
    lines = prompt.split(FORM.candidates)[1].split("\n\n")[0].strip().splitlines()
    return "\n".join(f"{n}. {title}" for n, title in enumerate(sorted(lines, key=len, reverse=True), 1))


def served(model: Any, tokenizer: Any, longest: int) -> Callable[[str], str]:
    """Greedy answers of a language model, one request at a time."""
    encoder, lock = Encoder(tokenizer), threading.Lock()

    def answer(prompt: str) -> str:
        ids = torch.tensor([encoder.prompt(prompt)])
        with lock, torch.no_grad():
            said = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False
            )
        return str(tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))

    return answer


@pytest.mark.slow
def test_a_served_language_model_that_learnt_its_lists_is_read(
    serve: Callable[..., Any], tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: Any, tmp_path: Path
) -> None:
    """A tiny Llama learns to write three slates in a planted order; over HTTP that order comes back as scores."""
    histories = [np.array([5]), np.array([2, 3]), np.array([7, 4, 6])]
    slates = [np.array([0, 1, 2]), np.array([9, 0, 8]), np.array([4, 1, 5])]
    wanted = [[1, 2, 0], [0, 2, 1], [2, 0, 1]]  # columns, first to last
    prompts = [
        FORM.render_ranking([catalogue[i] for i in h], [catalogue[i] for i in s])
        for h, s in zip(histories, slates, strict=True)
    ]
    answers = ["\n".join(catalogue[s[c]] for c in order) for s, order in zip(slates, wanted, strict=True)]
    model, encoder = tiny_llama(tokenizer, max_position_embeddings=512), Encoder(tokenizer)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.tensor(0.0)
        for prompt, said in zip(prompts, answers, strict=True):
            ids = [*encoder.prompt(prompt), *encoder.completion(said)]
            labels = [-100] * len(encoder.prompt(prompt)) + encoder.completion(said)
            loss = loss + model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    endpoint = serve(served(model.eval(), tokenizer, longest=60))
    asking = ranker(endpoint, tmp_path, catalogue)
    found = asking.rankings(histories, slates)
    assert [list(one.order) for one in found] == wanted and all(one.valid for one in found)
    for scores, order in zip(asking.score(histories, slates), wanted, strict=True):
        assert np.argsort(-scores).tolist() == order
    assert asking.spent()["requests"] == 3 == len(endpoint.requests)


def test_an_untrained_model_and_garbage_rank_all_alike(
    serve: Callable[..., Any], tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: Any, tmp_path: Path
) -> None:
    endpoint = serve(served(tiny_llama(tokenizer).eval(), tokenizer, longest=8))
    asking = ranker(endpoint, tmp_path / "a", catalogue)
    (found,) = asking.rankings([np.array([3])], [np.array([0, 1, 2])])
    assert not found.valid and not found.scores(3).any()
    for number, text in enumerate(("", "\x00\ufffd{}[]", "[" * 5000, "1.\n2.\n3.", "no " * 3000, "**", "1. **", '"')):
        bad = ranker(serve(lambda prompt, text=text: text), tmp_path / f"b{number}", catalogue)
        np.testing.assert_array_equal(bad.score([np.array([3])], [np.array([0, 1, 2])])[0], np.zeros(3))


def test_contract(serve: Callable[..., Any], catalogue: Any, tmp_path: Path) -> None:
    """Batch = single; a slate of one; an empty history; another order of the slate is another question."""
    asking = ranker(serve(by_length), tmp_path, catalogue)
    histories = [np.array([3]), np.array([], int), np.array([1, 2])]
    slates = [np.array([0, 1, 2, 9]), np.array([5]), np.array([8, 6])]
    together = asking.score(histories, slates)
    for history, slate, scores in zip(histories, slates, together, strict=True):
        np.testing.assert_array_equal(asking.score([history], [slate])[0], scores)
    np.testing.assert_array_equal(together[0], [1, 4, 2, 3])
    np.testing.assert_array_equal(together[1], [1])
    np.testing.assert_array_equal(asking.score(histories[:1], [slates[0][::-1]])[0], [3, 2, 4, 1])
    assert asking.score([], []) == []
    with pytest.raises(ScoringError, match="1 histories for 2 slates"):
        asking.score(histories[:1], slates[:2])


def test_costs_count_what_was_used_also_from_the_cache(
    serve: Callable[..., Any], catalogue: Any, tmp_path: Path
) -> None:
    endpoint = serve(by_length)
    rows = ([np.array([3]), np.array([4])], [np.array([0, 1]), np.array([2, 1])])
    first = ranker(endpoint, tmp_path, catalogue, price_in=1.0, price_out=10.0)
    first.score(*rows)
    again = ranker(endpoint, tmp_path, catalogue, price_in=1.0, price_out=10.0)
    again.score(*rows)
    assert again.spent() == first.spent() and len(endpoint.requests) == 2
    tokens = sum(len(request["messages"][0]["content"].split()) for request in endpoint.requests)
    assert first.spent()["prompt_tokens"] == tokens
    assert first.spent()["completion_tokens"] == 6
    assert first.spent()["cost"] == pytest.approx((tokens + 60) / 1e6)
