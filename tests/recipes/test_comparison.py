"""`sirius compare`: methods without a language model in the run's folder, slates and tables; resumable."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markupsafe import escape
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.audit.audit import read_audit
from sirius_rec.config import MethodSection
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.evaluation.metrics import per_example, target_positions
from sirius_rec.evaluation.results import read_results
from sirius_rec.rankers.linear import EASE, L2_STEPS
from sirius_rec.rankers.sequential.options import PRESETS
from sirius_rec.rankers.sequential.ranker import SequentialRanker
from sirius_rec.recipes.adoption import first_difference, open_run
from sirius_rec.recipes.comparison import _COSTS, compare, remeasure
from sirius_rec.recipes.configuration import load_config, parse_config
from sirius_rec.recipes.diagnosis import read_diagnostics
from sirius_rec.recipes.methods import METHODS, build_methods, closed_form, networks, reserved_keys
from sirius_rec.recipes.results import collect
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.scoring import check_trained
from sirius_rec.recipes.story import STAGES, audit_once, run_stages
from sirius_rec.report.answer import answer

TRIVIAL = [method.name for method in closed_form.TRIVIAL]

CONFIG = """
name: c
seeds: [0, 1]
data:
  source: simulated
  options: {n_items: 80, n_users: 60, events_per_user: 14}
  window: {max_history: 5, min_history: 5}
  slates: [{size: 6}, {size: 12, splits: [test]}]
