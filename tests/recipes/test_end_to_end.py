"""The real command: a whole run, and that one killed in mid-alignment ends with the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.data.store import open_dataset
from sirius_rec.diagnostics.slates import hits
from sirius_rec.errors import SiriusError
from sirius_rec.evaluation.results import read_results
from sirius_rec.evaluation.tables import read_tables
from sirius_rec.recipes.diagnosis import SAME_ROWS, diagnose_run
from sirius_rec.recipes.methods.closed_form import TRIVIAL
from sirius_rec.recipes.run import Run
from sirius_rec.training.checkpoints import mark_complete
from sirius_rec.training.held_out import read_held_out
from sirius_rec.training.metrics_log import read_metrics

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"
Here = Callable[..., tuple[Any, str]]
TRIVIAL_KEYS = [method.name for method in TRIVIAL]
ARMS = ("dpo_sirius", "softmax_dpo")


def command(out: Path, *overrides: str, stage: str = "run") -> list[str]:
    return [sys.executable, "-m", "sirius_rec.cli", stage, str(MINI), *overrides, "--out", str(out)]


def complaints(err: str) -> str:
    """What standard error holds beside progress: our own last line, warnings, tracebacks."""
    words = ("sirius: ", "Warning", "Traceback", "Error")
    return "".join(f"{line}\n" for line in err.splitlines() if any(word in line for word in words))


def kill_in_alignment(
    out: Path, *overrides: str, stage: str = "run", sent: int = signal.SIGKILL
) -> tuple[Path, int, str]:
    """Start a run, send a signal once an alignment has a whole checkpoint; the arm's folder, exit code, stderr."""
    process = subprocess.Popen(
        command(out, *overrides, stage=stage), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 600
    try:
        while time.monotonic() < deadline and process.poll() is None:
            for marker in out.glob("align/*/s0/checkpoints/checkpoint-*/complete.json"):
                process.send_signal(sent)
                _, said = process.communicate(timeout=600)
                return marker.parents[2], process.returncode, complaints(said)
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    pytest.fail("the run ended before it could be killed in mid-alignment")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """The command in this process, which has imported torch already: exit code and stderr."""

    def call(out: Path, *overrides: str, stage: str = "run") -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["sirius", *command(out, *overrides, stage=stage)[3:]])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, complaints(capfd.readouterr().err)

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(command(out), capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, complaints(done.stderr)) == (0, ""), done.stderr
    assert "results: " in done.stdout and "DPO + SIRIUS" in done.stdout
    return out


def test_the_run_folder(whole: Path) -> None:
    names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    slates = "test-uniform-6-s0"
    wanted = {"config.yaml", "environment.json", "results.json", "diagnostics.json", "report.html", "reference/s0.npz"}
    wanted |= {"data/items.parquet", "data/examples.parquet", "data/dataset.json", f"data/slates/{slates}.parquet"}
    wanted |= {f"scores/{method}-s0-{slates}-best.parquet" for method in ("sft", *ARMS, *TRIVIAL_KEYS)}
    wanted |= {f"generation/{method}-s0-{slates}-best.json" for method in ("sft", *ARMS)}
    for stage in ("pretrain", "sft", *(f"align/{arm}" for arm in ARMS)):
        wanted |= {f"{stage}/s0/{file}" for file in ("metrics.jsonl", "done.json", "best/config.json")}
    assert wanted - names == set()
    assert not [name for name in names if "checkpoint-" in name or "tmp" in name or "partial" in name]
    evaluated = [line for line in read_metrics(whole / "align/dpo_sirius/s0/metrics.jsonl") if line["kind"] == "eval"]
    held_out = read_held_out(whole / "align/dpo_sirius/s0/held_out")
    assert [snapshot.step for snapshot in held_out] == [line["step"] for line in evaluated]
    for snapshot, line in zip(held_out, evaluated, strict=True):
        assert np.mean([row[0] > row[1:].max() for row in snapshot.logp_R]) == pytest.approx(line["hr@1"])
    assert any(name.startswith("figures/") and name.endswith(".svg") for name in names)


