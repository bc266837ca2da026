"""`sirius rank` on a trained run: the scores of the evaluation, by id and by title, and its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError, DataError, RunError, SiriusError
from sirius_rec.evaluation.tables import read_table, table_name
from sirius_rec.prompts.templates import get_template
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes.configuration import parse_config
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.ranking import chosen_method
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.scorers import TitleScorer
from sirius_rec.recipes.scoring import score_only

SLATES = "test-uniform-6-s0"


@pytest.fixture(scope="module")
def ready(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A run with SFT, requests of its test slates by item id, and the scores that the evaluation gave them."""
    folder = tmp_path_factory.mktemp("rank")
    run = RunFolder(folder / "run")
    shutil.copytree(trained.folder.path, run.path)
    score_only(str(run.path), "sft", 0)
    ids = trained.dataset.items["item_id"].to_list()
    histories = trained.dataset.examples("test")["history"].to_list()
    slates = trained.dataset.slates(SLATES)["candidates"].to_list()
    requests = folder / "requests.jsonl"
    requests.write_text(
        "".join(
            json.dumps({"history": [ids[i] for i in h], "candidates": [ids[i] for i in c]}) + "\n"
            for h, c in zip(histories, slates, strict=True)
        )
    )
    return run.path, requests, read_table(run.scores / table_name("sft", 0, SLATES, "best")).frame


