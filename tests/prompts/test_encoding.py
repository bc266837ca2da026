"""Prompt and completion are tokenised apart: no merge crosses the border, every candidate sees the same prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sirius_rec.errors import PromptError
from sirius_rec.prompts.encoding import Encoder, normalise_title

CHAT = (
    "{% for m in messages %}<s>[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} => {% endif %}"
)


def test_completion_is_its_own_tokens_and_one_end_of_sequence(tokenizer: Any, catalogue: tuple[str, ...]) -> None:
    encoder = Encoder(tokenizer)
    for title in catalogue:
        ids = encoder.completion(title)
        assert ids == [*tokenizer(title, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids[:-1]) == title


def test_one_title_inside_another_still_differs(tokenizer: Any) -> None:
    """ "Red" is the beginning of "Red House Painters"; only the end of sequence tells them apart."""
    encoder = Encoder(tokenizer)
    short, long = encoder.completion("Red"), encoder.completion("Red House Painters")
    assert short[:-1] == long[: len(short) - 1]
    assert short[-1] == tokenizer.eos_token_id != long[len(short) - 1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(alphabet="Red HousPaint:\n", min_size=1, max_size=20),
    title=st.sampled_from(["Red", "ed", " House", "use Painters", "Blur", "Air"]),
)
def test_ids_are_the_concatenation_whatever_would_merge(tokenizer: Any, prompt: str, title: str) -> None:
    encoder = Encoder(tokenizer)
    ids = encoder.prompt(prompt)
    assert tokenizer.decode(ids) == prompt
    assert tokenizer.decode(encoder.completion(title)[:-1]) == title
    assert encoder.prompts([prompt, "x", prompt])[::2] == [ids, ids]


def test_a_merge_would_have_crossed_the_border(tokenizer: Any) -> None:
    """ "R" + "ed": tokenised together the trained merge "Red" appears; apart it cannot."""
    together = tokenizer("Red")["input_ids"]
    encoder = Encoder(tokenizer)
    assert len(together) == 1
    assert encoder.prompt("R") + encoder.completion("ed")[:-1] != together


def test_no_special_tokens_in_the_middle_and_bos_once(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<s>"
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    assert tokenizer("Red")["input_ids"][0] == bos  # the fixture does what it should
    encoder = Encoder(tokenizer)
    ids = encoder.prompt("Next artist:\n")
    assert ids[0] == bos
    assert ids.count(bos) == 1
    assert eos not in ids
    assert bos not in encoder.completion("Red")
    assert encoder.completion("Red").count(eos) == 1


def test_a_bos_that_is_the_eos_is_kept_once(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "</s>"
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", eos)]
    )
    ids = Encoder(tokenizer).prompt("Red")
    assert ids[0] == eos
    assert ids.count(eos) == 1


def test_chat_template_wraps_the_prompt_and_adds_nothing(tokenizer: Any) -> None:
    tokenizer.bos_token = "<s>"
    tokenizer.chat_template = CHAT
    encoder = Encoder(tokenizer, chat=True)
    ids = encoder.prompt("Next artist:")
    assert tokenizer.decode(ids) == "<s>[user] Next artist: => "
    assert ids.count(tokenizer.bos_token_id) == 1
    assert encoder.completion("Red") == Encoder(tokenizer).completion("Red")


def test_completions_end_as_the_templates_assistant_turns_do(tokenizer: Any) -> None:
    """Gemma ends turns with <end_of_turn>, Phi with <|end|>; neither is the tokenizer's end of sequence."""
    tokenizer.add_tokens(["<turn>"], special_tokens=False)
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}<turn>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% if enable_thinking is not defined or enable_thinking %}<think>"
        "{% endif %}{% endif %}"
    )
    encoder, plain = Encoder(tokenizer, chat=True), Encoder(tokenizer)
    assert encoder.completion("Red") == [*plain.completion("Red")[:-1], turn]
    assert encoder.eos_id == turn != plain.eos_id == tokenizer.eos_token_id
    assert tokenizer.decode(encoder.prompt("Air")) == "user: Air<turn>\nassistant: "
    # without a tail, with one that is plain text, or with a template that refuses: the end of sequence
    for template in (CHAT, "{% for m in messages %}{{ m['content'] }}. {% endfor %}", "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        assert Encoder(tokenizer, chat=True).eos_id == tokenizer.eos_token_id


LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im|>assistant\n{% endif %}"
)


