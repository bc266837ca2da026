"""Which score tables are made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from sirius_rec.config import Config
from sirius_rec.errors import PromptError, RunError
from sirius_rec.evaluation.tables import ScoreTable, read_table, table_name, write_table
from sirius_rec.recipes import scoring
from sirius_rec.recipes.adoption import adopt, open_run
from sirius_rec.recipes.methods import build_methods, fusion
from sirius_rec.recipes.results import collect
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.scoring import score_only
from sirius_rec.recipes.story import STAGES, run_stages
from sirius_rec.scoring import kept


def test_a_table_of_other_rows_is_made_again_and_no_other(trained: Any, tmp_path: Path) -> None:
    """A version that chose other rows would leave methods that are compared on different ones."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder.path, folder.path)
    score_only(str(folder.path), "popularity", 0)
    file = folder.scores / table_name("popularity", 0, trained.test_slates[0], "best")
    whole, written = pl.read_parquet(file), file.stat().st_mtime_ns
    score_only(str(folder.path), "popularity", 0)
    assert file.stat().st_mtime_ns == written
    whole[1:].write_parquet(file)
    score_only(str(folder.path), "popularity", 0)
    assert pl.read_parquet(file).equals(whole)


def test_a_table_of_another_training_is_made_again(trained: Run, mini: Callable[..., Config], tmp_path: Path) -> None:
    """Deleted and trained anew, a model is not judged by what its predecessor scored, nor is a fusion with it. A table
    of before this was kept stays as it is: hours may lie in it."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder.path, folder.path)
    fused = "methods=[{method: fusion, options: {of: [sft, popularity]}}]"
    adopt(folder, mini("evaluation.generation_rows=2", fused))
    run = Run.open(folder.path)
    [slates], method = run.test_slates, build_methods(run.config)["sft"]
    file = folder.scores / table_name("sft", 0, slates, "best")
    answers = scoring.answers_file(run, method, 0, slates, "best")
    score_only(str(folder.path), "sft", 0)
    wrong = pl.read_parquet(file).with_columns(pl.col("scores") * 0)
    answered = json.loads(answers.read_text())

    def spoil(training: str | None) -> None:
        write_table(ScoreTable("sft", "SFT", 0, slates, "best", wrong, {}, training), folder.scores)
        of = {} if training is None else {"training": training}
        kept = {key: value for key, value in answered.items() if key != "training"}
        answers.write_text(json.dumps({**kept, **of, "text": ["spoilt", "spoilt"]}))

    def stored_part() -> Any:
        return fusion._stored(run, method, 0, slates)

    for training in (None, method.trained_as(run, 0)):
        spoil(training)
        score_only(str(folder.path), "sft", 0)
        assert pl.read_parquet(file).equals(wrong)
        assert json.loads(answers.read_text())["text"] == ["spoilt", "spoilt"]
        assert stored_part() is not None
    done = folder.sft(0) / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "seconds": 1.5}))
    assert stored_part() is None
    score_only(str(folder.path), "sft", 0)
    assert not pl.read_parquet(file).equals(wrong)
    assert json.loads(answers.read_text())["text"] == answered["text"]
    assert read_table(file).training == method.trained_as(run, 0) == json.loads(answers.read_text())["training"]
    assert stored_part() is not None


def test_torn_files_are_named(trained: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder.path, folder.path)
    [slates] = trained.test_slates
    score_only(str(folder.path), "sft", 0)
    (folder.scores / table_name("sft", 0, slates, "best")).write_bytes(b"")
    with pytest.raises(RunError, match=r"sft-s0-.*best\.parquet: not a readable Parquet file"):
        score_only(str(folder.path), "sft", 0)
    shutil.rmtree(folder.scores)
    (folder.sft(0) / "done.json").write_text("")
    with pytest.raises(RunError, match=r"sft/s0/done\.json: cannot be read .*: delete .* and train it again"):
        score_only(str(folder.path), "sft", 0)


def test_what_a_model_was_trained_from_may_go_or_be_made_anew(trained: Run, tmp_path: Path) -> None:
    """Its scores are those of its own weights: hours of scoring do not hang on folders that nobody reads any more."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder.path, folder.path)
    run = Run.open(folder.path)
    methods, [slates] = build_methods(run.config), run.test_slates
    score_only(str(folder.path), "sft", 0)
    score_only(str(folder.path), "item_knn", 0)
    before = {key: methods[key].trained_as(run, 0) for key in ("sft", "item_knn")}
    shutil.rmtree(folder.pretrain(0))
    assert scoring._has_scores(run, methods["sft"], 0, slates, "best")
    done = methods["item_knn"].folder(run, 0) / "done.json"
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps({"parameters": None, "seconds": 3.0}))
    as_it_is = methods["item_knn"].trained_as(run, 0)
    done.write_text(json.dumps({"parameters": None, "seconds": 4.0}))  # as `sirius merge` takes one run's or another's
    assert methods["item_knn"].trained_as(run, 0) == as_it_is
    assert methods["sft"].trained_as(run, 0) == before["sft"] != as_it_is


def test_a_fusion_of_a_part_that_was_trained_anew_takes_new_weights(
    trained: Run, mini: Callable[..., Config], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder.path, folder.path)
    adopt(folder, mini("methods=[{method: fusion, options: {of: [sft, popularity]}}]"))
    run = Run.open(folder.path)
    fused = build_methods(run.config)["fusion"]
    fused.fit(run, 0)
    assert fused.is_done(run, 0)
    done = folder.sft(0) / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "seconds": 1.5}))
    assert not fused.is_done(run, 0)
    own = fused.folder(run, 0) / "done.json"
    own.write_text(json.dumps({key: value for key, value in json.loads(own.read_text()).items() if key != "of"}))
    assert fused.is_done(run, 0)  # made before this was kept


