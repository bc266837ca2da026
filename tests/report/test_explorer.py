"""The examples on the page: which tables and rows, what happened to them, and no more than fits."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from sirius_rec.prompts.templates import get_template
from sirius_rec.report.explorer import sample_examples

ROWS = 200


@pytest.fixture
def dataset():
    """Three items; target 0 in every row; history [1, 2]."""
    examples = pl.DataFrame({"row_id": range(ROWS), "history": [[1, 2]] * ROWS, "target": [0] * ROWS})
    return SimpleNamespace(examples=lambda split: examples, titles=["Air", "Can", "Low"])


@pytest.fixture
def tables(make_table):
    """SFT ranks the target 2nd; DPO fixes rows 0 … 9, worsens row 10 and leaves the rest; SimPO changes nothing."""
    start = [[1, 2, 0]] * ROWS
    dpo = [[3, 2, 0]] * 10 + [[0, 2, 1]] + [[1, 2, 0]] * (ROWS - 11)
    return [
        make_table("sft", start), make_table("dpo", dpo), make_table("simpo", start),
        make_table("random", start), make_table("dpo", start, seed=1), make_table("dpo", dpo, checkpoint="last"),
        make_table("sft", [[0] * 100] * ROWS, slates="test-uniform-100-s0"),
        make_table("dpo", [[0] * 100] * ROWS, slates="test-uniform-100-s0"),
    ]  # fmt: skip


def test_sample(tables, dataset, facts):
    found = sample_examples(tables, dataset, get_template("music"), facts, rows=40)
    assert (found["slates"], found["checkpoint"], found["seed"], found["of"]) == ("test-uniform-3-s0", "best", 0, ROWS)
    assert [entry["key"] for entry in found["methods"]] == ["dpo", "simpo"]
    assert found["methods"][0]["counts"] == {
        "fixed": 10, "broken": 0, "improved": 10, "worsened": 1, "unchanged": ROWS - 11,
    }  # fmt: skip
    ids = [row["id"] for row in found["rows"]]
    assert len(ids) == 40 and ids == sorted(set(ids))
    # in turn from each method's kinds: every improved and worsened row is there although they are few
    assert set(range(11)) <= set(ids)
    first = found["rows"][0]
    assert [found["titles"][n] for n in first["slate"]] == ["Air", "Can", "Low"]
    assert [found["titles"][n] for n in first["history"]] == ["Can", "Low"]
    assert (first["target"], first["ranks"], first["scores"][1]) == (0, [2.0, 1.0, 2.0], [3.0, 2.0, 0.0])
    assert found["prompt"]["candidates"] == "Candidates for the next artist:"
    hidden = sample_examples(tables, dataset, get_template("music", shows_slate=False), facts, rows=1)
    assert hidden["prompt"]["candidates"] is None and len(hidden["rows"]) == 1


def test_seeded_and_bounded(tables, dataset, monkeypatch, facts):
    template = get_template("generic")
    one, two = (json.dumps(sample_examples(tables, dataset, template, facts, rows=40)) for _ in range(2))
    assert one == two != json.dumps(sample_examples(tables, dataset, template, facts, rows=40, seed=1))
    # 3 candidates × 3 tables: 450 scores are 50 rows; never fewer than 30
    monkeypatch.setattr("sirius_rec.report.explorer.CELLS", 450)
    assert len(sample_examples(tables, dataset, template, facts)["rows"]) == 50
    monkeypatch.setattr("sirius_rec.report.explorer.CELLS", 1)
    assert len(sample_examples(tables, dataset, template, facts)["rows"]) == 30


def test_nothing_to_show(make_table, dataset, facts):
    template = get_template("generic")
    alone = [make_table("sft", [[1, 2, 0]] * ROWS), make_table("popularity", [[1, 2, 0]] * ROWS)]
    assert sample_examples(alone, dataset, template, facts) is None
    assert sample_examples([make_table("dpo", [[1, 2, 0]] * ROWS)], dataset, template, facts) is None
    assert sample_examples([], dataset, template, facts) is None


def test_tied_scores_share_their_rank(make_table, dataset, facts):
    tables = [make_table("sft", [[1, 2, 0]] * ROWS), make_table("dpo", np.zeros((ROWS, 3)))]
    found = sample_examples(tables, dataset, get_template("generic"), facts, rows=1)
    assert found["rows"][0]["ranks"] == [2.0, 2.0]
