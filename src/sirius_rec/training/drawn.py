"""Scoring the candidates alone that a training will draw: all that it asks its reference about."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec import processes
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.logp_shards import LogpShards

if TYPE_CHECKING:
    from sirius_rec.training.batching import StepLayout
    from sirius_rec.training.streaming import StreamedDataset

Score = Callable[[Sequence[PromptCompletions]], list[np.ndarray]]


def score_columns(rows: Sequence[PromptCompletions], columns_R: Sequence[np.ndarray], score: Score) -> list[np.ndarray]:
    """log π(y|x) of these columns of each row, float32 in nats; NaN in the others, so that none is read unnoticed.

    score: of rows with those of their completions; a row without any is left out.
    """
    logps = [np.full(len(row.completions), np.nan, dtype=np.float32) for row in rows]
    asked = [r for r, columns in enumerate(columns_R) if len(columns)]
    found = score([rows[r].only(columns_R[r].tolist()) for r in asked]) if asked else []
    for r, logp_C in zip(asked, found, strict=True):
        logps[r][columns_R[r]] = logp_C
    return logps


def score_streamed(data: StreamedDataset, epochs: int, shards: LogpShards, score: Score) -> LogpShards:
    """The same of streamed rows and what these epochs may draw of them: the files of `shards` that are missing."""

    def score_some(numbers: range) -> list[np.ndarray]:
        rows = data.rows[numbers.start : numbers.stop]
        columns_R = [data.columns_drawn(n, row, epochs) for n, row in zip(numbers, rows, strict=True)]
        return score_columns(rows, columns_R, score)

    return shards.fill(score_some)


def score_drawn(data: Any, epochs: int, args: Any, score: Score, *, afresh: bool) -> Sequence[np.ndarray]:
    """log π(y|x) of what these epochs will draw with the model as it stands, float32 in nats; of streamed rows in files
    of the output folder. args: the trainer's.

    afresh: what an earlier training left in the folder is another model's.
    """
    if not args.stream:
        return score_columns(data.rows, data.columns_drawn(epochs), score)
    key = f"{data.rows.fingerprint()} {data.draws_key(epochs)}"
    shards = LogpShards(Path(args.output_dir) / "reference", len(data.rows), key)
    if afresh and processes.is_main():
        shutil.rmtree(shards.folder, ignore_errors=True)
    processes.wait()
    return score_streamed(data, epochs, shards, score)


def epochs_of(args: Any, n_slots: int, layout: StepLayout) -> int:
    """How many epochs a training begins: with `max_steps`, which count before `num_train_epochs`, those of its steps.

    args: the trainer's. n_slots: places of an epoch.
    """
    if args.max_steps <= 0:
        return math.ceil(args.num_train_epochs)
    per_round = layout.micro * layout.processes
    rounds = n_slots // per_round if args.dataloader_drop_last else -(-n_slots // per_round)
    return -(-args.max_steps // max(1, -(-rounds // layout.accumulation)))
