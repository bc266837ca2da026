"""Slates as production makes them: what a method of the run ranks highest of all that a user has not met yet.

A language model then reranks them (`evaluation.retrieved`). The retriever learned from train rows alone, and the target
is among its candidates only if it found it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.slates import draws, row_states
from sirius_rec.errors import ScoringError
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.schema import CANDIDATES, HISTORY, RETRIEVED, ROW_ID, SlateName

_ROWS = 256  # rows whose whole catalogue is scored at once


def retrieve(path: str, slates: str) -> None:
    """Job: fit the retriever of these slates, and write them, unless they are there."""
    quiet()
    run = Run.open(path)
    file = run.folder.retrieved(slates)
    if file.is_file():
        return
    name = SlateName.parse(slates)
    method = build_methods(run.config)[name.protocol.removeprefix(RETRIEVED)]
    seed = method.seed_for(name.seed)
    method.fit(run, seed)
    frame = retrieved_slates(run, method.ranker(run, seed, "best"), name)
    with atomic.replacing(file) as partial:
        frame.write_parquet(partial)
    log(f"{slates}: retrieved by {method.label}")


def retrieved_slates(run: Run, ranker: Any, name: SlateName) -> pl.DataFrame:
    """row_id, candidates of every row of the split: the `name.size` best that its user had not met, in random order.

    Equal scores go by item number. The order says nothing, so that what a model adds by reading the slate is its own.
    Rows whose user leaves fewer items have shorter slates.
    """
    examples, every = run.dataset.examples(name.split), run.dataset.slates(run.full_slates)[CANDIDATES]
    state_R = row_states(f"{run.dataset.fingerprint}|{name}", examples[ROW_ID].to_numpy())
    rows: list[list[int]] = []
    for start in range(0, examples.height, _ROWS):
        part = slice(start, start + _ROWS)
        histories = [row.to_numpy() for row in examples[HISTORY][part]]
        candidates = [row.to_numpy() for row in every[part]]
        for items, scores in zip(candidates, ranker.score(histories, candidates), strict=True):
            if not np.isfinite(scores).all():
                raise ScoringError(f"{name}: a score of the retriever is not a finite number: its weights are damaged")
            best = items[np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[: name.size]]
            rows.append(best[np.argsort(draws(state_R[len(rows) : len(rows) + 1], 0, len(best))[0])].tolist())
    return pl.DataFrame({ROW_ID: examples[ROW_ID], CANDIDATES: pl.Series(rows, dtype=pl.List(pl.Int32))})
