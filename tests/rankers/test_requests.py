"""Ranking requests as a stream: order, bad lines, going on after a kill, bounded memory."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sirius_rec.errors import DataError, RunError, ScoringError
from sirius_rec.rankers import request_files
from sirius_rec.rankers.answers import (
    PARTIAL,
    Answerer,
    AnswerFile,
    Outcome,
    Unknown,
    answer_file,
    prepared,
    ranking,
    refusal,
)
from sirius_rec.rankers.requests import BadRequest, Request, checked, parse_request, read_requests

RECIPE = {"model": "lengths"}


def by_length(requests: list[Request]) -> list[list[float]]:
    """Longer names score higher."""
    return [[float(len(c)) for c in r.candidates] for r in requests]


def rank_file(
    path: Path, out: AnswerFile, score: Any, check: Any, *, top: int | None = None, unknown: Unknown | None = None,
    skip_bad: bool = False, **options: Any,
) -> Outcome:  # fmt: skip
    answerer = ranking(Answerer(score, check, unknown, skip_bad), top)
    return answer_file(path, out, partial(map, answerer), **options)


def accept(request: Request) -> None:
    return None


def write(folder: Path, n: int = 10, bad: tuple[int, ...] = ()) -> Path:
    """n requests; request k ranks "x" * 1 … "x" * (k + 2), shortest first; blank lines between them."""
    lines = [
        "{" if k in bad else json.dumps({"history": [], "candidates": ["x" * (c + 1) for c in range(k + 2)], "id": k})
        for k in range(n)
    ]
    path = folder / "requests.jsonl"
    path.write_text("\n\n".join(lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_of_parquet_are_lines_and_a_folder_is_one_file(tmp_path: Path) -> None:
    """As Spark writes them: parts, and a file that says that all are there."""
    records = [{"history": ["a", str(k)], "candidates": ["x" * (c + 1) for c in range(k + 2)]} for k in range(7)]
    records[3]["id"], records[4]["id"] = "s3", "é"
    lines = tmp_path / "r.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    wanted = list(read_requests(lines))
    assert [request.line for request in wanted] == list(range(1, 8))
    whole = tmp_path / "r.parquet"
    pl.DataFrame(records).write_parquet(whole)
    assert list(read_requests(whole)) == wanted
    for kind in ("parquet", "json"):
        folder = tmp_path / kind
        (folder / "day=2").mkdir(parents=True)
        (folder / "_SUCCESS").touch()
        (folder / "_temporary").mkdir()
        (folder / "_temporary" / "part-0").touch()
        for part, some in enumerate((records[:4], records[4:5], records[5:])):
            if kind == "parquet":
                pl.DataFrame(some).write_parquet(folder / "day=2" / f"part-{part}.parquet")
            else:
                text = "\n\n".join(json.dumps(record) for record in some)  # blank lines have a number, too
                (folder / f"part-{part}.json.gz").write_bytes(gzip.compress(text.encode()))
        found = list(read_requests(folder))
        assert [replace(request, line=0) for request in found] == [replace(request, line=0) for request in wanted]
        assert [r.line for r in found] == ([1, 2, 3, 4, 5, 6, 7] if kind == "parquet" else [1, 3, 5, 7, 8, 9, 11])
    assert list(read_requests(whole, 5)) == wanted[5:]


def test_a_row_group_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_files, "_ROWS", 3)
    frame = pl.DataFrame({"history": [["a"]] * 10, "candidates": [[k, k + 1] for k in range(10)], "id": range(10)})
    frame.write_parquet(tmp_path / "r.parquet", row_group_size=4)
    said: list[tuple[str, int, int]] = []
    found = list(read_requests(tmp_path / "r.parquet", advance=lambda *what: said.append(what)))
    assert [(r.line, r.key, r.candidates) for r in found] == [(k + 1, k, (str(k), str(k + 1))) for k in range(10)]
    size = (tmp_path / "r.parquet").stat().st_size
    assert [done for _, done, _ in said] == [size * rows // 10 for rows in (3, 6, 9, 10)]


@pytest.mark.parametrize("column", ["history", "id"])
def test_bytes_are_no_titles(tmp_path: Path, column: str) -> None:
    """As some write text to Parquet; `b'Air'` would be read as a title by any language model."""
    row = {"history": ["Air"], "candidates": ["a", "b"], "id": "x"}
    row[column] = [b"Air"] if column == "history" else b"x"
    pl.DataFrame({name: [value] for name, value in row.items()}).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataError, match=rf"r\.parquet: column {column} holds bytes: write it as text"):
        list(read_requests(tmp_path / "r.parquet"))


@pytest.mark.parametrize(
    ("made", "message"),
    [(b"PAR1 torn", r"r\.parquet: cannot be read \("), (None, "r.parquet: holds no files; put requests there")],
)
def test_parquet_that_cannot_be_read(tmp_path: Path, made: bytes | None, message: str) -> None:
    source = tmp_path / "r.parquet"
    source.mkdir() if made is None else source.write_bytes(made)
    with pytest.raises(DataError, match=message):
        list(read_requests(source))


def test_a_request_and_its_answer(tmp_path: Path) -> None:
    source = tmp_path / "r.jsonl"
    source.write_text('{"history": ["a", 7], "candidates": ["bb", "c", "ddd", "ee"], "id": {"session": 1}}\n')
    assert list(read_requests(source)) == [Request(1, ("a", "7"), ("bb", "c", "ddd", "ee"), {"session": 1}, named=True)]
    with AnswerFile(tmp_path / "out.jsonl", RECIPE) as out:
        assert rank_file(source, out, by_length, accept, top=3) == Outcome(1, 0)
        out.finish()
    # "bb" and "ee" tie: in the order given
    wanted = {"line": 1, "id": {"session": 1}, "candidates": ["ddd", "bb", "ee"], "scores": [3.0, 2.0, 2.0]}
    assert read(tmp_path / "out.jsonl") == [wanted]
    assert not (tmp_path / f"out.jsonl{PARTIAL}").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\xff", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b"[]", "not a JSON object; write"),
        (b'{"history": []}', "candidates is missing; give a list"),
        (b'{"history": "a", "candidates": ["b"]}', "history is 'a'; give a list"),
        (b'{"history": [1.5], "candidates": ["b"]}', "history holds 1.5; give ids or titles"),
        (b'{"history": [true], "candidates": ["b"]}', "history holds True"),
        (b'{"history": [], "candidates": ["\\ud800"]}', "which is not valid text"),
        (b'{"history": [], "candidates": []}', "nothing to rank"),
        (b'{"history": [], "candidates": ["b", "b"]}', "candidate 'b' is duplicated"),
        (b'{"history": [], "candidates": ["b"], "id": 1e999}', "id holds a number that is too large"),
        (b'{"history": [], "candidates": ["b"], "id": {"a": [-1e999]}}', "id holds a number that is too large"),
        (b'{"history": [], "candidates": ["b"], "id": "\\ud800"}', "id holds '\\ud800', which is not valid text"),
        (b'{"history": [], "candidates": ["b"], "id": {"\\udfff": 1}}', "which is not valid text"),
        (b'{"history": [], "candidates": ["b"], "user": 1}', "unknown field 'user'; known are id, history, candidates"),
    ],
)
def test_bad_requests(line: bytes, why: str) -> None:
    found = parse_request(3, line)
    assert isinstance(found, BadRequest) and found.line == 3 and why in found.why
    assert "\n" not in found.why and found.why.encode()


def test_a_bad_line_stops_behind_its_predecessors_and_can_be_skipped_on_the_next_try(tmp_path: Path) -> None:
    source, target = write(tmp_path, 10, bad=(6,)), tmp_path / "out.jsonl"
    with AnswerFile(target, RECIPE) as out, pytest.raises(DataError, match=r"requests\.jsonl, line 13: .*--skip-bad"):
        rank_file(source, out, by_length, accept, part=4)
    assert not target.exists()
    with AnswerFile(target, RECIPE) as out:
        assert out.answered == 11
        assert rank_file(source, out, by_length, accept, part=4, skip_bad=True) == Outcome(3, 1)
        out.finish()
    answers = read(target)
    assert [a["line"] for a in answers] == [2 * k + 1 for k in range(10)]
    assert [k for k, a in enumerate(answers) if "error" in a] == [6]
    assert all(a["id"] == k and a["scores"][0] == k + 2 for k, a in enumerate(answers) if k != 6)


def test_requests_of_ones_own_are_checked_as_those_of_files() -> None:
    """Whole numbers are ids, also numpy's; a text is no list of its letters; nothing to rank is said."""
    numbers: Any = np.array([3, 14])
    text: Any = "314"
    assert checked(Request(9, numbers, (5, "6"), key=1, named=True), 2) == Request(2, ("3", "14"), ("5", "6"), 1, True)  # type: ignore[arg-type]
    for request, why in (
        (Request(1, text, ("5",)), "history is '314'; give a list"),
        (Request(1, ("3",)), "candidates is empty; there is nothing to rank"),
        (Request(1, ("3",), ("5",), exclude=("6",)), "unknown field 'exclude'"),
    ):
        found = checked(request, 2)
        assert isinstance(found, BadRequest) and found.line == 2 and why in found.why