arms: []
methods:
  - markov
  - recency
  - item_knn_shrunk
  - {method: ease, options: {l2: 7.0}}
  - {method: sasrec, options: {epochs: 2, dimension: 8, length: 5}}
  - {method: gru4rec, preset: paper, options: {epochs: 1}}
  - {method: caser, name: conv, options: {epochs: 1}}
  - {method: morec, options: {epochs: 1, dimension: 8, length: 5, negatives: 8}}
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "c.yaml").write_text(CONFIG)
    arguments = ["compare", str(folder / "c.yaml"), "--out", str(folder / "run"), "--json", str(folder / "t.json")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "run", json.loads((folder / "t.json").read_text()), result.output


def test_every_method_on_the_same_slates(compared: tuple[Path, dict[str, Any], str]) -> None:
    run, found, output = compared
    # as the table calls them, not their networks
    for name in ("morec s0", "gru4rec_paper s1  weight_decay 1e-07", "conv s0"):
        assert f"{name}  epoch 1  loss" in output
    chosen = json.loads((RunFolder(run).method("gru4rec_paper", 1) / "done.json").read_text())["weight_decay"]
    assert chosen in PRESETS["paper"]["gru4rec"].weight_decays
    assert not list(run.rglob("unfinished*"))
    seeded = {"sasrec": [0, 1], "gru4rec_paper": [0, 1], "conv": [0, 1], "morec": [0, 1]}
    once = {key: [0] for key in (*TRIVIAL, "markov", "recency", "item_knn_shrunk", "ease")}
    slates = {"test-uniform-6-s0", "test-uniform-12-s0"}
    made: dict[str, dict[str, list[int]]] = {}
    for row in found["rows"]:
        made.setdefault(row["slates"], {}).setdefault(row["method"], []).append(row["seed"])
        assert {"method", "seed", "slates", "hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "valid_ratio"} <= set(row)
    assert set(made) == slates and all(seeds == {**seeded, **once} for seeds in made.values())
    assert "EASE^R, l2=7" in output and "GRU4Rec, paper's settings, epochs=1" in output and "conv" in output
    sasrec = next(row for row in found["rows"] if row["method"] == "sasrec")
    assert sasrec["parameters"] == sasrec["trainable_parameters"] > 0 and sasrec["training_seconds"] > 0
    assert next(row for row in found["rows"] if row["method"] == "popularity")["parameters"] is None
    line = next(line for line in output.splitlines() if line.startswith("SASRec"))
    assert f"{sasrec['parameters'] / 1e3:.3g}k" in line.split()
    assert not (run / "sft").exists() and not (run / "backbone").exists()


def test_training_stops_by_validation_slates_alone(compared: tuple[Path, dict[str, Any], str]) -> None:
    run = Run.open(compared[0])
    dataset = run.dataset
    found = networks.validation(run)
    rows = dataset.examples("val")
    histories = [list(h) for h in rows["history"].to_list()]
    order = [histories.index(list(h)) for h in found.histories]
    assert sorted(order) == list(range(rows.height)) and rows.height > 3
    assert [int(c[t]) for c, t in zip(found.candidates, found.target, strict=True)] == rows["target"].gather(
        order
    ).to_list()
    slates = dataset.slates("val-uniform-6-s0")["candidates"].gather(order).to_list()
    assert [list(c) for c in found.candidates] == slates


def test_the_table_holds_what_the_ranker_scores(compared: tuple[Path, dict[str, Any], str]) -> None:
    run, found, _ = compared
    folder, dataset = RunFolder(run), Run.open(run).dataset
    histories, candidates = Run.open(run).slate_arrays("test-uniform-12-s0")
    targets = target_positions(candidates, dataset.examples("test")["target"].to_numpy())
    rankers = {
        ("ease", 0): EASE(7.0).fit(dataset.train_sequences(), dataset.n_items),
        ("sasrec", 1): SequentialRanker.load(folder.method("sasrec", 1)),
    }
    for (method, seed), ranker in rankers.items():
        hit = per_example(ranker.score(histories, candidates), targets)["hr@1"].to_numpy().mean()
        key = (method, seed, "test-uniform-12-s0")
        row = next(r for r in found["rows"] if (r["method"], r["seed"], r["slates"]) == key)
        assert row["hr@1"] == pytest.approx(hit)


def test_tests_are_against_the_strongest_baseline(compared: tuple[Path, dict[str, Any], str]) -> None:
    _, found, output = compared
    first = [row for row in found["summary"] if row["slates"] == "test-uniform-6-s0"]
    best = max(row["hr@1"] for row in first)
    assert next(row["hr@1"] for row in first if row["method"] == found["baseline"]) == best
    tested = [t for t in found["paired"] if t["slates"] == "test-uniform-6-s0"]
    assert {t["against"] for t in tested} == {found["baseline"]} and len(tested) >= 6
    assert any("chosen for its HR@1" in note for note in found["notes"]) and "p by Holm" in output


def test_a_folder_has_one_baseline(compared: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    """results.json, the page and a later evaluation test against what the comparison chose; none is configured."""
    run, found, _ = compared
    folder = RunFolder(Path(shutil.copytree(run, tmp_path / "run")))
    assert Run.open(run).config.evaluation.baseline is None

    def check() -> None:
        results = read_results(folder.results)
        assert (results["baseline"], results["paired"]) == (found["baseline"], found["paired"])
        assert sum("chosen for its HR@1" in note for note in results["notes"]) == 1

    check()
    label = found["methods"][found["baseline"]]["label"]
    assert f"Baseline of the paired tests: {label}." in (run / "report.html").read_text(encoding="utf-8")
    folder.results.unlink()
    collect(Run.open(folder.path))
    check()
    # one that cannot be read, or whose choice has no scores, did not choose
    choice = json.loads(folder.comparison.read_text())["chosen"]
    gone = {"chosen": {**choice, "baseline": "gone"}}
    for text in ("{", "[]", '{"chosen": null}', json.dumps(gone)):
        folder.comparison.write_text(text)
        assert collect(Run.open(folder.path))["baseline"] == "sft_continued"


def test_the_data_are_audited_once_and_the_answer_ends_the_output(
    compared: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    run, found, output = compared
    audit = read_audit(run / "data")
    assert audit is not None and output.count("audit of test-uniform-6-s0: ") == 1
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"Audit of the slates: {audit['verdict']}." in page
    sentences = answer(found, read_diagnostics(Run.open(run)))
    assert " ".join(sentences) in " ".join(output.split())
    assert all(str(escape(sentence)) in page for sentence in sentences)
    # what was audited is left alone; an audit that fails is said, and stops nothing
    copied = Run.open(Path(shutil.copytree(run, tmp_path / "run")))
    lines: list[str] = []
    audit_once(copied, lines.append)
    assert lines == []
    (copied.folder.data / "audit.json").unlink()
    shutil.rmtree(copied.folder.data / "slates")
    audit_once(copied, lines.append)
    assert len(lines) == 1 and lines[0].startswith("no audit: ")


def test_a_second_time_nothing_is_trained(compared: tuple[Path, dict[str, Any], str]) -> None:
    run, _, _ = compared
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.suffix in (".safetensors", ".parquet")}
    (run / "scores" / "sasrec-s1-test-uniform-12-s0-best.parquet").unlink()
    kept = (run / "comparison.json").read_bytes()
    result = CliRunner().invoke(cli.app, ["compare", str(run.parent / "c.yaml"), "--out", str(run)])
    assert result.exit_code == 0 and "epoch" not in result.output.split("done in")[0]
    assert (run / "comparison.json").read_bytes() == kept
    after = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.suffix in (".safetensors", ".parquet")}
    assert {p for p in before if after[p] != before[p]} == {
        run / "scores" / "sasrec-s1-test-uniform-12-s0-best.parquet"
    }


def test_ease_without_an_l2_takes_the_best_on_validation(
    compared: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 cost it 0.109 HR@1 on MovieLens. What was chosen is written down, and not chosen again."""
    config = Run.open(compared[0]).config.changed(methods=(MethodSection(method="ease", name="chosen"),))
    run = Run(RunFolder(compared[0]), config)
    held_out, sequences = networks.validation(run), run.dataset.train_sequences()
    quality = {}
    for l2 in L2_STEPS:
        scores = EASE(l2).fit(sequences, run.dataset.n_items).score(held_out.histories, held_out.candidates)
        quality[l2] = per_example(scores, held_out.target)["ndcg@10"].to_numpy().mean()
    build_methods(config)["chosen"].fit(run, 0)
    done = run.folder.method("chosen", 0) / "done.json"
    chosen = json.loads(done.read_text())["l2"]
    at = L2_STEPS.index(chosen)
    assert quality[chosen] == max(quality[l2] for l2 in L2_STEPS[max(at - 1, 0) : at + 2])
    assert quality[chosen] >= quality[300.0]
    monkeypatch.setattr(closed_form, "best_ease", None)
    assert build_methods(config)["chosen"].ranker(run, 0, "best").l2 == chosen
    shutil.rmtree(done.parent.parent)
    monkeypatch.setattr(Run, "validation_slates", None)  # nothing to choose on
    assert build_methods(config)["chosen"].ranker(run, 0, "best").l2 == 100.0


def test_evaluate_trains_nothing(compared: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    run, _, _ = compared
    folder = RunFolder(run)
    check_trained(Run.open(run))
    done = folder.method("conv", 1) / "done.json"
    done.rename(tmp_path / "done.json")
    with pytest.raises(RunError, match="conv of seed 1 is not trained yet"):
        check_trained(Run.open(run))
    (tmp_path / "done.json").rename(done)
    formula = folder.method("ease", 0) / "done.json"
    formula.rename(tmp_path / "done.json")
    check_trained(Run.open(run), formulas=False)  # `sirius sft`, `align` and `evaluate` compute none before
    with pytest.raises(RunError, match="ease of seed 0 is not trained yet"):
        check_trained(Run.open(run))
    (tmp_path / "done.json").rename(formula)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("[sasreq]", "no method is called 'sasreq', did you mean 'sasrec'"),
        ("[sasrec, sasrec]", "methods.1.name: 'sasrec' is taken"),
        ("[{method: ease, name: popularity}]", "methods.0.name: 'popularity' is taken"),
        ("[{method: ease, name: a/b}]", "letters, digits"),
        ("[{method: sasrec, options: {epoch: 3}}]", r"methods.0 \(sasrec\): unknown option 'epoch'"),
        ("[{method: sasrec, options: {loss: hinge}}]", "loss: must be 'full_softmax', .*, got 'hinge'"),
        ("[{method: ease, options: {l2: -1}}]", "l2: must be greater than 0, got -1"),
        ("[{method: ease, options: {l2: x}}]", "l2: must be a number, got 'x'"),
        ("[{method: item_knn_shrunk, options: {shrinkage: null}}]", "shrinkage: must be a number, got None"),
        ("[{method: sasrec, options: {epochs: ten}}]", "epochs: must be a whole number, got 'ten'"),
        ("[{method: sasrec, options: {network: gru4rec}}]", "unknown option 'network' of sasrec"),
        ("[{method: morec, options: {encoder: 5}}]", "encoder: must be text, got 5"),
        ("[{method: morec, options: {tune: 'no'}}]", "tune: must be true or false, got 'no'"),
        ("[{method: morec, options: {encoder_learning_rate: -1}}]", "encoder_learning_rate: must be greater than 0"),
        ("[{method: markov, preset: paper}]", "markov has no settings of the paper"),
        ("[{method: markov, options: {order: 2}}]", "unknown option 'order' of markov: it takes none"),
    ],
)
def test_wrong_methods_are_one_line(methods: str, message: str) -> None:
    import yaml

    raw = yaml.safe_load(CONFIG) | {"methods": yaml.safe_load(methods)}
    with pytest.raises(ConfigError, match=message):
        parse_config(raw, "c.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": ["sasrec", {"method": "morec", "options": {"encoder": "/no/such"}}]},
            "no such folder",
        ),
        (
            {"methods": ["sasrec"], "data": {"slates": [{"size": 6, "splits": ["train", "test"]}]}},
            "stop by val slates of",
        ),
        ({"methods": ["sasrec", "ease"]}, "ease: 80 items; its dense matrix is made for at most 50"),
        ({"methods": ["sasrec", "recency"]}, "recency: every train row needs its timestamp"),
    ],
)
def test_what_a_method_lacks_is_said_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    from sirius_rec.rankers import linear

    monkeypatch.setattr(linear, "EASE_ITEMS", 50)
    if "recency" in changes["methods"]:
        checked = linear.checked_times
        monkeypatch.setattr(closed_form, "checked_times", lambda times, rows: checked(np.full(rows, np.nan), rows))
    raw = yaml.safe_load(CONFIG)
    raw["data"] |= changes.pop("data", {})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw | changes))
    result = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")])
    assert result.exit_code != 0 and isinstance(result.exception, (ConfigError, DataError))
    assert message in str(result.exception) and "\n" not in str(result.exception)
    assert "epoch" not in result.output and not (tmp_path / "run" / "methods").exists()


def test_every_method_has_a_label() -> None:
    assert all(method.title for method in METHODS.values()) and not set(METHODS) & set(reserved_keys())


@pytest.mark.parametrize(
    ("arms", "methods", "always", "there"),
    [([], ["ease"], False, False), ([], ["ease"], True, True), ([], [], False, True), (["dpo"], ["ease"], False, True)],
)
def test_sft_stands_beside_methods_where_it_is_wanted(
    arms: list[str], methods: list[str], always: bool, there: bool
) -> None:
    fusion = [{"method": "fusion", "options": {"of": ["sft", "ease"]}}] if there and methods else []
    config = parse_config({"arms": arms, "methods": [*methods, *fusion], "sft": {"always": always}}, "c")
    assert ("sft" in build_methods(config)) == there
    assert (
        first_difference(RunFolder(Path("none")), config, config.changed(sft=config.sft.changed(always=True))) is None
    )


def test_own_seeds_are_for_networks_and_hold_the_runs() -> None:
    def problem(methods: dict[str, Any]) -> str:
        with pytest.raises(ConfigError) as caught:
            parse_config({"seeds": [0, 3], "arms": [], "methods": [methods]}, "c")
        return str(caught.value)

    rule = "may have seeds of their own, which must include the run's (0, 3)"
    assert f"methods.0.seeds: only gru4rec, caser, sasrec, morec, esasrec, hstu, sasrec_rectools {rule}" in problem(
        {"method": "ease", "seeds": [0, 3]}
    )
    assert rule in problem({"method": "sasrec", "seeds": [1, 2]})
    config = parse_config(
        {"seeds": [0], "arms": [], "methods": [{"method": "sasrec", "seeds": [0, 1, 2]}, "caser", "ease"]}, "c"
    )
    assert [build_methods(config)[m.key].seeds for m in config.methods] == [(0, 1, 2), (0,), (0,)]


def test_a_network_stopped_in_mid_training_goes_on(
    compared: tuple[Path, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared[0], run)
    folder = run / "methods" / "sasrec" / "s1"
    weights = (folder / "weights.safetensors").read_bytes()
    assert not (folder / "unfinished.pt").exists()
    shutil.rmtree(folder)
    said: list[str] = []

    def cut(line: str) -> None:
        said.append(line)
        if "sasrec s1  epoch 1 " in line:
            raise KeyboardInterrupt

    monkeypatch.setattr(networks, "log", cut)
    opened = Run.open(run)
    method = build_methods(opened.config)["sasrec"]
    for ended in (True, False):
        with pytest.raises(KeyboardInterrupt) if ended else nullcontext():
            method.fit(opened, 1)
        assert (folder / "unfinished.pt").exists() == ended
        monkeypatch.setattr(networks, "log", said.append)
    assert [line.split("epoch ")[1][0] for line in said] == ["1", "2"]
    assert (folder / "weights.safetensors").read_bytes() == weights


def test_the_chosen_baseline_yields_to_a_configured_one_and_to_other_slates(tmp_path: Path) -> None:
    """Its note names the slates that it was chosen on, whatever is measured now. A baseline that is configured counts,
    under `compare` too."""
    content = {
        "name": "chosen", "arms": [], "methods": ["ease", "markov"],
        "data": {"source": "simulated", "options": {"n_items": 80, "n_users": 40, "events_per_user": 12},
                 "window": {"max_history": 5, "min_history": 5},
                 "slates": [{"size": 6}, {"size": 9, "splits": ["test"]}]},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    config = load_config(tmp_path / "c.yaml")
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, STAGES, lambda line: None)
    chosen = compare(run)["baseline"]
    assert json.loads(run.folder.comparison.read_text())["chosen"] == {
        "baseline": chosen, "slates": run.test_slates[0],
    }  # fmt: skip

    def evaluated(**changes: Any) -> dict[str, Any]:
        now = Run(run.folder, config.changed(evaluation=config.evaluation.changed(**changes)))
        results = remeasure(now)
        written = json.loads(run.folder.comparison.read_text())
        without_costs = [{key: value for key, value in row.items() if key not in _COSTS} for row in written["rows"]]
        assert without_costs == json.loads(run.folder.results.read_text())["rows"]
        assert written["baseline"] == results["baseline"] and "curves" not in written
        return results

    first, other = run.test_slates
    results = evaluated(slates=(other,))
    assert results["baseline"] == chosen and {row["slates"] for row in results["rows"]} == {other}
    assert any(f"chosen for its HR@1 on {first}:" in note for note in results["notes"])
    configured = "markov" if chosen != "markov" else "popularity"
    results = evaluated(baseline=configured)
    assert results["baseline"] == configured and not any("chosen for its HR@1" in note for note in results["notes"])
    assert evaluated()["baseline"] == chosen, "as nothing is configured"
    again = Run(run.folder, config.changed(evaluation=config.evaluation.changed(baseline="ease")))
    results = compare(again)
    assert results["baseline"] == "ease" and not any("chosen for its HR@1" in note for note in results["notes"])
    assert evaluated()["baseline"] == "sft_continued", "nothing was chosen"
    unscored = Run(run.folder, config.changed(evaluation=config.evaluation.changed(baseline="dpo")))
    results = compare(unscored)
    assert results["baseline"] == chosen
    assert "No tests against dpo, which is configured: it was not scored." in results["notes"]
    # as older versions wrote it, which had one configured everywhere
    written = json.loads(run.folder.comparison.read_text())
    old = {"baseline": chosen, "slates": first, "configured": "sft_continued"}
    run.folder.comparison.write_text(json.dumps({**written, "chosen": old}))
    assert evaluated(baseline="sft_continued")["baseline"] == chosen
    assert evaluated(baseline="ease")["baseline"] == "ease"
    assert evaluated()["baseline"] == chosen
    # the same command with the configuration that an older version wrote
    run.folder.comparison.write_text(json.dumps({**written, "chosen": old}))
    dumped = Run(run.folder, config.changed(evaluation=config.evaluation.changed(baseline="sft_continued")))
    assert compare(dumped)["baseline"] == chosen
    for table in run.folder.scores.glob(f"{chosen}-s*{other}*"):
        table.unlink()
    assert evaluated(slates=(other,))["baseline"] == "sft_continued"
