"""LLMRanker's scores against a plain forward pass per candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.errors import DataError, ScoringError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.templates import TEMPLATES, get_template
from sirius_rec.rankers import llm, yes_no
from sirius_rec.rankers.catalogue.trie import build_trie
from sirius_rec.rankers.llm import LLMRanker
from sirius_rec.rankers.yes_no import YesNoRanker
from sirius_rec.scoring import kept, scorer
from sirius_rec.scoring.kept import KeptScores

HISTORIES = [np.array([3, 4]), np.array([5]), np.array([0, 8, 9])]
SLATES = [np.array([0, 1, 2]), np.array([7, 1, 0, 8, 6]), np.array([4, 1])]


@torch.no_grad()
@pytest.mark.parametrize("scoring", ["packed", "naive", "auto"])
def test_scores_are_log_probs_of_title_and_end_of_sequence(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], scoring: str
) -> None:
    model = tiny_llama(tokenizer).eval()
    done: list[int] = []
    ranker = LLMRanker(
        model,
        Encoder(tokenizer),
        TEMPLATES["music"],
        catalogue,
        scoring=scoring,
        batch_tokens=200,
        progress=done.append,
    )
    scores = ranker.score(HISTORIES, SLATES)
    assert sum(done) == 3
    for history, slate, ours in zip(HISTORIES, SLATES, scores, strict=True):
        text = TEMPLATES["music"].render([catalogue[i] for i in history], [catalogue[i] for i in slate])
        prompt = tokenizer(text)["input_ids"]
        for item, score in zip(slate, ours, strict=True):
            answer = [*tokenizer(catalogue[item])["input_ids"], tokenizer.eos_token_id]
            logp = torch.log_softmax(model(input_ids=torch.tensor([prompt + answer])).logits[0].double(), -1)
            want = sum(float(logp[len(prompt) - 1 + n, token]) for n, token in enumerate(answer))
            assert score == pytest.approx(want, abs=1e-4)


def test_searches_that_were_killed_go_on(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The best of a whole catalogue, and TALLRec's questions: what was kept is taken, the rest is as it would be."""
    monkeypatch.setattr(kept, "_EVERY", 0.0)
    monkeypatch.setattr(llm, "_PART", 1)
    monkeypatch.setattr(yes_no, "_SLATES", 1)
    model, encoder = tiny_llama(tokenizer).eval(), Encoder(tokenizer)
    template, trie = get_template("music", shows_slate=False), build_trie(encoder, catalogue)

    def best(ranker: LLMRanker) -> list[Any]:
        return ranker.score_best(trie, HISTORIES, SLATES, 2)

    def odds(ranker: LLMRanker) -> list[Any]:
        return YesNoRanker(model, encoder, TEMPLATES["music"], catalogue, kept=ranker.kept, progress=ranker.progress
                           ).score(HISTORIES, SLATES)  # fmt: skip

    for way in (best, odds):
        whole = way(LLMRanker(model, encoder, template, catalogue))
        said: list[int] = []

        def kill(count: int, said: list[int] = said) -> None:
            said.append(count)
            if len(said) == 2:
                raise KeyboardInterrupt

        def scores() -> KeptScores:
            return KeptScores(tmp_path / way.__name__, "these")  # noqa: B023

        with pytest.raises(KeyboardInterrupt):
            way(LLMRanker(model, encoder, template, catalogue, kept=scores(), progress=kill))
        said.clear()
        again = way(LLMRanker(model, encoder, template, catalogue, kept=scores(), progress=said.append))
        assert said == [1, 1, 1]
        for one, other in zip(whole, again, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
            assert np.isfinite(other).any()


def test_processes_share_the_searches(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each searches for its rows; put together they are those of one process. Split weights take all of them."""
    model, encoder = tiny_llama(tokenizer).eval(), Encoder(tokenizer)
    template, trie = get_template("music", shows_slate=False), build_trie(encoder, catalogue)
    done: list[int] = []
    ranker = LLMRanker(model, encoder, template, catalogue, progress=done.append)
    alone = ranker.score_best(trie, HISTORIES, SLATES, 2)
    assert ranker.score_best(trie, [], [], 2) == [] and sum(done) == 3
    shares: list[dict[int, Any]] = []
    whole = scorer.from_all

    def take(own: dict[int, Any], n: int, processes: int) -> list[Any]:
        shares.append(own)
        return whole({r: found for share in shares for r, found in share.items()}, n, 1) if len(shares) == 2 else []

    monkeypatch.setattr(llm, "from_all", take)
    for rank in range(2):
        monkeypatch.setattr(llm, "place_in_group", lambda rank=rank: (rank, 2))
        done.clear()
        if rank == 0:
            with pytest.raises(ValueError, match="zip"):  # the other's rows are not there yet
                ranker.score_best(trie, HISTORIES, SLATES, 2)
        else:
            together = ranker.score_best(trie, HISTORIES, SLATES, 2)
        assert sum(done) == 3
    assert [sorted(share) for share in shares] == [[0, 2], [1]]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    shares.clear()
    monkeypatch.setattr(llm, "from_all", lambda own, n, processes: shares.append(own) or whole(own, n, processes))
    ranker.score_best(trie, HISTORIES, SLATES, 2)
    assert [sorted(share) for share in shares] == [[0, 1, 2]]


def test_the_slate_is_shown_in_the_order_given(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...]
) -> None:
    ranker = LLMRanker(tiny_llama(tokenizer), Encoder(tokenizer), TEMPLATES["music"], catalogue)
    one, other = ranker.prompts([HISTORIES[0]] * 2, [np.array([0, 1]), np.array([1, 0])])
    assert "\nRed\nRed House Painters\n" in one
    assert "\nRed House Painters\nRed\n" in other
    assert "first:\nAir\nCan\nCandidates" in one


def test_the_model_keeps_its_mode_and_no_rows_give_no_scores(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...]
) -> None:
    model = tiny_llama(tokenizer).train()
    ranker = LLMRanker(model, Encoder(tokenizer), TEMPLATES["music"], catalogue)
    ranker.score(HISTORIES, SLATES)
    assert model.training
    assert ranker.score([], []) == []


def test_packed_scoring_that_is_wrong_is_refused(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was trained here, so nothing else would notice."""
    from sirius_rec.rankers.yes_no import YesNoRanker
    from sirius_rec.scoring import packed

    monkeypatch.setattr(packed, "attention_masks", lambda *_: None)  # plain causal attention
    for kind in (LLMRanker, YesNoRanker):
        for scoring in ("auto", "packed"):
            ranker = kind(tiny_llama(tokenizer), Encoder(tokenizer), TEMPLATES["music"], catalogue, scoring=scoring)
            with pytest.raises(ScoringError, match="disagrees with separate forward passes"):
                ranker.score(HISTORIES, SLATES)
        kind(tiny_llama(tokenizer), Encoder(tokenizer), TEMPLATES["music"], catalogue, scoring="naive").score(
            HISTORIES, SLATES
        )


def test_a_model_is_checked_once_for_each_kernel(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one row with few candidates; rankers come and go around a model that serves requests."""
    checked: list[list[int]] = []
    check = scorer.self_check
    monkeypatch.setattr(
        scorer,
        "self_check",
        lambda m, rows, *rest: checked.append([len(r.completions) for r in rows]) or check(m, rows, *rest),
    )
    model = tiny_llama(tokenizer)
    for attention in ("sdpa", "sdpa", "eager", "sdpa"):
        model.set_attn_implementation(attention)
        LLMRanker(model, Encoder(tokenizer), TEMPLATES["music"], catalogue).score(HISTORIES[1:], SLATES[1:])
    assert checked == [[3], [3]]


@pytest.mark.parametrize(
    ("history", "slate", "message"),
    [
        ([0], [-1, 1], "candidates: row 0 holds item -1, the catalogue has 10 items"),
        ([10], [1], "histories: row 0 holds item 10"),
    ],
)
def test_an_item_outside_the_catalogue_is_no_title(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], history: list[int], slate: list[int],
    message: str,
) -> None:  # fmt: skip
    for kind in (LLMRanker, YesNoRanker):
        ranker = kind(tiny_llama(tokenizer), Encoder(tokenizer), TEMPLATES["music"], catalogue)
        with pytest.raises(DataError, match=message):
            ranker.score([np.array(history)], [np.array(slate)])
