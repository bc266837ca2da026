"""Recommenders that are a formula over the training data: the trivial baselines of every table, and classical ones."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from typing import Any, ClassVar

from sirius_rec.atomic import write_json
from sirius_rec.config import Config, MethodSection
from sirius_rec.evaluation.metrics import per_example
from sirius_rec.options import NotNegative, Options, Rate, options_of
from sirius_rec.rankers.linear import EASE, Markov, best_ease, check_size, checked_times
from sirius_rec.rankers.linear import Recency as RecencyRanker
from sirius_rec.rankers.trivial import DirectedItemKNN, ItemKNN, Popularity, RandomRanker
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods.base import Method, Role, alone, hash_of, no_preset
from sirius_rec.recipes.methods.networks import validation
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE, read_done
from sirius_rec.schema import HISTORY, TARGET, TIMESTAMP


class ClosedForm(Method):
    """A method that is fitted in one go, in every process that scores it; next to nothing of it is kept."""

    Settings: ClassVar[type[Options]] = Options

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        no_preset(entry.method, entry.preset)
        self.options = options_of(self.Settings, dict(entry.options), entry.method)
        self._fitted: Any = None

    @abstractmethod
    def fitted(self, run: Run) -> Any:
        """The ranker, fitted on the training data."""

    def fit(self, run: Run, seed: int) -> None:
        if self.is_done(run, seed):
            return
        started = time.monotonic()
        self._fitted = self.fitted(run)
        seconds = round(time.monotonic() - started, 1)
        write_json(self.folder(run, seed) / DONE, {"parameters": None, "seconds": seconds, **self.kept()})

    def kept(self) -> dict[str, Any]:
        """What else is written down of the ranker that was fitted."""
        return {}

    def settled(self, run: Run, seed: int) -> Config:
        done = read_done(self.folder(run, seed))
        chosen = {name: done[name] for name in self.Settings.model_fields if name in done}
        return alone(run.config, self.entry.changed(options={**self.entry.options, **chosen}))

    def trained_as(self, run: Run, seed: int) -> str:
        """What was chosen: however long it takes, a formula over the same data is the same."""
        done = self.folder(run, seed) / DONE
        saved = json.loads(done.read_text()) if done.is_file() else {}
        return hash_of(json.dumps({key: value for key, value in saved.items() if key != "seconds"}))

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        if self._fitted is None:
            self._fitted = self.fitted(run)
        return self._fitted


class Random(ClosedForm):
    name, title = "random", "Random"
    role: ClassVar[Role] = "trivial"

    def train_rows(self, run: Run) -> int | None:
        return None

    def fitted(self, run: Run) -> Any:
        return RandomRanker(seed=0).fit(run.dataset.train_sequences(), run.dataset.n_items)


class MostPopular(ClosedForm):
    name, title = "popularity", "Popularity"
    role: ClassVar[Role] = "trivial"

    def fitted(self, run: Run) -> Any:
        return Popularity().fit(run.dataset.train_sequences(), run.dataset.n_items)


class ItemKnn(ClosedForm):
    name, title = "item_knn", "Item-kNN (cosine)"
    role: ClassVar[Role] = "trivial"

    def fitted(self, run: Run) -> Any:
        return ItemKNN().fit(run.dataset.train_sequences(), run.dataset.n_items)


class ItemKnnDirected(ClosedForm):
    name, title = "item_knn_directed", "Item-kNN (directed)"
    role: ClassVar[Role] = "trivial"

    def fitted(self, run: Run) -> Any:
        train = run.dataset.all_train_examples()
        histories = [row.to_numpy() for row in train[HISTORY]]
        return DirectedItemKNN().fit(histories, train[TARGET].to_numpy(), run.dataset.n_items)


# In every table, in this order.
TRIVIAL: tuple[type[ClosedForm], ...] = (Random, MostPopular, ItemKnn, ItemKnnDirected)


class Recency(ClosedForm):
    name, title = "recency", "Recency"

    def check(self, run: Run) -> None:
        train = run.dataset.all_train_examples()
        checked_times(train[TIMESTAMP].to_numpy(), train.height)

    def fitted(self, run: Run) -> Any:
        train = run.dataset.all_train_examples()
        return RecencyRanker().fit(train[TARGET].to_numpy(), train[TIMESTAMP].to_numpy(), run.dataset.n_items)


class MarkovChain(ClosedForm):
    name, title = "markov", "Markov (first order)"

    def fitted(self, run: Run) -> Any:
        return Markov().fit(run.dataset.train_sequences(), run.dataset.n_items)


class ShrinkageOptions(Options):
    """shrinkage: added to the denominator of the cosine, so that rare pairs count less."""

    shrinkage: NotNegative = 10.0


class ItemKnnShrunk(ClosedForm):
    name, title, Settings = "item_knn_shrunk", "Item-kNN (shrinkage)", ShrinkageOptions

    def fitted(self, run: Run) -> Any:
        return ItemKNN(self.options.shrinkage).fit(run.dataset.train_sequences(), run.dataset.n_items)


class EaseOptions(Options):
    """l2: weight of the squared norm; null: 1, 3, 10 … 30,000, whichever has the best NDCG@10 on validation slates (100
    without such slates)."""

    l2: Rate | None = None


class Ease(ClosedForm):
    name, title, Settings = "ease", "EASE^R", EaseOptions

    def check(self, run: Run) -> None:
        check_size(run.dataset.n_items)

    def fitted(self, run: Run) -> EASE:
        sequences, n_items = run.dataset.train_sequences(), run.dataset.n_items
        if self.options.l2 is not None:
            return EASE(self.options.l2).fit(sequences, n_items)
        if run.validation_slates is None:
            return EASE().fit(sequences, n_items)
        held_out = validation(run)

        def quality(ranker: EASE) -> float:
            scores = ranker.score(held_out.histories, held_out.candidates)
            found = float(per_example(scores, held_out.target)["ndcg@10"].to_numpy().mean())
            log(f"{self.key}  l2 {ranker.l2:g}  ndcg@10 {found:.4f}")
            return found

        return best_ease(sequences, n_items, quality)

    def kept(self) -> dict[str, Any]:
        return {"l2": self._fitted.l2}

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        done = self.folder(run, seed) / DONE
        if self._fitted is None and self.options.l2 is None and done.is_file():
            self._fitted = EASE(json.loads(done.read_text())["l2"]).fit(
                run.dataset.train_sequences(), run.dataset.n_items
            )
        return super().ranker(run, seed, checkpoint)
