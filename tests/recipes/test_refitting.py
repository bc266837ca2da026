"""`sirius refit`: what was chosen on validation slates, trained on all of the data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError, TrainingError
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes import training
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.exporting import export
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.methods.finetuned import best_epoch
from sirius_rec.recipes.ranking import load_run_ranker
from sirius_rec.recipes.refitting import refit
from sirius_rec.recipes.reranking import load_run_reranker
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import STAGES, finish, run_stages
from sirius_rec.training.metrics_log import read_metrics
from sirius_rec.training.options import StageOptions

Mini = Callable[..., Config]


def silent(line: str) -> None:
    pass


def made(config: Config, folder: Path, stages: tuple[str, ...] = STAGES) -> Run:
    run = Run(open_run(folder, config), config)
    run_stages(run, stages, silent)
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    timed = ("tokens_per_second",)
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(folder / "metrics.jsonl")]


# --- a stage that stops before its schedule does ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(mini("sft.epochs=3"), tmp_path_factory.mktemp("whole") / "run", ("sft",))


def test_a_stopped_stage_is_the_beginning_of_the_whole_one(whole: Run, mini: Mini, tmp_path: Path) -> None:
    stopped = made(mini("sft.epochs=3", "sft.stop_after=2"), tmp_path / "run", ("sft",))
    every, some = lines(whole.folder.sft(0)), lines(stopped.folder.sft(0))
    expected = [line for line in every if line["epoch"] <= 2]
    assert some == expected and len(some) < len(every)
    steps = [json.loads((run.folder.sft(0) / "done.json").read_text())["steps"] for run in (whole, stopped)]
    assert steps[1] == steps[0] * 2 / 3
    assert (stopped.folder.sft(0) / "last" / "model.safetensors").is_file()


def test_killed_behind_its_last_epoch_it_trains_no_further(
    whole: Run, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mini("sft.epochs=3", "sft.stop_after=1")

    keep = training._keep_weights

    def killed(trainer: Any, folder: Path) -> None:
        if "sft" in folder.parts:
            raise TrainingError("killed")
        keep(trainer, folder)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_keep_weights", killed)
        with pytest.raises(TrainingError, match="killed"):
            made(config, tmp_path / "run", ("sft",))
    state = next((tmp_path / "run" / "sft").glob("s0/checkpoints/*/trainer_state.json"))
    kept = json.loads(state.read_text())
    kept["stateful_callbacks"]["Clock"]["attributes"]["seconds"] = 500.0
    state.write_text(json.dumps(kept))
    stopped = made(config, tmp_path / "run", ("sft",))
    assert lines(stopped.folder.sft(0)) == [line for line in lines(whole.folder.sft(0)) if line["epoch"] <= 1]
    done = json.loads((stopped.folder.sft(0) / "done.json").read_text())
    whole_steps = json.loads((whole.folder.sft(0) / "done.json").read_text())["steps"]
    assert (done["steps"], done["best_step"]) == (whole_steps / 3, whole_steps / 3)
    assert 500 <= done["seconds"] < 510


def test_a_stage_cannot_stop_behind_its_end(mini: Mini) -> None:
    with pytest.raises(ConfigError, match="stop_after 4 is behind the last of 3 epochs"):
        mini("sft.epochs=3", "sft.stop_after=4")


def test_the_best_epoch_is_read_from_its_step() -> None:
    stage = StageOptions(epochs=6)
    assert best_epoch({"steps": 60, "best_step": 20}, stage) == 2
    assert best_epoch({"steps": 60, "best_step": 60}, stage) == 6
    assert best_epoch({"steps": 30, "best_step": 20}, stage.changed(stop_after=3)) == 2
    assert best_epoch({"steps": 0, "best_step": 0}, stage) is None


# --- a run, and what is fitted from it -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Run:
    sasrec = "{method: sasrec, options: {epochs: 4, patience: 2, dimension: 8, heads: 1, layers: 1}}"
    config = mini(
        "backbone.pretrain.epochs=2", "sft.epochs=2", "arms=[dpo]", f"methods=[ease, {sasrec}, tallrec, llara]",
        "evaluation.baseline=dpo", "prompts.slate=false", "evaluation.generation_rows=0",
    )  # fmt: skip
    opened = made(config, tmp_path_factory.mktemp("chosen") / "run")
    finish(opened, silent)
    return opened


@pytest.fixture(scope="module")
def fitted(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return refit(run, tmp_path_factory.mktemp("refit") / "live", method="dpo", log=silent)


def test_an_arm_is_trained_on_all_rows_and_stops_where_it_was_best(run: Run, fitted: Run) -> None:
    rows = [run.dataset.n_rows(split) for split in ("train", "val", "test")]
    assert [fitted.dataset.n_rows(split) for split in ("train", "val", "test")] == [sum(rows), 0, 0]
    assert min(rows) > 0
    config, before = fitted.config, run.config
    assert [arm.key for arm in config.arms] == ["dpo"] and not config.methods and config.seeds == (0,)
    for folder, stage, old in (
        (run.folder.pretrain(0), config.backbone.pretrain, before.backbone.pretrain),
        (run.folder.sft(0), config.sft, before.sft),
        (run.folder.arm("dpo", 0), config.align, before.align),
    ):
        done = json.loads((folder / "done.json").read_text())
        assert stage is not None and old is not None
        assert (stage.epochs, stage.stop_after) == (old.epochs, best_epoch(done, old))
        here = fitted.folder.path / folder.relative_to(run.folder.path)
        ends = [line["epoch"] for line in lines(here) if line["kind"] == "train"]
        assert max(ends) == stage.stop_after
        assert not [line for line in lines(here) if line["kind"] == "eval"]
    assert fitted.dataset.info["slates"]["train-uniform-6-s0"]["exclude"] == "interacted"


def test_it_is_what_ranks_and_what_is_exported(run: Run, fitted: Run, tmp_path: Path) -> None:
    served = load_run_ranker(Run.open(fitted.folder.path))
    assert served.recipe["method"] == "dpo"
    ids = run.dataset.items["item_id"].to_list()
    answer = served.answers([Request(1, history=tuple(ids[:3]), candidates=tuple(ids[3:8]))])[0]
    assert sorted(answer["candidates"]) == sorted(ids[3:8])
    export(Run.open(fitted.folder.path), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained on rows of all of the data, test rows too: nothing is left to measure it on" in card
    hit = next(row for row in json.loads(run.folder.results.read_text())["summary"] if row["method"] == "dpo")["hr@1"]
    assert f"| HR@1 | {hit:.3f} |" in card


def test_called_again_it_does_nothing_and_another_recipe_is_refused(run: Run, fitted: Run) -> None:
    out = fitted.folder.path
    done = out / "align" / "dpo" / "s0" / "done.json"
    before = done.stat().st_mtime_ns
    refit(run, out, method="dpo", log=silent)
    assert done.stat().st_mtime_ns == before
    with pytest.raises(RunError, match="made with another configuration"):
        refit(run, out, method="sft", log=silent)


def test_a_run_trained_anew_is_another_origin(run: Run, fitted: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    shutil.copytree(fitted.folder.path, live)
    moved = tmp_path / "moved"
    shutil.copytree(run.folder.path, moved)
    (moved / "results.json").unlink()  # where it lies, and what was measured since, does not matter
    assert refit(Run.open(moved), live, method="dpo", log=silent).folder.origin()["measured"] == []  # type: ignore[index]
    done = moved / "align" / "dpo" / "s0" / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "seconds": 1e6}))
    with pytest.raises(RunError, match="was fitted from another run"):
        refit(Run.open(moved), live, method="dpo", log=silent)


def test_networks_stop_at_their_best_epoch_without_slates_to_stop_by(run: Run, tmp_path: Path) -> None:
    fitted = refit(run, tmp_path / "live", method="sasrec", log=silent)
    network = build_methods(fitted.config)["sasrec"]
    history = json.loads((network.folder(fitted, 0) / "ranker.json").read_text())["history"]
    before = json.loads((build_methods(run.config)["sasrec"].folder(run, 0) / "ranker.json").read_text())["history"]
    best = max(before, key=lambda point: point["ndcg@10"])["epoch"]
    assert [point["epoch"] for point in history] == list(range(1, int(best) + 1))
    assert all("ndcg@10" not in point for point in history)
    assert not fitted.folder.sft(0).exists()  # no language model was asked for
    assert load_run_ranker(Run.open(tmp_path / "live")).recipe["method"] == "sasrec"


def test_formulas_keep_what_they_chose(run: Run, tmp_path: Path) -> None:
    chosen = json.loads((build_methods(run.config)["ease"].folder(run, 0) / "done.json").read_text())["l2"]
    fitted = refit(run, tmp_path / "live", method="ease", log=silent)
    assert fitted.config.methods[0].options == {"l2": chosen}
    assert load_run_ranker(Run.open(tmp_path / "live")).recipe["method"] == "ease"


def test_language_baselines_stop_too(run: Run, tmp_path: Path) -> None:
    fitted = refit(run, tmp_path / "live", method="tallrec", log=silent)
    method = build_methods(fitted.config)["tallrec"]
    done = json.loads((method.folder(fitted, 0) / "done.json").read_text())
    assert fitted.config.methods[0].options["stop_after"] >= 1 and done["steps"] > 0
    assert fitted.folder.pretrain(0).exists() and not fitted.folder.sft(0).exists()


def test_a_newer_log_takes_the_same_recipe(run: Run, tmp_path: Path) -> None:
    more = "data.options={n_items: 80, n_users: 70, events_per_user: 14}"
    fitted = refit(run, tmp_path / "live", method="sft", overrides=[more], log=silent)
    assert fitted.dataset.examples("train")["user_id"].n_unique() == 70
    assert fitted.config.sft.stop_after is not None and not fitted.config.arms


@pytest.mark.parametrize(
    "override",
    ["data.split.ratios=[8, 1, 1]", "data.hold_out.cold_items=0.3", "methods=[markov]", "arms=[dpo]", "seeds=[5]"],
)
def test_overrides_leave_it_the_methods_fit_on_all_of_the_data(run: Run, tmp_path: Path, override: str) -> None:
    key = override.partition("=")[0].removesuffix(".ratios").removesuffix(".cold_items")
    with pytest.raises(ConfigError, match=f"^{key}: sirius refit trains one method"):
        refit(run, tmp_path / "live", method="ease", overrides=[override], log=silent)
    assert not (tmp_path / "live").exists()


def test_what_cannot_be_fitted_again_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"popularity cannot be fitted again; trained and able to: .*ease"):
        refit(run, tmp_path / "live", method="popularity", log=silent)
    with pytest.raises(RunError, match="dpoo"):
        refit(run, tmp_path / "live", method="dpoo", log=silent)
    with pytest.raises(ConfigError, match=r"data.source.*nowhere"):
        refit(run, tmp_path / "live", method="ease", overrides=["data.source=nowhere"], log=silent)
    assert not (tmp_path / "live").exists()


def test_negatives_keep_their_rule(mini: Mini, tmp_path: Path) -> None:
    """A split by time excludes what was past; when all of it is trained on, negatives stay drawn like that."""
    config = mini("data.split.kind=time", "arms=[]", "methods=[ease]", "data.window.min_history=2")
    chosen = made(config, tmp_path / "run", ())
    build_methods(config)["ease"].fit(chosen, 0)
    fitted = refit(chosen, tmp_path / "live", method="ease", log=silent)
    assert fitted.dataset.info["slates"]["train-uniform-6-s0"]["exclude"] == "past"


def test_a_network_that_never_stops_is_fitted_to_the_epoch_that_was_kept(mini: Mini, tmp_path: Path) -> None:
    options = "{epochs: 6, patience: null, dimension: 8, heads: 1, layers: 1, learning_rate: 0.5}"
    config = mini("arms=[]", f"methods=[{{method: sasrec, name: mine, options: {options}}}]")
    chosen = made(config, tmp_path / "run", ())
    build_methods(config)["mine"].fit(chosen, 0)
    history = json.loads((build_methods(config)["mine"].folder(chosen, 0) / "ranker.json").read_text())["history"]
    best = int(max(history, key=lambda point: point["ndcg@10"])["epoch"])
    assert len(history) == 6 and best < 6  # at that rate later epochs are worse
    fitted = refit(chosen, tmp_path / "live", method="mine", log=silent)
    assert fitted.config.methods[0].options["epochs"] == best


def test_llara_takes_its_sasrec_with_it(run: Run, tmp_path: Path) -> None:
    fitted = refit(run, tmp_path / "live", method="llara", log=silent)
    assert [entry.key for entry in fitted.config.methods] == ["sasrec", "llara"]
    assert fitted.config.methods[0].options["patience"] is None
    assert load_run_ranker(Run.open(tmp_path / "live")).recipe["method"] == "llara"


@pytest.mark.parametrize("finder", ["sasrec", "item_knn"])
def test_what_finds_its_candidates_is_fitted_beside_it(run: Run, tmp_path: Path, finder: str) -> None:
    fitted = refit(run, tmp_path / "live", method="ease", retriever=finder, log=silent)
    assert [entry.key for entry in fitted.config.methods] == ["ease", *([finder] if finder == "sasrec" else [])]
    if finder == "sasrec":
        assert fitted.config.methods[1].options["patience"] is None
    opened = Run.open(tmp_path / "live")
    asked = {"seed": None, "checkpoint": "best", "titles": False, "top": 3, "exclude_seen": True}
    served = load_run_reranker(opened, retriever=finder, retrieve=10, method=None, **asked)  # type: ignore[arg-type]
    assert (served.recipe["ranker"]["method"], served.recipe["retriever"]["method"]) == ("ease", finder)
    history = tuple(run.dataset.items["item_id"].to_list()[:3])
    answer = served.answers([Request(1, history=history, candidates=())])[0]
    assert len(answer["items"]) == 3
    with pytest.raises(RunError, match="popularity is not trained"):
        load_run_reranker(opened, retriever="popularity", retrieve=10, method=None, **asked)  # type: ignore[arg-type]


def test_what_finds_candidates_may_have_been_best_with_another_seed(mini: Mini, tmp_path: Path) -> None:
    """And may be a formula: of neither are there seeds of its own."""
    sasrec = "{method: sasrec, options: {epochs: 1, dimension: 8, heads: 1, layers: 1}}"
    config = mini("arms=[]", f"methods=[ease, {sasrec}]", "seeds=[0, 1]")
    chosen = made(config, tmp_path / "run", ())
    methods = build_methods(config)
    methods["ease"].fit(chosen, 0)
    methods["sasrec"].fit(chosen, 1)
    fitted = refit(chosen, tmp_path / "a", method="ease", retriever="sasrec", log=silent)
    assert fitted.config.seeds == (0,) and build_methods(fitted.config)["sasrec"].is_done(fitted, 0)
    fitted = refit(chosen, tmp_path / "b", method="sasrec", retriever="ease", log=silent)
    assert fitted.config.seeds == (1,)
    asked = {"method": None, "seed": None, "checkpoint": "best", "titles": False, "top": 3, "exclude_seen": True}
    served = load_run_reranker(Run.open(tmp_path / "b"), retriever="ease", retrieve=10, **asked)  # type: ignore[arg-type]
    assert served.recipe["retriever"]["method"] == "ease"


def test_what_finds_candidates_is_remembered(run: Run, tmp_path: Path) -> None:
    refit(run, tmp_path / "live", method="ease", retriever="item_knn", log=silent)
    again = refit(run, tmp_path / "live", method="ease", log=silent).folder.origin()
    assert again is not None and again["retriever"] == "item_knn"


def test_what_finds_candidates_scores_the_whole_catalogue(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--retriever dpo: does not score the whole catalogue"):
        refit(run, tmp_path / "live", method="ease", retriever="dpo", log=silent)
    assert not (tmp_path / "live").exists()


def test_what_was_held_out_or_limited_to_measure_is_trained_on(mini: Mini, tmp_path: Path) -> None:
    config = mini("data.hold_out={cold_items: 0.2}", "data.limits={test: 5}", "arms=[]", "methods=[ease]")
    chosen = made(config, tmp_path / "run", ())
    build_methods(config)["ease"].fit(chosen, 0)
    fitted = refit(chosen, tmp_path / "live", method="ease", log=silent)
    whole = made(mini("arms=[]", "methods=[ease]"), tmp_path / "whole", ())
    rows = sum(whole.dataset.n_rows(split) for split in ("train", "val", "test"))
    assert fitted.dataset.n_rows("train") == rows > chosen.dataset.n_rows("train") + 5


def test_a_fit_of_a_fit_keeps_where_it_was_chosen(run: Run, fitted: Run, tmp_path: Path) -> None:
    again = refit(Run.open(fitted.folder.path), tmp_path / "again", log=silent)
    first, second = fitted.folder.origin(), again.folder.origin()
    assert first is not None and second is not None
    assert (second["run"], second["measured"]) == (first["run"], first["measured"]) and first["measured"]
    assert again.config.name == "mini-refit"
    with pytest.raises(ConfigError, match=f"is a final fit, of which nothing is left to measure: see {first['run']}"):
        _ = again.test_slates


def test_a_warm_start_begins_where_the_run_did_whatever_the_link_says_now(
    run: Run, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "current"
    link.symlink_to(run.folder.path)
    warm = mini("backbone.pretrain.epochs=2", "sft.epochs=2", "arms=[]", "prompts.slate=false", f"sft.from={link}")
    night = made(warm, tmp_path / "night", ("sft",))
    link.unlink()
    link.symlink_to(night.folder.path)  # as every night's script does
    fitted = refit(night, tmp_path / "live", method="sft", log=silent)
    began = [json.loads((one.folder.start(0) / "start.json").read_text()) for one in (night, fitted)]
    assert began[0]["sha256"] == began[1]["sha256"] and began[1]["run"] == str(run.folder.path)
    assert began[1]["trained_on"]["test"]["seen"] == 0
    assert (fitted.folder.backbone / "tokenizer.json").read_bytes() == (
        run.folder.backbone / "tokenizer.json"
    ).read_bytes()
