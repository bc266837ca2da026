"""Score files keep the precision of the scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from sirius_rec.config import Config
from sirius_rec.evaluation.metrics import per_example
from sirius_rec.evaluation.tables import read_table, table_name
from sirius_rec.recipes import scoring
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.schema import CANDIDATES, ROW_ID

NAME = "test-uniform-3-s0"


@pytest.mark.parametrize(("dtype", "kept"), [(np.float64, pl.Float64), (np.float32, pl.Float32)])
def test_scores_in_seconds_do_not_tie(mini: Callable[..., Config], tmp_path: Path, dtype: Any, kept: Any) -> None:
    """Recency scores are times: at 1e9 s float32 knows steps of 64 s only. What was float32 stays so, copied too."""
    run = Run(RunFolder(tmp_path), mini("methods=[recency]"))
    method = build_methods(run.config)["recency"]
    slates = pl.DataFrame(
        {ROW_ID: [0, 1], CANDIDATES: [[4, 5, 6], [7, 8]]}, schema_overrides={CANDIDATES: pl.List(pl.Int32)}
    )
    examples = pl.DataFrame({"user_id": ["ann", "bob"]})
    run.__dict__["dataset"] = SimpleNamespace(slates=lambda name: slates, examples=lambda split: examples)
    scores = [np.array(row, dtype=dtype) for row in ([1e9 + 2, 1e9 + 1, 1e9], [1e9, -1e9])]
    scoring._write(run, method, 0, NAME, "best", scores)
    scoring._copy(run, method, 0, NAME, "best", "last", False)
    for checkpoint in ("best", "last"):
        stored = read_table(run.folder.scores / table_name("recency", 0, NAME, checkpoint)).frame["scores"]
        assert stored.dtype == pl.List(kept)
        assert stored.to_list() == [row.tolist() for row in scores]
        (first, _) = per_example(stored, np.zeros(2, dtype=np.int64))["hr@1"].to_list()
        assert first == pytest.approx(1.0 if dtype is np.float64 else 1 / 3)
