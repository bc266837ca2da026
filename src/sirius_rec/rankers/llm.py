"""A language model as a ranker: candidates are scored by log π(title | prompt)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import ScoringError
from sirius_rec.processes import split_weights
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.templates import Template
from sirius_rec.rankers.catalogue.search import Found
from sirius_rec.rankers.catalogue.top import top_k
from sirius_rec.rankers.catalogue.trie import Trie
from sirius_rec.rankers.generation import generate_answers
from sirius_rec.rankers.protocol import Answer, Items, check_rows
from sirius_rec.scoring.kept import KeptScores, scored_in_parts
from sirius_rec.scoring.prefix_cache import PrefixCache
from sirius_rec.scoring.rows import BATCH_TOKENS, PromptCompletions
from sirius_rec.scoring.scorer import check_once, from_all, place_in_group, score_rows

_PART = 64  # searches of a catalogue between which what was found can be kept


class LLMRanker:
    """Ranks slates with a causal LM.

    model, encoder: the LM and its tokenizer. template, titles: how items are shown; titles by dense item number.
    shown: what stands for an item in prompts, where that is not its title (hybrid prompts).
    scoring: "auto", "packed" or "naive". batch_tokens: tokens per batch. bf16: see
    `scoring.scorer.score_rows`. progress: gets the rows just done. prefixes: keeps prompts from one call to the next.
    kept: of one scoring, so that it can go on after a kill.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        template: Template,
        titles: Sequence[str],
        *,
        shown: Sequence[str] | None = None,
        scoring: str = "auto",
        batch_tokens: int = BATCH_TOKENS,
        bf16: bool = False,
        progress: Callable[[int], None] | None = None,
        prefixes: PrefixCache | None = None,
        kept: KeptScores | None = None,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.template = template
        self.titles = titles
        self.shown = titles if shown is None else shown
        self.scoring = scoring
        self.batch_tokens = batch_tokens
        self.bf16 = bf16
        self.progress = progress
        self.prefixes = prefixes
        self.kept = kept

    def prompts(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[str]:
        """The prompt texts of rows, the slate in the order given; errors as `check_rows`."""
        check_rows(histories, candidates, len(self.titles))
        shown = self.shown
        return [
            self.template.render([shown[i] for i in history], [shown[i] for i in slate])
            for history, slate in zip(histories, candidates, strict=True)
        ]

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[npt.NDArray[np.float32]]:
        """log π(y|x) in nats, summed over tokens with the end of sequence; one array per row.

        ScoringError if packed scoring is not right for this model: asked once, on its first row.
        """
        prompts = self.encoder.prompts(self.prompts(histories, candidates))
        rows = [
            PromptCompletions(prompt, [self.encoder.completion(self.titles[i]) for i in slate])
            for prompt, slate in zip(prompts, candidates, strict=True)
        ]
        check_once(self.model, rows, self.encoder.pad_id, self.scoring)
        return score_rows(
            self.model,
            rows,
            self.encoder.pad_id,
            mode=self.scoring,
            max_tokens=self.batch_tokens,
            bf16=self.bf16,
            progress=self.progress,
            prefixes=self.prefixes,
            kept=self.kept,
        )

    def top_k(
        self,
        trie: Trie,
        histories: Sequence[Items],
        k: int,
        *,
        leave_out: Sequence[Items] | None = None,
        max_opened: int | None = None,
    ) -> list[Found]:
        """The K best titles of a whole catalogue for each history; see `rankers.catalogue.top.top_k`.

        trie: of this encoder. ScoringError where prompts show candidates: a whole catalogue cannot be shown.
        """
        if self.template.shows_slate:
            raise ScoringError("prompts that list the candidates cannot list a catalogue: set prompts.slate: false")
        prompts = self.encoder.prompts(self.prompts(histories, [np.empty(0, dtype=np.int64)] * len(histories)))
        return top_k(
            self.model,
            trie,
            prompts,
            k,
            pad_id=self.encoder.pad_id,
            leave_out=leave_out,
            max_opened=max_opened,
            max_tokens=self.batch_tokens,
            bf16=self.bf16,
            scoring=self.scoring,
            progress=self.progress,
        )

    def score_best(
        self, trie: Trie, histories: Sequence[Items], candidates: Sequence[Items], k: int
    ) -> list[npt.NDArray[np.float64]]:
        """As `score`, for the K best candidates of each row alone; the others are known to be no better, and get −inf.

        trie: of the whole catalogue, most of which the candidates are: what they lack is left out of the search.
        Processes of a group share the rows, unless they share a model's weights, which takes all of them for each pass.
        """
        every, most = np.arange(trie.n_titles), min(k, trie.n_titles)
        rank, processes = (0, 1) if split_weights() else place_in_group()

        def best(rows: slice) -> list[np.ndarray]:
            mine = range(rows.start + rank, rows.stop, processes)
            leave_out = [np.setdiff1d(every, candidates[r]) for r in mine]
            found = self.top_k(trie, [histories[r] for r in mine], most, leave_out=leave_out)
            own = {r - rows.start: np.concatenate([f.items, f.scores]) for r, f in zip(mine, found, strict=True)}
            n = rows.stop - rows.start
            if self.progress and n > len(mine):
                self.progress(n - len(mine))
            return from_all(own, n, processes)

        rows = []
        size = max(len(histories), 1) if self.kept is None else _PART
        how = f"best {most} {self.scoring} {self.bf16}"
        for slate, found in zip(
            candidates, scored_in_parts(len(histories), size, best, self.kept, how, self.progress), strict=True
        ):
            items, scores = np.split(found, 2)
            scores_I = np.full(trie.n_titles, -np.inf)
            scores_I[items.astype(np.int64)] = scores
            rows.append(scores_I[slate])
        return rows

    def answer(self, histories: Sequence[Items], candidates: Sequence[Items], targets: Sequence[int]) -> list[Answer]:
        """What the model writes by itself, greedily, and whether it is a candidate's title and the target's."""
        return generate_answers(
            self.model,
            self.encoder,
            self.prompts(histories, candidates),
            [[self.titles[i] for i in slate] for slate in candidates],
            [self.titles[target] for target in targets],
            progress=self.progress,
        )
