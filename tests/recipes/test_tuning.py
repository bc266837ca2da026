"""`sirius tune`: equal budgets, what is chosen, fresh seeds; gone on with after a kill; trials that fail or are cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import Config
from sirius_rec.config_sections import Range
from sirius_rec.errors import ConfigError, RunError, TrainingError
from sirius_rec.recipes.configuration import parse_config
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.methods.arms import Arm
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.training.metrics_log import read_metrics

optuna = pytest.importorskip("optuna")

from sirius_rec.recipes.tuning import study as studies  # noqa: E402
from sirius_rec.recipes.tuning import tuning  # noqa: E402
from sirius_rec.recipes.tuning.spaces import BETAS, GAMMAS, spaces  # noqa: E402

RAW: dict[str, Any] = {
    "name": "tuned",
    "seeds": [0],
    "data": {
        "source": "simulated", "options": {"n_items": 80, "n_users": 60, "events_per_user": 14},
        "window": {"max_history": 5, "min_history": 5}, "slates": [{"size": 6}],
    },
    "backbone": {
        "tiny": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "vocab_size": 300},
        "pretrain": {"epochs": 1, "batch_size": 32, "learning_rate": 3.0e-3},
    },
    "sft": {"epochs": 1, "batch_size": 32, "learning_rate": 1.0e-3},
    "align": {"epochs": 2, "batch_size": 32, "learning_rate": 1.0e-3, "examples_per_epoch": 128},
    "arms": ["sft_continued", "dpo"],
    "methods": ["markov", "ease", {"method": "sasrec", "seeds": [0, 1], "options": {"epochs": 2, "dimension": 8}}],
    "evaluation": {"generation_rows": 0, "baseline": "sft_continued"},
    "compute": {"device": "cpu", "threads": 1},
    "tune": {"trials": 3, "seeds": [7]},
}  # fmt: skip


def config(**changes: Any) -> Config:
    return parse_config({**RAW, **changes}, "x")


def test_a_fusion_is_not_tuned_and_said_so_before_any_trial(tmp_path: Path) -> None:
    fusion = {"method": "fusion", "name": "both", "options": {"of": ["item_knn", "sasrec"]}}
    with pytest.raises(ConfigError, match=r"methods \(both\): .*add it to OUT/winners") as caught:
        tuning.tune(config(methods=[*RAW["methods"], fusion]), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("tune")
    (folder / "c.yaml").write_text(json.dumps(RAW))
    arguments = ["tune", str(folder / "c.yaml"), "--out", str(folder / "out"), "--json", str(folder / "t.json")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder, result.output


def with_trials(tuned: tuple[Path, str], out: Path) -> Path:
    """A folder of a tuning whose trials lie there and are known to no study."""
    shutil.copytree(tuned[0] / "out" / "trials", out / "trials")
    return out


def test_all_have_the_same_budget_and_the_best_is_chosen(tuned: tuple[Path, str]) -> None:
    content = json.loads((tuned[0] / "out" / "tune.json").read_text())
    methods = content["methods"]
    assert set(methods) == {"sft_continued", "dpo", "markov", "ease", "sasrec"}
    for key, one in methods.items():
        done = one["complete"] + one["pruned"] + one["failed"]
        assert done == len(one["all"]) == (1 if key == "markov" else 3), key
        assert one["validation"] == max(v["value"] for v in one["all"] if v["state"] == "COMPLETE")
        assert one["validation"] >= (one["configured"] or 0)
    assert methods["dpo"]["all"][0]["beta"] == 1 and methods["dpo"]["all"][0]["learning_rate"] == 1e-3
    assert set(methods["sft_continued"]["values"]) == {"learning_rate"}
    assert set(methods["sasrec"]["values"]) == {"learning_rate", "weight_decay", "dropout"}
    assert methods["markov"]["values"] == {}
    # EASE chooses by itself as configured, which no value of its space says: tried first all the same
    assert set(methods["ease"]["all"][0]) == {"value", "state"} and set(methods["ease"]["all"][1]) == {
        "value",
        "state",
        "l2",
    }
    assert methods["ease"]["configured"] == methods["ease"]["all"][0]["value"]
    # a formula has no seed: what was promised is what was found
    assert methods["ease"]["fresh_validation"] == pytest.approx(methods["ease"]["validation"])
    assert methods["dpo"]["fresh_validation"] is not None


def test_winners_are_trained_with_fresh_seeds_and_the_chosen_values(tuned: tuple[Path, str]) -> None:
    folder, output = tuned
    methods = json.loads((folder / "out" / "tune.json").read_text())["methods"]
    winners = Run.open(folder / "out" / "winners")
    assert winners.config.seeds == (7,)
    dpo = next(arm for arm in winners.config.arms if arm.key == "dpo")
    chosen = methods["dpo"]["values"]  # rounded to ten digits
    assert (dpo.beta, dpo.learning_rate) == pytest.approx((chosen["beta"], chosen["learning_rate"]), rel=1e-9)
    ease = next(entry for entry in winners.config.methods if entry.key == "ease")
    assert ease.options == pytest.approx(methods["ease"]["values"], rel=1e-9)
    comparison = json.loads((folder / "out" / "winners" / "comparison.json").read_text())
    rows = {row["method"]: row for row in comparison["summary"]}
    assert methods["dpo"]["test_hr@1"] == rows["dpo"]["hr@1"] and rows["dpo"]["seeds"] == [7]
    assert "3 trials each by hr@1 on validation, 1 fresh seeds" in output and "winners:" in output


def test_trials_leave_logs_and_no_weights(tuned: tuple[Path, str]) -> None:
    align = tuned[0] / "out" / "trials" / "align"
    folders = sorted(path.name for path in align.iterdir())
    assert folders == [f"{key}.t{n:03d}" for key in ("dpo", "sft_continued") for n in range(3)]
    assert not list(align.rglob("*.safetensors"))
    assert all((align / name / "s0" / "metrics.jsonl").is_file() for name in folders)


def test_a_finished_tuning_does_nothing_again(tuned: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Arm, run: Run, seed: int) -> None:
        assert self.is_done(run, seed), "trained again"

    monkeypatch.setattr(Arm, "fit", never)
    before = (tuned[0] / "out" / "tune.json").read_bytes()
    tuning.tune(config(), tuned[0] / "out")
    assert (tuned[0] / "out" / "tune.json").read_bytes() == before


def test_a_killed_trial_is_gone_on_with_and_a_diverged_one_is_counted(
    tuned: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = with_trials(tuned, tmp_path / "out")
    shutil.rmtree(out / "trials" / "align")
    fit, begun = Arm.fit, []

    def faulty(self: Arm, run: Run, seed: int) -> None:
        begun.append((self.key, self.arm.beta, self.arm.learning_rate))
        if len(begun) == 2:
            raise KeyboardInterrupt
        if self.key.endswith("t002"):
            raise TrainingError("NaN or infinite loss after step 3")
        fit(self, run, seed)

    monkeypatch.setattr(Arm, "fit", faulty)
    with pytest.raises(KeyboardInterrupt):
        studies.tune_one(str(out), "dpo")
    studies.tune_one(str(out), "dpo")
    assert [key for key, _, _ in begun] == ["dpo.t000", "dpo.t001", "dpo.t001", "dpo.t002"]
    assert begun[1] == begun[2]  # with the same values
    study = studies.open_study(out, config(), "dpo")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]


def test_a_stopped_tuning_tries_what_an_unstopped_one_does(
    tuned: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in every trial, and a budget that is raised later, change no values, and none are tried twice."""
    values: dict[str, list[Any]] = {}
    stop: set[str] = set()

    def worth(run: Run, entry: Any, key: str, trial: Any, tried: dict[str, Any]) -> float:
        if (name := f"{key}.t{trial.number}") in stop:
            stop.remove(name)
            raise KeyboardInterrupt
        values[where].append(tuple(tried.values()))
        return float(tried["learning_rate"])

    monkeypatch.setattr(studies, "_worth", worth)
    for where in ("at once", "stopped", "raised"):
        values[where], out = [], with_trials(tuned, tmp_path / where)
        run = Run.open(out / "trials")
        for trials in (4, 8) if where == "raised" else (8,):
            run.folder.write_config(run.config.changed(tune={**RAW["tune"], "trials": trials}))
            stop |= {f"sasrec.t{n}" for n in range(8)} if where == "stopped" else set()
            while len(values[where]) < trials:
                try:
                    studies.tune_one(str(out), "sasrec")
                except KeyboardInterrupt:
                    continue
    assert values["at once"] == values["stopped"] == values["raised"]
    assert len(set(values["at once"])) == 8


