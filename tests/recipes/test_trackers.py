"""`training.report_to` with the trackers themselves, without an account: what the Trainer logs is in their files.

Each test skips where its package is not installed; TensorBoard is tried in test_backbones.py.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError
from sirius_rec.recipes import trackers
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages

NAMES = {"mini sft s0", "mini dpo s0"}


@pytest.fixture
def tracked(mini: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """tracked(name): SFT and one arm, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> None:
        few = ("arms=[dpo]", "align.epochs=1", "evaluation.baseline=sft", "backbone.pretrain=null")
        config = mini(*few, f"training.report_to=[{name}]")
        run_stages(Run(open_run(tmp_path / "run", config), config), ("sft", "align"), lambda text: None)

    return run


def test_mlflow_in_a_database(tracked: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow's database needs the whole mlflow, not mlflow-skinny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    tracked("mlflow")
    client = mlflow.MlflowClient("sqlite:///own.db")
    runs = {run.info.run_name: run for run in client.search_runs(["0"])}
    assert set(runs) == NAMES and {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {"reward_margin", "eval_hr_1", "eval_insensitive_0.1"} <= set(runs["mini dpo s0"].data.metrics)


def test_wandb_offline(tracked: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked("wandb")
    files = {file: file.read_bytes() for file in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert len(files) == 2
    for name in NAMES:
        content = next(content for content in files.values() if name.encode() in content)
        assert b"eval/insensitive@0.1" in content and b"train/loss" in content


def test_trackio_local(tracked: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "kept", raising=False)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "kept", raising=False)
    tracked("trackio")
    assert trackio.context_vars.current_run.get() is None
    database = sqlite3.connect(tmp_path / "kept" / "mini.db")
    rows = database.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in rows} == NAMES
    for name in NAMES:
        logged = b"".join(metrics for one, metrics in rows if one == name)
        assert b'"eval/hr@1"' in logged and b'"train/loss"' in logged


def test_a_store_that_mlflow_does_not_take_is_known_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.py").write_text(
        "def search_experiments(max_results):\n    raise RuntimeError('./mlruns is in maintenance mode\\nand more')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(
        ConfigError, match=r"mlflow cannot be written to \(\./mlruns is in maintenance mode\): set MLFLOW"
    ):
        trackers.check(["mlflow"])
