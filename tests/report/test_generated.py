"""The generated answers that the page shows: the same prompts for all, every kind of answer, counts over all rows."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest

from sirius_rec.report.generated import HIT, NO_TITLE, OTHER, OUTSIDE, sample_answers

LABELS = {"dpo": "DPO", "sft": "SFT"}
ROWS = 8


@pytest.fixture
def dataset():
    """Row n has target n % 4 and history 4, 3, 2, 1."""
    rows = {"row_id": range(ROWS), "history": [[4, 3, 2, 1]] * ROWS, "target": [n % 4 for n in range(ROWS)]}
    examples = pl.DataFrame(rows)
    return SimpleNamespace(examples=lambda split: examples, titles=["Air", "Can", "Low", "Pulp", "Blur"])


def entry(method, texts, valid, hit, seed=0, slates="test-uniform-3-s0", checkpoint="best"):
    return {
        "method": method, "seed": seed, "slates": slates, "checkpoint": checkpoint,
        "row_id": list(range(len(texts))), "text": texts, "valid": valid, "hit": hit,
    }  # fmt: skip


def test_every_kind_of_answer_is_shown(dataset):
    air = ["Air"] * 4
    dpo = entry("dpo", [*air, " Blur ", "Can", "Aired", ""], [1, 1, 1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 0, 0])
    sft = entry("sft", ["Air"] * ROWS, [1] * ROWS, [1, 0, 0, 0, 1, 0, 0, 0])
    found = sample_answers([dpo, sft], dataset, LABELS)
    assert found["methods"] == [
        {"label": "DPO", "n": 8, "hits": 2, "valid": 5},
        {"label": "SFT", "n": 8, "hits": 2, "valid": 8},
    ]
    kinds = {row["id"]: [answer["kind"] for answer in row["answers"]] for row in found["rows"]}
    assert kinds == {0: [HIT, HIT], 1: [OTHER, OTHER], 4: [OUTSIDE, HIT], 6: [NO_TITLE, OTHER]}
    four = found["rows"][2]
    assert (four["target"], four["history"]) == ("Air", ["Pulp", "Low", "Can"])
    assert [answer["text"] for answer in four["answers"]] == ["Blur", "Air"]


def test_the_smallest_test_slates_the_best_checkpoint_and_the_first_seed(dataset):
    def one(text, **where):
        return entry("dpo", [text], [0], [0], **where)

    entries = [
        one("a", slates="val-uniform-2-s0"), one("b", slates="test-uniform-9-s0"), one("c", checkpoint="last"),
        one("d", seed=1), one("e"),
    ]  # fmt: skip
    found = sample_answers(entries, dataset, LABELS)
    assert [row["answers"] for row in found["rows"]] == [[{"text": "e", "kind": NO_TITLE}]]
    assert (found["slates"], found["checkpoint"], found["seed"]) == ("test-uniform-3-s0", "best", 0)


def test_nothing_to_show(dataset):
    assert sample_answers([], dataset, LABELS) is None
    assert sample_answers([entry("gone", ["a"], [0], [0])], dataset, LABELS) is None
    apart = entry("sft", ["a"], [0], [0]) | {"row_id": [5]}
    assert sample_answers([entry("dpo", ["a"], [0], [0]), apart], dataset, LABELS) is None
    empty = sample_answers([entry("dpo", [""], [0], [0])], dataset, LABELS)
    assert empty["rows"][0]["answers"] == [{"text": "(nothing)", "kind": NO_TITLE}]