def test_a_failure_that_is_no_verdict_on_the_values_leaves_the_trial_to_go_on_from(
    tuned: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, Ctrl-C: what was trained is neither lost nor thrown away while it is called done."""
    out = with_trials(tuned, tmp_path / "out")
    shutil.rmtree(out / "trials" / "methods")
    measured, fails = studies.measured, ["now"]

    def full(*args: Any) -> float:
        if fails:
            raise OSError(28, fails.pop())
        return measured(*args)

    monkeypatch.setattr(studies, "measured", full)
    with pytest.raises(OSError, match="now"):
        studies.tune_one(str(out), "sasrec")
    trained = out / "trials" / "methods" / "sasrec.t000" / "s0"
    [weights] = trained.glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(studies, "_without_weights", lambda folder: None)
    studies.tune_one(str(out), "sasrec")
    assert weights.stat().st_mtime_ns == before
    assert [t.state.name for t in studies.open_study(out, config(), "sasrec").trials] == ["COMPLETE"] * 3


def test_a_file_is_no_folder_of_a_tuning(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(RunError, match="cannot be a folder of a tuning"):
        tuning.tune(config(), tmp_path / "out")


def test_two_tunings_in_one_folder(tmp_path: Path) -> None:
    """The second would go on with the first one's trials, as if these had been killed."""
    out = tmp_path / "out"
    out.mkdir()
    with RunFolder(out).lock(), pytest.raises(RunError, match="another process is working in this run folder"):
        tuning.tune(config(), out)


def test_one_trial_is_no_median(tmp_path: Path) -> None:
    study = studies.open_study(tmp_path, config(), "dpo")
    for number in range(4):
        trial = study.ask()
        for epoch in (1, 2, 3) if number == 0 else (1, 2):
            trial.report(0.5, epoch)
        study.tell(trial, 0.5)
    at_two, at_three = study.ask(), study.ask()
    at_two.report(0.1, 2)
    assert at_two.should_prune()
    at_three.report(0.1, 3)  # where one other was
    assert not at_three.should_prune()


def test_a_trial_below_the_median_is_pruned(
    tuned: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = with_trials(tuned, tmp_path / "out")
    run = Run.open(out / "trials")
    run.folder.write_config(run.config.changed(tune={**RAW["tune"], "trials": 6}))
    monkeypatch.setattr(studies, "_UNPRUNED", 2)
    watched: list[Any] = []

    def fit(self: Arm, opened: Run, seed: int) -> None:
        """Four evaluations; from the third trial on all of them are poor."""
        poor = int(self.key[-3:]) >= 2
        folder = self.folder(opened, seed)
        folder.mkdir(parents=True, exist_ok=True)
        for step in range(5):
            watched.append((self.key, step))
            assert opened.watch is not None
            opened.watch(step, {"hr@1": 0.1 if poor else 0.5})
        line = {"kind": "eval", "step": 4, "hr@1": 0.5}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "done.json").write_text(json.dumps({"best_step": 4}))

    monkeypatch.setattr(Arm, "fit", fit)
    shutil.rmtree(out / "trials" / "align")
    studies.tune_one(str(out), "dpo")
    study = studies.open_study(out, config(), "dpo")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2 + ["PRUNED"] * 4
    assert max(step for key, step in watched if key == "dpo.t002") < 4


def test_the_usual_spaces() -> None:
    found = spaces(config(arms=["sft_continued", "dpo", "dpo_nll", "simpo_no_ln", "simpo_no_ln_sirius"]))
    assert list(found["sft_continued"]) == ["learning_rate"]
    assert found["dpo"] == {"learning_rate": Range(low=2.5e-4, high=4e-3, log=True), "beta": BETAS}
    assert set(found["dpo_nll"]) == {"learning_rate", "beta", "nll_weight"}
    assert found["simpo_no_ln_sirius"]["gamma"] == GAMMAS == found["simpo_no_ln"]["gamma"]
    assert found["markov"] == {}
    decays = spaces(
        config(
            methods=[
                "sasrec",
                {"method": "sasrec", "name": "paper", "preset": "paper"},
                {"method": "sasrec", "name": "adam", "options": {"decoupled": False}},
            ]
        )
    )
    assert decays["sasrec"]["weight_decay"] == Range(low=1e-4, high=1.0, log=True)
    assert decays["paper"]["weight_decay"] == (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
    assert decays["adam"]["weight_decay"] == Range(low=1e-7, high=1e-3, log=True)


def test_fresh_seeds_are_measured_as_trials_are(tuned: tuple[Path, str]) -> None:
    run = Run.open(tuned[0] / "out" / "winners")
    run.config = run.config.changed(tune={**RAW["tune"], "metric": "ndcg@10"})
    method = build_methods(run.config)["dpo"]
    logged = read_metrics(method.folder(run, 7) / "metrics.jsonl")
    best = method.done(run, 7)["best_step"]
    (point,) = [line for line in logged if line["kind"] == "eval" and line["step"] == best]
    assert studies.measured(run, method, 7) == point["ndcg@10"] != point["hr@1"]


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"spaces": {"dpoo": {"beta": [1]}}}, "no arm or method is called 'dpoo'"),
        ({"spaces": {"dpo": {"temperature": [1]}}}, "tune.spaces.dpo.temperature: arms have no option"),
        ({"spaces": {"dpo": {"gamma": [0.4, 0.6]}}}, "tune.spaces.dpo.gamma: gamma belongs to the SimPO family"),
        ({"spaces": {"ease": {"l3": [1.0]}}}, "tune.spaces.ease.l3: unknown option 'l3' of ease"),
        ({"spaces": {"dpo": {"beta": []}}}, "tune.spaces.dpo.beta: has no values"),
        ({"seeds": [0, 1]}, "seed 0 is the one that trials are chosen with"),
        ({"seeds": []}, "give one seed or more"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(tune: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tuning.tune(config(tune=tune), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_fresh_seeds_have_nothing_to_begin_at(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft\.from: fresh seeds have no twins in the other run"):
        tuning.tune(config(sft={**RAW["sft"], "from": str(tmp_path)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"trials": 0}, "tune.trials"),
        ({"spaces": {"dpo": {"beta": {"low": 2, "high": 1}}}}, "low 2 is not below high 1"),
        ({"spaces": {"dpo": {"beta": {"low": 0, "high": 1, "log": True}}}}, "only numbers above 0"),
        ({"metric": "hr@5"}, "tune.metric"),
    ],
)
def test_a_section_that_cannot_be_is_refused(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tune=tune)


def test_tuning_may_change_in_a_run_folder(mini: Callable[..., Config], tmp_path: Path) -> None:
    from sirius_rec.recipes.adoption import open_run

    open_run(tmp_path / "run", mini())
    open_run(tmp_path / "run", mini("tune.trials=20"))


def test_trials_of_another_objective_are_not_added(tuned: tuple[Path, str], tmp_path: Path) -> None:
    """What is tuned may differ between trials; a preset or its code may not."""
    shutil.copytree(tuned[0] / "out", tmp_path / "out")
    studies.tune_one(str(tmp_path / "out"), "dpo")  # nothing is left to do
    file = next((tmp_path / "out" / "trials" / "align").glob("dpo.t001/s0/objective.json"))
    file.write_text(file.read_text().replace('"pairwise"', '"softmax"'))
    with pytest.raises(RunError, match=r"dpo\.t001/s0: trained with another objective \(comparison: then 'softmax'"):
        studies.tune_one(str(tmp_path / "out"), "dpo")
