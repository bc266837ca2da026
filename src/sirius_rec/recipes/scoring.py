"""Jobs: fit a method, and score the test slates with it; score tables and generated answers, those that are missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import __version__
from sirius_rec.atomic import write_json
from sirius_rec.config import Config
from sirius_rec.config_sections import EvaluationSection
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.results import read_results
from sirius_rec.evaluation.tables import ScoreTable, read_table, read_tables, rows_and_training, table_name, write_table
from sirius_rec.processes import is_main
from sirius_rec.recipes.job import Ticker, log
from sirius_rec.recipes.methods import Method, build_methods
from sirius_rec.recipes.methods.closed_form import ClosedForm
from sirius_rec.recipes.models import on_cpu
from sirius_rec.recipes.own_scores import score_frame
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.schema import CANDIDATES, TARGET, SlateName
from sirius_rec.scoring.kept import KeptScores


def fit(path: str, key: str, seed: int) -> None:
    """Job: train a method with a seed."""
    run, method = _open(path, key)
    method.fit(run, seed)


def fit_and_score(path: str, key: str, seed: int) -> None:
    """Job: train a method with a seed and score its test slates."""
    run, method = _open(path, key)
    method.fit(run, seed)
    score(run, method, seed)


def score_only(path: str, key: str, seed: int) -> None:
    """Job: score the test slates with a trained method."""
    run, method = _open(path, key)
    score(run, method, seed)


def _open(path: str, key: str) -> tuple[Run, Method]:
    quiet()
    run = Run.open(path)
    return run, build_methods(run.config)[key]


def check_trained(run: Run, *, formulas: bool = True) -> None:
    """RunError naming the first method that is not trained yet, and the command that trains it.

    formulas: item-kNN, EASE and their like, too, though scoring computes them by itself.
    """
    for method in build_methods(run.config).values():
        if method.role == "trivial" or (isinstance(method, ClosedForm) and not formulas):
            continue
        command = "run" if method.stage == "evaluate" else method.stage
        for seed in method.seeds:
            if not method.is_done(run, seed):
                folder = run.folder
                how = f"sirius {command} {folder.config_file} --out {folder.path}"
                raise RunError(f"{folder.path}: {method.key} of seed {seed} is not trained yet: train it with `{how}`")


def current_results(run: Run) -> dict[str, Any]:
    """results.json; RunError where it is of another `evaluation` than the folder's, of one that was stopped, say."""
    run.check_measured()
    results = read_results(run.folder.results)
    if (key := measured_otherwise(results, run.config)) is not None:
        made, now = results["config"]["evaluation"][key], run.config.evaluation.model_dump(mode="json")[key]
        raise RunError(
            f"{run.folder.results}: was made with evaluation.{key} {made!r}, and config.yaml has {now!r}: "
            f"run `sirius evaluate {run.folder.path}`"
        )
    return results


def measured_otherwise(results: Mapping[str, Any], config: Config) -> str | None:
    """The first key of `evaluation` with which results were made otherwise than `config` has it."""
    made, now = results.get("config", {}).get("evaluation", {}), config.evaluation.model_dump(mode="json")
    return next((key for key in sorted(EvaluationSection.MEASURED & made.keys()) if made[key] != now[key]), None)


def check_slates(run: Run) -> None:
    """ConfigError for slates of `evaluation` that the data lacks or that would be all of it, and for none at all."""
    names: list[str] = run.test_slates
    if not names:
        raise ConfigError("evaluation.slates: names none: at least one is needed")
    if not run.config.evaluation.retrieved:
        return
    most: Any = run.dataset.slates(run.full_slates)[CANDIDATES].list.len().max()  # what users had met is left out
    for number, entry in enumerate(run.config.evaluation.retrieved):
        if entry.size >= most:
            raise ConfigError(
                f"evaluation.retrieved.{number}: the best {entry.size:,} of at most {most:,} items are all of them: "
                "choose fewer, or protocol full"
            )


def ranked_slates(run: Run, method: Method) -> list[str]:
    """The test slates that a method ranks."""
    return [slates for slates in run.test_slates if method.ranks(run, slates)]