def conversation(tokenizer: Any, question: str, answer: str) -> list[int]:
    """Ids of the whole conversation in one piece, as a model was tuned on it."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("template", [LLAMA2, CHATML])
def test_prompt_and_completion_are_the_templates_own_conversation(
    tokenizer: Any, catalogue: tuple[str, ...], template: str
) -> None:
    """ "[/INST] Air </s>", with both spaces; what ChatML writes behind the end of a turn is not of the answer."""
    tokenizer.bos_token = "<s>"
    tokenizer.add_tokens(["<|im|>", "<|end|>"], special_tokens=True)
    tokenizer.chat_template = template
    encoder = Encoder(tokenizer, chat=True)
    for title in catalogue:
        ids = encoder.prompt("Next artist:") + encoder.completion(title)
        whole = conversation(tokenizer, "Next artist:", title)
        assert ids == whole[: len(ids)]
        assert tokenizer.decode(whole[len(ids) :]) == ("\n" if template == CHATML else "")
        assert encoder.completion(title)[-1] == encoder.eos_id
        assert Encoder(tokenizer).turn(title) == encoder.completion(title)
    assert encoder.turn_end == tokenizer.convert_tokens_to_ids("</s>" if template == LLAMA2 else "<|end|>")
    encoder.check_distinct(catalogue)


def test_what_stands_before_an_answer_is_not_part_of_it_unless_it_is_white(tokenizer: Any) -> None:
    """Thoughts that a template writes into past turns alone are nothing that a candidate should be scored by."""
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}(none) {% endif %}{{ m['content'] }}.</s>{% endfor %}"
    )
    encoder = Encoder(tokenizer, chat=True)
    assert tokenizer.decode(encoder.completion("Red")) == "Red.</s>"


def test_a_merge_over_the_answers_border_is_not_made(tokenizer: Any) -> None:
    """The prompt ends with "R": a conversation in one piece has the merge "Red", and no candidate's ids begin it."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}R{% endif %}"
    )
    encoder = Encoder(tokenizer, chat=True)
    assert tokenizer.decode(encoder.completion("ed")[:-1]) == "ed"
    assert encoder.completion("ed") == Encoder(tokenizer).completion("ed")


def test_llama2_conversations(shared_models: Path) -> None:
    """SentencePiece puts a space before a text of its own: tokenised apart, " Air " would begin with two."""
    real = real_tokenizer(shared_models / "llama2")
    real.chat_template = LLAMA2
    encoder = Encoder(real, chat=True)
    for title in ["Air", "Red House Painters", "Björk", "!!!", "50 Cent", "東京事変"]:
        assert encoder.prompt("Next:\n") + encoder.completion(title) == conversation(real, "Next:\n", title)
    assert real.convert_ids_to_tokens(encoder.completion("Air")) == ["▁Air", "▁", "</s>"]
    real.chat_template = CHATML.replace("<|im|>", "<s>").replace("<|end|>", "</s>")
    assert real.convert_ids_to_tokens(Encoder(real, chat=True).completion("Air")) == ["A", "ir", "</s>"]


def test_a_missing_chat_template_or_end_of_sequence_is_refused(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="no chat template: turn it off"):
        Encoder(tokenizer, chat=True)
    tokenizer.eos_token = None
    with pytest.raises(PromptError, match=r"no end-of-sequence token: set tokenizer\.eos_token"):
        Encoder(tokenizer)


def test_padding_is_the_end_of_sequence(tokenizer: Any) -> None:
    """It is masked everywhere, and every model has an embedding for it; of a pad token that is not certain."""
    assert Encoder(tokenizer).pad_id == tokenizer.eos_token_id != tokenizer.pad_token_id


def test_empty_texts_are_refused(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    assert encoder.prompts([]) == []
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        encoder.prompts(["Red", ""])
    with pytest.raises(PromptError, match="the completion '' has no tokens"):
        encoder.completion("")


def test_titles_that_the_tokenizer_cannot_tell_apart() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Air": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>"))
    encoder.check_distinct(["Air", "Björk", "Air"])  # the same title twice is one title
    with pytest.raises(PromptError, match="titles 'Björk' and 'Röyksopp' have the same token ids"):
        encoder.check_distinct(["Air", "Björk", "Röyksopp"])


def test_normalised_titles() -> None:
    assert normalise_title(" Red\n House  Painters ") == "red house painters"
    assert normalise_title("STRASSE") == normalise_title("straße")
    assert normalise_title("Red") != normalise_title("Red House Painters")


def real_tokenizer(folder: Path) -> Any:
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    if folder.name == "gpt2":
        return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), eos_token="<|endoftext|>")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_real_tokenizers(shared_models: Path, name: str) -> None:
    """Identical prompt ids for all candidates, distinct completions, BOS exactly where the model family has one."""
    real = real_tokenizer(shared_models / name)
    encoder = Encoder(real)
    prompt = "This user has listened to these artists, oldest first:\nAir\nNext artist:\n"
    titles = ["Red", "Red House Painters", "Björk", "!!!", "50 Cent", "東京事変", " Air", "Air"]
    ids = encoder.prompt(prompt)
    if name == "llama2":
        assert ids[0] == real.bos_token_id
        assert ids.count(real.bos_token_id) == 1
    else:
        assert ids == real(prompt)["input_ids"]
    encoder.check_distinct(titles)
    for title in titles:
        completion = encoder.completion(title)
        assert completion[-1] == real.eos_token_id
        assert real.bos_token_id not in completion[:-1]
        assert real.decode(completion[:-1]).strip() == title.strip()
    assert all(encoder.prompt(prompt) == ids for _ in titles)


def test_many_prompts_are_read_in_parts_that_somebody_sees_pass(tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sirius_rec.prompts.encoding._AT_ONCE", 3)
    seen: list[int] = []

    def progress_of(total: int) -> Any:
        seen.append(total)
        return seen.append

    texts = [f"Air {n}\n" for n in range(7)]
    watched = Encoder(tokenizer, progress_of=progress_of)
    assert watched.prompts(texts) == [Encoder(tokenizer).prompt(text) for text in texts]
    assert seen == [7, 3, 3, 1]
    texts[4] = ""
    with pytest.raises(PromptError, match="prompt 4 is empty"):
        watched.prompts(texts)
