"""A prompt with its completions as token ids: what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sirius_rec.errors import PromptError

BATCH_TOKENS: Final = 8192  # of a forward pass of scoring, unless somebody says otherwise


@dataclass(frozen=True)
class PromptCompletions:
    """Token ids of one prompt and of its candidates; each completion ends with the end-of-sequence token."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    @property
    def packed_length(self) -> int:
        """Tokens that a model gets for this row alone, at most: titles may share beginnings."""
        return len(self.prompt) + sum(len(ids) - 1 for ids in self.completions)

    @property
    def longest_path(self) -> int:
        """Positions that the longest prompt-plus-completion takes up: what must fit into the model's context."""
        return len(self.prompt) + max(len(ids) for ids in self.completions) - 1

    def length(self, scoring: str) -> int:
        """Tokens that a model gets: `packed`, or `naive`, one row for each candidate, padded to the longest."""
        return len(self.completions) * (self.longest_path + 1) if scoring == "naive" else self.packed_length

    def only(self, columns: Sequence[int]) -> PromptCompletions:
        """The row with these of its completions, in this order."""
        return PromptCompletions(self.prompt, [self.completions[c] for c in columns])


def check_context(rows: Sequence[PromptCompletions], context: int | None) -> None:
    """PromptError, with the count and the longest, if any row does not fit into the model's context (in tokens)."""
    if context is None:
        return
    longest = [row.longest_path for row in rows]
    too_long = sum(length > context for length in longest)
    if too_long:
        raise PromptError(
            f"{too_long} of {len(rows)} prompts with their longest completion exceed the model's context of "
            f"{context} tokens (longest: {max(longest)}): use shorter histories or smaller slates"
        )
