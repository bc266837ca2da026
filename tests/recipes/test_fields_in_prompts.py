"""`prompts.fields` from the items file to training, evaluation and `sirius rank`: everywhere the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import Config
from sirius_rec.errors import DataError
from sirius_rec.evaluation.tables import read_table, table_name
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.listing import listing_of
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.ranking import title_scorer
from sirius_rec.recipes.reference import ReferenceCache
from sirius_rec.recipes.results import titles_alone
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.scoring import score_only
from sirius_rec.recipes.story import run_stages

SLATES = "test-uniform-4-s0"


def log(folder: Path) -> Path:
    folder.mkdir()
    events = "".join(f"u{u},i{(u + 3 * t) % 23},{100 * u + t}\n" for u in range(40) for t in range(9))
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + events)
    (folder / "items.csv").write_text(
        "item_id,title,genre\n" + "".join(f"i{n},Title {n},{'' if n == 5 else f'genre {n % 3}'}\n" for n in range(23))
    )
    return folder


def test_every_prompt_shows_the_fields_and_no_answer_does(mini: Callable[..., Config], tmp_path: Path) -> None:
    config = mini(
        "data.source=table", f"data.input={log(tmp_path / 'log')}", "data.options={fields: [genre]}",
        "data.window={max_history: 4, min_history: 2}", "data.slates=[{size: 4}]", "prompts.fields=[genre]",
        "arms=[dpo]", "evaluation.baseline=dpo",
    )  # fmt: skip
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, ("sft",), lambda line: None)
    assert run.shown[5] == "Title 5" and run.shown[7] == "Title 7 (genre 1)"
    sft = build_methods(config)["sft"]
    given = sft.training_set(run, 0, np.arange(4))
    for record in (*given["records"], *given["validation"].records):
        lines = record["prompt"].split("\n")
        assert record["chosen"] in run.dataset.titles and set(record["rejected"]) <= set(run.dataset.titles)
        listed = [line for line in lines if line.startswith("Title")]
        assert set(listed) <= set(run.shown) and len(listed) >= 6
    encoder = run.encoder
    for split, rows in ReferenceCache(run, 0).rows.items():  # what an arm is compared with
        texts = [encoder.tokenizer.decode(row.prompt) for row in rows]
        assert all("genre" in text for text in texts), split
    score_only(str(run.folder.path), "sft", 0)
    table = read_table(run.folder.scores / table_name("sft", 0, SLATES, "best")).frame
    ids = run.dataset.items["item_id"].to_list()
    requests = tmp_path / "requests.jsonl"
    histories = run.dataset.examples("test")["history"].to_list()
    rows = zip(histories, table["candidates"].to_list(), strict=True)
    requests.write_text(
        "".join(
            json.dumps({"history": [ids[i] for i in history], "candidates": [ids[i] for i in slate]}) + "\n"
            for history, slate in rows
        )
    )
    command = ["rank", "--model", run.folder.path, "--input", requests, "--out", tmp_path / "out.jsonl"]
    result = CliRunner().invoke(cli.app, list(map(str, command)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for answer, slate, scores in zip(answers, table["candidates"].to_list(), table["scores"].to_list(), strict=True):
        said = dict(zip(answer["candidates"], answer["scores"], strict=True))
        np.testing.assert_allclose([said[ids[i]] for i in slate], scores, atol=2e-5)


def test_who_reads_titles_alone_is_named(mini: Callable[..., Config]) -> None:
    """Only where others read more."""
    methods = "methods=[tallrec, tallrec_listwise, llara, zero_shot, item_knn_shrunk]"
    assert titles_alone(mini(methods)) == []
    assert titles_alone(mini("prompts.fields=[genre]")) == []
    [note] = titles_alone(mini(methods, "prompts.fields=[genre]"))
    assert note == "prompts.fields: read titles alone: TALLRec (yes/no per item); LLaRA."


def test_new_items_have_theirs(mini: Callable[..., Config], tmp_path: Path) -> None:
    config = mini(
        "data.source=table", f"data.input={log(tmp_path / 'log')}", "data.options={fields: [genre]}",
        "data.slates=[{size: 4}]", "prompts.fields=[genre]", "methods=[]",
    )  # fmt: skip
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, ("data",), lambda line: None)
    new = tmp_path / "new.csv"
    new.write_text("item_id,title,genre\nnew,Title N,genre 9\nbare,Title B,\n")
    listing = listing_of(run, new)
    assert (listing.titles[-2:], listing.new_shown) == (["Title N", "Title B"], ["Title N (genre 9)", "Title B"])
    run_stages(run, ("sft",), lambda line: None)
    scorer = title_scorer(run, build_methods(config)["sft"].ranker(run, 0, "best"), listing, titles=False)
    prompt = scorer.size(Request(1, ("new", "i7"), ("bare", "i4")))[0]
    assert all(text in prompt for text in ("Title N (genre 9)", run.shown[7], "Title B\n", run.shown[4]))
    new.write_text("item_id,title\nnew,Title N\n")
    with pytest.raises(DataError, match=r"new\.csv: the run's prompts show genre: the table needs that, too"):
        listing_of(run, new)
