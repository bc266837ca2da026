"""Hybrid prompts (LLaRA): behind a title, one virtual token that stands for the item's learned embedding.

A marked title carries its item number in characters of the private use area. `HybridEncoder` reads the marks off,
encodes the text as if they had never been there, and puts the virtual id `first_virtual + item` behind the title's last
token: taking the virtual ids out again leaves exactly the ids of the plain prompt.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import PromptError
from sirius_rec.prompts.encoding import Encoder

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


def marked_titles(titles: Sequence[str], known_I: npt.NDArray[np.bool_]) -> list[str]:
    """Titles with their item's mark; an item that is not known (no embedding worth the name) stays text alone.

    PromptError for a title that holds one of the marking characters itself.
    """
    for title in titles:
        if _OPEN in title or _CLOSE in title:
            raise PromptError(f"title {title!r} holds a private-use character that marks items: change the title")
    return [f"{title}{_OPEN}{i}{_CLOSE}" if known_I[i] else title for i, title in enumerate(titles)]


def without_marks(text: str) -> str:
    """The text that a plain prompt would hold."""
    return _MARK.sub("", text)


class HybridEncoder(Encoder):
    """`Encoder` whose prompts may hold marked titles; completions are plain text.

    first_virtual: the id of item 0, at least the number of ids that the model knows. PromptError for a tokenizer that
    does not say where its tokens stand in the text.
    """

    def __init__(self, tokenizer: Any, first_virtual: int, *, chat: bool = False) -> None:
        super().__init__(tokenizer, chat=chat)
        if not tokenizer.is_fast:
            raise PromptError("hybrid prompts need a fast tokenizer (one with offsets): this one is not")
        self.first_virtual = first_virtual

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with virtual ones behind the marked titles; a chat template is wrapped around the text as usual."""
        if not texts:
            return []
        plain = [without_marks(text) for text in texts]
        whole = self._whole(plain)
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        rows = self._begun(encoded["input_ids"])
        prefix = 0 if self.chat else len(self._prefix)
        for number, text in enumerate(texts):
            # Many chat templates trim what they are given, and our prompts end with a line break.
            body = plain[number].strip()
            shift = whole[number].find(body) - plain[number].find(body)
            if body not in whole[number]:
                raise PromptError(
                    f"prompt {number}: the chat template changes the text, so titles cannot be found in it"
                )
            starts = [start for start, _ in encoded["offset_mapping"][number]]
            rows[number] = self._with_virtual(rows[number], starts, text, prefix, shift)
        return rows

    def _with_virtual(self, ids: list[int], starts: list[int], text: str, prefix: int, shift: int) -> list[int]:
        out: list[int] = []
        done, removed = 0, 0
        for mark in _MARK.finditer(text):
            end = mark.start() - removed + shift
            # Tokens that begin before the title's end belong to it or to what stands before it.
            at = prefix + bisect_left(starts, end)
            out += [*ids[done:at], self.first_virtual + int(mark[1])]
            done, removed = at, removed + len(mark[0])
        return out + ids[done:]
