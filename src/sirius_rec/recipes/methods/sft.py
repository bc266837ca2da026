"""SFT: supervised fine-tuning on (prompt, next title), Eq. 1; where every arm starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sirius_rec.config import Config, MethodSection
from sirius_rec.recipes.methods.base import Role
from sirius_rec.recipes.methods.finetuned import Finetuned
from sirius_rec.recipes.records import SELECTION, selection_set
from sirius_rec.recipes.run import Run

if TYPE_CHECKING:
    import numpy as np


class Sft(Finetuned):
    name, title = "sft", "SFT"
    role: ClassVar[Role] = "sft"
    stage = "sft"

    def __init__(self, config: Config) -> None:
        super().__init__(config, MethodSection(method=self.name))
        self.training = config.sft

    def facts(self, run: Run) -> dict[str, Any]:
        from sirius_rec.objectives.losses import build_objective

        return {**super().facts(run), **build_objective(self.name).parts()}

    def folder(self, run: Run, seed: int) -> Path:
        return run.folder.sft(seed)

    def training_set(self, run: Run, seed: int, rows: np.ndarray) -> dict[str, Any]:
        """The same, but the best epoch is chosen on rows that the onset of alignment does not look at."""
        return {**super().training_set(run, seed, rows), "validation": selection_set(run)}

    def chosen_apart(self, run: Run, seed: int) -> bool:
        """Whether the best epoch was; not in runs of versions that chose it on all validation rows."""
        return self.done(run, seed).get("best_by") == SELECTION