def test_a_bad_line_is_known_by_its_id() -> None:
    found = parse_request(3, b'{"history": [], "candidates": [], "id": "mine"}')
    assert isinstance(found, BadRequest)
    assert refusal(found) == {"line": 3, "id": "mine", "error": "candidates is empty; there is nothing to rank"}
    lines, _ = prepared([Request(4, (), ("b",), "yours", True)], lambda request: "why not", None)
    assert isinstance(lines[0], BadRequest) and refusal(lines[0]) == {"line": 4, "id": "yours", "error": "why not"}


def test_what_cannot_be_scored_is_a_bad_line(tmp_path: Path) -> None:
    def no_five(request: Request) -> str | None:
        return "five is right out" if len(request.candidates) == 5 else None

    with AnswerFile(tmp_path / "o", RECIPE) as out, pytest.raises(DataError, match="line 7: five is right out; fix"):
        rank_file(write(tmp_path), out, by_length, no_five)


@pytest.mark.parametrize("torn", [0, 9])
def test_going_on_where_it_was_killed(tmp_path: Path, torn: int) -> None:
    """The second call scores the rest only; the bytes are those of an uninterrupted call. torn: cut off mid-line."""
    source, target = write(tmp_path), tmp_path / "out.jsonl"
    with AnswerFile(tmp_path / "whole.jsonl", RECIPE) as out:
        rank_file(source, out, by_length, accept)
        out.finish()
    calls: list[int] = []

    def dies(requests: list[Request]) -> list[list[float]]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(requests))
        return by_length(requests)

    with AnswerFile(target, RECIPE) as out, pytest.raises(KeyboardInterrupt):
        rank_file(source, out, dies, accept, part=3)
    unfinished = target.with_name(target.name + PARTIAL)
    if torn:
        unfinished.write_bytes(unfinished.read_bytes()[:-torn])
    scored: list[int] = []

    def counts(requests: list[Request]) -> list[list[float]]:
        scored.extend(r.line for r in requests)
        return by_length(requests)

    with AnswerFile(target, RECIPE) as out:
        rank_file(source, out, counts, accept, part=3)
        out.finish()
    assert scored == [2 * k + 1 for k in range(5 if torn else 6, 10)]
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_requests_that_changed_behind_their_answers_are_refused(tmp_path: Path) -> None:
    """Lines behind the last answer may change: that is how a bad one is mended."""
    source, target = write(tmp_path, 10, bad=(6,)), tmp_path / "out.jsonl"
    good = source.read_text()
    with AnswerFile(target, RECIPE) as out, pytest.raises(DataError, match="line 13"):
        rank_file(source, out, by_length, accept, part=4)
    kept = target.with_name(target.name + PARTIAL).read_bytes()
    lines = good.splitlines()
    for changed in ("\n".join(lines[::-1]), "\n".join(lines[:4]), good.replace('"id": 2', '"id": 3')):
        source.write_text(changed + "\n")
        with (
            AnswerFile(target, RECIPE) as out,
            pytest.raises(DataError, match="first 11 lines are not those that were"),
        ):
            rank_file(source, out, by_length, accept, skip_bad=True)
        assert target.with_name(target.name + PARTIAL).read_bytes() == kept
    source.write_text(good.replace("\n{\n", '\n{"history": [], "candidates": ["mended"]}\n'))
    with AnswerFile(target, RECIPE) as out:
        assert rank_file(source, out, by_length, accept) == Outcome(4, 0)
        out.finish()
    assert [a["line"] for a in read(target)] == [2 * k + 1 for k in range(10)]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with AnswerFile(target, RECIPE) as out:
        out.write([{"line": 1}], [0])
    with pytest.raises(RunError, match="was made from another input, model or options"):
        AnswerFile(target, {"model": "other"})
    target.write_text("precious\n")
    with pytest.raises(RunError, match=r"out\.jsonl: exists already: choose another --out, or remove it"):
        AnswerFile(target, RECIPE)
    assert target.read_text() == "precious\n"