def test_results(whole: Path) -> None:
    results = read_results(whole / "results.json")
    rows = open_dataset(whole / "data").examples("test").height
    assert {(row["method"], row["n"]) for row in results["summary"]} == {
        (m, rows) for m in ("sft", *ARMS, *TRIVIAL_KEYS)
    }
    for row in results["rows"]:
        assert 0 <= row["hr@1_low"] <= row["hr@1"] <= row["hr@1_high"] <= 1
        assert row["n_generated"] == (None if row["method"] in TRIVIAL_KEYS else 20)
    # the tables hold what results.json says: HR@1 of SFT by hand, no ties among floats
    table = next(t for t in read_tables(whole / "scores") if t.method == "sft")
    targets = open_dataset(whole / "data").examples("test")["target"].to_list()
    tops = [
        slate[max(range(len(slate)), key=scores.__getitem__)]
        for slate, scores in zip(table.frame["candidates"].to_list(), table.frame["scores"].to_list(), strict=True)
    ]
    hits = sum(top == target for top, target in zip(tops, targets, strict=True)) / rows
    sft = next(row for row in results["summary"] if row["method"] == "sft")
    assert sft["hr@1"] == pytest.approx(hits)
    assert {test["method"] for test in results["paired"]} == {"sft", "dpo_sirius"}
    assert [point["epoch"] for point in results["curves"]["dpo_sirius"]["0"]] == [0, 1, 2]


