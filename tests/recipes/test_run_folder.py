"""Which folder belongs to which configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sirius_rec.atomic import write_json
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes import environment
from sirius_rec.recipes.adoption import adopt, open_run
from sirius_rec.recipes.environment import note_start

Mini = Callable[..., Config]


def test_the_same_configuration_goes_on(mini: Mini, tmp_path: Path) -> None:
    run = open_run(tmp_path / "a" / "run", mini())
    assert run.config() == mini()
    made = json.loads((run.path / "environment.json").read_text())
    assert made["seeds"] == [0] and made["versions"]["numpy"] and made["versions"]["python"]
    before = run.config_file.read_bytes()
    assert open_run(run.path, mini()).path == run.path
    assert run.config_file.read_bytes() == before


def test_what_a_folder_is_gone_on_with_is_written_down(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be resumed on another machine, or by another version: its numbers come from both."""
    file = open_run(tmp_path / "run", mini()).path / "environment.json"
    first = json.loads(file.read_text())
    assert note_start(file, mini()) is None and json.loads(file.read_text()) == first
    monkeypatch.setattr(environment, "versions", lambda: {**first["versions"], "numpy": "9.9", "torch": "8.8"})
    monkeypatch.setattr(environment, "processor", lambda: "abacus")
    said = note_start(file, mini("seeds=[0, 1]"))
    assert said is not None and f"numpy {first['versions']['numpy']} → 9.9" in said and "→ abacus" in said
    assert note_start(file, mini()) is None
    now = json.loads(file.read_text())
    assert {key: now[key] for key in first} == first
    assert [(one["versions"]["numpy"], one["processor"], one["seeds"]) for one in now["later"]] == [
        ("9.9", "abacus", [0, 1])
    ]


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("align.epochs=3", r"align\.epochs: saved 2, now 3"),
        ("seeds=[1]", r"seeds: saved \[0\], now \[1\]"),
        ("compute.scoring=naive", r"compute\.scoring: saved 'auto', now 'naive'"),
        ("backbone.pretrain=null", r"backbone\.pretrain: saved \{.*\}, now None"),
        ("arms=[dpo]", r"arms\.dpo_sirius: begun in the folder, missing now"),
        ("data.slates=[{size: 8}]", r"data\.slates\.0\.size: saved 6, now 8"),
    ],
)
def test_another_configuration_is_refused(mini: Mini, tmp_path: Path, override: str, difference: str) -> None:
    run = open_run(tmp_path / "run", mini())
    run.arm("dpo_sirius", 0).mkdir(parents=True)
    before = run.config_file.read_bytes()
    with pytest.raises(RunError, match=f"another configuration \\({difference}.*: choose another --out"):
        open_run(run.path, mini(override))
    assert run.config_file.read_bytes() == before


def test_alignment_is_held_from_its_first_step_on(mini: Mini, tmp_path: Path) -> None:
    """SFT takes hours, and how to align is decided after it."""
    run = open_run(tmp_path / "run", mini())
    run.sft(0).mkdir(parents=True)
    changed = mini("align.epochs=3", "align.learning_rate=1e-5")
    adopt(open_run(run.path, changed), changed)
    assert run.config() == changed
    with pytest.raises(RunError, match=r"\(align\.from: saved None, now \{.*: choose another --out"):
        open_run(run.path, mini(f"align.from={run.path}"))
    run.reference(0).parent.mkdir()
    with pytest.raises(RunError, match=r"\(align\.epochs: saved 3, now 2; alignment has begun\): choose another"):
        open_run(run.path, mini())


@pytest.mark.parametrize(
    "override",
    ["checkpoints=[best, last]", "slates=[test-uniform-6-s0]", "generation_rows=5", "full_rows=4", "baseline=sft",
     "test_rows={test-uniform-6-s0: 9}", "retrieved=[{retriever: item_knn, size: 5}]"],
)  # fmt: skip
def test_what_is_measured_may_change(mini: Mini, tmp_path: Path, override: str) -> None:
    run = open_run(tmp_path / "run", mini("data.slates=[{size: 6}, {protocol: full, splits: [test]}]"))
    run.arm("dpo_sirius", 0).mkdir(parents=True)
    changed = mini("data.slates=[{size: 6}, {protocol: full, splits: [test]}]", f"evaluation.{override}")
    adopt(open_run(run.path, changed), changed)
    assert run.config() == changed


