"""What goes wrong while commands run, and what is missing: one line on stderr, exit code 2, nothing half written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirius_rec import cli
from sirius_rec.recipes import story
from sirius_rec.recipes.configuration import load_config

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"
Sirius = Callable[..., Any]


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


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
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
            "sirius: /data/x: No space left on device: fix that and start the same command again; what was finished "
            "is kept\n",
        ),
        (
            MemoryError(),
            2,
            "sirius: out of memory: have less done at once, or use a larger machine; what was finished is kept\n",
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
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished, tmp_path / "runs" / "mine")
    page = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for block in blocks:
            exec(compile(block, "docs/extending.md", "exec", dont_inherit=True), {})
    finally:
        os.chdir(here)
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
    monkeypatch.setitem(sys.modules, package, None)


def test_a_broken_package_of_the_report_costs_the_report_alone(
    sirius: Sirius, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Any) -> None:
        raise ImportError("numpy.core.multiarray failed to import")

    monkeypatch.setattr(story, "report_run", broken)
    shutil.copytree(finished, tmp_path / "run")
    outcome = sirius("run", MINI, "evaluation.generation_rows=0", "--out", tmp_path / "run")
    assert outcome.code == 0 and "DPO + SIRIUS" in outcome.out
    assert "no report: numpy.core.multiarray failed to import" in outcome.err


def test_a_run_without_the_packages_of_the_report_ends_with_its_table(
    sirius: Sirius, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "matplotlib")
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    outcome = sirius("run", MINI, "evaluation.generation_rows=0", "--out", tmp_path / "run")
    assert outcome.code == 0 and "DPO + SIRIUS" in outcome.out
    assert "no report: this needs matplotlib: pip install 'sirius-rec[report]'" in outcome.err
    assert "report: " not in outcome.out and not (tmp_path / "run" / "report.html").exists()


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
    assert said.startswith("--chat: for plain models alone;")
    of_files = ("--input", tmp_path / "q.jsonl", "--out", tmp_path / "a")
    plain = refused("rank", "--model", tmp_path, *of_files, "--method", "dpo", "--seed", 1)
    assert plain == f"--method, --seed: for run folders alone, and {tmp_path} is a plain model"
    assert refused("recommend", "--model", finished, *of_files, "--retrieve", 50).startswith("--retrieve: how many")
    assert refused("probe", "memory", finished, "--seed", 0, "--orders", 3).startswith("--seed, --orders: of `order`")
    nope = refused("rank", "--model", finished.parent / "nope", *of_files)
    assert nope == f"{finished.parent / 'nope'}: {finished.parent} holds no nope: name a run folder, or a model"
    table = refused("rank", "--model", finished, *of_files[:3], tmp_path / "a.parquet")
    assert table.endswith("a.parquet: answers are JSON lines: name it .jsonl")
    assert refused("bench", "step", "--plot", tmp_path / "x.png").startswith("--plot: for `sirius bench cost`")
    assert refused("paper", finished, "--figure", 2, "--format", "tex").startswith("--format: of a table")


def test_a_run_folder_is_no_configuration(refused: Callable[..., str], finished: Path) -> None:
    assert "is a run folder: give its configuration" in refused("run", finished)


def test_the_packaged_demo_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sirius_rec.commands.common import load

    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(Path("demo"), None).name == "demo"
