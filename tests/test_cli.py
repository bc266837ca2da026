"""The command line: help with examples, and for bad input one line on stderr, exit code 2, nothing half written."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sirius_rec import cli
from sirius_rec.recipes.configuration import load_config

MINI = Path(__file__).resolve().parent / "mini.yaml"
COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Sirius = Callable[..., Outcome]


@pytest.fixture
def sirius(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sirius:
    """sirius("run", …) → exit code, stdout and stderr of the command, run in this process."""

    def call(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sirius", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return call


@pytest.fixture
def refused(sirius: Sirius) -> Callable[..., str]:
    """The one line on stderr of a command that ends with exit code 2, without `sirius: `."""

    def call(*arguments: Any) -> str:
        outcome = sirius(*arguments)
        assert outcome.code == 2, outcome.err
        *progress, last = outcome.err.splitlines()
        assert last.startswith("sirius: ") and not any("Traceback" in line for line in progress), outcome.err
        return last.removeprefix("sirius: ")

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole miniature run. Copy it before changing anything."""
    from sirius_rec.recipes.adoption import open_run
    from sirius_rec.recipes.run import Run
    from sirius_rec.recipes.story import STAGES, finish, run_stages

    config = load_config(MINI, ["evaluation.generation_rows=0"])
    run = Run(open_run(tmp_path_factory.mktemp("cli") / "run", config), config)
    run_stages(run, STAGES, lambda line: None)
    finish(run, lambda line: None)
    return run.folder.path


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


# errors while a run is under way


def test_a_context_too_small_is_said_before_training(refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("run", MINI, "backbone.tiny.context=12", "--out", tmp_path / "run")
    assert re.fullmatch(
        r"slates test-uniform-6-s0: (\d+) of \1 prompts with their longest candidate exceed the context of 12 tokens "
        r"\(longest: \d+\): shorten histories or slates, or lengthen the context",
        said,
    ), said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def before_alignment(finished: Path, tmp_path: Path) -> Callable[..., Path]:
    """copy("align.x=1", …) → a run of those overrides that stands where alignment begins."""

    def copy(*overrides: str) -> Path:
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        for made in ("align", "scores"):
            shutil.rmtree(run / made)
        for made in ("results.json", "report.html", "diagnostics.json"):
            (run / made).unlink()
        config = load_config(MINI, ["evaluation.generation_rows=0", *overrides])
        (run / "config.yaml").write_text(config.to_yaml())
        return run

    return copy


DIVERGES = ["evaluation.generation_rows=0", "align.learning_rate=1e12", "align.warmup=0", "align.save_steps=1"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_divergence(refused: Callable[..., str], before_alignment: Callable[..., Path], jobs: int) -> None:
    """NaN in training, in this process or in a worker: the step, the way out, and what was saved stays."""
    run = before_alignment(*DIVERGES[1:])
    said = refused("run", MINI, *DIVERGES, f"compute.jobs={jobs}", "--out", run)
    assert re.search(r"after step \d+", said), said
    assert "lower the learning rate" in said
    assert (run / "sft" / "s0" / "done.json").is_file()
    assert not list(run.glob("align/*/s0/done.json")) and not (run / "results.json").exists()


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sirius_rec.recipes.story.run_stages", broken)
    monkeypatch.setattr(sys, "argv", ["sirius", "run", str(MINI), "--out", str(tmp_path / "run")])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "sirius: stopped; start the same command again to go on\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            2,
            "sirius: /data/x: No space left on device: mend that and start the same command again; what was finished "
            "is kept\n",
        ),
    ],
)
def test_faults_of_the_place(
    monkeypatch: pytest.MonkeyPatch, sirius: Sirius, tmp_path: Path, raised: BaseException, code: int, message: str
) -> None:
    def stop(*arguments: Any) -> None:
        raise raised

    monkeypatch.setattr("sirius_rec.recipes.story.run_stages", stop)
    outcome = sirius("run", MINI, "--out", tmp_path / "run")
    assert (outcome.code, outcome.err) == (code, message)


