"""Which folder belongs to which configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes.run_folder import open_run, write_json

Mini = Callable[..., Config]


def test_the_same_configuration_goes_on(mini: Mini, tmp_path: Path) -> None:
    run = open_run(tmp_path / "a" / "run", mini())
    assert run.config() == mini()
    made = json.loads((run.path / "environment.json").read_text())
    assert made["seeds"] == [0] and made["versions"]["numpy"] and made["versions"]["python"]
    before = run.config_file.read_bytes()
    assert open_run(run.path, mini()).path == run.path
    assert run.config_file.read_bytes() == before


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("align.epochs=3", r"align\.epochs: 2 there, 3 here"),
        ("seeds=[1]", r"seeds: \[0\] there, \[1\] here"),
        ("compute.threads=2", r"compute\.threads: 1 there, 2 here"),
        ("backbone.pretrain=null", r"backbone\.pretrain: \{.*\} there, None here"),
        ("arms=[dpo]", r"arms\.dpo_sirius: begun there, missing here"),
        ("data.slates=[{size: 8}]", r"data\.slates\.0\.size: 6 there, 8 here"),
    ],
)
def test_another_configuration_is_refused(mini: Mini, tmp_path: Path, override: str, difference: str) -> None:
    run = open_run(tmp_path / "run", mini())
    run.stage("dpo_sirius", 0).mkdir(parents=True)
    before = run.config_file.read_bytes()
    with pytest.raises(RunError, match=f"another configuration \\({difference}.*: choose another --out"):
        open_run(run.path, mini(override))
    assert run.config_file.read_bytes() == before


def test_seeds_arms_and_methods_may_be_added(mini: Mini, tmp_path: Path) -> None:
    """What is done stays valid: each of them is computed for itself. Taking one away is another configuration."""
    run = open_run(tmp_path / "run", mini())
    more = mini("seeds=[0, 1]", "arms=[dpo_sirius, dpo, softmax_dpo]", "methods=[markov]")
    before = run.config_file.read_bytes()
    assert open_run(run.path, more).config() == mini(), "written under the lock only"
    assert run.config_file.read_bytes() == before
    run.adopt(more)
    assert run.config() == more
    with pytest.raises(RunError, match=r"another configuration \(seeds: \[0, 1\] there, \[0\] here\)"):
        open_run(run.path, mini("arms=[dpo_sirius, dpo, softmax_dpo]", "methods=[markov]"))
    # nothing was begun of any arm or method: they may still be mended or taken away; seeds stay
    open_run(run.path, mini("seeds=[0, 1]"))
    for key in ("dpo", "dpo_sirius", "softmax_dpo"):
        run.stage(key, 0).mkdir(parents=True)
    with pytest.raises(RunError, match=r"another configuration \(arms\.dpo: begun there, missing here\)"):
        open_run(run.path, mini("seeds=[0, 1]"))
    with pytest.raises(RunError, match=r"another configuration \(align\.epochs: 2 there, 3 here\)"):
        open_run(
            run.path,
            mini("align.epochs=3", "seeds=[0, 1, 2]", "arms=[dpo_sirius, dpo, softmax_dpo]", "methods=[markov]"),
        )
    assert run.config() == more


def test_jobs_are_free(mini: Mini, tmp_path: Path) -> None:
    """How many trainings run side by side changes nothing that comes out."""
    run = open_run(tmp_path / "run", mini())
    assert open_run(run.path, mini("compute.jobs=2")).config() == mini()


def test_two_processes_do_not_work_in_one_folder(mini: Mini, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", mini())
    with run.lock(), pytest.raises(RunError, match="another process is working in this run folder"), run.lock():
        pass
    with run.lock():
        pass


def test_a_foreign_folder_is_refused(mini: Mini, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="exists and is not a run folder: choose another --out"):
        open_run(tmp_path, mini())
    with pytest.raises(RunError, match="exists and is not a run folder"):
        open_run(tmp_path / "thesis.tex", mini())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_where_nothing_can_be_written(mini: Mini, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot write the run folder \(Not a directory\): choose another --out"):
        open_run(tmp_path / "file" / "run", mini())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder(mini: Mini, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match=r"cannot write the run folder \(Permission denied\): choose another --out"):
            open_run(tmp_path / "run", mini())
    finally:
        tmp_path.chmod(0o700)


def test_a_damaged_config_file_is_one_line(mini: Mini, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", mini())
    run.config_file.write_text("name: [")
    with pytest.raises(ConfigError, match=r"config\.yaml, line 1: not valid YAML"):
        run.config()


def test_a_folder_in_which_nothing_was_trained_is_given_back(mini: Mini, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", mini())
    (run.path / "data").mkdir()
    run.stage("sft", 0).mkdir(parents=True)
    run.discard_if_untrained()
    assert run.config() == mini()
    run.stage("sft", 0).rmdir()
    (run.path / "sft").rmdir()
    run.discard_if_untrained()
    assert not run.path.exists()


def test_json_is_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.json"
    write_json(target, {"b": 1, "a": [0.5]})
    assert json.loads(target.read_text()) == {"a": [0.5], "b": 1}
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": [0.5], "b": 1}
    assert [entry.name for entry in target.parent.iterdir()] == ["b.json"]
