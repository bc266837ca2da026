"""LLaRA (Liao et al. 2024): SFT whose prompts turn from titles to titles with projected SASRec embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from sirius_rec import processes
from sirius_rec.config import Config, MethodSection
from sirius_rec.errors import ConfigError
from sirius_rec.options import Number
from sirius_rec.recipes.methods.base import hash_of
from sirius_rec.recipes.methods.finetuned import FinetunedBaseline, PromptOptions, check_slate, with_slate
from sirius_rec.recipes.methods.networks import SasRec, require_validation
from sirius_rec.recipes.records import slate_records, validation_set
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE
from sirius_rec.recipes.streamed import Rows
from sirius_rec.recipes.training import starting_model
from sirius_rec.schema import CANDIDATES, HISTORY

if TYPE_CHECKING:
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import Template


class LlaraOptions(PromptOptions):
    """curriculum: share of the training steps over which the chance of a hybrid prompt rises from 0 to 1."""

    curriculum: Annotated[Number, Field(gt=0, le=1)] = 1.0


class Llara(FinetunedBaseline):
    name, title, OwnOptions = "llara", "LLaRA", LlaraOptions
    reads_fields = False
    reads_titles = False  # a title outside the catalogue has no embedding
    ranks_by = (
        "Candidates are ranked by log π(title | prompt), in which a projected embedding stands behind every title; "
        "projector.safetensors is needed, and so is sirius-rec"
    )

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        check_slate(config, self.options.slate)
        shared = SasRec.shared(config)
        self.shares = shared is not None
        self.sasrec = SasRec(config, shared or MethodSection(method=SasRec.name))

    def builds_on(self) -> tuple[str, ...]:
        before = super().builds_on()
        return (*before, self.sasrec.key) if self.shares else before

    def made_in(self, run: Run, seed: int) -> list[Any]:
        *before, own = super().made_in(run, seed)
        return [*before, self.sasrec_folder(run, seed), own]

    def trained_as(self, run: Run, seed: int) -> str:
        done = self.sasrec_folder(run, seed) / DONE
        return hash_of(super().trained_as(run, seed), done.read_text() if done.is_file() else "")

    def settled(self, run: Run, seed: int) -> Config:
        """With its SASRec, which is then the run's own."""
        config = super().settled(run, seed)
        return config.changed(methods=(self.sasrec.settled_entry(self.sasrec_folder(run, seed)), *config.methods))

    def template(self, run: Run) -> Template:
        return with_slate(run, self.options.slate)

    def sasrec_folder(self, run: Run, seed: int) -> Path:
        """Where its SASRec lies: the run's own, else one beside the method; for all seeds, once one has it."""
        own = self.folder(run, seed) / SasRec.name
        begun = any(own.parent.parent.glob(f"s[0-9]*/{own.name}/{DONE}"))
        return own if not self.shares or begun else self.sasrec.folder(run, seed)

    def _fitted_sasrec(self, run: Run, seed: int) -> Any:
        return self.sasrec.trained(run, seed, self.sasrec_folder(run, seed))

    def check(self, run: Run) -> None:
        """Also PromptError if marked titles cannot be encoded, or not be found in a prompt; tried on the first one.
        ConfigError where weights are split over processes."""
        from sirius_rec.prompts.hybrid import HybridEncoder, marked_titles

        if processes.split_weights():
            raise ConfigError(f"methods: {self.key} saves the whole model of one process: no FSDP, no DeepSpeed")
        if self.sasrec.chooses:
            require_validation(run)
        encoder, template, name = self.encoder(run), self.template(run), run.train_slates
        shown = marked_titles(run.dataset.titles, np.ones(len(run.dataset.titles), dtype=bool))
        histories = run.dataset.examples(name.split)[HISTORY].head(1).to_list()
        slates = run.dataset.slates(name)[CANDIDATES].head(1).to_list()
        HybridEncoder(encoder.tokenizer, len(encoder.tokenizer), chat=encoder.chat).prompts(
            [
                template.render([shown[i] for i in history], [shown[i] for i in slate])
                for history, slate in zip(histories, slates, strict=True)
            ]
        )
        super().check(run)

    def lengths(
        self, run: Run, encoder: Encoder, histories: Sequence[Sequence[int]], slates: Sequence[Sequence[int]]
    ) -> list[int]:
        lengths = super().lengths(run, encoder, histories, slates)
        shows_slate = self.template(run).shows_slate
        # A virtual token behind every title.
        return [
            length + len(history) + len(slate) * shows_slate
            for length, history, slate in zip(lengths, histories, slates, strict=True)
        ]

    def training_set(self, run: Run, seed: int, rows: Rows) -> dict[str, Any]:
        from sirius_rec.training.curriculum import CurriculumTrainer
        from sirius_rec.training.hybrid import install

        with processes.one_for_all():  # a network that is not there yet is trained once, by the main process
            if processes.is_main():
                self._fitted_sasrec(run, seed)
        sasrec = self._fitted_sasrec(run, seed)
        model = starting_model(run, run.tokenizer, seed)
        install(model, sasrec.network.items.weight[: run.dataset.n_items], seed=seed)
        hybrid, template = self._hybrid(run, seed, model), self.template(run)
        return {
            "model": model,
            "tokenizer": run.tokenizer,
            "records": slate_records(run.dataset, run.train_slates, template, rows, hybrid["shown"]),
            "validation": validation_set(run, template, hybrid["shown"]),
            "trainer_class": CurriculumTrainer,
            "curriculum": self.options.curriculum,
            "encoder": hybrid["encoder"],
        }

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        from sirius_rec.training.hybrid import load_projector

        model = self.load(run, seed, checkpoint)
        load_projector(model, self.folder(run, seed) / checkpoint)
        return self.llm_ranker(run, model, **self._hybrid(run, seed, model))

    def _hybrid(self, run: Run, seed: int, model: Any) -> dict[str, Any]:
        """Marked titles and their encoder, for a model with its projector installed."""
        from sirius_rec.prompts.hybrid import HybridEncoder, marked_titles
        from sirius_rec.training.hybrid import installed

        seen_I = self._fitted_sasrec(run, seed).seen_I
        encoder = HybridEncoder(run.tokenizer, installed(model).first_virtual, chat=run.config.prompts.chat)
        return {"encoder": encoder, "shown": marked_titles(run.dataset.titles, seen_I)}
