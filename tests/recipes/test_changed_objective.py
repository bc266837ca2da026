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
from sirius_rec.recipes.merging import merge_runs
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.refitting import refit
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder

OTHER = r"align/dpo_sirius/s0: was begun with another objective \(comparison: then 'pairwise', now 'softmax'\): delete"


@pytest.fixture
def run(trained: Run, mini: Callable[..., Config], tmp_path: Path) -> Run:
    """With one arm trained."""
    shutil.copytree(trained.folder.path, tmp_path / "run")
    config = mini("arms=[dpo_sirius]")
    opened = Run(RunFolder(tmp_path / "run"), config)
    build_methods(config)["dpo_sirius"].fit(opened, 0)
    return opened


@pytest.fixture
def changed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = LOSSES["dpo_sirius"]
    monkeypatch.setitem(LOSSES, "dpo_sirius", replace(preset, options={**preset.options, "comparison": "softmax"}))


@pytest.mark.usefixtures("changed")
def test_it_is_said_and_results_are_of_what_was_trained(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arm = build_methods(run.config)["dpo_sirius"]
    before = (run.folder.arm("dpo_sirius", 0) / "done.json").read_bytes()
    arm.fit(run, 0)
    assert "; its results are of the old one" in capsys.readouterr().err
    assert (run.folder.arm("dpo_sirius", 0) / "done.json").read_bytes() == before
    assert arm.facts(run)["comparison"] == "pairwise"
    (run.folder.arm("dpo_sirius", 0) / "objective.json").unlink()  # as older versions left it
    arm.fit(run, 0)
    assert "another objective" not in capsys.readouterr().err and arm.facts(run)["comparison"] == "softmax"


@pytest.mark.usefixtures("changed")
def test_seeds_of_two_objectives_are_not_put_together(run: Run, mini: Callable[..., Config], tmp_path: Path) -> None:
    more = build_methods(mini("arms=[dpo_sirius]", "seeds=[0, 1]"))["dpo_sirius"]
    with pytest.raises(RunError, match=OTHER):
        more.check(run)
    with pytest.raises(RunError, match=OTHER):
        refit(run, tmp_path / "live", method="dpo_sirius", log=lambda line: None)
    assert not (tmp_path / "live").exists()
    # a training that was killed does not go on with another loss
    (run.folder.arm("dpo_sirius", 0) / "done.json").unlink()
    (run.folder.arm("dpo_sirius", 0) / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(RunError, match=OTHER):
        build_methods(run.config)["dpo_sirius"].fit(run, 0)


@pytest.mark.usefixtures("changed")
def test_what_failed_before_its_first_checkpoint_is_begun_anew(run: Run) -> None:
    """As one that is being written does."""
    folder = run.folder.arm("dpo_sirius", 0)
    (folder / "done.json").unlink()
    arm = build_methods(run.config)["dpo_sirius"]
    arm.check(run)
    arm.fit(run, 0)
    assert arm.facts(run)["comparison"] == "softmax" and (folder / "done.json").is_file()


def test_runs_of_two_objectives_are_not_merged(run: Run, mini: Callable[..., Config], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run.folder.path, other)
    file = other / "align" / "dpo_sirius" / "s0" / "objective.json"
    file.write_text(file.read_text().replace('"pairwise"', '"softmax"'))
    for folder, seeds in ((run.folder, "seeds=[0]"), (RunFolder(other), "seeds=[1]")):
        folder.write_config(mini("arms=[dpo_sirius]", seeds))
    with pytest.raises(RunError, match="trained dpo_sirius with different objectives, though it is called the same"):
        merge_runs([run.folder.path, other], tmp_path / "merged")
