"""A run that ranks the whole catalogue: language models by search, retrieved slates, and methods fused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.results import read_results
from sirius_rec.evaluation.tables import read_table, write_table
from sirius_rec.rankers.fusion import known
from sirius_rec.recipes.adoption import adopt
from sirius_rec.recipes.comparison import strongest_baseline
from sirius_rec.recipes.configuration import load_config, parse_config
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.scoring import score_only

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"
FULL, RETRIEVED = "test-full-80-s0", "test-retrieved_sasrec-15-s0"
SASREC = {"method": "sasrec", "options": {"epochs": 2, "dimension": 8, "length": 5}}


def raw() -> dict[str, Any]:
    content = yaml.safe_load(MINI.read_text())
    content["data"]["slates"] = [{"size": 6}, {"protocol": "full", "splits": ["test"]}]
    content["prompts"] = {"slate": False}
    content["align"]["epochs"] = 1
    content["arms"] = ["dpo"]
    content["methods"] = [
        SASREC,
        {"method": "zero_shot", "options": {"slate": True}},
        {"method": "fusion", "options": {"of": ["dpo", "sasrec"]}},
    ]
    content["evaluation"] = {
        "generation_rows": 0, "full_rows": 40, "baseline": "sasrec",
        "retrieved": [{"retriever": "sasrec", "size": 15}, {"retriever": "item_knn", "size": 15}],
    }  # fmt: skip
    return content


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    folder = tmp_path_factory.mktemp("full")
    (folder / "c.yaml").write_text(yaml.safe_dump(raw()))
    result = CliRunner().invoke(cli.app, ["run", str(folder / "c.yaml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return Run.open(folder / "run"), result.output


def scores(run: Run, method: str, slates: str) -> pl.DataFrame:
    return read_table(run.folder.scores / f"{method}-s0-{slates}-best.parquet").frame


def test_a_language_models_list_is_that_of_scoring_every_item(done: tuple[Run, str]) -> None:
    run, _ = done
    found = scores(run, "dpo", FULL)
    histories, candidates = run.slate_arrays(FULL)
    every = build_methods(run.config)["dpo"].ranker(run, 0, "best").score(histories, candidates)
    assert len(every) == 40 and all(len(row) <= 75 for row in every)  # fewer than 100: the list holds them all
    for row, one in zip(found["scores"], every, strict=True):
        np.testing.assert_allclose(row.to_numpy(), one, atol=1e-4)


def test_the_same_rows_are_ranked_by_all_and_what_was_seen_is_no_candidate(done: tuple[Run, str]) -> None:
    run, _ = done
    examples = run.dataset.examples("test")
    tables = {key: scores(run, key, FULL) for key in ("sasrec", "popularity", "sft", "dpo")}
    for table in tables.values():
        assert table["candidates"].equals(tables["sasrec"]["candidates"])
    beside = tables["dpo"].join(examples, on="row_id", how="left", maintain_order="left")
    for history, target, slate in zip(beside["history"], beside["target"], beside["candidates"].to_list(), strict=True):
        assert target in slate and not set(history) & set(slate)


def test_retrieved_slates_are_the_retrievers_best(done: tuple[Run, str]) -> None:
    run, _ = done
    retrieved, full = run.slates(RETRIEVED), scores(run, "sasrec", FULL)
    ranked = full.join(retrieved.rename({"candidates": "best"}), on="row_id", how="left", maintain_order="left")
    for items, given, best in zip(
        ranked["candidates"].to_list(), ranked["scores"].to_list(), ranked["best"].to_list(), strict=True
    ):
        order = np.argsort(-np.array(given), kind="stable")[:15]
        assert set(best) == {items[i] for i in order} and best != [items[i] for i in order]
    assert scores(run, "dpo", RETRIEVED)["candidates"].to_list() == ranked["best"].to_list()


def test_end_to_end_metrics_count_what_was_not_found_as_misses(done: tuple[Run, str]) -> None:
    run, output = done
    rows = {(r["method"], r["slates"]): r for r in read_results(run.folder.results)["summary"]}
    alone, whole = rows["sasrec", RETRIEVED], rows["sasrec", FULL]
    assert alone["hr@10"] == pytest.approx(whole["hr@10"]) and alone["hr@1"] == pytest.approx(whole["hr@1"])
    table = scores(run, "sasrec", RETRIEVED).join(run.dataset.examples("test"), on="row_id", how="left")
    ceiling = table.select(pl.col("candidates").list.contains(pl.col("target")).mean()).item()
    assert 0 < ceiling < 1 and alone["ceiling"] == pytest.approx(ceiling)
    assert all(r["hr@10"] <= r["ceiling"] + 1e-9 for (_, slates), r in rows.items() if slates == RETRIEVED)
    assert f"target among the candidates: {ceiling:.3f}" in output
    assert "mrr@100" in whole and whole["mrr"] is None and "mrr@100" not in alone
    assert {"test-retrieved_item_knn-15-s0", RETRIEVED, FULL} < {slates for _, slates in rows}


def test_what_shows_slates_says_why_it_does_not_rank_the_catalogue(done: tuple[Run, str]) -> None:
    run, output = done
    assert "zero_shot s0: lists the candidates in its prompts, so it does not rank the whole catalogue" in output
    keys = {row["method"] for row in read_results(run.folder.results)["summary"] if row["slates"] == FULL}
    assert {"sft", "dpo", "sasrec"} <= keys and not {"zero_shot", "fusion"} & keys


def test_fused_scores_are_weighted_sums(done: tuple[Run, str]) -> None:
    run, _ = done
    weights = json.loads((run.folder.method("fusion", 0) / "done.json").read_text())["weights"]
    assert set(weights) == {"dpo", "sasrec"} and max(weights.values()) > 0
    parts = {key: scores(run, key, "test-uniform-6-s0")["scores"].to_list() for key in ("dpo", "sasrec", "fusion")}
    for dpo, sasrec, fused in zip(parts["dpo"], parts["sasrec"], parts["fusion"], strict=True):
        expected = weights["dpo"] * np.array(dpo) + weights["sasrec"] * known(np.array(sasrec))
        np.testing.assert_allclose(fused, expected, atol=1e-4)
    labels = {row["method"]: row["label"] for row in read_results(run.folder.results)["summary"]}
    assert labels["fusion"] == f"DPO + {labels['sasrec']}"


def test_a_fusion_reads_the_tables_of_its_parts(done: tuple[Run, str], tmp_path: Path) -> None:
    """What a language model has scored once is not scored again; what has no table, or one of other rows, is."""
    slates, name = "test-uniform-6-s0", "dpo-s0-test-uniform-6-s0-best.parquet"
    shutil.copytree(done[0].folder.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    weights = json.loads((run.folder.method("fusion", 0) / "done.json").read_text())["weights"]
    assert weights["dpo"] > 0
    before, table = scores(run, "fusion", slates), read_table(run.folder.scores / name)
    changed = table.frame.with_columns(pl.col("scores").list.eval(pl.element() + pl.int_range(pl.len())))
    for stored, moved in ((changed, 1.0), (changed.reverse(), 0.0), (changed.head(9), 0.0), (None, 0.0)):
        (run.folder.scores / f"fusion-s0-{slates}-best.parquet").unlink()
        if stored is not None:
            write_table(replace(table, frame=stored), run.folder.scores)
        else:
            (run.folder.scores / name).unlink()
        score_only(str(run.folder.path), "fusion", 0)
        for old, new in zip(before["scores"], scores(run, "fusion", slates)["scores"], strict=True):
            wanted = old.to_numpy() + moved * weights["dpo"] * np.arange(len(old))
            np.testing.assert_allclose(new.to_numpy(), wanted, atol=1e-4)


def test_what_a_fusion_of_a_fusion_finds_is_retrieved(tmp_path: Path) -> None:
    """Retrieving comes before all other jobs: what retrieves is fitted with its parts."""
    content = raw()
    fusions = [{"method": "fusion", "name": name, "options": {"of": of}}
               for name, of in (("inner", ["item_knn", "popularity"]), ("outer", ["inner", "random"]))]  # fmt: skip
    content |= {"arms": [], "methods": fusions}
    content["evaluation"] = {"full_rows": 9, "baseline": "inner", "retrieved": [{"retriever": "outer", "size": 15}]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    result = CliRunner().invoke(cli.app, ["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.exception
    run = Run.open(tmp_path / "run")
    found = run.slates("test-retrieved_outer-15-s0")
    weights = json.loads((run.folder.method("outer", 0) / "done.json").read_text())["weights"]
    assert weights["inner"] > 0 and found["candidates"].list.len().to_list() == [15] * found.height


def test_a_fusion_is_of_best_checkpoints_whatever_is_scored_first(done: tuple[Run, str], tmp_path: Path) -> None:
    slates = "test-uniform-6-s0"
    shutil.copytree(done[0].folder.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    before = scores(run, "fusion", slates)["scores"]
    adopt(run.folder, run.config.changed(evaluation=run.config.evaluation.changed(checkpoints=("last", "best"))))
    best = read_table(run.folder.scores / f"dpo-s0-{slates}-best.parquet")
    other = best.frame.with_columns(pl.col("scores").list.eval(pl.element() + pl.int_range(pl.len())))
    write_table(replace(best, checkpoint="last", frame=other), run.folder.scores)
    (run.folder.scores / f"fusion-s0-{slates}-best.parquet").unlink()
    score_only(str(run.folder.path), "fusion", 0)
    for checkpoint in ("best", "last"):
        found = read_table(run.folder.scores / f"fusion-s0-{slates}-{checkpoint}.parquet").frame["scores"]
        for old, new in zip(before, found, strict=True):
            np.testing.assert_allclose(new.to_numpy(), old.to_numpy(), atol=1e-4)


def test_a_fusion_of_an_arm_is_no_baseline_of_it(done: tuple[Run, str]) -> None:
    run, _ = done
    results = read_results(run.folder.results)
    assert {key for key, one in results["methods"].items() if one["studied"]} == {"sft", "dpo", "fusion"}
    name = "test-uniform-6-s0"
    for row in results["summary"]:
        if row["slates"] == name:
            row["hr@1"] = {"fusion": 0.9, "dpo": 0.8, "sasrec": 0.7}.get(row["method"], 0.1)
    assert strongest_baseline(results, name) == "sasrec"


def test_the_report_sets_the_protocols_side_by_side(done: tuple[Run, str]) -> None:
    run, _ = done
    page = (run.folder.path / "report.html").read_text()
    assert "change places between the two" in page and "MRR@100" in page
    assert (run.folder.path / "figures" / "sampled_and_full.png").is_file()


def fix(**changes: Any) -> dict[str, Any]:
    return {**raw(), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (fix(methods=[{"method": "fusion", "options": {"of": ["dpo", "sasrec"]}}, SASREC],
              evaluation={"baseline": "dpo"}), "'sasrec' is no method listed before it"),
        (fix(methods=[{"method": "fusion", "options": {"of": ["dpo", "dpo"]}}], evaluation={"baseline": "dpo"}),
         "name two methods or more"),
        (fix(methods=[{"method": "fusion"}], evaluation={"baseline": "dpo"}), "of"),
    ],
)  # fmt: skip
def test_a_fusion_that_cannot_be_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(content, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.retrieved": [{"retriever": "sasrec"}] * 2}, "evaluation.retrieved: an entry is duplicated"),
        ({"evaluation.retrieved": [{"retriever": "dpo"}]}, "'dpo' is no method of this run that scores the whole"),
        ({"evaluation.retrieved": [{"retriever": "ease"}]}, "'ease' is no method of this run"),
        ({"data.slates": [{"size": 6}]}, "what users had met is in the slates of the whole catalogue"),
    ],
)
def test_a_retriever_that_cannot_be_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw()))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "c.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
    assert "\n" not in str(caught.value)


def test_the_page_says_how_wide_and_how_popular_lists_are(done: tuple[Run, str]) -> None:
    run, _ = done
    results = read_results(run.folder.results)
    rows = {(r["method"], r["slates"]): r for r in results["beyond"]["rows"]}
    assert rows["popularity", FULL]["gini"]["mean"] > rows["random", FULL]["gini"]["mean"]
    assert rows["popularity", FULL]["k"] == 10 and rows["popularity", "test-uniform-6-s0"]["k"] == 1
    assert rows["dpo", "test-uniform-6-s0"]["calibration"] and not rows["dpo", FULL]["calibration"]
    assert {t["against"] for t in results["beyond"]["tests"]} == {"sasrec"}
    page = (run.folder.path / "report.html").read_text()
    assert "More than accuracy" in page and "Popularity lift" in page and "by the Gini index" in page
    assert (run.folder.path / "figures" / "reliability.png").is_file()