def test_as_a_command() -> None:
    """The installed module itself, in a process of its own; help needs no framework."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sirius_rec.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Commands:" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert imported & {"torch", "polars", "transformers", "matplotlib"} == set()


def test_the_code_of_the_page_on_extending_runs(sirius: Sirius, finished: Path, tmp_path: Path) -> None:
    """Every block as it stands, on a run of the name that the page gives it; its method then stands in the results."""
    from sirius_rec.data.sources import SOURCES

    (tmp_path / "runs").mkdir()
    shutil.copytree(finished, tmp_path / "runs" / "mine")
    page = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for block in blocks:
            exec(compile(block, "docs/extending.md", "exec", dont_inherit=True), {})
        (tmp_path / "shop").mkdir()
        options = ["data.options={shop: south}", "data.window={min_history: 1}", "data.slates=[{size: 2}]"]
        outcome = sirius("prepare", "--source", "my_shop", "--input", "shop", *options, "--out", "none")
        assert outcome.code == 2 and "use a smaller size" in outcome.err, outcome.err  # two items are one slate
    finally:
        os.chdir(here)
        SOURCES.pop("my_shop", None)
    assert sirius("evaluate", tmp_path / "runs" / "mine").code == 0
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert "Nearest id" in {row["label"] for row in results["summary"]}
    assert ("nearest", "softmax_dpo") in {(test["method"], test["against"]) for test in results["paired"]}


# what is missing, and where it is said


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("torch", "train", ["run", MINI]),
        ("torch", "train", ["evaluate", "FINISHED"]),
        ("torch", "train", ["bench", "step"]),
        ("matplotlib", "report", ["theory"]),
        ("matplotlib", "report", ["report", "FINISHED"]),
    ],
)
def test_a_missing_extra_is_one_line_before_any_work(
    refused: Callable[..., str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    package: str, extra: str, arguments: list[Any],
) -> None:  # fmt: skip
    without(monkeypatch, package)
    out = ["--out", tmp_path / "run"] if arguments[0] == "run" else []
    said = refused(*[finished if part == "FINISHED" else part for part in arguments], *out)
    assert said == f"this needs {package}: pip install 'sirius-rec[{extra}]'"
    assert not (tmp_path / "run").exists()


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package were not installed."""
    from sirius_rec import extras

    def load(name: str) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return importlib.import_module(name)

    monkeypatch.setattr(extras, "import_module", load)


def test_a_run_without_the_packages_of_the_report_ends_with_its_table(
    sirius: Sirius, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "matplotlib")
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    outcome = sirius("run", MINI, "evaluation.generation_rows=0", "--out", tmp_path / "run")
    assert outcome.code == 0 and "DPO + SIRIUS" in outcome.out
    assert "no report: this needs matplotlib: pip install 'sirius-rec[report]'" in outcome.err
    assert "report:  " not in outcome.out and not (tmp_path / "run" / "report.html").exists()


def test_a_log_that_is_not_utf8_gets_the_whole_table(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sirius_rec", "theory", "--points", "1000", "--out", str(tmp_path / "t")],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert b"Example 1" in done.stdout and b"figure5.png" in done.stdout and b"?" in done.stdout


def test_version(sirius: Sirius) -> None:
    from sirius_rec import __version__

    assert sirius("--version").out == f"sirius-rec {__version__}\n"


def test_the_audit_of_a_run_is_that_of_its_data(sirius: Sirius, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    outcome = sirius("audit", tmp_path / "run")
    assert outcome.code == 0 and f"auditing the data of this run: {tmp_path / 'run' / 'data'}" in outcome.err


def test_a_split_without_test_rows_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("run", MINI, "data.split.ratios=[9, 1, 0]", "--out", tmp_path / "run")
    assert said.startswith("data.split: kind user leaves the test split without rows (users of train, val, test: ")
    assert "use leave_last_out or time, or other ratios" in said and not (tmp_path / "run").exists()


def test_options_of_plain_models_are_refused_for_runs(
    refused: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text("")
    said = refused("rank", "--model", finished, "--input", tmp_path / "q.jsonl", "--out", tmp_path / "a", "--chat")
    assert said.startswith("--chat: is for plain models;")


def test_a_run_folder_is_no_configuration(refused: Callable[..., str], finished: Path) -> None:
    assert "is a run folder: give its configuration" in refused("run", finished)


def test_the_packaged_demo_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sirius_rec.commands.common import load

    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(Path("demo"), None).name == "demo"
