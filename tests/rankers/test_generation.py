"""Greedy answers against decoding by hand, and whole-title judging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sirius_rec.prompts.encoding import Encoder
from sirius_rec.rankers.generation import generate_answers, judge

SLATE = ["Red", "Red House Painters", "Blur", "!!!"]


@pytest.mark.parametrize(
    ("text", "target", "valid", "hit"),
    [
        ("Red", "Red", True, True),
        ("Red", "Red House Painters", True, False),  # a valid answer, but another title
        ("Red House Painters", "Red House Painters", True, True),
        ("Red House Painters", "Red", True, False),
        ("Red House", "Red House Painters", False, False),  # part of a title
        ("Red House Painters live", "Red House Painters", False, False),  # a title and more
        ("  rED\n", "Red", True, True),
        ("red   house\tpainters", "Red House Painters", True, True),
        ("!!!", "!!!", True, True),
        ("!!", "!!!", False, False),
        ("", "Red", False, False),
        ("Oasis", "Red", False, False),
    ],
)
def test_judge(text: str, target: str, valid: bool, hit: bool) -> None:
    answer = judge(text, SLATE, target)
    assert (answer.text, answer.valid, answer.hit) == (text, valid, hit)


def test_an_answer_that_fits_two_candidates_is_not_valid() -> None:
    """Two titles that differ in case only: nobody can say which was meant."""
    assert not judge("air", ["Air", "AIR", "Can"], "Air").valid
    assert not judge("Air", ["Air", "AIR", "Can"], "Air").hit
    assert judge("Can", ["Air", "AIR", "Can"], "Can").hit


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, prompt: str, longest: int) -> str:
    """Argmax, one token at a time, without cache, padding or batch."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    said: list[int] = []
    for _ in range(longest):
        token = int(model(input_ids=torch.tensor([ids + said]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        said.append(token)
    return str(tokenizer.decode(said, skip_special_tokens=True))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("seed", [0, 1])
def test_answers_are_step_by_step_argmax(
    tokenizer: Any, tiny_llama: Callable[..., Any], batch_size: int, seed: int
) -> None:
    """Prompts of different lengths, left-padded in one batch, in an order that sorting changes."""
    model = tiny_llama(tokenizer, seed=seed)
    model.train()
    prompts = ["Blur\nCan\nSuede\nNext artist:\n", "Air\n", "Massive Attack and Portishead\n", "Low\nPulp\n"]
    slates = [["Red", "Massive Attack"], ["Blur", "Massive Attack"], ["Massive Attack", "Low"], ["Massive Attack"]]
    done: list[int] = []
    answers = generate_answers(
        model,
        Encoder(tokenizer),
        prompts,
        slates,
        [slate[0] for slate in slates],
        batch_size=batch_size,
        progress=done.append,
    )
    assert model.training
    assert sum(done) == 4
    longest = len(tokenizer("Massive Attack")["input_ids"]) + 1
    model.eval()
    want = [by_hand(model, tokenizer, prompt, longest) for prompt in prompts]
    assert [answer.text for answer in answers] == want
    assert len(set(want)) > 1


def test_a_model_that_knows_the_answer_is_heard(
    tokenizer: Any, tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train on one title until it is the greedy answer: valid, and a hit where it is the target."""
    model = tiny_llama(tokenizer)
    encoder = Encoder(tokenizer)
    prompt, answer = encoder.prompt("Next artist:\n"), encoder.completion("Red")
    ids = torch.tensor([prompt + answer])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    hit, miss = generate_answers(
        model, encoder, ["Next artist:\n"] * 2, [["Red", "Red House Painters"], ["Red", "Blur"]], ["Red", "Blur"]
    )
    assert (hit.text, hit.valid, hit.hit) == ("Red", True, True)
    assert (miss.valid, miss.hit) == (True, False)


def test_a_checkpoints_own_generation_settings_do_not_count(tokenizer: Any, tiny_llama: Callable[..., Any]) -> None:
    """Hub models ship penalties and sampling; greedy is greedy all the same."""
    model = tiny_llama(tokenizer, seed=1)
    prompts = ["Red\nBlur\nAir\n", "Can Can Can\n"]
    plain = generate_answers(model, Encoder(tokenizer), prompts, [SLATE] * 2, ["Red"] * 2)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.do_sample = True
    model.generation_config.suppress_tokens = Encoder(tokenizer).completion("Red")
    model.generation_config.return_dict_in_generate = True
    model.generation_config.num_return_sequences = 2
    model.generation_config.stop_strings = ["e"]
    model.generation_config.max_time = 1e-9
    inherited = model.generation_config
    assert generate_answers(model, Encoder(tokenizer), prompts, [SLATE] * 2, ["Red"] * 2) == plain
    assert model.generation_config is inherited  # it is the checkpoint's own again


def test_a_title_token_with_accents_is_recognised() -> None:
    """The tiny tokenizer's byte decoder garbles "Björk" as a single token; what was generated is that token still."""
    from sirius_rec.rankers.generation import _said
    from sirius_rec.training.tiny import TinyOptions, train_tokenizer

    titles = ["Björk", "Motörhead", "Beyoncé", "Air"]
    encoder = Encoder(train_tokenizer(titles, [], TinyOptions(vocab_size=300)))
    for title in titles:
        assert _said(encoder.completion(title)[:-1], encoder, titles) == title
