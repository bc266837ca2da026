"""MoRec on a pretrained encoder through the recipes: titles are read once for the whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sirius_rec import cache
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError
from sirius_rec.rankers.sequential.encoders import check_encoder
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import STAGES, finish, run_stages


def test_two_seeds_of_morec_on_minilm(
    mini: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    try:
        check_encoder("minilm")
    except ConfigError as missing:
        if "needs the package" not in str(missing):
            raise
        pytest.skip(str(missing))
    entry = "{method: morec, options: {encoder: minilm, epochs: 2, dimension: 16}}"
    config = mini("arms=[]", f"methods=[{entry}]", "seeds=[0, 1]", "evaluation.baseline=morec")
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, STAGES, lambda text: None)
    finish(run, lambda text: None, compared=True)
    assert capsys.readouterr().err.count("encoder minilm: 80 titles read") == 1
    assert (run.folder.method("morec", 0).parent / "titles.npz").is_file()
    rows = [row for row in json.loads(run.folder.results.read_text())["rows"] if row["method"] == "morec"]
    assert sorted(row["seed"] for row in rows) == [0, 1]
    assert "from scratch" not in json.loads(run.folder.results.read_text())["methods"]["morec"]["label"]
