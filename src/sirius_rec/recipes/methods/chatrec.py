"""ChatRec (Gao et al. 2023): a chat endpoint is asked about every test slate; its answers, and what they cost, stay."""

from __future__ import annotations

import json
from pathlib import Path

from sirius_rec.atomic import write_json
from sirius_rec.config import Config, MethodSection
from sirius_rec.errors import ConfigError
from sirius_rec.rankers.chat.client import ChatClient
from sirius_rec.rankers.chat.options import PLUMBING, chat_options
from sirius_rec.rankers.chat.ranker import ChatRanker
from sirius_rec.recipes.job import Ticker, log
from sirius_rec.recipes.methods.base import Method, hash_of, no_preset
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE


class ChatRec(Method):
    """Answers lie in the method's folder, so that a run that was stopped asks only for the rest."""

    name, title = "chatrec", "ChatRec"
    remote = True
    ranks_catalogue = False
    answers = True
    reads_fields = False
    free_options = PLUMBING

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        no_preset(self.name, entry.preset)
        self.options = chat_options(entry.options)

    def _differences(self) -> list[str]:
        return []

    @property
    def label(self) -> str:
        # The rest of its options is plumbing.
        return self.entry.name or f"{self.title} ({self.options.model})"

    def train_rows(self, run: Run) -> int | None:
        return None

    def check(self, run: Run) -> None:
        """Asks about one row, whose answer stays: a wrong key or address is known before others are trained."""
        if not run.sized_test_slates:
            raise ConfigError("chatrec: every test slate is the whole catalogue: add one with a `size` to data.slates")
        ranker = self.ranker(run, 0, "best")
        for name in run.sized_test_slates:
            if ranker.ask_next(*run.slate_arrays(name)):
                return

    def ranker(self, run: Run, seed: int, checkpoint: str) -> ChatRanker:
        client = ChatClient(self.options, self._answers(run, seed))
        return ChatRanker(client, run.template, run.dataset.titles)

    def trained_as(self, run: Run, seed: int) -> str:
        """The same without the price, which may be corrected under its answers."""
        done = self.folder(run, seed) / DONE
        saved = json.loads(done.read_text()) if done.is_file() else {}
        return hash_of(json.dumps({key: value for key, value in saved.items() if key != "cost"}))

    def _answers(self, run: Run, seed: int) -> Path:
        return self.folder(run, seed) / "answers"

    def fit(self, run: Run, seed: int) -> None:
        """Ask about every row that has no answer yet."""
        done = self.folder(run, seed) / DONE
        if done.is_file():
            self._price_again(done)
            return
        ranker = self.ranker(run, seed, "best")
        asked = silent = 0
        for name in run.sized_test_slates:
            histories, candidates = run.slate_arrays(name)
            ranker.progress = Ticker(f"{self.key} on {name}", len(histories))
            rankings = ranker.rankings(histories, candidates)
            asked, silent = asked + len(rankings), silent + sum(not ranking.order for ranking in rankings)
        write_json(done, {"parameters": None, "seconds": 0.0, **ranker.spent()})
        if silent:
            log(f"{self.key}: {silent} of {asked} answers named no candidate; what they say is in "
                f"{self._answers(run, seed)}")  # fmt: skip

    def _price_again(self, done: Path) -> None:
        """The cost at today's prices, which may have been corrected since."""
        saved = json.loads(done.read_text())
        cost = self.options.cost(saved["prompt_tokens"], saved["completion_tokens"])
        if cost != saved["cost"]:
            write_json(done, {**saved, "cost": cost})
