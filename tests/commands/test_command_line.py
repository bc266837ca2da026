"""The command line: help with examples, and for bad input one line on stderr, exit code 2, nothing half written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirius_rec import cli

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"
COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
Sirius = Callable[..., Any]


# help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(sirius: Sirius, command: str) -> None:
    outcome = sirius(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Example: sirius {command}" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_sirius_alone_shows_the_commands(sirius: Sirius) -> None:
    for outcome in (sirius(), sirius("--help")):
        assert outcome.code == 0
        assert set(COMMANDS) <= set(outcome.out.split())


def test_under_a_launcher_only_what_processes_do_together(
    sirius: Sirius, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["rank", "--model", "m", "--input", "i", "--out", "o"], ["prepare", str(MINI), "--out", "o"]):
        said = refused(*command)
        assert said.startswith(f"sirius {command[0]}: is one process, which 2 of a launcher would do side by side")
    assert "no such file" in refused("run", str(tmp_path / "none.yaml")).lower()


def test_wrong_command_lines(refused: Callable[..., str]) -> None:
    assert refused("runn").startswith("No such command 'runn'.")
    assert refused("run").startswith("Missing argument 'CONFIG'. See `sirius run --help`.")
    assert refused("run", "demo", "--oout", "x").startswith("No such option: --oout")


# bad configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such.yaml"], r"no_such\.yaml: cannot read the configuration \(No such file or directory\)"),
        ([MINI, "sft.epoch=3"], r".*mini\.yaml: unknown key 'sft\.epoch', did you mean 'sft\.epochs'\?"),
        ([MINI, "sft.epochs"], r"override 'sft\.epochs': write it as key=value, for example align\.epochs=3"),
        ([MINI, "align.beta=0"], r".*align\.beta: must be greater than 0, got 0"),
        ([MINI, "data.source=tabel"], r".*data\.source: no source is called 'tabel', did you mean 'table'\?"),
        ([MINI, "data.source=table"], r"source 'table' needs an input; name its file or folder"),
        ([MINI, "data.options={genres: 3}"], r"source 'simulated' has no option 'genres'; it has .*"),
    ],
)
@pytest.mark.parametrize("command", ["run", "sft"])
def test_bad_configurations_leave_nothing(
    refused: Callable[..., str], tmp_path: Path, command: str, arguments: list[Any], message: str
) -> None:
    assert re.fullmatch(message, refused(command, *arguments, "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_unknown_key_in_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("algin: {epochs: 3}\n")
    assert refused("run", file, "--out", tmp_path / "run") == f"{file}: unknown key 'algin', did you mean 'align'?"


def test_a_json_file_that_cannot_be_written_is_said_first(refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("run", MINI, "--out", tmp_path / "run", "--json", tmp_path / "no" / "x.json")
    assert said.endswith(f"the folder {tmp_path / 'no'} does not exist: make it first")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["run", MINI], ["prepare", MINI]])
def test_a_json_that_is_a_folder_is_said_first(refused: Callable[..., str], tmp_path: Path, command: list[Any]) -> None:
    said = refused(*command, "--out", tmp_path / "out", "--json", tmp_path)
    assert said == f"--json {tmp_path}: is a folder: name a file in it, for example {tmp_path / 'outcome.json'}"
    assert not list(tmp_path.iterdir())


# bad data


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("user_id,item_id\n1,a\n", r".*events\.csv.*timestamp.*"),
        (
            "user_id,item_id,timestamp\n1,a,5\n1,b,yesterday\n",
            r".*events\.csv, line 3: timestamp does not parse: 'yesterday'; give .*",
        ),
    ],
)
def test_bad_tables(refused: Callable[..., str], tmp_path: Path, events: str, message: str) -> None:
    (tmp_path / "events.csv").write_text(events)
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    said = refused("prepare", "--source", "table", "--input", tmp_path / "events.csv", "--out", tmp_path / "data")
    assert re.fullmatch(message, said), said
    said = refused(
        "run", MINI, "data.options={}", "data.source=table", f"data.input={tmp_path / 'events.csv'}",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert re.fullmatch(message, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv", "items.csv"]


def test_a_missing_input(refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("prepare", "--source", "windows", "--input", tmp_path / "no.jsonl", "--out", tmp_path / "data")
    assert "no.jsonl" in said
    assert not list(tmp_path.iterdir())


# prepare


def test_prepare_by_configuration(sirius: Sirius, tmp_path: Path) -> None:
    outcome = sirius(
        "prepare", MINI, "data.slates=[{size: 4, seed: 3}]", "--out", tmp_path / "data", "--json", tmp_path / "i.json"
    )
    assert outcome.code == 0 and "sirius:" not in outcome.err
    assert (tmp_path / "data" / "slates" / "train-uniform-4-s3.parquet").is_file()
    info = json.loads((tmp_path / "i.json").read_text())
    assert info["recipe"]["options"]["n_users"] == 60
    assert "test-uniform-4-s3" in info["slates"]


def test_prepare_by_source(sirius: Sirius, tmp_path: Path) -> None:
    """Two users, windows of two: overrides reach the data section; a folder whose name looks like YAML is a name."""
    folder = tmp_path / "12: x"
    folder.mkdir()
    rows = [f"{user},{item},{100 * user + at}" for user in range(20) for at, item in enumerate("abcdefgh")]
    (folder / "events.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{i},T {i}\n" for i in "abcdefghijkl"))
    window, slates = "data.window={max_history: 2, min_history: 2}", "data.slates=[{size: 3}]"
    outcome = sirius(
        "prepare", window, slates, "--source", "table", "--input", folder / "events.csv", "--out", tmp_path / "data"
    )
    assert outcome.code == 0 and "sirius:" not in outcome.err
    info = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert sum(info["statistics"]["rows"].values()) == 20 * 6
    assert set(info["slates"]) == {f"{split}-uniform-3-s0" for split in ("train", "val", "test")}


def test_prepare_needs_one_of_both(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("prepare", "--out", tmp_path / "d") == "prepare: give either a CONFIG or --source (with --input)"
    assert refused("prepare", MINI, "--source", "table", "--out", "d").startswith("prepare: give either")
    assert refused("prepare", MINI) == "prepare: say where to write with --out DATA"
    assert "--input goes with --source" in refused("prepare", MINI, "--input", tmp_path, "--out", "d")


# run folders


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "report"])
def test_no_run_folder(refused: Callable[..., str], tmp_path: Path, command: str) -> None:
    said = refused(command, tmp_path)
    assert said == f"{tmp_path}: not a run folder (no config.yaml): make one with `sirius run CONFIG`"
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_configuration(refused: Callable[..., str], finished: Path) -> None:
    before = (finished / "config.yaml").read_bytes()
    said = refused("run", MINI, "sft.epochs=2", "--out", finished)
    assert "made with another configuration (" in said and said.endswith("choose another --out")
    assert (finished / "config.yaml").read_bytes() == before


def test_evaluate_diagnose_report(sirius: Sirius, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    results = (run / "results.json").read_bytes()
    for name in ("results.json", "report.html", "diagnostics.json"):
        (run / name).unlink()
    outcome = sirius("evaluate", run, "--json", tmp_path / "r.json")
    assert outcome.code == 0 and " done in " in outcome.err and " done in " not in outcome.out
    assert "Item-kNN (directed)" in outcome.out and "DPO + SIRIUS" in outcome.out
    assert (run / "results.json").read_bytes() == results
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(results)
    facts = json.loads(results)["methods"]
    assert facts["sft"]["role"] == "sft" and facts["dpo_sirius"]["comparison"] == "pairwise"
    outcome = sirius("diagnose", run)
    assert outcome.code == 0 and "HR@1 first / peak / last" in outcome.out
    diagnostics = json.loads((run / "diagnostics.json").read_text())["methods"]
    trained = {method: entry["margin_trained"] for method, entry in diagnostics.items()}
    assert trained == {"sft": False, "dpo_sirius": True, "softmax_dpo": True}
    assert sirius("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "Audit of the slates: " in page and 'id="explorer-data"' in page
    (run / "data" / "audit.json").unlink()
    assert sirius("report", run).code == 0
    assert f"sirius audit {run / 'data'}" in (run / "report.html").read_text()
    assert (run / "figures" / "golden_softmax_dpo.png").is_file() and (run / "figures" / "figure2.svg").is_file()


def test_evaluate_measures_something_else(
    sirius: Sirius, refused: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before, page = (run / "config.yaml").read_bytes(), (run / "report.html").read_text()
    said = refused("evaluate", run, "sft.epochs=2")
    assert said.startswith("sft.epochs=2: sirius evaluate trains nothing: only evaluation and compute may be changed")
    assert "validation_rows: saved None, now 9)" in refused("evaluate", run, "evaluation.validation_rows=9")
    assert "no test slates 'test-uniform-7-s0'; there are" in refused(
        "evaluate", run, "evaluation.slates=[test-uniform-7-s0]"
    )
    assert "evaluation.slates: names none" in refused("evaluate", run, "evaluation.slates=[]")
    assert (run / "config.yaml").read_bytes() == before
    outcome = sirius("evaluate", run, "evaluation.generation_rows=3", "evaluation.test_rows={test-uniform-6-s0: 9}")
    assert (
        outcome.code == 0 and f"{run}: evaluation.test_rows: saved None, now {{'test-uniform-6-s0': 9}}" in outcome.err
    )
    results = json.loads((run / "results.json").read_text())
    assert {row["n"] for row in results["rows"]} == {9}
    assert {entry["method"] for entry in results["rows"] if entry.get("valid_ratio") is not None} >= {
        "sft",
        "dpo_sirius",
    }
    remade = (run / "report.html").read_text()
    assert f"{results['summary'][0]['hr@1']:.3f}" in remade != page, "a report of before would not say what it is of"
    assert sirius("evaluate", run).code == 0  # the folder keeps it
    assert json.loads((run / "results.json").read_text())["rows"] == results["rows"]


def test_results_of_another_evaluation_are_not_passed_off(
    sirius: Sirius, refused: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    """An evaluation that was stopped has left its configuration, and the results of the one before."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"generation_rows: \d+", "generation_rows: 7", text))
    said = refused("report", run)
    assert said.startswith(f"{run / 'results.json'}: was made with evaluation.generation_rows ")
    assert said.endswith(f", and config.yaml has 7: run `sirius evaluate {run}`")
    assert refused("paper", run, "--table", "1") == said
    assert sirius("export", run, "--method", "sft", "--out", tmp_path / "model").code == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Not evaluated as the run is configured now" in card and "ndcg@10" not in card.lower()


