"""A miniature run, trained once for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sirius_rec.config import Config
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.run import Run

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"


@pytest.fixture(scope="session")
def mini() -> Callable[..., Config]:
    """mini("align.epochs=1", …) → the miniature configuration with overrides."""

    def load(*overrides: str) -> Config:
        return load_config(MINI, list(overrides))

    return load


@pytest.fixture(scope="session")
def trained(mini: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Data, SFT and the reference cache of the miniature run. Copy it before changing anything."""
    from sirius_rec.recipes import reference
    from sirius_rec.recipes.story import run_stages

    config = mini()
    run = Run(open_run(tmp_path_factory.mktemp("mini") / "run", config), config)
    run_stages(run, ("sft",), lambda line: None)
    reference.score_reference(str(run.folder.path), 0)
    return run


@pytest.fixture(scope="session")
def run(mini: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """SFT whose prompts show no slate, beside a formula. Copy it before changing anything."""
    from sirius_rec.recipes.methods import build_methods
    from sirius_rec.recipes.story import run_stages

    config = mini("prompts.slate=false", "methods=[markov]")
    opened = Run(open_run(tmp_path_factory.mktemp("catalogue") / "run", config), config)
    run_stages(opened, ("sft",), lambda line: None)
    build_methods(config)["markov"].fit(opened, 0)
    return opened


@pytest.fixture(scope="session")
def ids(run: Run) -> list[str]:
    return [str(item) for item in run.dataset.items["item_id"].to_list()]
