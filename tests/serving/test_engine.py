"""Batches, isolation, a bounded queue, draining, and a swap that drops nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from sirius_rec.errors import RunError, ScoringError
from sirius_rec.rankers.requests import Request
from sirius_rec.serving.server import _reload


def body(*candidates: str, history: tuple[str, ...] = ("i0",)) -> dict[str, Any]:
    return {"json": {"history": list(history), "candidates": list(candidates)}}


def rerank(*candidates: str, history: tuple[str, ...] = ("i0",)) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/v1/rerank", body(*candidates, history=history)


def test_what_waits_together_is_one_batch(running: Callable[..., Any]) -> None:
    service = running(batching={"wait": 0.5, "requests": 8})
    answers = service.together(*(rerank("i1", f"i{n}") for n in (2, 3, 4, 5, 6, 2, 3, 4)))
    assert [a.status_code for a in answers] == [200] * 8
    assert service.scripted.batches == [8]
    assert [a.json()["results"][1]["id"] for a in answers] == ["i2", "i3", "i4", "i5", "i6", "i2", "i3", "i4"]
    assert service.metric("sirius_batch_requests_sum") == 8


def test_a_batch_ends_at_its_budget(running: Callable[..., Any]) -> None:
    """A request has 10 tokens of prompt, which count once where prompts are equal, and 1 of candidates."""
    service = running(batching={"wait": 0.5, "tokens": 33})
    service.together(*(rerank("i1", history=(f"i{n}",)) for n in range(6)))
    assert service.scripted.batches == [3, 3]
    service.scripted.batches.clear()
    service.together(*(rerank("i1") for _ in range(6)))
    assert service.scripted.batches == [6]


def test_a_broken_request_fails_alone(running: Callable[..., Any]) -> None:
    """One is refused before the batch, two break the call of all: the others are answered."""
    service = running(batching={"wait": 0.5, "requests": 5})

    def before(requests: list[Request]) -> None:
        if any("i6" in r.candidates for r in requests):
            raise ScoringError("this one\nleaves the range")
        if any("i5" in r.candidates for r in requests):
            raise RuntimeError("a bug")

    service.scripted.before = before
    calls = [rerank("i1"), rerank("nobody"), rerank("i2", "i6"), rerank("i5"), rerank("i3")]
    answers = service.together(*calls)
    assert [a.status_code for a in answers] == [200, 422, 422, 500, 200]
    assert answers[1].json()["detail"] == "item 'nobody' is not in the catalogue"
    assert answers[2].json()["detail"] == "this one leaves the range"
    assert "a bug" not in answers[3].text
    assert service.post("/v1/rerank", body("i1")["json"]).status_code == 200
    assert service.metric('sirius_requests_total{endpoint="/v1/rerank",outcome="error"}') == 1


def test_scores_that_are_no_numbers(running: Callable[..., Any], scripted: Any) -> None:
    scripted.score = lambda requests: [[float("nan")] * len(r.candidates) for r in requests]
    service = running(scripted)
    answer = service.post("/v1/rerank", body("i1")["json"])
    assert answer.status_code == 500 and "weights are damaged" in answer.json()["detail"]


class Gate:
    """Holds the engine inside a call until it is opened."""

    def __init__(self) -> None:
        self.inside, self.open = threading.Event(), threading.Event()

    def __call__(self, requests: list[Request]) -> None:
        self.inside.set()
        assert self.open.wait(60)


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


def held(service: Any, then: Callable[[httpx2.AsyncClient, list[Any]], Any]) -> Any:
    """One request inside the engine, then what `then` does; afterwards the gate opens."""
    gate = service.scripted.before = Gate()

    async def run() -> Any:
        transport = httpx2.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            tasks = [asyncio.create_task(client.post("/v1/rerank", **body("i1")))]
            await until(gate.inside)
            found = await then(client, tasks)
            gate.open.set()
            return found, await asyncio.gather(*tasks)

    return asyncio.run(run())


def test_a_full_queue_refuses(running: Callable[..., Any]) -> None:
    service = running(batching={"queue": 2, "requests": 1, "wait": 0})

    async def more(client: httpx2.AsyncClient, tasks: list[Any]) -> Any:
        tasks += [asyncio.create_task(client.post("/v1/rerank", **body("i2"))) for _ in range(2)]
        while len(service.engine._queue) < 2:
            await asyncio.sleep(0.01)
        health = await client.get("/health")
        return await client.post("/v1/rerank", **body("i3")), health

    (refused, health), answers = held(service, more)
    assert refused.status_code == 429 and refused.json() == {"detail": "2 requests wait already"}
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert health.status_code == 200
    assert [a.status_code for a in answers] == [200] * 3
    assert service.metric('sirius_requests_total{endpoint="/v1/rerank",outcome="busy"}') == 1


def test_draining_answers_what_is_open_and_refuses_what_is_new(running: Callable[..., Any]) -> None:
    service = running(batching={"requests": 1, "wait": 0})

    async def drain(client: httpx2.AsyncClient, tasks: list[Any]) -> Any:
        tasks.append(asyncio.create_task(client.post("/v1/rerank", **body("i2"))))
        while not service.engine._queue:
            await asyncio.sleep(0.01)
        service.engine.draining = True
        return [await client.post("/v1/rerank", **body("i3")), await client.get("/ready"), await client.get("/health")]

    (new, ready, health), answers = held(service, drain)
    assert (new.status_code, ready.status_code, health.status_code) == (503, 503, 200)
    assert new.headers["retry-after"] == "1"
    assert [a.status_code for a in answers] == [200, 200]


def test_stopping_answers_what_waits(running: Callable[..., Any]) -> None:
    service = running(batching={"requests": 1, "wait": 0})

    async def stop(client: httpx2.AsyncClient, tasks: list[Any]) -> Any:
        tasks += [asyncio.create_task(client.post("/v1/rerank", **body("i2"))) for _ in range(3)]
        while len(service.engine._queue) < 3:
            await asyncio.sleep(0.01)
        threading.Thread(target=service.engine.stop).start()

    _, answers = held(service, stop)
    assert [a.status_code for a in answers] == [200] * 4


def test_time_is_limited_and_nobody_computes_for_nobody(running: Callable[..., Any]) -> None:
    service = running(batching={"requests": 1, "wait": 0}, limits={"seconds": 0.2})

    async def late(client: httpx2.AsyncClient, tasks: list[Any]) -> Any:
        return await client.post("/v1/rerank", **body("i2"))

    answer, (first,) = held(service, late)
    for one in (answer, first):
        assert one.status_code == 503 and one.json() == {"detail": "no answer within 0.2 seconds"}
        assert one.headers["retry-after"] == "1"
    service.scripted.before = lambda requests: None
    assert service.post("/v1/rerank", body("i3")["json"]).status_code == 200
    assert len(service.scripted.batches) == 2  # the second was never asked of the ranker


def test_a_swap_drops_nobody(
    running: Callable[..., Any], other: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is answered by the models that it came for, what comes behind by the new ones."""
    monkeypatch.setenv("SIRIUS_ADMIN_KEY", "swap-it-now")
    service = running(batching={"requests": 1, "wait": 0})
    service.engine._load = lambda: other("newer")
    key = {"authorization": "Bearer swap-it-now"}

    async def swap(client: httpx2.AsyncClient, tasks: list[Any]) -> Any:
        tasks.append(asyncio.create_task(client.post("/v1/rerank", **body("i2"))))
        while not service.engine._queue:
            await asyncio.sleep(0.01)
        swapped = await client.post("/admin/reload", headers=key)
        tasks.append(asyncio.create_task(client.post("/v1/rerank", **body("i3"))))
        return swapped

    swapped, answers = held(service, swap)
    assert swapped.json() == {"status": "swapped", "models": ["newer", "counts"]}
    assert [(a.status_code, a.json()["model"]) for a in answers] == [(200, "lm"), (200, "lm"), (200, "newer")]

    def broken() -> Any:
        raise RunError("runs/x: no\nrun folder")

    service.engine._load = broken
    refused = service.together(("POST", "/admin/reload", {"headers": key}))[0]
    assert refused.status_code == 409 and refused.json()["detail"] == "the old models stay: runs/x: no run folder"
    assert service.post("/v1/rerank", body("i3")["json"]).json()["model"] == "newer"
    assert service.metric('sirius_reloads_total{outcome="failed"}') == 1

    def damaged() -> Any:
        raise OSError("/secret/path is no file of weights")

    service.engine._load = damaged
    refused = service.together(("POST", "/admin/reload", {"headers": key}))[0]
    assert (refused.status_code, refused.json()["detail"]) == (
        409, "the old models stay: OSError while the new ones were loaded",
    )  # fmt: skip
    assert service.log[-1]["why"] == "OSError: /secret/path is no file of weights"
    said: list[dict[str, Any]] = []
    _reload(service.engine, said.append)
    assert said == [{"event": "not swapped", "why": "OSError: /secret/path is no file of weights"}]
    assert service.post("/v1/rerank", body("i3")["json"]).json()["model"] == "newer"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_ended(running: Callable[..., Any]) -> None:
    service = running(limits={"seconds": 30})

    def fail() -> None:
        raise RuntimeError("between two batches")

    service.engine.loaded = replace(service.engine.loaded, after_batch=fail)
    assert service.post("/v1/rerank", body("i3")["json"]).status_code == 200
    service.engine._thread.join(10)
    answer = service.post("/v1/rerank", body("i3")["json"])
    assert answer.status_code == 503 and "must be started again" in answer.json()["detail"]
    assert service.get("/ready").json()["detail"] == "failed: start it again"


def test_a_prompt_for_two_models_counts_twice(running: Callable[..., Any]) -> None:
    """It is computed twice: 11 tokens and 11 fill a batch of 20, where a second one of the same model adds 1."""
    service = running(batching={"wait": 0.5, "tokens": 20})
    models = service.engine.loaded.models
    copy = replace(models["lm"], key="copy")
    service.engine.loaded = replace(service.engine.loaded, models={**models, "copy": copy})
    service.together(
        *(("POST", "/v1/rerank", {"json": {"model": m, **body("i3")["json"]}}) for m in ("lm", "copy", "lm"))
    )
    assert service.scripted.batches == [1, 1, 1]


def test_models_are_named(running: Callable[..., Any]) -> None:
    service = running()
    listed = service.get("/v1/models").json()
    assert [(m["id"], m["default"], m["scores"], m["recommends"]) for m in listed["data"]] == [
        ("lm", True, "log-probs", True), ("counts", False, "scores", False),
    ]  # fmt: skip
    answer = service.post("/v1/rerank", {"model": "rerank-v3.5", **body("i1")["json"]})
    assert answer.status_code == 404
    assert answer.json()["detail"] == "model 'rerank-v3.5' is not served; there are lm, counts"
