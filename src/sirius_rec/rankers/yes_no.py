"""TALLRec's scoring (Bao et al. 2023): one question per candidate, ranked by how probable Yes is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.templates import NO, YES, Template
from sirius_rec.rankers.protocol import Items, check_rows
from sirius_rec.scoring.kept import KeptScores, scored_in_parts
from sirius_rec.scoring.rows import BATCH_TOKENS, PromptCompletions
from sirius_rec.scoring.scorer import check_once, score_rows

_SLATES = 256  # slates whose questions are held at once


class YesNoRanker:
    """Ranks slates by p(Yes) = π(Yes) / (π(Yes) + π(No)), each candidate asked about alone.

    The score is the log-odds log π(Yes) − log π(No) in nats: the order of p(Yes), without its ties at 0 and 1. A score
    does not depend on the other candidates. A title that training never asked about is a text like any other.
    Arguments as `LLMRanker`.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        template: Template,
        titles: Sequence[str],
        *,
        scoring: str = "auto",
        batch_tokens: int = BATCH_TOKENS,
        bf16: bool = False,
        progress: Callable[[int], None] | None = None,
        kept: KeptScores | None = None,
    ) -> None:
        self.model, self.encoder, self.template, self.titles = model, encoder, template, titles
        self.scoring, self.batch_tokens, self.bf16, self.progress = scoring, batch_tokens, bf16, progress
        self.kept = kept

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[npt.NDArray[np.float32]]:
        """Log-odds of Yes, one array per row, aligned with its candidates."""
        check_rows(histories, candidates, len(self.titles))

        def odds(rows: slice) -> list[npt.NDArray[np.float32]]:
            found = self._score(histories[rows], candidates[rows])
            if self.progress:
                self.progress(len(found))
            return found

        how = f"odds {self.scoring} {self.batch_tokens} {self.bf16}"
        return scored_in_parts(len(histories), _SLATES, odds, self.kept, how, self.progress)

    def _score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[npt.NDArray[np.float32]]:
        titles = self.titles
        texts = [
            self.template.render_question([titles[i] for i in history], titles[item])
            for history, slate in zip(histories, candidates, strict=True)
            for item in slate
        ]
        answers = [self.encoder.completion(YES), self.encoder.completion(NO)]
        rows = [PromptCompletions(ids, answers) for ids in self.encoder.prompts(texts)]
        check_once(self.model, rows, self.encoder.pad_id, self.scoring)
        scored = score_rows(
            self.model, rows, self.encoder.pad_id, mode=self.scoring, max_tokens=self.batch_tokens, bf16=self.bf16
        )
        odds = np.array([yes - no for yes, no in scored], dtype=np.float32)
        return np.split(odds, np.cumsum([len(slate) for slate in candidates])[:-1]) if len(candidates) else []
