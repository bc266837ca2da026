"""Boundary-safe tokenisation: prompt and completion are tokenised apart and joined as ids.

No merge can cross the border, so every candidate sees byte-identical prompt ids, and log π(y|x) is the probability
of y after exactly that prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from sirius_rec.errors import PromptError

_ANSWER = "an answer of the assistant"
_AT_ONCE = 4096  # prompts, a second or so, where somebody wants to see them pass


class Encoder:
    """Token ids of prompts and completions for one tokenizer; completions are cached by text.

    chat: wrap the prompt in the tokenizer's chat template as one user turn; completions then begin and end as its
    assistant's turns do (`turn`), and templates that know `enable_thinking` open no thoughts before the answer.
    progress_of: number of prompts → what is told how many more are done.
    Raises PromptError if the tokenizer has no end-of-sequence token, or no chat template where one is asked for.
    """

    def __init__(
        self, tokenizer: Any, *, chat: bool = False, progress_of: Callable[[int], Callable[[int], None]] | None = None
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise PromptError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token")
        if chat and not tokenizer.chat_template:
            raise PromptError("prompts.chat is on, but the tokenizer has no chat template: turn it off")
        self.tokenizer = tokenizer
        self.chat = chat
        self.progress_of = progress_of
        self.eos_id: int = tokenizer.eos_token_id
        # Padding is masked everywhere; a tokenizer's own pad token may lie outside the embeddings (added, not resized).
        self.pad_id: int = tokenizer.eos_token_id
        # What the tokenizer itself puts before any text (BOS for Llama, nothing for GPT-2).
        own = tokenizer("")["input_ids"]
        self._prefix: list[int] = [i for i in own if i != self.eos_id or i == tokenizer.bos_token_id]
        if tokenizer.bos_token_id == self.eos_id and len(self._prefix) > 1:
            self._prefix = self._prefix[:1]
        self._completions: dict[str, list[int]] = {}
        self._turns: dict[str, list[int]] = {}
        if chat:
            self.eos_id = self.turn_end

    @property
    def turn_end(self) -> int:
        """The id that ends an assistant's turn in the chat template (Gemma: <end_of_turn>), else of the sequence."""
        return self._assistant[3]

    @cached_property
    def _assistant(self) -> tuple[str, str, str, int]:
        """An assistant's turn: text of a prompt up to it, text before and behind the answer, the id that ends it.

        Llama-2: `<s>[INST] a [/INST]`, " ", " ", </s>. Before an answer only white space is part of it, not thoughts. A
        template that refuses these turns says nothing about them.
        """
        from jinja2 import TemplateError

        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}
        end = int(self.tokenizer.eos_token_id)
        try:
            opened = self._rendered([user], add_generation_prompt=True)
            whole = self._rendered([user, answer])
        except (TemplateError, TypeError, ValueError):
            return "", "", "", end
        head, found, tail = whole.rpartition(_ANSWER)
        before = head.removeprefix(opened) if found and head.startswith(opened) else ""
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"] if found else []
        ending = next((int(i) for i in ids if i in special), None)
        after = "" if ending is None else tail.partition(self.tokenizer.convert_ids_to_tokens(ending))[0]
        return opened, "" if before.strip() else before, after, end if ending is None else ending

    def _rendered(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """Chat messages as text."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False, **options))

    @cached_property
    def special(self) -> set[int]:
        """Ids that no title may contain: the tokenizer's special tokens, but for the one of unknown characters."""
        return set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    def prompt(self, text: str) -> list[int]:
        """Ids of the prompt, with the tokenizer's own beginning-of-sequence token, without an end of sequence."""
        return self.prompts([text])[0]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """`prompt` of many texts at once. An empty prompt is a PromptError naming its number."""
        progress = None if self.progress_of is None else self.progress_of(len(texts))
        rows: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            ids = self.tokenizer(self._whole(some), add_special_tokens=False)["input_ids"]
            rows += self._begun(ids, start)
            if progress is not None:
                progress(len(some))
        return rows

    def plain(self, text: str) -> tuple[str, list[int], tuple[str, str]]:
        """What code without this class needs to write a prompt's ids and a completion's: the text to tokenise without
        special tokens, the ids before it, and what stands before and behind a title (white space of a chat template).
        """
        around = self._assistant[1:3] if self.chat else ("", "")
        return self._whole([text])[0], [] if self.chat else list(self._prefix), around

    def _whole(self, texts: Sequence[str]) -> list[str]:
        """What is tokenised: the texts, in the chat template where there is one."""
        if not self.chat:
            return list(texts)
        return [self._rendered([{"role": "user", "content": text}], add_generation_prompt=True) for text in texts]

    def _begun(self, ids: Sequence[list[int]], first: int = 0) -> list[list[int]]:
        """Ids with the beginning of sequence. An empty prompt is a PromptError naming its number."""
        # A chat template writes its own beginning of sequence.
        rows = list(ids) if self.chat else [self._prefix + row for row in ids]
        for number, row in enumerate(rows, first):
            if not row:
                raise PromptError(f"prompt {number} is empty: a completion needs at least one token before it")
        return rows

    def completion(self, text: str) -> list[int]:
        """Ids of a completion and the end of sequence; with chat its `turn`. PromptError for a text without tokens."""
        if self.chat:
            return self.turn(text)
        ids = self._completions.get(text)
        if ids is None:
            ids = self._completions[text] = [*self._own(text), self.eos_id]
        return ids

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """`completion` of many texts at once, which is far faster; they are not kept."""
        if self.chat or not texts:
            return [self.completion(text) for text in texts]
        rows: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        for text, ids in zip(texts, rows, strict=True):
            if not ids:
                raise PromptError(f"the completion {text!r} has no tokens")
            ids.append(self.eos_id)
        return rows

    def turn(self, text: str) -> list[int]:
        """Ids of a completion as the chat template's assistant says it, to the end of its turn.

        They are what a whole conversation has behind its prompt, if its ids begin with those of the prompt: a
        SentencePiece tokenizer puts a space before every text of its own, which `[/INST] Air ` has once, not twice.
        Where a merge crosses the border, the answer is tokenised apart.
        """
        ids = self._turns.get(text)
        if ids is None:
            own = self._own(text)
            opened, before, after, end = self._assistant
            if opened:
                whole, prompt, apart = self.tokenizer(
                    [f"{opened}{before}{text}{after}", opened, f"{before}{text}{after}"], add_special_tokens=False
                )["input_ids"]
                own = whole[len(prompt) :] if whole[: len(prompt)] == prompt else apart
            ids = self._turns[text] = [*own, end]
        return ids

    def _own(self, text: str) -> list[int]:
        """Ids of a text alone. PromptError where it has none."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise PromptError(f"the completion {text!r} has no tokens")
        return ids

    def forget(self, beyond: int) -> None:
        """Drop the kept completions once there are more than `beyond`: whoever serves strangers' texts meets no end."""
        for kept in (self._completions, self._turns):
            if len(kept) > beyond:
                kept.clear()

    def check_distinct(self, titles: Iterable[str]) -> None:
        """PromptError if no model could tell titles apart: equal token ids, or a special token inside a title."""
        seen: dict[tuple[int, ...], str] = {}
        for title in titles:
            if self.special.intersection(self.completion(title)[:-1]):
                raise PromptError(f"title {title!r} contains a special token of the tokenizer: change the title")
            other = seen.setdefault(tuple(self.completion(title)), title)
            if other != title:
                raise PromptError(
                    f"titles {other!r} and {title!r} have the same token ids: the tokenizer lacks their characters"
                )


def normalise_title(text: str) -> str:
    """How generated text and titles are compared: surrounding and repeated whitespace and case do not count.

    >>> normalise_title("  Red  House Painters\\n")
    'red house painters'
    """
    return " ".join(text.split()).casefold()