def _answered_slates(run: Run) -> str | None:
    """The slates on which generated answers are judged: the first of a size."""
    sized = [slates for slates in run.sized_test_slates if slates not in run.retrieved_slates]
    return next(iter(sized), None) if run.config.evaluation.generation_rows > 0 else None


def _answers(run: Run, method: Method, slates: str) -> bool:
    return method.answers and slates == _answered_slates(run)


def tables_of(run: Run) -> list[ScoreTable]:
    """The score tables of the slates and checkpoints that `evaluation` names now; others may lie beside them.

    RunError for one of a training that is not the folder's any more.
    """
    slates, checkpoints = set(run.test_slates), run.config.evaluation.checkpoints
    tables = read_tables(run.folder.scores) if run.folder.scores.is_dir() else []
    tables = [table for table in tables if table.slates in slates and table.checkpoint in checkpoints]
    methods = build_methods(run.config)
    for table in tables:
        method = methods.get(table.method)
        if method is None or table.training is None or not method.is_done(run, table.seed):
            continue
        if table.training != method.trained_as(run, table.seed):
            raise RunError(
                f"{run.folder.scores / table.name}: are scores of another training of {method.key} than the folder's: "
                f"run `sirius evaluate {run.folder.path}`"
            )
    return tables


def answers_of(run: Run) -> list[dict[str, Any]]:
    """The same of generated answers."""
    slates, checkpoints = _answered_slates(run), run.config.evaluation.checkpoints
    entries = [json.loads(file.read_text()) for file in sorted(run.folder.generation.glob("*.json"))]
    return [entry for entry in entries if entry["slates"] == slates and entry["checkpoint"] in checkpoints]


def _all_scored(run: Run, method: Method, seed: int) -> bool:
    return all(
        _has_scores(run, method, seed, slates, checkpoint)
        and (not _answers(run, method, slates) or _has_answers(run, method, seed, slates, checkpoint))
        for slates in ranked_slates(run, method)
        for checkpoint in run.config.evaluation.checkpoints
    )


def score(run: Run, method: Method, seed: int) -> None:
    """Score tables and generated answers of a method's checkpoints, those that are missing."""
    slates_of_method = ranked_slates(run, method)
    if len(slates_of_method) < len(run.test_slates):
        log(f"{method.key} s{seed}: {method.no_catalogue}")
    if _all_scored(run, method, seed):
        if not method.is_ours:
            files = run.folder.scores / f"{method.key}-s{seed}-*"
            log(f"{method.key} s{seed}: was scored before; if its code has changed, delete {files} and "
                f"{method.folder(run, seed)}")  # fmt: skip
        return
    steps, scored = method.steps(run, seed), dict[int, str]()
    for checkpoint in run.config.evaluation.checkpoints:
        ranker: Any = None
        for slates in slates_of_method:
            answers = answers_file(run, method, seed, slates, checkpoint)
            answered = not _answers(run, method, slates) or _has_answers(run, method, seed, slates, checkpoint)
            generates, scores = not answered, not _has_scores(run, method, seed, slates, checkpoint)
            if not scores and not generates:
                continue
            same = scored.get(steps[checkpoint])
            if same is not None:  # best and last are the same step: same weights, same scores
                if is_main():
                    _copy(run, method, seed, slates, same, checkpoint, generates)
                continue
            if ranker is None:
                ranker = method.ranker(run, seed, checkpoint)
            if generates and is_main():
                write_json(answers, _generate(run, method, seed, slates, checkpoint, ranker))
            if scores:
                ranker.progress = Ticker(f"{method.key} s{seed} on {slates}", len(run.tested_rows(slates)))
                ranker.kept = kept = _kept(run, method, seed, slates, checkpoint)
                try:
                    rows = method.scores(run, ranker, slates, seed, checkpoint)
                except Exception as error:  # with a traceback, of code that is not ours
                    error.add_note(f"{method.key} s{seed} was scoring {slates}")
                    raise
                if is_main():
                    _write(run, method, seed, slates, checkpoint, rows)
                kept.drop()
        scored.setdefault(steps[checkpoint], checkpoint)


def _table(run: Run, method: Method, seed: int, slates: str, checkpoint: str) -> Path:
    return run.folder.scores / table_name(method.key, seed, slates, checkpoint)