def test_what_chooses_the_best_epoch_may_not(mini: Mini, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", mini())
    with pytest.raises(RunError, match=r"\(evaluation\.validation_rows: saved None, now 9\)"):
        open_run(run.path, mini("evaluation.validation_rows=9"))


def test_seeds_arms_and_methods_may_be_added(mini: Mini, tmp_path: Path) -> None:
    """What is done stays valid: each of them is computed for itself. Taking one away is another configuration."""
    run = open_run(tmp_path / "run", mini())
    more = mini("seeds=[0, 1]", "arms=[dpo_sirius, dpo, softmax_dpo]", "methods=[markov]")
    before = run.config_file.read_bytes()
    assert open_run(run.path, more).config() == mini(), "written under the lock only"
    assert run.config_file.read_bytes() == before
    adopt(run, more)
    assert run.config() == more
    with pytest.raises(RunError, match=r"another configuration \(seeds: saved \[0, 1\], now \[0\]\)"):
        open_run(run.path, mini("arms=[dpo_sirius, dpo, softmax_dpo]", "methods=[markov]"))
    # nothing was begun of any arm or method: they may still be mended or taken away; seeds stay
    open_run(run.path, mini("seeds=[0, 1]"))
    for key in ("dpo", "dpo_sirius", "softmax_dpo"):
        run.arm(key, 0).mkdir(parents=True)
    with pytest.raises(RunError, match=r"another configuration \(arms\.dpo: begun in the folder, missing now\)"):
        open_run(run.path, mini("seeds=[0, 1]"))
    with pytest.raises(RunError, match=r"another configuration \(align\.epochs: saved 2, now 3; alignment"):
        open_run(
            run.path,
            mini("align.epochs=3", "seeds=[0, 1, 2]", "arms=[dpo_sirius, dpo, softmax_dpo]", "methods=[markov]"),
        )
    assert run.config() == more


@pytest.mark.parametrize(
    "override",
    [
        "compute.jobs=2", "data.shards=3", "compute.threads=2", "compute.device=auto", "evaluation.batch_tokens=512",
        "align.micro_batch_size=8", "sft.gradient_checkpointing=true", "align.save_steps=7", "sft.logging_steps=3",
        "backbone.pretrain.micro_batch_size=8", "methods=[{method: tallrec, options: {micro_batch_size: 8}}]",
    ],
)  # fmt: skip
def test_how_it_is_computed_may_change_under_way(mini: Mini, tmp_path: Path, override: str) -> None:
    """An out-of-memory in alignment must not cost the SFT: keys that change no result are the folder's once adopted."""
    before = mini("methods=[tallrec]") if "tallrec" in override else mini()
    run = open_run(tmp_path / "run", before)
    run.method("tallrec", 0).mkdir(parents=True)
    changed = mini(override)
    assert changed != before
    assert open_run(run.path, changed).config() == before
    adopt(run, changed)
    assert run.config() == changed


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


def test_a_run_that_was_killed_as_it_began_is_begun(mini: Mini, tmp_path: Path) -> None:
    """What describes the machine is written before the configuration, and is no foreign file."""
    config = mini()
    folder = open_run(tmp_path / "run", config)
    folder.config_file.unlink()
    (folder.path / ".lock").touch()  # of a tuning that was refused
    assert open_run(tmp_path / "run", config).config() == config


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
    run.sft(0).mkdir(parents=True)
    run.discard_if_untrained()
    assert run.config() == mini()
    run.sft(0).rmdir()
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


def test_which_keys_may_change_under_way() -> None:
    """Pinned, key by key: one that changes what comes out must not slip in."""
    from sirius_rec import config_sections as sections
    from sirius_rec.training.options import PretrainOptions, StageOptions

    stage = {"micro_batch_size", "gradient_checkpointing", "save_steps", "logging_steps"}
    assert stage == StageOptions.HOW == PretrainOptions.HOW == sections.AlignSection.HOW
    assert {"batch_tokens"} == sections.EvaluationSection.HOW
    assert {"shards"} == sections.DataSection.HOW
    assert {"device", "jobs", "threads"} == sections.ComputeSection.HOW
    for held in (sections.PromptSection, sections.BackboneSection, sections.ArmSection):
        assert not held.HOW
    # Trackers and trials say nothing about what a run computes.
    assert {"report_to"} == sections.TrainingSection.HOW
    assert {"plugins", "tune"} == Config.HOW
