"""Jobs of the recommenders without a language model: fit, save, score the test slates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.config import Config, MethodSection
from sirius_rec.data.store import Dataset
from sirius_rec.errors import ConfigError
from sirius_rec.rankers.methods import METHODS, build_closed
from sirius_rec.recipes.job import open_job, say
from sirius_rec.recipes.records import train_slates, validation_rows
from sirius_rec.recipes.run_folder import write_json
from sirius_rec.schema import CANDIDATES, HISTORY, TARGET, TIMESTAMP, SlateName

DONE = "done.json"


def method_seeds(config: Config, method: MethodSection) -> tuple[int, ...]:
    """A method that is not trained comes out the same with every seed: it runs once."""
    return config.seeds if METHODS[method.method].trained else (0,)


def fit_method(path: str, key: str, seed: int) -> None:
    """Job: fit one method with one seed, keep it, and score every test slate."""
    from sirius_rec.recipes import evaluation

    run, config, dataset = open_job(path)
    method = next(m for m in config.methods if m.key == key)
    folder = run.method(key, seed)
    names = evaluation.test_slates(config, dataset)
    if (folder / DONE).is_file() and all(evaluation.all_there(run, config, key, seed, name) for name in names):
        return
    ranker = _fitted(method, config, dataset, folder, seed)
    for name in names:
        if not evaluation.all_there(run, config, key, seed, name):
            scores = ranker.score(*evaluation.slate_arrays(dataset, name))
            evaluation.write_scores(run, config, dataset, key, seed, name, scores)


def _fitted(method: MethodSection, config: Config, dataset: Dataset, folder: Path, seed: int) -> Any:
    if not METHODS[method.method].trained:
        started = time.monotonic()
        ranker = build_closed(method.method, method.options)
        if method.method == "recency":
            train = dataset.examples("train")
            ranker.fit(train[TARGET].to_numpy(), train[TIMESTAMP].to_numpy(), dataset.n_items)
        else:
            ranker.fit(dataset.train_sequences(), dataset.n_items)
        write_json(folder / DONE, {"parameters": None, "seconds": round(time.monotonic() - started, 1)})
        return ranker
    from sirius_rec.rankers.sequential.ranker import PRESETS, SequentialRanker, with_options

    if (folder / DONE).is_file():
        return SequentialRanker.load(folder)
    options = with_options(PRESETS[method.preset][method.method], **method.options)
    started = time.monotonic()
    trained = SequentialRanker(options, seed).fit(
        dataset.train_sequences(), dataset.n_items, _validation(config, dataset), progress=say
    )
    trained.save(folder)
    write_json(
        folder / DONE,
        {
            "parameters": trained.parameters,
            "seconds": round(time.monotonic() - started, 1),
            "epochs": len(trained.history),
        },
    )
    return trained


def _validation(config: Config, dataset: Dataset) -> Any:
    """The validation slates that language models are watched on too."""
    from sirius_rec.evaluation.metrics import target_positions
    from sirius_rec.rankers.sequential.ranker import Validation

    name = train_slates(config)
    name = SlateName("val", name.protocol, name.size, name.seed)
    examples = dataset.examples("val")
    if str(name) not in dataset.slate_names or not examples.height:
        raise ConfigError("data.slates: trained methods stop early on val slates, and the val split has none")
    rows = validation_rows(config, examples.height)
    histories = [np.asarray(h) for h in examples[HISTORY].gather(rows.tolist()).to_list()]
    candidates = [np.asarray(c) for c in dataset.slates(name)[CANDIDATES].gather(rows.tolist()).to_list()]
    return Validation(histories, candidates, target_positions(candidates, examples[TARGET].to_numpy()[rows]))
