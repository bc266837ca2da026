"""Scores and methods of one's own in a run: precise, checked before they are written, and never in another's place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.evaluation.results import read_results
from sirius_rec.evaluation.tables import SCORES, read_table
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.methods import METHODS, build_methods
from sirius_rec.recipes.methods.closed_form import ClosedForm
from sirius_rec.recipes.own_scores import score_frame, write_scores
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.story import STAGES, finish, remeasure, run_stages

PLAIN = ["arms=[]", "methods=[markov]", "evaluation.test_rows={test-uniform-6-s0: 20}", "evaluation.baseline=markov"]


@pytest.fixture
def run(mini: Callable[..., Config], tmp_path: Path) -> Run:
    config = mini(*PLAIN)
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, STAGES, lambda line: None)
    finish(run, lambda line: None)
    return run


def test_own_scores_stand_in_tables_and_tests_as_what_they_are(run: Run) -> None:
    slates = run.test_slates[0]
    _, candidates = run.slate_arrays(slates)
    files = write_scores(run, "mine", "Mine", {slates: [-slate for slate in candidates]}, language_model=True)
    assert len(files) == len(run.config.evaluation.checkpoints) and all(file.is_file() for file in files)
    results = remeasure(run, lambda line: None)
    about = results["methods"]["mine"]
    assert about["language_model"] and not about["random"] and about["role"] == "baseline"
    beyond = {row["method"]: row["calibration"] for row in results["beyond"]["rows"] if row["slates"] == slates}
    assert beyond["mine"] is None and not about["probabilities"]
    again = {slates: [-slate.astype(float) for slate in candidates]}
    write_scores(run, "mine", "Mine", again, language_model=True, probabilities=True)
    results = remeasure(run, lambda line: None)
    measured = {row["method"]: row["calibration"] for row in results["beyond"]["rows"] if row["slates"] == slates}
    assert 0 < measured["mine"]["mean"] < 1
    assert {"n": 20, "label": "Mine"}.items() <= next(r for r in results["summary"] if r["method"] == "mine").items()
    assert ("mine", "markov") in {(test["method"], test["against"]) for test in results["paired"]}


def test_whole_numbers_do_not_tie(run: Run) -> None:
    """Seconds since 1970, which float32 keeps to some two minutes."""
    slates = run.test_slates[0]
    _, candidates = run.slate_arrays(slates)
    seconds = [1_700_000_000 + np.arange(len(slate)) for slate in candidates]
    for scores in (seconds, [list(map(int, row)) for row in seconds], [row.astype(np.float64) for row in seconds]):
        kept = score_frame(run, "mine", slates, scores)[SCORES]
        assert kept.dtype == pl.List(pl.Float64) and all(len(set(row)) == len(row) for row in kept.to_list())
    half = score_frame(run, "mine", slates, [row.astype(np.float32) for row in seconds])[SCORES]
    assert half.dtype == pl.List(pl.Float32)


def test_what_is_no_table_of_this_run_is_refused(run: Run) -> None:
    slates = run.test_slates[0]
    _, candidates = run.slate_arrays(slates)
    good = [np.zeros(len(slate)) for slate in candidates]
    before = read_table(run.folder.scores / f"markov-s0-{slates}-best.parquet")
    for key in ("markov", "popularity", "sft"):
        with pytest.raises(ConfigError, match=f"'{key}' is a method of this run: give yours another name"):
            write_scores(run, key, "Mine", {slates: good})
    assert read_table(run.folder.scores / before.name).frame.equals(before.frame)
    with pytest.raises(ConfigError, match=f"tests no slates 'test-uniform-7-s0', did you mean '{slates}'"):
        write_scores(run, "mine", "Mine", {"test-uniform-7-s0": good})
    first = int(before.frame["row_id"][0])
    bad = {
        "19 rows of scores for 20 rows that are tested": good[1:],
        rf"row_id {first}: scores of shape \(1,\) for 6 candidates": [np.zeros(1), *good[1:]],
        f"row_id {first}: the score of candidate 2 is NaN": [np.array([0, 0, np.nan, 0, 0, 0]), *good[1:]],
        f"row_id {first}: scores whose highest is inf have no softmax": [np.array([0, 0, np.inf, 0, 0, 0]), *good[1:]],
        f"row_id {first}: scores whose highest is -inf have no": [np.full(6, -np.inf), *good[1:]],
        "a row of scores is no list of numbers": [["a"] * 6, *good[1:]],
    }
    for message, scores in bad.items():
        with pytest.raises(DataError, match=message):
            write_scores(run, "mine", "Mine", {slates: scores}, probabilities=True)
    assert not list(run.folder.scores.glob("mine*"))


class Broken:
    """A ranker whose scores are of no number until it is mended."""

    value = float("nan")

    def score(self, histories: list[np.ndarray], candidates: list[np.ndarray]) -> list[np.ndarray]:
        return [np.full(len(slate), self.value) for slate in candidates]


class Own(ClosedForm):
    name, title = "own", "Own"

    def fitted(self, run: Run) -> Broken:
        return Broken()


def test_a_method_that_fails_leaves_no_table_and_a_change_of_its_code_is_asked_about(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METHODS, "own", Own)
    config = load_config(Path(__file__).parents[1] / "mini.yaml", [*PLAIN[:1], "methods=[markov, own]", *PLAIN[2:]])
    again = Run(open_run(run.folder.path, config), config)
    with pytest.raises(DataError, match=r"own on test-uniform-6-s0, row_id \d+: the score of candidate 0 is NaN"):
        run_stages(again, STAGES, lambda line: None)
    assert not list(run.folder.scores.glob("own*"))
    with monkeypatch.context() as patch:  # a score that no softmax can take, of one that says it gives probabilities
        patch.setattr(Broken, "value", float("inf"))
        patch.setattr(Own, "probabilities", True)
        with pytest.raises(DataError, match="scores whose highest is inf have no softmax"):
            run_stages(again, STAGES, lambda line: None)
    with monkeypatch.context() as patch:
        patch.delattr(Broken, "value")
        with pytest.raises(AttributeError) as failed:
            run_stages(again, STAGES, lambda line: None)
        assert "own s0 was scoring test-uniform-6-s0" in failed.value.__notes__
    monkeypatch.setattr(Broken, "value", 1.0)
    capsys.readouterr()
    run_stages(again, STAGES, lambda line: None)
    assert list(run.folder.scores.glob("own*")) and "was scored before" not in capsys.readouterr().err
    run_stages(again, STAGES, lambda line: None)
    said = capsys.readouterr().err
    assert "own s0: was scored before; if its code has changed, delete" in said and "markov s0: was" not in said


PLUGIN = """
from sirius_rec.recipes.methods import METHODS
from sirius_rec.recipes.methods.closed_form import ClosedForm
from sirius_rec.rankers.trivial import Popularity

