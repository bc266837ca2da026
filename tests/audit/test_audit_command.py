"""`sirius audit` as people type it: exit codes, JSON, audit.json in a data folder, one line for a bad file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sirius_rec.audit.audit import read_audit
from sirius_rec.cli import main
from sirius_rec.data.options import SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.store import open_dataset
from sirius_rec.evaluation.tables import ScoreTable, write_table


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sirius", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 users of 14 events over 200 items, uniform and target-seeded slates."""
    here = tmp_path_factory.mktemp("audit")
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(300):
        chosen = rng.choice(200, 14, replace=False)
        lines += [f"u{user},{item},{1000 + 50 * k}" for k, item in enumerate(chosen)]
    (here / "interactions.csv").write_text("\n".join(lines) + "\n")
    (here / "items.csv").write_text("item_id,title\n" + "".join(f"{k},Item {k:03d}\n" for k in range(200)))
    slates = [SlateOptions(protocol="uniform", size=10), SlateOptions(protocol="sdpo-legacy", size=10)]
    prepare("table", here, here / "data", window=WindowOptions(min_history=5), slates=slates)
    return here / "data"


def test_honest_slates(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "audit", folder, "--strict", "--json", folder.parent / "a.json") == 0
    said = capsys.readouterr().out
    assert "test-uniform-10-s0" in said and "position_per_target" in said and "verdict: " in said
    result = json.loads((folder.parent / "a.json").read_text())
    assert result["verdict"] != "leak" and result["slates"] == "test-uniform-10-s0"
    assert read_audit(folder) == result
    open_dataset(folder).verify()  # audit.json is no part of the data


def test_strict_fails_on_target_seeded_slates(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "test-sdpo-legacy-LEAKY-10-s0"
    assert command(monkeypatch, "audit", folder, "--slates", name) == 0
    assert command(monkeypatch, "audit", folder, "--slates", name, "--strict") == 1
    said = capsys.readouterr().out
    assert "LEAKY: these slates follow the published protocol on purpose" in said
    assert "leak: position_per_target" in said and "leak: companions" in said


def test_a_models_scores(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that knows the home slots alone keeps nothing where no leaking guesser is right."""
    name = "test-sdpo-legacy-LEAKY-10-s0"
    dataset = open_dataset(folder)
    slates, train = dataset.slates(name), dataset.slates(name.replace("test", "train"))
    home: dict[int, int] = {}
    for target, slate in zip(dataset.examples("train")["target"], train["candidates"].to_list(), strict=True):
        home[target] = slate.index(target)
    scores = [[float(home.get(i) == k) for k, i in enumerate(slate)] for slate in slates["candidates"].to_list()]
    frame = slates.with_columns(pl.Series("scores", scores))
    path = write_table(ScoreTable("home", "Home", 0, name, "best", frame), folder.parent / "scores")
    out = folder.parent / "m.json"
    assert command(monkeypatch, "audit", folder, "--slates", name, "--scores", path, "--json", out) == 0
    model = json.loads(out.read_text())["model"]
    assert "position_per_target" in model["leaking_guessers"]
    assert model["hr1"] > 0.5 > model["hr1_left"]
    assert model["share"] == pytest.approx(model["hr1_left"] / model["hr1"])
    assert "where no leaking guesser is right" in capsys.readouterr().out


def test_faults_are_one_line_and_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "audit", folder, "--slates", "none") == 2
    assert command(monkeypatch, "audit", folder, "--val", folder / "items.parquet") == 2
    assert command(monkeypatch, "audit", folder.parent / "missing.json") == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3
    assert "no slates 'none'; there are" in errors[0]
    assert "a dataset folder brings its own train, val and items" in errors[1]
    assert "missing.json: slates file not found" in errors[2]
