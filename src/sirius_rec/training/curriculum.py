"""`CurriculumTrainer`: SFT on prompts that turn from text to hybrid as training goes on (LLaRA, Liao et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.errors import ConfigError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.hybrid import without_marks
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.hybrid import load_projector, removed, save_projector
from sirius_rec.training.records import Draw, PreferenceDataset, encode_records
from sirius_rec.training.trainer import SiriusTrainer

_CURRICULUM = 0xC0DE


class CurriculumDataset(PreferenceDataset):
    """Draws of the hybrid rows, or of the same rows as text alone: row + N of a list that holds both.

    An example is hybrid with a probability that rises linearly from 0 at the first step to 1 at `share` of all steps.
    It rests on (seed, epoch, row) and the example's step alone: a resumed training goes on exactly, and several
    processes, whose epochs have filled-up places at the end, do what one does.
    """

    def __init__(self, rows: Sequence[PromptCompletions], *, epochs: float, share: float, **options: Any) -> None:
        super().__init__(rows, **options)
        self.examples = max(epochs * self.n_examples * share, 1.0)

    def __getitem__(self, slot: int) -> Draw:
        draw = super().__getitem__(slot)
        step = self.layout.batch
        done = self.epoch * self.n_examples + slot // step * step
        chance = np.random.Generator(np.random.Philox(key=[self.seed ^ _CURRICULUM, (self.epoch << 32) | draw.row]))
        hybrid = chance.random() < done / self.examples
        return draw if hybrid else replace(draw, row=draw.row + len(self.rows))


class CurriculumTrainer(SiriusTrainer):
    """A trainer of models with a `HybridEmbedding`; prompts of the records carry marked titles.

    curriculum: share of all steps until every prompt is hybrid. Evaluation is always on hybrid prompts. Checkpoints
    hold the plain model and the projector beside it.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        train_dataset: Any,
        *others: Any,
        curriculum: float,
        encoder: Encoder,
        **kwargs: Any,
    ) -> None:
        if args.splits_weights:
            raise ConfigError("a curriculum saves the whole model of one process: no FSDP, no DeepSpeed")
        super().__init__(model, args, train_dataset, *others, encoder=encoder, **kwargs)
        hybrid: PreferenceDataset = self.train_dataset  # type: ignore[has-type]
        text = encode_records([{**r, "prompt": without_marks(r["prompt"])} for r in train_dataset], encoder)
        self.collator.rows = [*hybrid.rows, *text]
        self.train_dataset = CurriculumDataset(
            hybrid.rows,
            epochs=self.args.num_train_epochs,
            share=curriculum,
            negatives=hybrid.negatives,
            score_unsampled=hybrid.score_unsampled,
            seed=hybrid.seed,
            examples_per_epoch=hybrid.n_examples,
            layout=hybrid.layout,
            users=hybrid.users,
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with removed(self.model):
            super()._save(output_dir)
        if self.args.should_save:
            save_projector(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with removed(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_projector(self.model, Path(resume_from_checkpoint))
