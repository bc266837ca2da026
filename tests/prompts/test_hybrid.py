"""Hybrid prompts: the plain prompt's ids, with one virtual id behind each marked title."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec.errors import PromptError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.hybrid import HybridEncoder, marked_titles, without_marks
from sirius_rec.prompts.templates import TEMPLATES

FIRST = 50_000
TITLES = (
    "Red",
    "Red House Painters",
    "Björk",
    "10,000 Maniacs",
    "!!!",
    "Sigur Rós",
    "Мумий Тролль",
    "椎名林檎",
    "A.\u0301",
)
FORM = TEMPLATES["music"]


def check(tokenizer: Any, titles: Sequence[str], *, chat: bool = False) -> None:
    shown = marked_titles(titles, np.ones(len(titles), dtype=bool))
    encoder, plain = HybridEncoder(tokenizer, FIRST, chat=chat), Encoder(tokenizer, chat=chat)
    rng = np.random.default_rng(0)
    for _ in range(20):
        history, slate = rng.integers(0, len(titles), rng.integers(0, 6)), rng.permutation(len(titles))[:3]
        (ids,) = encoder.prompts([FORM.render([shown[i] for i in history], [shown[i] for i in slate])])
        text = FORM.render([titles[i] for i in history], [titles[i] for i in slate])
        assert [i for i in ids if i < FIRST] == plain.prompt(text)
        assert [i - FIRST for i in ids if i >= FIRST] == [*history, *slate]
        for at, token in enumerate(ids):
            if token >= FIRST:  # what stands before it ends with its title
                before = tokenizer.decode([i for i in ids[:at] if i < FIRST])
                assert "".join(titles[token - FIRST].split()) in "".join(before.split())[-40:]
    completion = encoder.completion(titles[0])
    assert completion == plain.completion(titles[0])


def test_byte_level_bpe(tokenizer: Any) -> None:
    check(tokenizer, TITLES)


def test_the_tiny_tokenizer() -> None:
    from sirius_rec.training.tiny import TinyOptions, train_tokenizer

    made = train_tokenizer(["Red", "Red House Painters"], [FORM.history, FORM.answer], TinyOptions(vocab_size=300))
    encoder = HybridEncoder(made, FIRST)
    shown = marked_titles(TITLES, np.ones(len(TITLES), dtype=bool))
    (ids,) = encoder.prompts([FORM.render([shown[1], shown[0]], [])])
    plain = made(FORM.render([TITLES[1], TITLES[0]], []), add_special_tokens=False)["input_ids"]
    at = plain.index(made.convert_tokens_to_ids("Red House Painters"))
    assert ids[at : at + 4] == [plain[at], FIRST + 1, made.convert_tokens_to_ids("Red"), FIRST]
    assert [i for i in ids if i < FIRST] == plain


def test_a_chat_template_around_the_text(tokenizer: Any) -> None:
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}|assistant: "
    check(tokenizer, TITLES[:5], chat=True)
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(PromptError, match="chat template changes the text"):
        HybridEncoder(tokenizer, FIRST, chat=True).prompts(["abc"])


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_real_tokenizers(shared_models: Path, name: str) -> None:
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    folder = shared_models / name
    if name == "gpt2":
        files = [str(folder / "vocab.json"), str(folder / "merges.txt")]
        tokenizer: Any = GPT2TokenizerFast(*files, eos_token="<|endoftext|>")
    else:
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    encoder, plain = HybridEncoder(tokenizer, 1 << 20), Encoder(tokenizer)
    shown = marked_titles(TITLES, np.ones(len(TITLES), dtype=bool))
    (ids,) = encoder.prompts([FORM.render(shown, shown[:2])])
    assert [i for i in ids if i < 1 << 20] == plain.prompt(FORM.render(TITLES, TITLES[:2]))
    assert [i - (1 << 20) for i in ids if i >= 1 << 20] == [*range(len(TITLES)), 0, 1]


def test_unknown_items_stay_text(tokenizer: Any) -> None:
    shown = marked_titles(("Red", "Blur"), np.array([True, False]))
    assert shown[1] == "Blur" and without_marks(shown[0]) == "Red"
    (ids,) = HybridEncoder(tokenizer, FIRST).prompts([FORM.render(shown, [])])
    assert [i - FIRST for i in ids if i >= FIRST] == [0]


def test_a_title_with_a_marking_character_is_refused() -> None:
    with pytest.raises(PromptError, match="private-use character"):
        marked_titles(["a\ue000b"], np.array([True]))
    assert marked_titles([], np.array([], dtype=bool)) == []


def test_no_prompts(tokenizer: Any) -> None:
    assert HybridEncoder(tokenizer, FIRST).prompts([]) == []


def test_a_chat_template_that_trims_its_content(tokenizer: Any) -> None:
    """As Llama 3's and Gemma's do; our prompts end with a line break."""
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{% endfor %}|answer: "
    )
    check(tokenizer, TITLES[:5], chat=True)
    encoder, plain = HybridEncoder(tokenizer, FIRST, chat=True), Encoder(tokenizer, chat=True)
    (shown,) = marked_titles(["Red"], np.array([True]))
    (ids,) = encoder.prompts([f"\n  Blur\n{shown}\n"])
    at = ids.index(FIRST)
    assert ids[:at] + ids[at + 1 :] == plain.prompt("\n  Blur\nRed\n")
    assert tokenizer.decode(ids[:at]).endswith("Blur\nRed")


def test_prompts_are_tokenised_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = HybridEncoder(tokenizer, FIRST)
    calls: list[int] = []
    original = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, *args, **options: calls.append(1) or original(self, *args, **options)
    )
    encoder.prompts(["Air", "Blur and Can"])
    assert len(calls) == 1
