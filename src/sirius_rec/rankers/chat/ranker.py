"""ChatRec (Gao et al. 2023): a chat model is shown the history and the slate and writes the slate in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sirius_rec.prompts.templates import Template
from sirius_rec.rankers.chat.client import ChatClient, Reply
from sirius_rec.rankers.chat.parsing import Ranking, parse_ranking
from sirius_rec.rankers.protocol import Answer, Items, check_rows

# What a remote method cost, in done.json and in comparisons; request_seconds adds up requests that ran side by side.
SPENT: Final = ("requests", "prompt_tokens", "completion_tokens", "cost", "request_seconds")


class ChatRanker:
    """Ranks slates by what a chat endpoint answers; the slate is shown in the order given.

    A named candidate scores above all that are named later; what is not named shares the last place. An item that
    training never saw is a title like any other, and an empty history an empty list. progress: rows just answered.
    """

    def __init__(
        self,
        client: ChatClient,
        template: Template,
        titles: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.client, self.template, self.titles, self.progress = client, template, titles, progress
        self._replies: dict[str, Reply] = {}

    def rankings(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Ranking]:
        """What was answered about each row."""
        slates = [[self.titles[i] for i in slate] for slate in candidates]
        prompts = self._prompts(histories, candidates)
        replies = self.client.ask_all(prompts, self.progress)
        self._replies |= dict(zip(prompts, replies, strict=True))
        return [parse_ranking(reply.content, slate) for reply, slate in zip(replies, slates, strict=True)]

    def ask_next(self, histories: Sequence[Items], candidates: Sequence[Items]) -> bool:
        """Ask about the first row without an answer; False if all have one."""
        missing = (prompt for prompt in self._prompts(histories, candidates) if not self.client.answered(prompt))
        prompt = next(missing, None)
        if prompt is not None:
            self.client.ask_all([prompt])
        return prompt is not None

    def _prompts(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[str]:
        check_rows(histories, candidates, len(self.titles))
        return [
            self.template.render_ranking([self.titles[i] for i in history], [self.titles[i] for i in slate])
            for history, slate in zip(histories, candidates, strict=True)
        ]

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[npt.NDArray[np.float32]]:
        """Places from the end of the answered list, 0 for what it does not name; one array per row."""
        found = self.rankings(histories, candidates)
        return [ranking.scores(len(slate)) for ranking, slate in zip(found, candidates, strict=True)]

    def answer(self, histories: Sequence[Items], candidates: Sequence[Items], targets: Sequence[int]) -> list[Answer]:
        """The first title that each answer names."""
        rankings = self.rankings(histories, candidates)
        return [
            Answer(ranking.text, ranking.valid, ranking.first is not None and slate[ranking.first] == target)
            for ranking, slate, target in zip(rankings, candidates, targets, strict=True)
        ]

    def spent(self) -> dict[str, Any]:
        """`SPENT` of every answer used so far, also of those that were in the cache already."""
        replies = list(self._replies.values())
        prompt, completion = (sum(getattr(r, f"{part}_tokens") for r in replies) for part in ("prompt", "completion"))
        cost = self.client.options.cost(prompt, completion)
        seconds = round(sum(r.seconds for r in replies), 1)
        return dict(zip(SPENT, (len(replies), prompt, completion, cost, seconds), strict=True))
