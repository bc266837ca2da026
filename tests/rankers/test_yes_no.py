"""p(Yes) against a softmax over two plain forward passes, and the contract that rankers keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.errors import ScoringError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.templates import TEMPLATES
from sirius_rec.rankers.yes_no import YesNoRanker

HISTORIES = [np.array([3, 4]), np.array([], int), np.array([0, 8, 9])]
SLATES = [np.array([0, 1, 2]), np.array([7]), np.array([4, 1, 6, 5])]


@pytest.fixture
def ranker(tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...]) -> YesNoRanker:
    return YesNoRanker(tiny_llama(tokenizer), Encoder(tokenizer), TEMPLATES["music"], catalogue, batch_tokens=300)


@torch.no_grad()
def logp(ranker: YesNoRanker, prompt: str, answer: str) -> float:
    ids = [*ranker.encoder.prompt(prompt), *ranker.encoder.completion(answer)]
    n = len(ranker.encoder.completion(answer))
    scores = torch.log_softmax(ranker.model(torch.tensor([ids])).logits[0].double(), -1)
    return float(scores[torch.arange(len(ids) - n - 1, len(ids) - 1), torch.tensor(ids[-n:])].sum())


def test_score_is_the_log_odds_of_yes(ranker: YesNoRanker, catalogue: tuple[str, ...]) -> None:
    done: list[int] = []
    ranker.progress = done.append
    for history, slate, scores in zip(HISTORIES, SLATES, ranker.score(HISTORIES, SLATES), strict=True):
        for item, score in zip(slate, scores, strict=True):
            lines = ["This user has listened to these artists, oldest first:", *(catalogue[i] for i in history)]
            lines += ["Next artist:", catalogue[item], "Will this user choose it? Yes or No:", ""]
            yes, no = (np.exp(logp(ranker, "\n".join(lines), answer)) for answer in ("Yes", "No"))
            assert 1 / (1 + np.exp(-score)) == pytest.approx(yes / (yes + no), rel=1e-3)
    assert sum(done) == 3


def test_contract(ranker: YesNoRanker) -> None:
    """Batch = single; permuting candidates permutes scores; an empty history and a slate of one are rows too."""
    together = ranker.score(HISTORIES, SLATES)
    assert [len(scores) for scores in together] == [3, 1, 4]
    for history, slate, scores in zip(HISTORIES, SLATES, together, strict=True):
        np.testing.assert_allclose(ranker.score([history], [slate])[0], scores, atol=1e-5)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(ranker.score(HISTORIES[2:], [SLATES[2][order]])[0], together[2][order], atol=1e-5)
    assert ranker.score([], []) == []
    with pytest.raises(ScoringError, match="1 histories for 3 slates"):
        ranker.score(HISTORIES[:1], SLATES)


def test_many_slates_are_taken_in_parts(ranker: YesNoRanker, monkeypatch: pytest.MonkeyPatch) -> None:
    import sirius_rec.rankers.yes_no as module

    whole = ranker.score(HISTORIES, SLATES)
    monkeypatch.setattr(module, "_SLATES", 2)
    for one, other in zip(ranker.score(HISTORIES, SLATES), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
