"""Experiment trackers (`training.report_to`): what the Trainer logs, reward-hacking evidence included, goes there too.

They are transformers' own integrations; metrics.jsonl is written whatever is asked for here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sirius_rec.errors import ConfigError, first_line
from sirius_rec.processes import log

_TENSORBOARD = "tensorboard"
# How others are told that a training is over: the next one of this process is a run of its own. Trackio knows.
_ENDS = {"wandb": "finish", "mlflow": "end_run"}


def check(names: Sequence[str]) -> None:
    """ConfigError where a tracker's package is missing, or MLflow has no store that it takes."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"training.report_to: {name} is not installed: pip install {name}, or leave it out")
    if "mlflow" in names:
        try:
            importlib.import_module("mlflow").search_experiments(max_results=1)
        except Exception as error:  # of the server, the database, the network
            reason = first_line(error)
            raise ConfigError(
                f"training.report_to: mlflow cannot be written to ({reason}): set MLFLOW_TRACKING_URI, to "
                "sqlite:///mlflow.db say, or leave it out"
            ) from error


def integrations(names: Sequence[str]) -> list[str]:
    """What the Trainer sets up itself: all but TensorBoard, whose files would lie among checkpoints that go."""
    return [name for name in names if name != _TENSORBOARD]


def callbacks(names: Sequence[str], folder: Path) -> list[Any]:
    """TensorBoard's callback, writing below `folder`; it goes on in the same place after a kill."""
    if _TENSORBOARD not in names:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder)))]


def close(names: Sequence[str]) -> None:
    """End the runs that the Trainer's integrations have opened. One that cannot be ended is said, and costs nothing."""
    for name, end in _ENDS.items():
        if name in names and (module := sys.modules.get(name)) is not None:
            try:
                getattr(module, end)()
            except Exception as error:  # of the server, the database, the network
                log(f"training.report_to: {name} could not be closed ({first_line(error)})")
