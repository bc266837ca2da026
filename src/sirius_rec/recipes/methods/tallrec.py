"""TALLRec in both forms: yes or no for each item (Bao et al. 2023), and what the SIRIUS paper's tables call TALLRec."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec.config import Config, MethodSection
from sirius_rec.errors import ConfigError
from sirius_rec.options import Options, Positive
from sirius_rec.prompts.templates import NO, QUESTION, YES
from sirius_rec.recipes.methods.finetuned import FinetunedBaseline, needs_answer_line
from sirius_rec.recipes.records import question_pairs, question_records, question_validation
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.streamed import Rows
from sirius_rec.recipes.training import starting_model

if TYPE_CHECKING:
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import Template


class TallRecOptions(Options):
    """negatives: questions with the answer No per training row."""

    negatives: Positive = 1


class TallRec(FinetunedBaseline):
    """Is this the next item, Yes or No? Asked about the target and sampled others of the train slate.

    The stage's examples are rows; every row is 1 + `negatives` questions. Yes and No name no title.
    """

    name, title, OwnOptions = "tallrec", "TALLRec (yes/no per item)", TallRecOptions
    answers = False
    reads_fields = False
    reads_titles = False
    probabilities = False  # of each candidate that it is one, not of which it is
    searches = False
    ranks_by = "Each candidate is asked about alone, and ranked by log π(Yes | prompt) − log π(No | prompt)"

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        size = next((slate.size for slate in config.data.slates if "train" in slate.splits), None)
        if size and self.options.negatives > size - 1:
            raise ConfigError(f"{self.options.negatives} negatives, but a train slate of {size} has {size - 1}")
        needs_answer_line(config, "the history the candidate that is asked about", "leave the method out")

    def tokenizer(self, run: Run) -> Any:
        """The run's tokenizer; on the tiny backbone with the question and answers as single tokens.

        They are added for this method alone: the ids, and so the results, of all other models stay as they are.
        """
        if run.config.backbone.name != "tiny":
            return run.tokenizer
        from sirius_rec.training.tiny import with_lines

        return with_lines(copy.deepcopy(run.tokenizer), [QUESTION, YES, NO])

    def lengths(
        self, run: Run, encoder: Encoder, histories: Sequence[Sequence[int]], slates: Sequence[Sequence[int]]
    ) -> list[int]:
        titles, template = run.dataset.titles, self.template(run)
        texts = []
        for history, slate in zip(histories, slates, strict=True):  # the candidate stands in the prompt
            sizes = [len(encoder.completion(titles[i])) for i in slate]
            widest = slate[int(np.argmax(sizes))]
            texts.append(template.render_question([titles[i] for i in history], titles[widest]))
        longest = max(len(encoder.completion(answer)) for answer in (YES, NO))
        return [len(ids) + longest - 1 for ids in encoder.prompts(texts)]

    def training_set(self, run: Run, seed: int, rows: Rows) -> dict[str, Any]:
        stage, negatives = self.training, self.options.negatives
        pairs = question_pairs(run.dataset, run.train_slates, rows, negatives, seed)
        if stage.examples_per_epoch is not None:
            stage = stage.changed(examples_per_epoch=stage.examples_per_epoch * (1 + negatives))
        tokenizer = self.tokenizer(run)
        model = starting_model(run, tokenizer, seed)
        if run.config.backbone.name == "tiny":
            from sirius_rec.training.tiny import with_embeddings

            model = with_embeddings(model, tokenizer, seed)
        return {
            "stage": stage,
            "model": model,
            "tokenizer": tokenizer,
            "records": question_records(run.dataset, run.train_slates, run.template, pairs),
            "validation": question_validation(run),
        }

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        from sirius_rec.rankers.yes_no import YesNoRanker

        return self.llm_ranker(run, self.load(run, seed, checkpoint), YesNoRanker)


class TallRecListwise(FinetunedBaseline):
    """SFT on titles, from prompts that show the slate (the SIRIUS paper's E.3.1)."""

    name, title = "tallrec_listwise", "TALLRec (listwise)"

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        needs_answer_line(config, "a slate", "leave the method out")

    def template(self, run: Run) -> Template:
        return replace(run.template, shows_slate=True)