def test_report_against_another_baseline(
    sirius: Sirius, refused: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    said = refused("report", finished, "--baseline", "ppo", "--out", tmp_path / "r.html")
    assert said.startswith("--baseline 'ppo' was not scored: choose one of dpo_sirius, item_knn, ")
    assert sirius("report", finished, "--baseline", "item_knn", "--out", tmp_path / "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "Paired tests, HR@1, against Item-kNN (cosine)" in page
    # one seed of a trained method gets no verdict here either
    assert not re.search(r">(better|worse)<", page) and re.search(r"on these seeds only|no clear difference", page)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_report_of_several_runs(sirius: Sirius, refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    assert "name the page with --out FILE" in refused("report", finished, other)
    assert refused("report", finished, "--out", tmp_path).startswith(f"--out {tmp_path}: is a folder")
    assert sirius("report", finished, other, "--out", tmp_path / "both.html").code == 0
    assert "HR@1, run" in (page := (tmp_path / "both.html").read_text()) and "HR@1, other" in page
    results = json.loads((other / "results.json").read_text())
    results["data"]["slates"]["test-uniform-6-s0"]["fingerprint"] = "0" * 64
    (other / "results.json").write_text(json.dumps(results))
    said = refused("report", finished, other, "--out", tmp_path / "no.html")
    assert said.startswith("report: run and other are over different slates (test-uniform-6-s0 is ")
    (other / "results.json").unlink()
    assert refused("report", other) == f"{other / 'results.json'}: no such file; run `sirius evaluate` first"
    assert not (tmp_path / "no.html").exists()


@pytest.mark.parametrize(
    ("lost", "method", "command"),
    [
        (["sft/s0/done.json", "align/dpo_sirius/s0"], "sft", "sft"),
        (["align/dpo_sirius/s0"], "dpo_sirius", "align"),
        (["align/softmax_dpo/s0/done.json"], "softmax_dpo", "align"),
    ],
)
def test_evaluate_trains_nothing(
    sirius: Sirius,
    refused: Callable[..., str],
    finished: Path,
    tmp_path: Path,
    lost: list[str],
    method: str,
    command: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in lost:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    results = (run / "results.json").read_bytes()
    said = refused("evaluate", run)
    way = f"sirius {command} {run / 'config.yaml'} --out {run}"
    assert said == f"{run}: {method} of seed 0 is not trained yet: train it with `{way}`"
    assert not any((run / name / "done.json").exists() or (run / name).is_file() for name in lost)
    assert (run / "results.json").read_bytes() == results
    if command == "align":  # the named command does it
        assert sirius(*way.split()[1:]).code == 0
        assert sirius("evaluate", run).code == 0
