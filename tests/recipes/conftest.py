"""A miniature run, trained once for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.config import Config, load_config
from sirius_rec.recipes.run_folder import RunFolder, open_run

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"


@pytest.fixture(scope="session")
def mini() -> Callable[..., Config]:
    """mini("align.epochs=1", …) → the miniature configuration with overrides."""

    def load(*overrides: str) -> Config:
        return load_config(MINI, list(overrides))

    return load


@dataclass(frozen=True)
class Trained:
    run: RunFolder
    config: Config
    dataset: Any


@pytest.fixture(scope="session")
def trained(mini: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Data, SFT and the reference cache of the miniature run. Copy it before changing anything."""
    from sirius_rec.data.store import open_dataset
    from sirius_rec.recipes import reference
    from sirius_rec.recipes.story import run_stages

    config = mini()
    run = open_run(tmp_path_factory.mktemp("mini") / "run", config)
    run_stages(run, config, ("sft",), lambda line: None)
    reference.reference(str(run.path), 0)
    return Trained(run, config, open_dataset(run.data))
