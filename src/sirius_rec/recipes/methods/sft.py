"""SFT: supervised fine-tuning on (prompt, next title), Eq. 1; where every arm starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

from sirius_rec.atomic import write_json
from sirius_rec.config import Config, MethodSection
from sirius_rec.evaluation.metrics import per_example, target_positions
from sirius_rec.processes import is_main, wait
from sirius_rec.recipes import starting
from sirius_rec.recipes.methods.base import Prerequisite, Role, alone
from sirius_rec.recipes.methods.finetuned import Finetuned
from sirius_rec.recipes.models import load_stage_model
from sirius_rec.recipes.records import SELECTION, reading_records, selection_set
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE
from sirius_rec.recipes.streamed import Rows
from sirius_rec.schema import CANDIDATES, HISTORY, TARGET


class Sft(Finetuned):
    name, title = "sft", "SFT"
    role: ClassVar[Role] = "sft"
    studied = True
    stage = "sft"

    def __init__(self, config: Config) -> None:
        super().__init__(config, MethodSection(method=self.name))
        self.training = config.sft

    def facts(self, run: Run) -> dict[str, Any]:
        from sirius_rec.objectives.presets import build_objective

        return {**super().facts(run), **build_objective(self.name).parts()}

    def folder(self, run: Run, seed: int) -> Path:
        return run.folder.sft(seed)

    @property
    def _warm(self) -> bool:
        return starting.begins_at(self.config) is not None

    @property
    def takes_over(self) -> bool:
        """Whether nothing is trained: with `align.from` it is what the other run's alignment was compared with, with
        `sft.epochs: 0` what `sft.from` names."""
        return self.config.align.start is not None or not self.config.sft.epochs

    def prerequisites(self) -> tuple[Prerequisite, ...]:
        return () if self._warm else super().prerequisites()

    def made_in(self, run: Run, seed: int) -> list[Any]:
        return [self.folder(run, seed)] if self._warm else super().made_in(run, seed)

    def starting_model(self, run: Run, tokenizer: Any, seed: int) -> Any:
        if self.config.sft.start is None:
            return super().starting_model(run, tokenizer, seed)
        return load_stage_model(run.config, starting.policy(run, seed))

    def fit(self, run: Run, seed: int) -> None:
        """Train, or take over another run's model (`takes_over`)."""
        if not self.takes_over:
            super().fit(run, seed)
        elif not self.is_done(run, seed):
            self._take_over(run, seed)

    def _take_over(self, run: Run, seed: int) -> None:
        """best/ and last/ are the one checkpoint; its HR@1 is measured on this run's validation rows."""
        folder, begin = self.folder(run, seed), self.config.align.start is None
        source = starting.policy(run, seed) if begin else starting.reference_folder(run, seed)
        if is_main():
            for name in ("best", "last"):
                shutil.copytree(source, folder / name, dirs_exist_ok=True)
        wait()
        model = self.load(run, seed, "best")
        taken = starting.begun_from(run)[seed]["sha256"]  # tells it from what another run would have given
        done = {"steps": 0, "best_step": 0, "seconds": 0.0, "start": taken,
                "parameters": sum(p.numel() for p in model.parameters()), "trainable_parameters": 0,
                "best_hr@1": self._validation_hit(run, model)}  # fmt: skip
        if is_main():
            write_json(folder / DONE, done)
        wait()

    def _validation_hit(self, run: Run, model: Any) -> float | None:
        name, rows = run.validation_slates, run.validation_rows.tolist()
        if name is None:
            return None
        examples = run.dataset.examples("val")
        histories, slates = (
            [row.to_numpy() for row in frame.gather(rows)]
            for frame in (examples[HISTORY], run.dataset.slates(name)[CANDIDATES])
        )
        scores = self.llm_ranker(run, model).score(histories, slates)
        positions = target_positions(slates, examples[TARGET].to_numpy()[rows])
        return float(per_example(scores, positions)["hr@1"].mean())  # type: ignore[arg-type]

    def train_rows(self, run: Run) -> int | None:
        return None if self.takes_over else super().train_rows(run)

    def settled(self, run: Run, seed: int) -> Config:
        return alone(run.config, **self.stopped(run, seed))

    def stopped(self, run: Run, seed: int) -> dict[str, Any]:
        """Sections of a configuration in which it, and what comes before it, stops at the best epoch."""
        stop = self._stop(run, seed)
        return {"sft": self.config.sft.changed(stop_after=stop, always=False), **self._before(run, seed)}

    def training_set(self, run: Run, seed: int, rows: Rows) -> dict[str, Any]:
        """The same, but the best epoch is chosen on rows that the onset of alignment does not look at; with
        `sft.targets: all` from histories instead of rows."""
        given = {**super().training_set(run, seed, rows), "validation": selection_set(run)}
        return given if self.config.sft.targets == "next" else {**given, **self.reading(run, seed)}

    def reading(self, run: Run, seed: int) -> dict[str, Any]:
        """Records of whole histories, for all epochs, and the stage whose epochs are parts of them."""
        options = self.config.sft
        piece = options.piece or run.config.data.window.max_history + 1
        records = reading_records(
            run.dataset, self.template(run), run.shown, piece=piece, epochs=options.epochs, seed=seed,
            shuffle=options.order == "random",
        )  # fmt: skip
        an_epoch = -(-len(records) // options.epochs)
        wanted = min(options.examples_per_epoch or an_epoch, an_epoch)
        return {"records": records, "stage": options.changed(examples_per_epoch=wanted)}

    def chosen_apart(self, run: Run, seed: int) -> bool:
        """Whether the best epoch was; not in runs of versions that chose it on all validation rows."""
        return self.done(run, seed).get("best_by") == SELECTION
