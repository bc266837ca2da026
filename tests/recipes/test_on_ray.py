"""A whole run on a Ray cluster: what it is on one machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.evaluation.tables import read_table
from sirius_rec.extras import missing
from sirius_rec.recipes.run_folder import RunFolder

from .conftest import MINI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing("ray") is not None, reason="needs Ray (extra ray)"),
]


def sirius(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def scores(run: Path) -> dict[str, dict[str, list[object]]]:
    """To the last bit; the files also hold a hash of done.json, which has seconds."""
    return {
        path.name: read_table(path).frame.to_dict(as_series=False) for path in sorted(RunFolder(run).scores.iterdir())
    }


def test_a_run_and_its_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # run folders by relative paths
    sirius("run", MINI, "--out", "here")
    sirius("run", MINI, "--out", "ray", "--engine", "ray")
    here, ray = tmp_path / "here", tmp_path / "ray"
    assert len(scores(here)) > 4 and scores(ray) == scores(here)
    summaries = [json.loads(RunFolder(run).results.read_text())["summary"] for run in (here, ray)]
    assert summaries[0] == summaries[1]
    shutil.rmtree(RunFolder(ray).scores)
    sirius("evaluate", "ray", "--engine", "ray")
    assert scores(ray) == scores(here)
