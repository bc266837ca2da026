"""Which score tables are made again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.evaluation.tables import table_name
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
