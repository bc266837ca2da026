"""A preset that changes behind a run folder's back: what was trained by the old one is not taken for the new one's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sirius_rec.config import Config
from sirius_rec.errors import RunError
from sirius_rec.objectives.presets import LOSSES
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder


def test_another_objective_under_the_same_name_is_refused(
    trained: Run, mini: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.folder.path, tmp_path / "run")
    config = mini("arms=[dpo_sirius]")
    run = Run(RunFolder(tmp_path / "run"), config)
    arm = build_methods(config)["dpo_sirius"]
    arm.fit(run, 0)
    arm.check(run)
    assert arm.facts(run)["anchor"] == "reference"
    preset = LOSSES["dpo_sirius"]
    changed = replace(preset, options={**preset.options, "nll_weight": 0.5})
    monkeypatch.setitem(LOSSES, "dpo_sirius", changed)
    again = build_methods(mini("arms=[dpo_sirius]", "seeds=[0, 1]"))["dpo_sirius"]
    for step in (lambda: again.fit(run, 0), lambda: again.check(run), lambda: again.facts(run)):
        with pytest.raises(RunError, match=r"align/dpo_sirius/s0: was begun with another objective \(nll_weight: then"):
            step()
    (tmp_path / "run" / "align" / "dpo_sirius" / "s0" / "objective.json").unlink()  # of an older version
    assert again.facts(run)["anchor"] == "reference"