def _kept(run: Run, method: Method, seed: int, slates: str, checkpoint: str) -> KeptScores:
    """What a language model has scored of a table that is not whole yet, for these rows and of this very training."""
    table = _table(run, method, seed, slates, checkpoint)
    of = [__version__, run.dataset.fingerprint, method.steps(run, seed)[checkpoint], method.trained_as(run, seed),
          run.tested_ids(slates), run.config.backbone.model_dump(), run.config.prompts.model_dump(),
          on_cpu(run.config)]  # fmt: skip
    digest = hashlib.sha256(json.dumps(of, default=str).encode()).hexdigest()
    return KeptScores(table.with_name(f".{table.name}.coming"), digest)


def answers_file(run: Run, method: Method, seed: int, slates: str, checkpoint: str) -> Path:
    name = table_name(method.key, seed, slates, checkpoint)
    return run.folder.generation / name.replace(".parquet", ".json")


def _has_scores(run: Run, method: Method, seed: int, slates: str, checkpoint: str) -> bool:
    """Whether the table of scores is there, of the rows that are ranked (another number of rows, or another version of
    this package, chooses others) and of this training."""
    table = _table(run, method, seed, slates, checkpoint)
    if not table.is_file():
        return False
    row_ids, training = rows_and_training(table)
    return row_ids == run.tested_ids(slates) and training in (None, method.trained_as(run, seed))


def _has_answers(run: Run, method: Method, seed: int, slates: str, checkpoint: str) -> bool:
    file, row_ids = answers_file(run, method, seed, slates, checkpoint), run.tested_ids(slates)
    wanted = [row_ids[r] for r in answered_rows(run.config.evaluation.generation_rows, len(row_ids))]
    if not file.is_file():
        return False
    entry = json.loads(file.read_text())
    return entry["row_id"] == wanted and entry.get("training") in (None, method.trained_as(run, seed))


def _write(run: Run, method: Method, seed: int, slates: str, checkpoint: str, scores: Any) -> None:
    frame = score_frame(run, method.key, slates, scores, probabilities=method.probabilities)
    training = method.trained_as(run, seed)
    write_table(ScoreTable(method.key, method.label, seed, slates, checkpoint, frame, {}, training), run.folder.scores)


def _copy(run: Run, method: Method, seed: int, slates: str, source: str, checkpoint: str, generates: bool) -> None:
    """The scores and answers of one checkpoint under the name of another of the same step."""
    table = read_table(_table(run, method, seed, slates, source))
    write_table(replace(table, checkpoint=checkpoint), run.folder.scores)
    if generates:
        entry = json.loads(answers_file(run, method, seed, slates, source).read_text())
        write_json(answers_file(run, method, seed, slates, checkpoint), {**entry, "checkpoint": checkpoint})


def _generate(run: Run, method: Method, seed: int, slates: str, checkpoint: str, ranker: Any) -> dict[str, Any]:
    """What a file of generated answers holds."""
    histories, candidates = run.slate_arrays(slates)
    rows = answered_rows(run.config.evaluation.generation_rows, len(histories))
    examples = run.dataset.examples(SlateName.parse(slates).split)[run.tested_rows(slates)]
    targets, row_ids = examples[TARGET].to_list(), run.tested_ids(slates)
    ranker.progress = Ticker(f"{method.key} s{seed} answers", len(rows))
    answers: Sequence[Any] = ranker.answer(
        [histories[r] for r in rows], [candidates[r] for r in rows], [targets[r] for r in rows]
    )
    return {
        "method": method.key,
        "seed": seed,
        "slates": slates,
        "checkpoint": checkpoint,
        "training": method.trained_as(run, seed),
        "row_id": [row_ids[r] for r in rows],
        "valid": [int(answer.valid) for answer in answers],
        "hit": [int(answer.hit) for answer in answers],
        "text": [answer.text for answer in answers],
    }


def answered_rows(wanted: int, n_rows: int) -> list[int]:
    """The rows whose generated answers are judged: a seeded sample, the same for every method."""
    return [int(r) for r in np.sort(np.random.default_rng(0).permutation(n_rows)[: min(wanted, n_rows)])]
