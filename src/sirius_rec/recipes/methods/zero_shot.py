"""The backbone as it comes, without a step of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sirius_rec.atomic import write_json
from sirius_rec.config import Config, MethodSection
from sirius_rec.recipes.methods.finetuned import LanguageModel, PromptOptions, check_slate, own_options, with_slate
from sirius_rec.recipes.models import initial_model
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE

if TYPE_CHECKING:
    from sirius_rec.prompts.templates import Template


class ZeroShot(LanguageModel):
    name, title = "zero_shot", "Zero-shot LLM"

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        self.options: PromptOptions = own_options(PromptOptions, entry)
        check_slate(config, self.options.slate)

    @property
    def random(self) -> bool:
        """The weights of an untrained tiny backbone are."""
        return self.config.backbone.name == "tiny"

    @property
    def label(self) -> str:
        label = super().label
        return f"{label} (random weights)" if self.random and not self.entry.name else label

    def train_rows(self, run: Run) -> int | None:
        return None

    def template(self, run: Run) -> Template:
        return with_slate(run, self.options.slate)

    def _model(self, run: Run, seed: int) -> Any:
        return initial_model(run.config, run.tokenizer, seed)

    def fit(self, run: Run, seed: int) -> None:
        if self.is_done(run, seed):
            return
        size = sum(p.numel() for p in self._model(run, seed).parameters())
        content = {"parameters": size, "trainable_parameters": 0, "seconds": 0.0}
        write_json(self.folder(run, seed) / DONE, content)

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        return self.llm_ranker(run, self._model(run, seed))
