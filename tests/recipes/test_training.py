"""The end of a training: what is said last, and what is closed whatever happens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sirius_rec.config import Config
from sirius_rec.errors import TrainingError
from sirius_rec.recipes import training
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages
from sirius_rec.training.metrics_log import read_metrics


@pytest.fixture
def run(mini: Callable[..., Config], tmp_path: Path) -> Run:
    config = mini("backbone.pretrain=null", "sft.epochs=1", "arms=[]", "evaluation.baseline=sft")
    return Run(open_run(tmp_path / "run", config), config)


def _train(run: Run) -> None:
    run_stages(run, ("sft",), lambda line: None)


def test_nothing_is_missing_of_what_is_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the weights and before their card, a training is gone on with and gets its card."""

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "write_card", killed)
        _train(run)
    folder = run.folder.sft(0)
    assert not (folder / "done.json").exists() and (folder / "checkpoints").is_dir()
    trained = read_metrics(folder / "metrics.jsonl")
    _train(run)
    assert (folder / "done.json").is_file() and not (folder / "checkpoints").exists()
    assert all((folder / checkpoint / "README.md").is_file() for checkpoint in ("best", "last"))
    assert read_metrics(folder / "metrics.jsonl") == trained


def test_a_watch_is_told_of_epochs(run: Run) -> None:
    """Trials whose batches differ have epochs in common, not steps."""
    seen: list[int] = []
    run.watch = lambda epoch, metrics: seen.append(epoch)
    method = build_methods(run.config)["sft"]
    run_stages(run, (), lambda line: None)
    method.fit(run, 0)
    [last] = [line["step"] for line in read_metrics(run.folder.sft(0) / "metrics.jsonl") if line["kind"] == "eval"][1:]
    assert seen == [0, 1] and last > 1


def test_a_tracker_that_cannot_be_closed_hides_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone() -> None:
        raise OSError("the server is gone\nfor good")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=gone))
    training.trackers.close(["wandb"])
    assert "wandb could not be closed (the server is gone)" in capsys.readouterr().err


def test_trackers_are_closed_after_a_training_that_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training of the process would be logged as a part of it."""
    closed: list[Any] = []
    monkeypatch.setattr(training.trackers, "close", closed.append)

    def diverges(epoch: int, metrics: Any) -> None:
        raise TrainingError("diverged")

    monkeypatch.setattr(Run, "watch", staticmethod(diverges))
    with pytest.raises(TrainingError, match="diverged"):
        _train(run)
    assert closed == [run.config.training.report_to]