def test_one_process_at_a_time_and_a_head_that_was_cut_off(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with AnswerFile(target, RECIPE), pytest.raises(RunError, match="another process is writing it"):
        AnswerFile(target, RECIPE)
    unfinished = target.with_name(target.name + PARTIAL)
    assert not unfinished.exists(), "nothing was answered, and a mended command would be refused"
    for torn in (b"", json.dumps(RECIPE).encode()[:-3]):
        unfinished.write_bytes(torn)
        with AnswerFile(target, RECIPE) as out:
            assert out.answered == 0
    with AnswerFile(target, RECIPE) as out:
        rank_file(write(tmp_path), out, by_length, accept)
        out.finish()
    assert len(read(target)) == 10


def test_scores_that_are_no_numbers_are_not_ranked(tmp_path: Path) -> None:
    with (
        AnswerFile(tmp_path / "o", RECIPE) as out,
        pytest.raises(ScoringError, match="line 1: a score is not a finite"),
    ):
        rank_file(write(tmp_path), out, lambda requests: [[float("nan")] * 20] * len(requests), accept)


def test_a_stream_never_holds_more_than_a_part(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl.gz"
    with gzip.open(source, "wt") as file:
        for k in range(5000):
            file.write(json.dumps({"history": ["h"], "candidates": ["a", "bb"], "id": k}) + "\n")
    largest = 0

    def score(requests: list[Request]) -> list[list[float]]:
        nonlocal largest
        largest = max(largest, len(requests))
        return by_length(requests)

    with AnswerFile(tmp_path / "o", RECIPE) as out:
        assert rank_file(source, out, score, accept, part=64) == Outcome(5000, 0)
        out.finish()
    assert largest == 64
    assert [a["id"] for a in read(tmp_path / "o")] == list(range(5000))


def test_unknown_history_items_are_dropped_and_said(tmp_path: Path) -> None:
    """What is left is ranked; where nothing is, popularity answers and the answer says so."""
    rows = [
        {"id": "a", "history": ["i1", "gone", "i2"], "candidates": ["i3", "i44"]},
        {"history": ["gone", "too"], "candidates": ["i3", "i44"]},
        {"history": [], "candidates": ["i3", "i44"]},
    ]
    source = tmp_path / "r.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[Request] = []

    def score(requests: list[Request]) -> list[Any]:
        seen.extend(requests)
        return by_length(requests)

    unknown = Unknown(lambda item: item.startswith("i"), lambda requests: [[9.0, 1.0]] * len(requests))
    with AnswerFile(tmp_path / "o.jsonl", {}) as out:
        assert rank_file(source, out, score, accept, unknown=unknown) == Outcome(3, 0, 3, 2)
        out.finish()
    assert [r.history for r in seen] == [("i1", "i2")]
    first, second, third = (json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines())
    assert first["unknown"] == 1 and first["id"] == "a" and first["candidates"] == ["i44", "i3"] and "by" not in first
    assert (second["unknown"], second["by"], second["candidates"]) == (2, "popularity", ["i3", "i44"])
    assert "unknown" not in third and (third["by"], third["candidates"]) == ("popularity", ["i3", "i44"])


def test_what_is_no_json_is_no_request() -> None:
    """NaN would be copied into an answer that nobody could read."""
    bad = parse_request(1, b'{"id": NaN, "history": [], "candidates": ["a"]}')
    assert isinstance(bad, BadRequest) and "NaN is no JSON value" in bad.why
