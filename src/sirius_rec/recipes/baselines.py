"""Jobs of the recommenders beside SFT and its arms: fit, save, score the test slates."""

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
from sirius_rec.recipes.records import validation_rows, validation_slates
from sirius_rec.recipes.run_folder import write_json
from sirius_rec.schema import CANDIDATES, HISTORY, TARGET, TIMESTAMP

DONE = "done.json"


def seeded(config: Config, method: MethodSection) -> bool:
    """Whether seeds matter: to what is trained by gradient, and to the random weights of an untrained tiny backbone."""
    return METHODS[method.method].trained or (method.method == "zero_shot" and config.backbone.name == "tiny")


def method_seeds(config: Config, method: MethodSection) -> tuple[int, ...]:
    """The method's own seeds, else the run's; a method that comes out the same with every seed runs once."""
    return (method.seeds or config.seeds) if seeded(config, method) else (0,)


def builds_on(config: Config, method: MethodSection) -> tuple[str, ...]:
    """Names of the jobs (without seed) whose results a method starts from, where the run has them."""
    needs = ("pretrain",) if METHODS[method.method].stage else ()
    sasrec = shared_sasrec(config) if method.method == "llara" else None
    return (*needs, sasrec.key) if sasrec is not None else needs


def shared_sasrec(config: Config) -> MethodSection | None:
    """The run's own SASRec, if it has one: of the tuned preset (options may differ), and not named as ablations are."""
    return next((m for m in config.methods if m.method == m.key == "sasrec" and m.preset == "tuned"), None)


def fit_method(path: str, key: str, seed: int) -> None:
    """Job: fit one method with one seed, keep it, and score every test slate."""
    from sirius_rec.recipes import chat, evaluation, language

    run, config, dataset = open_job(path)
    method = next(m for m in config.methods if m.key == key)
    kind = METHODS[method.method].kind
    if kind in ("language", "remote"):
        job = language.fit_and_score if kind == "language" else chat.ask_and_score
        job(run, config, dataset, method, seed)
        return
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
        ranker: Any = build_closed(method.method, method.options)
        if method.method == "recency":
            train = dataset.examples("train")
            ranker.fit(train[TARGET].to_numpy(), train[TIMESTAMP].to_numpy(), dataset.n_items)
        else:
            ranker.fit(dataset.train_sequences(), dataset.n_items)
        write_json(folder / DONE, {"parameters": None, "seconds": round(time.monotonic() - started, 1)})
        return ranker
    return fitted_network(method, config, dataset, folder, seed)


def fitted_network(method: MethodSection, config: Config, dataset: Dataset, folder: Path, seed: int) -> Any:
    """The sequential ranker in `folder`, trained and saved there first if need be."""
    from sirius_rec.rankers.methods import network_options
    from sirius_rec.rankers.sequential.morec import MoRecRanker, load_ranker
    from sirius_rec.rankers.sequential.ranker import SequentialRanker

    if (folder / DONE).is_file():
        return load_ranker(folder)
    options = network_options(method.method, method.preset, method.options)
    unfinished = folder / "unfinished.pt"
    ranker = MoRecRanker(options, dataset.titles, seed) if method.method == "morec" else SequentialRanker(options, seed)
    trained = ranker.fit(
        dataset.train_sequences(),
        dataset.n_items,
        _validation(config, dataset),
        progress=lambda line: say(f"{method.key} s{seed}  {line}"),
        keep=unfinished,
    )
    trained.save(folder)
    write_json(
        folder / DONE,
        {
            "parameters": trained.parameters,
            "seconds": round(trained.seconds, 1),
            "epochs": len(trained.history),
            "weight_decay": trained.options.weight_decay,
        },
    )
    for kept in folder.glob(f"{unfinished.stem}*{unfinished.suffix}"):  # one for each value of a grid
        kept.unlink()
    return trained


def no_validation_slates() -> ConfigError:
    return ConfigError(
        "data.slates: trained methods stop by val slates of the protocol and size that they train on, and there are "
        "none: let that entry cover val, and the split have rows for it"
    )


def _validation(config: Config, dataset: Dataset) -> Any:
    """The validation slates that language models are watched on too."""
    from sirius_rec.evaluation.metrics import target_positions
    from sirius_rec.rankers.sequential.ranker import Validation

    name = validation_slates(config, dataset)
    if name is None:
        raise no_validation_slates()
    examples = dataset.examples("val")
    rows = validation_rows(config, examples.height)
    histories = [np.asarray(h) for h in examples[HISTORY].gather(rows.tolist()).to_list()]
    candidates = [np.asarray(c) for c in dataset.slates(name)[CANDIDATES].gather(rows.tolist()).to_list()]
    return Validation(histories, candidates, target_positions(candidates, examples[TARGET].to_numpy()[rows]))
