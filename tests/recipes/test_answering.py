"""Requests answered by several processes or by Ray: the same answers in the same order, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.cluster import Cluster
from sirius_rec.errors import ConfigError, DataError, RunError, ScoringError
from sirius_rec.extras import missing
from sirius_rec.rankers.answers import AnswerFile, Outcome, answer_file
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes.answering import AnswererSpec, Pool, answerer_pool, opened
from sirius_rec.recipes.ranking import Served, load_run_ranker

needs_ray = pytest.mark.skipif(missing("ray") is not None, reason="needs Ray (extra ray)")


def requests_of(run: Any, path: Path, n: int) -> Path:
    ids = run.dataset.items["item_id"].to_list()
    histories = run.dataset.examples("test")["history"].to_list()
    slates = run.dataset.slates("test-uniform-6-s0")["candidates"].to_list()
    rows = [
        json.dumps({"history": [ids[i] for i in histories[r]], "candidates": [ids[i] for i in slates[r]], "id": n})
        for n, r in ((k, k % len(slates)) for k in range(n))
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def sft(run: Any, **options: Any) -> AnswererSpec:
    load = partial(opened, str(run.folder.path), load_run_ranker, method="sft", seed=0, checkpoint="best", titles=False)
    return AnswererSpec(load, None, **options)


def answered(them: Pool, source: Path, out: Path, part: int = 256) -> Outcome:
    with AnswerFile(out, {}) as answers:
        outcome = answer_file(source, answers, them.each, part=part)
        answers.finish()
    return outcome


@pytest.fixture
def whole(trained: Any, tmp_path: Path) -> tuple[Path, bytes]:
    """600 requests, three parts of them, and their answers by one process."""
    source = requests_of(trained, tmp_path / "requests.jsonl", 600)
    with answerer_pool(sft(trained), None) as them:
        assert answered(them, source, tmp_path / "whole.jsonl").answered == 600
    return source, (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_write_what_one_does(trained: Any, whole: tuple[Path, bytes], tmp_path: Path) -> None:
    source, wanted = whole
    out = tmp_path / "two.jsonl"
    arguments = [
        "rank",
        "--model",
        trained.folder.path,
        "--method",
        "sft",
        "--input",
        source,
        "--out",
        out,
        "--jobs",
        2,
    ]
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "ranking with sft of seed 0 (best checkpoint)" in result.output and "answered: 600" in result.output
    assert out.read_bytes() == wanted


# Rankers that stand in a module, so that another process can load them.


def slow_and_killed(folder: str) -> Served:
    """Scores are lengths; the process that meets "kill" ends, once."""

    def score(requests: list[Request]) -> list[list[float]]:
        once = Path(folder, "killed")
        if any("kill" in request.history for request in requests) and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02 if requests[0].line % 2 else 0.0)  # parts do not end in the order in which they began
        return [[float(len(candidate)) for candidate in request.candidates] for request in requests]

    return Served("lengths", {}, score, lambda request: "a bad one" if "bad" in request.history else None)


def not_finite(folder: str) -> Served:
    return Served("nan", {}, lambda requests: [[float("nan")] * 2 for _ in requests], lambda request: None)


def cannot_be_loaded(folder: str) -> Served:
    raise RunError("no such method")


def lengths(path: Path, n: int, odd: dict[int, str]) -> Path:
    rows = (json.dumps({"history": [odd.get(k, "a")], "candidates": ["x", "yy"], "id": k}) for k in range(n))
    path.write_text("\n".join(rows) + "\n")
    return path


def ids(path: Path) -> list[int]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_bad_line_ends_it_behind_its_predecessors(tmp_path: Path) -> None:
    source, out = lengths(tmp_path / "in", 60, {33: "bad"}), tmp_path / "out"
    with answerer_pool(AnswererSpec(partial(slow_and_killed, str(tmp_path)), None), 2) as them:
        stops_and_goes_on(them, source, out)


def stops_and_goes_on(them: Pool, source: Path, out: Path) -> None:
    """60 requests of which number 33 is bad, then mended."""
    with pytest.raises(DataError, match="line 34: a bad one"):
        answered(them, source, out, part=4)
    source.write_text(source.read_text().replace('"bad"', '"good"'))
    assert answered(them, source, out, part=4).answered == 27
    assert ids(out) == list(range(60))


@pytest.mark.slow
def test_errors_of_a_worker_are_those_of_one_process(tmp_path: Path) -> None:
    source = lengths(tmp_path / "in", 8, {})
    with (
        answerer_pool(AnswererSpec(partial(not_finite, ""), None), 2) as them,
        pytest.raises(ScoringError, match="a score is not a finite number"),
    ):
        answered(them, source, tmp_path / "out")
    with (
        pytest.raises(RunError, match="no such method"),
        answerer_pool(AnswererSpec(partial(cannot_be_loaded, ""), None), 2),
    ):
        pass


@pytest.mark.slow
def test_a_killed_process_is_one_line_and_the_next_call_goes_on(tmp_path: Path) -> None:
    source, out = lengths(tmp_path / "in", 60, {41: "kill"}), tmp_path / "out"
    spec = AnswererSpec(partial(slow_and_killed, str(tmp_path)), None)
    with answerer_pool(spec, 2) as them, pytest.raises(RunError, match=r"a worker process has died .*fewer --jobs"):
        answered(them, source, out, part=4)
    with answerer_pool(spec, 2) as them:
        outcome = answered(them, source, out, part=4)
    assert 20 <= outcome.answered <= 44  # what was answered before is not answered again
    assert ids(out) == list(range(60))


@pytest.mark.slow
def test_no_more_parts_are_read_than_are_under_way(tmp_path: Path) -> None:
    source = lengths(tmp_path / "in", 400, {})
    read = 0

    def counted(parts: Iterator[Any]) -> Iterator[Any]:
        nonlocal read
        for part in parts:
            read += 1
            yield part

    with answerer_pool(AnswererSpec(partial(slow_and_killed, str(tmp_path)), None), 2) as them:
        seen = 0
        with AnswerFile(tmp_path / "out", {}) as answers:

            def each(parts: Any) -> Iterator[Any]:
                nonlocal seen
                for found in them.each(counted(iter(parts))):
                    seen += 1
                    assert read - seen < 4
                    yield found

            assert answer_file(source, answers, each, part=4).answered == 400
            answers.finish()


def test_an_address_is_rays(tmp_path: Path, trained: Any) -> None:
    source = lengths(tmp_path / "in", 1, {})
    arguments = [
        "rank",
        "--model",
        trained.folder.path,
        "--input",
        source,
        "--out",
        tmp_path / "o",
        "--address",
        "auto",
    ]
    with pytest.raises(ConfigError, match="--address: is that of a Ray cluster: add --engine ray"):
        CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)


@needs_ray
@pytest.mark.slow
def test_ray_writes_what_one_process_does_and_an_actor_may_die(
    trained: Any, whole: tuple[Path, bytes], tmp_path: Path
) -> None:
    source, wanted = whole
    with answerer_pool(sft(trained), 2, Cluster()) as them:
        assert answered(them, source, tmp_path / "ray.jsonl").answered == 600
    assert (tmp_path / "ray.jsonl").read_bytes() == wanted
    source, out = lengths(tmp_path / "in", 60, {33: "bad", 41: "kill"}), tmp_path / "out"
    with answerer_pool(AnswererSpec(partial(slow_and_killed, str(tmp_path)), None), 2, Cluster()) as them:
        stops_and_goes_on(them, source, out)
    assert (tmp_path / "killed").exists()


@needs_ray
@pytest.mark.slow
def test_a_node_leaves_and_every_row_is_answered_once(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster as Nodes

    source, out = lengths(tmp_path / "in", 200, {}), tmp_path / "out"
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        leaving = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        spec = AnswererSpec(partial(slow_and_killed, str(tmp_path)), None)
        with answerer_pool(spec, 3, Cluster(cluster.address)) as them, AnswerFile(out, {}) as answers:

            def each(parts: Any) -> Iterator[Any]:
                for n, found in enumerate(them.each(parts)):
                    if n == 10:
                        cluster.remove_node(leaving, allow_graceful=False)
                        # its actor finds a place where one of those that are left stands now
                        cluster.add_node(num_cpus=1)
                    yield found

            assert answer_file(source, answers, each, part=4).answered == 200
            answers.finish()
    finally:
        with suppress(Exception):
            cluster.shutdown()
    assert ids(out) == list(range(200))