def test_diagnosis(whole: Path, tmp_path: Path) -> None:
    """Onset, golden fit, influence probe and CSV of a run; and the same evidence of one arm's folder alone."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    found = json.loads((run / "diagnostics.json").read_text())
    aligned = {"dpo_sirius", "softmax_dpo"}
    assert set(found["onset"]) == set(found["golden_fit"]) == aligned
    assert found["onset"]["dpo_sirius"]["all"]["looks"] == 3
    assert "2 points" in found["golden_fit"]["dpo_sirius"]["failed"]
    opened = Run.open(run)
    others = ~opened.selecting
    hits_TR = np.stack([hits(s.logp_R)[others] for s in read_held_out(run / "align/dpo_sirius/s0/held_out")])
    assert found["onset"]["dpo_sirius"]["all"]["fall"] == pytest.approx(
        hits_TR[:-1].mean(axis=1).max() - hits_TR[-1].mean()
    )
    command = ["diagnose", str(run), "--influence", "6", "--csv", str(tmp_path / "c.csv")]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    assert "of what Eq. 10 predicts" in " ".join(result.output.split()) and "onset" in result.output
    probed = json.loads((run / "diagnostics.json").read_text())["influence"]
    # 6 candidates: one positive, one sampled, four unsampled
    assert {name: (entry["examples"], entry["n"]) for name, entry in probed.items()} == dict.fromkeys(aligned, (6, 24))
    # a later diagnosis keeps the probes of trainings that are still those
    done = run / "align/softmax_dpo/s0/done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "steps": 1}))
    assert CliRunner().invoke(cli.app, ["diagnose", str(run)]).exit_code == 0
    assert json.loads((run / "diagnostics.json").read_text())["influence"] == {"dpo_sirius": probed["dpo_sirius"]}
    # a margin that no loss trains is not tested
    results = read_results(run / "results.json")
    untrained = {**results["methods"], "softmax_dpo": {**results["methods"]["softmax_dpo"], "comparison": "none"}}
    (run / "results.json").write_text(json.dumps({**results, "methods": untrained}))
    assert set(diagnose_run(opened)["onset"]) == {"dpo_sirius"}
    # SFT of an earlier version was chosen on all rows: the start of alignment is flattered and left out
    sft = json.loads((run / "sft/s0/done.json").read_text())
    (run / "sft/s0/done.json").write_text(json.dumps({k: v for k, v in sft.items() if k != "best_by"}))
    old = diagnose_run(opened)
    assert old["onset"]["dpo_sirius"]["all"]["looks"] == 2 and SAME_ROWS in old["notes"]
    assert SAME_ROWS not in found["notes"]
    curves = read_results(run / "results.json")["curves"]
    assert (tmp_path / "c.csv").read_text().count("\n") == 1 + sum(len(p) for s in curves.values() for p in s.values())
    start = curves["dpo_sirius"]["0"][0]
    assert start["kl"] == start["logp_drift"] == 0.0 < curves["dpo_sirius"]["0"][-1]["kl"]
    assert all(0 <= point["top_popularity"] <= 1 for point in curves["softmax_dpo"]["0"])

    alone = CliRunner().invoke(
        cli.app, ["diagnose", str(run / "align/dpo_sirius/s0"), "--json", str(tmp_path / "a.json")]
    )
    assert alone.exit_code == 0, alone.output
    assert json.loads((tmp_path / "a.json").read_text())["onset"]["s0"]["all"]["looks"] == 3


def test_what_cannot_be_diagnosed(whole: Path, tmp_path: Path) -> None:
    def complaint(folder: Path) -> str:
        with pytest.raises(SiriusError) as raised:
            CliRunner().invoke(cli.app, ["diagnose", str(folder)], catch_exceptions=False)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "not a run folder" in complaint(tmp_path)
    log = tmp_path / "s0"
    shutil.copytree(whole / "align/dpo_sirius/s0", log)
    lines = (log / "metrics.jsonl").read_text().splitlines()
    evaluations = [n for n, line in enumerate(lines) if '"eval"' in line]
    (log / "metrics.jsonl").write_text("\n".join(lines[: evaluations[1]]) + "\n")
    assert "different evaluations" in complaint(log)
    for step in ("14", "28"):
        (log / f"held_out/step-{step}.npz").unlink(missing_ok=True)
    assert "one epoch only" in complaint(log)
    spoilt = lines.copy()
    spoilt[evaluations[1]] = re.sub(r'"reward_margin": [^,}]*', '"reward_margin": NaN', spoilt[evaluations[1]])
    shutil.copytree(whole / "align/dpo_sirius/s0/held_out", log / "held_out", dirs_exist_ok=True)
    (log / "metrics.jsonl").write_text("\n".join(spoilt) + "\n")
    assert "reward_margin is not a number at epoch 1" in complaint(log)
    shutil.rmtree(log / "held_out")
    assert "no held-out log-probs" in complaint(log)


def test_a_finished_run_started_again_changes_nothing(whole: Path, here: Here) -> None:
    before = (whole / "results.json").read_bytes()
    trained = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    assert here(whole) == (0, "")
    assert (whole / "results.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")} == trained


@pytest.mark.slow
def test_killed_then_damaged_then_resumed(whole: Path, tmp_path: Path, here: Here) -> None:
    """SIGKILL in mid-alignment; a truncated checkpoint is one line; without it the run goes on to the same bytes."""
    out = tmp_path / "run"
    arm, _, _ = kill_in_alignment(out)
    assert not (arm / "done.json").exists() and not (out / "results.json").exists()
    marked = sorted(
        (marker.parent for marker in arm.glob("checkpoints/*/complete.json")),
        key=lambda checkpoint: int(checkpoint.name.removeprefix("checkpoint-")),
    )
    weights = marked[-1] / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    code, errors = here(out)
    assert code == 2
    assert re.fullmatch(rf"sirius: {marked[-1]}: checkpoint is damaged, model\.safetensors has .*\n", errors)
    assert "delete this folder" in errors
    for file in marked[-1].iterdir():
        file.unlink()
    marked[-1].rmdir()
    assert here(out) == (0, "")
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def before_alignment(whole: Path, out: Path) -> Path:
    """A copy of the whole run up to the alignment, to save its time."""
    shutil.copytree(whole, out)
    for made in ("align", "scores", "generation"):
        shutil.rmtree(out / made)
    (out / "results.json").unlink()
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "jobs"), [("run", 1), ("align", 2)])
def test_sigterm_saves_and_is_not_done(whole: Path, tmp_path: Path, here: Here, stage: str, jobs: int) -> None:
    """A batch system's SIGTERM: exit code 143, so that nothing behind && starts; one line, no step lost; in the end
    the same weights, log and results."""
    out = before_alignment(whole, tmp_path / "run")
    override = f"compute.jobs={jobs}"
    arm, code, said = kill_in_alignment(out, override, stage=stage, sent=signal.SIGTERM)
    assert code == 143, said
    assert re.fullmatch(r"sirius: stopped by SIGTERM.*; resumable: start the same command again to go on\n", said)
    assert not (arm / "done.json").exists() and not (out / "results.json").exists()
    lines = read_metrics(arm / "metrics.jsonl")
    newest = max(int(path.name.removeprefix("checkpoint-")) for path in arm.glob("checkpoints/checkpoint-*"))
    assert newest == max(line["step"] for line in lines), "a step was done that no checkpoint holds"
    saved = json.loads((arm / f"checkpoints/checkpoint-{newest}/trainer_state.json").read_text())
    spent = saved["stateful_callbacks"]["Clock"]["attributes"]["seconds"]
    # As if that part had taken an hour: what the finished training took must contain it.
    saved["stateful_callbacks"]["Clock"]["attributes"]["seconds"] = 3600.0
    rewrite_in_checkpoint(arm / f"checkpoints/checkpoint-{newest}", saved)
    assert here(out, override, stage=stage) == (0, "")
    if stage == "run":
        assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert_same_alignment(out, whole)
    assert 0 < spent < 3600
    assert 3600 < json.loads((arm / "done.json").read_text())["seconds"] < 7200


def rewrite_in_checkpoint(checkpoint: Path, state: dict[str, Any]) -> None:
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    mark_complete(checkpoint)


def assert_same_alignment(run: Path, other: Path) -> None:
    """Every arm's weights and held-out log-probs byte by byte, and its log but for the rates."""
    files = [
        p for p in (other / "align").rglob("*") if p.suffix in (".safetensors", ".npz") or p.name == "metrics.jsonl"
    ]
    assert len(files) > 3 * len(ARMS)
    for path in files:
        again = run / path.relative_to(other)
        if path.name == "metrics.jsonl":
            assert without_rates(again) == without_rates(path)
        else:
            assert again.read_bytes() == path.read_bytes(), path


