"""What `rank` and `recommend` say of a file, and when they fail: by all calls that answered it, not by the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.commands.serve import _answer
from sirius_rec.errors import DataError
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes.answering import AnswererSpec
from sirius_rec.recipes.ranking import Served

Answer = Callable[..., tuple[str, list[dict[str, Any]]]]
GOOD, BAD = json.dumps({"history": ["a"], "candidates": ["x", "y"]}), "not json"


@pytest.fixture
def answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    """answer([lines], skip_bad=…, dies_at=…) → what was said, and the answers; called again, it goes on."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def call(lines: list[str], *, skip_bad: bool = False, dies_at: int = 0) -> tuple[str, list[dict[str, Any]]]:
        source.write_text("\n".join(lines) + "\n")

        def score(requests: list[Request]) -> list[list[float]]:
            if dies_at in [request.line for request in requests]:
                raise KeyboardInterrupt
            return [[0.0] * len(request.candidates) for request in requests]

        served = Served("m", {}, score, lambda request: None)
        spec = AnswererSpec(lambda: served, None, skip_bad=skip_bad)
        _answer(spec, source, out, None, None, verb="ranking", unknown=None, part=2)
        return capsys.readouterr().out, [json.loads(line) for line in out.read_text().splitlines()]

    return call


def test_a_call_that_finds_bad_lines_only_ends_well_behind_good_answers(answer: Answer) -> None:
    with pytest.raises(DataError, match="line 4: not a JSON object"):
        answer([GOOD, GOOD, GOOD, BAD])
    said, answers = answer([GOOD, GOOD, GOOD, BAD], skip_bad=True)
    assert [("error" in entry) for entry in answers] == [False, False, False, True]
    assert "(in this call, requests answered: 0; bad lines passed over: 1)" in said


def test_a_first_call_says_nothing_of_calls(answer: Answer) -> None:
    said, _ = answer([GOOD, BAD], skip_bad=True)
    assert "(requests answered: 1; bad lines passed over: 1)" in said


def test_where_no_call_answered_anything_it_is_an_error(answer: Answer) -> None:
    with pytest.raises(DataError, match=r"every request was refused; .*out\.jsonl says why, line by line"):
        answer([BAD, BAD], skip_bad=True)


def test_refusals_of_an_earlier_call_count(answer: Answer) -> None:
    with pytest.raises(KeyboardInterrupt):
        answer([BAD, BAD, GOOD], skip_bad=True, dies_at=3)
    with pytest.raises(DataError, match="every request was refused"):
        answer([BAD, BAD], skip_bad=True)
