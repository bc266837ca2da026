"""`sirius merge`: seeds trained apart are one run; what does not belong together is refused. And the model's card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import Config
from sirius_rec.errors import RunError
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.merging import merge_runs
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages

FEW = ("arms=[softmax_ref_free]", "align.epochs=1", "evaluation.generation_rows=0", "backbone.pretrain=null",
       "evaluation.baseline=sft")  # fmt: skip


@pytest.fixture(scope="module")
def parts(mini: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("array")
    for seed in (0, 1):
        config = mini(*FEW, f"seeds=[{seed}]")
        run_stages(Run(open_run(folder / f"s{seed}", config), config), ("sft", "align", "evaluate"), lambda line: None)
    return [folder / "s0", folder / "s1"]


def test_an_array_job_becomes_one_run(parts: list[Path], tmp_path: Path) -> None:
    """Its table is that of a run with both seeds: nothing is trained or scored again."""
    out = tmp_path / "all"
    result = CliRunner().invoke(cli.app, ["merge", *map(str, parts), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and "seeds 0, 1" in result.output
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".parquet")}
    result = CliRunner().invoke(cli.app, ["evaluate", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    summary = {row["method"]: row["seeds"] for row in json.loads((out / "results.json").read_text())["summary"]}
    assert summary["sft"] == summary["softmax_ref_free"] == [0, 1] and summary["item_knn"] == [0]
    assert Run.open(out).config.seeds == (0, 1)


def test_what_does_not_belong_together(parts: list[Path], tmp_path: Path, mini: Callable[..., Config]) -> None:
    with pytest.raises(RunError, match="seed 0 was trained in two of the runs"):
        merge_runs([parts[0], parts[0]], tmp_path / "x")
    other = mini(*FEW, "seeds=[2]", "align.learning_rate=1e-5")
    run_stages(Run(open_run(tmp_path / "other", other), other), (), lambda line: None)
    with pytest.raises(RunError, match=r"have different configurations \(align\.learning_rate: "):
        merge_runs([parts[0], tmp_path / "other"], tmp_path / "x")
    fewer = mini(*FEW, "seeds=[2]", "evaluation.test_rows={test-uniform-6-s0: 7}")
    run_stages(Run(open_run(tmp_path / "fewer", fewer), fewer), (), lambda line: None)
    with pytest.raises(RunError, match=r"\(evaluation\.test_rows: \{.*\} and None; `sirius evaluate` makes them"):
        merge_runs([parts[0], tmp_path / "fewer"], tmp_path / "x")
    looked = mini(*FEW, "seeds=[2]", "evaluation.validation_rows=9")
    run_stages(Run(open_run(tmp_path / "looked", looked), looked), (), lambda line: None)
    with pytest.raises(RunError, match=r"\(evaluation\.validation_rows: 9 and None\)$"):
        merge_runs([parts[0], tmp_path / "looked"], tmp_path / "x")
    strange = mini(*FEW, "seeds=[2]", "data.seed=9")
    run_stages(Run(open_run(tmp_path / "strange", strange), strange), (), lambda line: None)
    with pytest.raises(RunError, match="are on different data"):
        merge_runs([parts[0], tmp_path / "strange"], tmp_path / "x")
    more = mini(*FEW, "seeds=[2]", "arms=[softmax_ref_free, sft_continued]")
    run_stages(Run(open_run(tmp_path / "more", more), more), (), lambda line: None)
    for order in ([parts[0], tmp_path / "more"], [tmp_path / "more", parts[0]]):
        with pytest.raises(RunError, match=r"have different (arms or methods|configurations)"):
            merge_runs(order, tmp_path / "x")
    unfinished = mini(*FEW, "seeds=[2]")
    run_stages(Run(open_run(tmp_path / "unfinished", unfinished), unfinished), ("sft",), lambda line: None)
    with pytest.raises(RunError, match="softmax_ref_free of seed 2 is not trained yet"):
        merge_runs([parts[0], tmp_path / "unfinished"], tmp_path / "x")
    with Run.open(parts[1]).folder.lock(), pytest.raises(RunError, match="another process is working"):
        merge_runs(parts, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(RunError, match="exists: choose another --out"):
        merge_runs(parts, tmp_path / "other")


def test_a_saved_model_says_what_it_reads(parts: list[Path]) -> None:
    run = Run.open(parts[0])
    card = (run.folder.sft(0) / "best" / "README.md").read_text()
    history = run.dataset.examples("train")["history"][0].to_list()
    slate = run.dataset.slates(run.train_slates)["candidates"][0].to_list()
    shown = run.template.render([run.dataset.titles[i] for i in history], [run.dataset.titles[i] for i in slate])
    assert f"```text\n{shown}```" in card and run.dataset.fingerprint in card and '"loss": "sft"' in card
    assert "ranked by log π(title | prompt)" in card and "--method sft --seed 0" in card
    assert not (run.folder.pretrain(0) / "best" / "README.md").exists()


def test_a_template_of_ones_own(mini: Callable[..., Config]) -> None:
    """It survives the run folder's configuration and is what models read."""
    config: Any = mini("prompts.template={history: 'Bought:', answer: 'Will buy:'}", "prompts.slate=false")
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config
    assert again.prompts.form().render(["A", "B"], ["C"]) == "Bought:\nA\nB\nWill buy:\n"
