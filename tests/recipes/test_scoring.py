"""Which score tables are made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sirius_rec.config import Config
from sirius_rec.errors import PromptError
from sirius_rec.evaluation.tables import table_name
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.scoring import score_only


def test_a_table_of_other_rows_is_made_again_and_no_other(trained: Any, tmp_path: Path) -> None:
    """A version that chose other rows would leave methods that are compared on different ones."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder.path, folder.path)
    score_only(str(folder.path), "popularity", 0)
    file = folder.scores / table_name("popularity", 0, trained.test_slates[0], "best")
    whole, written = pl.read_parquet(file), file.stat().st_mtime_ns
    score_only(str(folder.path), "popularity", 0)
    assert file.stat().st_mtime_ns == written
    whole[1:].write_parquet(file)
    score_only(str(folder.path), "popularity", 0)
    assert pl.read_parquet(file).equals(whole)


def test_rows_that_are_ranked_later_fit_into_the_context_too(trained: Run, mini: Callable[..., Config]) -> None:
    """What is trained is not checked again before more rows are asked for: scoring does, before the first row."""
    run = Run(trained.folder, mini("backbone.tiny.context=14"))
    sft = build_methods(run.config)["sft"]
    with pytest.raises(PromptError, match=r"slates test-uniform-6-s0: \d+ of \d+ prompts .* exceed the context of 14"):
        sft.scores(run, None, "test-uniform-6-s0")


def test_only_rows_that_are_looked_at_are_measured(trained: Run, mini: Callable[..., Config]) -> None:
    config = mini("evaluation.test_rows={test-uniform-6-s0: 7}", "evaluation.validation_rows=5")
    run = Run(trained.folder, config)
    assert len(run.met_rows("test-uniform-6-s0")) == 7 and len(run.met_rows("val-uniform-6-s0")) == 5
    assert len(run.met_rows("train-uniform-6-s0")) == run.dataset.n_rows("train")