def test_tables_of_another_training_are_no_results(trained: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder.path, folder.path)
    run, [slates] = Run.open(folder.path), trained.test_slates
    score_only(str(folder.path), "sft", 0)
    assert [table.method for table in scoring.tables_of(run)] == ["sft"]
    done = folder.sft(0) / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "seconds": 1.5}))
    with pytest.raises(RunError, match=r"scores of another training of sft than the folder's: run `sirius evaluate"):
        scoring.tables_of(run)
    done.unlink()  # weights may be thrown away for good, and results stay
    assert [table.slates for table in scoring.tables_of(run)] == [slates]


def test_results_are_of_what_is_measured_now(tmp_path: Path, mini: Callable[..., Config]) -> None:
    """Other rows, other slates and no answers, in the folder of before: nothing is left of the old in the results."""
    data = "data.slates=[{size: 6}, {size: 9, splits: [test]}]"
    few = (data, "arms=[softmax_ref_free]", "backbone.pretrain=null", "align.epochs=1", "evaluation.baseline=sft")
    first = mini(*few, "evaluation.checkpoints=[best, last]")
    path = tmp_path / "run"

    def measured(config: Config) -> dict[str, Any]:
        run = Run(open_run(path, config), config)
        run_stages(run, STAGES, lambda line: None)
        return collect(run)

    before = measured(first)
    assert {row["slates"] for row in before["rows"]} == {"test-uniform-6-s0", "test-uniform-9-s0"}
    weights = {file: file.stat().st_mtime_ns for file in path.rglob("*.safetensors")}
    rows = "evaluation.test_rows={test-uniform-9-s0: 9}"
    after = measured(mini(*few, "evaluation.slates=[test-uniform-9-s0]", "evaluation.generation_rows=0", rows))
    assert {(row["slates"], row["checkpoint"]) for row in after["rows"]} == {("test-uniform-9-s0", "best")}
    assert {row["n"] for row in after["rows"]} == {9}
    assert all(row.get("valid_ratio") is None for row in after["rows"])
    assert any(row.get("valid_ratio") is not None for row in before["rows"])
    again = measured(first)
    assert [{**row, "seconds": 0} for row in again["rows"]] == [{**row, "seconds": 0} for row in before["rows"]]
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.safetensors")} == weights


def test_a_table_that_was_killed_goes_on(
    trained: Run, mini: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a language model that were scored before a kill are not scored again, and nothing is left over."""
    shutil.copytree(trained.folder.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    adopt(folder, mini("evaluation.batch_tokens=80"))
    run = Run.open(folder.path)
    [slates] = run.test_slates
    file, total = run.folder.scores / table_name("sft", 0, slates, "best"), len(run.tested_rows(slates))
    score_only(str(run.folder.path), "sft", 0)
    whole = pl.read_parquet(file)
    shutil.rmtree(run.folder.scores)
    monkeypatch.setattr(kept, "_EVERY", 0.0)
    said: list[int] = []

    def kill(count: int) -> None:
        said.append(count)
        if len(said) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "Ticker", lambda name, total: kill)
    with pytest.raises(KeyboardInterrupt):
        score_only(str(run.folder.path), "sft", 0)
    [coming] = run.folder.scores.iterdir()
    assert coming.name.endswith(".parquet.coming") and list(coming.glob("*.npz"))
    done, said[:] = sum(said), []
    assert 0 < done < total
    monkeypatch.setattr(scoring, "Ticker", lambda name, total: said.append)
    score_only(str(run.folder.path), "sft", 0)
    assert said[0] == done and sum(said) == total
    assert pl.read_parquet(file).equals(whole)
    assert not list(run.folder.scores.glob(".*"))


def test_what_is_kept_of_a_table_is_of_one_training_and_of_its_rows(
    trained: Run, mini: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.folder.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    sft, [slates] = build_methods(run.config)["sft"], run.test_slates

    def of(run: Run, checkpoint: str = "best") -> str:
        return scoring._kept(run, sft, 0, slates, checkpoint).of

    first = of(run)
    assert first == of(trained)
    fewer = run.config.evaluation.model_copy(update={"test_rows": {slates: 7}})
    assert of(Run(run.folder, run.config.model_copy(update={"evaluation": fewer}))) != first
    done = run.folder.sft(0) / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "seconds": 1.5}))
    assert of(run) != first
    first = of(run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of(run) == first != of(Run(run.folder, mini("compute.device=cuda")))  # which rounds otherwise
    run.dataset.info["fingerprint"] = "of other data"
    assert of(run) != first


def test_rows_that_are_ranked_later_fit_into_the_context_too(trained: Run, mini: Callable[..., Config]) -> None:
    """What is trained is not checked again before more rows are asked for: scoring does, before the first row."""
    run = Run(trained.folder, mini("backbone.tiny.context=14"))
    sft = build_methods(run.config)["sft"]
    with pytest.raises(PromptError, match=r"slates test-uniform-6-s0: \d+ of \d+ prompts .* exceed the context of 14"):
        sft.scores(run, None, "test-uniform-6-s0", 0, "best")


def test_only_rows_that_are_looked_at_are_measured(trained: Run, mini: Callable[..., Config]) -> None:
    config = mini("evaluation.test_rows={test-uniform-6-s0: 7}", "evaluation.validation_rows=5")
    run = Run(trained.folder, config)
    assert len(run.met_rows("test-uniform-6-s0")) == 7 and len(run.met_rows("val-uniform-6-s0")) == 5
    assert len(run.met_rows("train-uniform-6-s0")) == run.dataset.n_rows("train")