class Plugged(ClosedForm):
    name, title = "plugged", "Plugged"

    def fitted(self, run):
        return Popularity().fit(run.dataset.train_sequences(), run.dataset.n_items)

METHODS["plugged"] = Plugged
"""


def test_a_plug_in_is_known_to_every_command_and_its_processes(
    mini: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugged_in.py").write_text(PLUGIN)
    out, config = tmp_path / "run", Path(__file__).parents[1] / "mini.yaml"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    options = ["plugins=[plugged_in]", *PLAIN[:1], "methods=[plugged, markov]", *PLAIN[2:], "compute.jobs=2"]
    command = [sys.executable, "-m", "sirius_rec", "run", str(config), *options, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    results = read_results(out / "results.json")
    assert {"plugged", "markov"} <= results["methods"].keys()
    assert json.loads(json.dumps(results["config"]["plugins"])) == ["plugged_in"]
    rows = {row["method"]: row["hr@1"] for row in results["summary"] if row["checkpoint"] == "best"}
    assert rows["plugged"] == rows["popularity"]
    assert "plugged" not in METHODS
    with pytest.raises(ConfigError, match=r"plugins: module 'plugged_in' cannot be imported \(ModuleNotFoundError"):
        RunFolder(out).config()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "plugged", METHODS["markov"])  # taken out again when the test ends
    assert "plugged" in build_methods(RunFolder(out).config())


def test_a_method_that_nobody_entered_is_named(mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "own", Own)
    config = mini("arms=[]", "methods=[own]", "evaluation.baseline=own")
    monkeypatch.delitem(METHODS, "own")
    with pytest.raises(ConfigError, match=r"no method is called 'own' here.*name its module in plugins"):
        build_methods(config)


def test_tables_of_one_method_that_contradict_each_other_are_refused(run: Run) -> None:
    slates = run.test_slates[0]
    scores = {slates: [-slate for slate in run.slate_arrays(slates)[1]]}
    write_scores(run, "mine", "Mine", scores, random=True)
    write_scores(run, "mine", "Mine", scores, seed=1)
    with pytest.raises(RunError, match=r"says of its method .* and another table of it"):
        remeasure(run, lambda line: None)