def without_rates(log: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in read_metrics(log)]


@pytest.mark.slow
def test_killed_with_workers_then_resumed(whole: Path, tmp_path: Path, here: Here) -> None:
    """Killed with two trainings side by side, gone on with one: their number changes nothing that comes out."""
    out = before_alignment(whole, tmp_path / "run")
    arm, _, _ = kill_in_alignment(out, "compute.jobs=2", stage="align")
    newest = max(int(path.name.removeprefix("checkpoint-")) for path in arm.glob("checkpoints/checkpoint-*"))
    assert here(out, "compute.jobs=1", stage="align") == (0, "")
    assert_same_alignment(out, whole)
    held_out = [read_held_out(folder / arm.relative_to(out) / "held_out") for folder in (out, whole)]
    assert len(held_out[0]) == 3
    for ours, theirs in zip(*held_out, strict=True):
        assert ours.step == theirs.step and all(map(np.array_equal, ours.logp_R, theirs.logp_R))
    assert newest > 0 and json.loads((arm / "done.json").read_text())["steps"] > newest
    # What is evaluated in another process, on other cores, comes out the same too.
    evaluated = CliRunner().invoke(cli.app, ["evaluate", str(out)])
    assert evaluated.exit_code == 0, evaluated.output
    assert (out / "results.json").read_bytes() == (whole / "results.json").read_bytes()