def rank(*arguments: Any) -> str:
    result = CliRunner().invoke(cli.app, ["rank", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_scores_are_those_of_the_evaluation(ready: tuple[Path, Path, Any], trained: Any, tmp_path: Path) -> None:
    run, requests, table = ready
    output = rank("--model", run, "--input", requests, "--out", tmp_path / "o.jsonl")
    assert "ranking with sft of seed 0 (best checkpoint)" in output and "requests answered: " in output
    answers = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    ids = trained.dataset.items["item_id"].to_list()
    assert len(answers) == table.height
    for answer, slate, scores in zip(answers, table["candidates"].to_list(), table["scores"].to_list(), strict=True):
        order = np.argsort(-np.array(scores), kind="stable")
        assert answer["candidates"] == [ids[slate[c]] for c in order]
        np.testing.assert_allclose(answer["scores"], np.array(scores)[order], atol=2e-5)


def test_titles_also_of_unknown_items_and_a_plain_model(
    ready: tuple[Path, Path, Any], trained: Any, tmp_path: Path
) -> None:
    """The same requests by title, with one title that the catalogue lacks; the checkpoint folder as a plain model."""
    run, requests, _ = ready
    title = dict(zip(trained.dataset.items["item_id"].to_list(), trained.dataset.titles, strict=True))
    rows = [json.loads(line) for line in requests.read_text().splitlines()[:5]]
    by_title = tmp_path / "t.jsonl"
    by_title.write_text(
        "".join(json.dumps({k: [title[i] for i in v] for k, v in row.items()}) + "\n" for row in rows)
        + json.dumps({"history": [], "candidates": ["A title that nobody has", title[rows[0]["candidates"][0]]]})
        + "\n"
    )
    rank("--model", run, "--input", requests, "--out", tmp_path / "ids.jsonl")
    rank("--model", run, "--input", by_title, "--out", tmp_path / "run.jsonl", "--titles")
    plain = ("--max-history", 5, "--template", "generic")
    said = rank("--model", run / "sft/s0/best", "--input", by_title, "--out", tmp_path / "plain.jsonl", *plain)
    assert "best is a plain model: histories and candidates are read as titles" in said
    ids, titles, model = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("ids", "run", "plain")
    )
    assert len(titles) == len(model) == 6
    for answer, other, third in zip(ids[:5], titles[:5], model[:5], strict=True):
        assert [title[i] for i in answer["candidates"]] == other["candidates"] == third["candidates"]
        np.testing.assert_allclose(answer["scores"], other["scores"], atol=2e-5)
        np.testing.assert_allclose(answer["scores"], third["scores"], atol=2e-5)


def test_the_best_on_validation_is_ranked_with(ready: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """Of everything that is trained, by what its training measured; another one, or a seed, where it is asked for."""
    shutil.copytree(ready[0], tmp_path / "run")
    run = Run.open(tmp_path / "run")
    measured = {"sft": 0.4, "dpo_sirius": 0.6, "softmax_dpo": 0.5}
    for key, hit in measured.items():
        folder = build_methods(run.config)[key].folder(run, 0)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done.json").write_text(json.dumps({"best_hr@1": hit}))

    def chosen(key: str | None = None, seed: int | None = None) -> tuple[str, int]:
        method, of = chosen_method(run, key, seed)
        return method.key, of

    assert chosen() == chosen(seed=0) == ("dpo_sirius", 0)
    assert chosen("sft") == ("sft", 0)
    (run.folder.sft(0) / "done.json").write_text(json.dumps({"best_hr@1": 0.7}))
    assert chosen() == ("sft", 0)
    with pytest.raises(RunError, match="a model of seed 3 is not trained"):
        chosen(seed=3)
    for key in measured:
        (build_methods(run.config)[key].folder(run, 0) / "done.json").write_text("{}")
    with pytest.raises(RunError, match=r"nothing was measured on .* name one with --method .*sft \(seed 0\)"):
        chosen()


def test_a_network_counts_by_the_epoch_that_was_kept(tmp_path: Path) -> None:
    """Its weights are those of the highest NDCG@10: HR@1 of that epoch, not the last's, the worst's or the highest."""
    config = parse_config({"arms": [], "methods": ["sasrec"]}, "c")
    run, method = Run(RunFolder(tmp_path), config), build_methods(config)["sasrec"]
    folder = method.folder(run, 0)
    folder.mkdir(parents=True)
    points = [(0.10, 0.20), (0.31, 0.50), (0.35, 0.45), (0.28, 0.48)]
    history = [{"loss": 1.0, "hr@1": hit, "ndcg@10": gain} for hit, gain in points]
    (folder / "ranker.json").write_text(json.dumps({"history": [*history, {"loss": 0.5}]}))
    assert method.validation_hit(run, 0) == 0.31


def test_the_newest_of_the_history_are_shown_and_none_if_so_asked() -> None:
    def prompt(n: int) -> str:
        served = TitleScorer(
            SimpleNamespace(config=SimpleNamespace()), None, get_template("generic"), None, max_history=n
        )
        return served._prompt(Request(1, ("Abba", "Zappa"), ("c",)))

    assert "Zappa" in prompt(1) and "Abba" not in prompt(1)
    assert "Abba" in prompt(5)
    assert "Zappa" not in prompt(0)


def test_refusals(ready: tuple[Path, Path, Any], tmp_path: Path) -> None:
    run, requests, _ = ready

    def complaint(kind: type[SiriusError], *arguments: Any) -> str:
        with pytest.raises(kind) as caught:
            rank(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    out = ("--out", tmp_path / "o.jsonl")
    said = complaint(RunError, "--model", run, "--input", requests, *out, "--method", "dpo_sirius")
    assert "dpo_sirius is not trained; there is sft (seed 0)" in said
    said = complaint(RunError, "--model", run, "--input", requests, *out, "--method", "dpo_siriu")
    assert "dpo_siriu is not trained, did you mean 'dpo_sirius'?; there is sft (seed 0)" in said
    said = complaint(ConfigError, "--model", run, "--input", requests, "--out", tmp_path / "no" / "o.jsonl")
    assert "does not exist: make it first" in said
    said = complaint(DataError, "--model", run, "--input", tmp_path / "none.jsonl", *out)
    assert said == f"--input {tmp_path / 'none.jsonl'}: no such file"
    unknown = tmp_path / "u.jsonl"
    unknown.write_text('{"history": [], "candidates": ["nobody"]}\n')
    said = complaint(DataError, "--model", run, "--input", unknown, *out)
    assert "u.jsonl, line 1: item 'nobody' is not in the catalogue" in said
    # nothing was answered, so nothing stands in the way of the mended command
    assert not list(tmp_path.glob("o.jsonl*"))
    unknown.write_text(json.dumps({"history": [], "candidates": ["long " * 500]}) + "\n")
    assert "the context is 256" in complaint(DataError, "--model", run, "--input", unknown, *out, "--titles")
