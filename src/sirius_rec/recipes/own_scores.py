"""Scores as tables of a run, and those of a recommender that the run knows nothing of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sirius_rec.errors import ConfigError, DataError
from sirius_rec.evaluation.tables import SCORES, ScoreTable, write_table
from sirius_rec.option_errors import nearest
from sirius_rec.recipes.methods import build_methods, reserved_keys
from sirius_rec.recipes.run import Run
from sirius_rec.schema import CANDIDATES, ROW_ID


def write_scores(
    run: Run,
    method: str,
    label: str,
    scores: Mapping[str, Sequence[Any]],
    *,
    seed: int = 0,
    random: bool = False,
    language_model: bool = False,
    probabilities: bool = False,
) -> list[Path]:
    """Put scores of your own beside the run's; `sirius evaluate` then has them in all tables and tests, as a baseline.

    Args:
        method: its key, of letters, digits, `_` and `.`; label: how tables call it.
        scores: name of test slates (`run.test_slates`) → for each row of `run.slate_arrays(name)` a number per
            candidate. The larger, the higher it is ranked; ties count in expectation. They stand under each of
            `evaluation.checkpoints`.
        seed: of yours. random: whether another one would give other scores; then write them for each of the run's.
        language_model: whether one made them; tables mark those that are none. probabilities: whether the softmax of a
            row's scores is what it holds the candidates' probabilities to be; then its calibration is measured.

    Returns:
        The files. Those of the same method, seed and slates are replaced.

    Raises:
        ConfigError: the key is one of the run's own methods, or the slates are none that it tests.
        DataError: a row is missing or too much, has another number of scores than candidates, a score is NaN, or with
            probabilities the highest of a row is infinite.
    """
    taken = dict.fromkeys([*build_methods(run.config), *reserved_keys()])
    if method in taken:
        raise ConfigError(f"{run.folder.path}: '{method}' is a method of this run: give yours another name")
    tables = []
    for slates, rows in scores.items():
        if slates not in run.test_slates:
            raise ConfigError(
                f"{run.folder.path}: tests no slates '{slates}'{nearest(slates, dict.fromkeys(run.test_slates))}"
            )
        frame = score_frame(run, method, slates, rows, probabilities=probabilities)
        facts = {"random": random, "language_model": language_model, "probabilities": probabilities}
        tables += [ScoreTable(method, label, seed, slates, c, frame, facts) for c in run.config.evaluation.checkpoints]
    return [write_table(table, run.folder.scores) for table in tables]


def score_frame(
    run: Run, method: str, slates: str, scores: Sequence[Any], *, probabilities: bool = False
) -> pl.DataFrame:
    """row_id, candidates and scores of the rows of these slates that are tested. Raises DataError, see `write_scores`.

    Scores are as precise as they were computed: in float32 seconds, say, would tie.
    """
    ranked = run.slates(slates).select(ROW_ID, CANDIDATES)[run.tested_rows(slates)]
    try:
        rows = [np.asarray(row) for row in scores]
        single = all(row.dtype in (np.float32, np.float16) for row in rows)
        rows = [row.astype(np.float32 if single else np.float64) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(f"{method} on {slates}: a row of scores is no list of numbers ({error})") from error
    sizes = ranked[CANDIDATES].list.len().to_list()
    if len(rows) != len(sizes):
        raise DataError(f"{method} on {slates}: {len(rows):,} rows of scores for {len(sizes):,} rows that are tested")
    for row_id, row, size in zip(ranked[ROW_ID].to_list(), rows, sizes, strict=True):
        if row.shape != (size,):
            raise DataError(f"{method} on {slates}, row_id {row_id}: scores of shape {row.shape} for {size} candidates")
        if np.isnan(row).any():
            where = int(np.isnan(row).argmax())
            raise DataError(f"{method} on {slates}, row_id {row_id}: the score of candidate {where} is NaN")
        if probabilities and not np.isfinite(row.max()):
            raise DataError(
                f"{method} on {slates}, row_id {row_id}: scores whose highest is {row.max()} have no softmax: give "
                "finite log-probabilities, or do not call them probabilities"
            )
    kind = pl.Float32 if single else pl.Float64
    return ranked.with_columns(pl.Series(SCORES, [row.tolist() for row in rows], dtype=pl.List(kind)))
