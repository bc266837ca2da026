"""Keys, limits of size and time, the log, and what browsers may do."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.errors import ConfigError
from sirius_rec.serving.guard import json_log
from sirius_rec.serving.keys import api_keys
from sirius_rec.serving.options import Batching, Limits, Service, check

BODY = {"history": ["i0"], "candidates": ["i1", "i2"]}
KEY = "a-key-of-some-length"


def bearer(key: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {key}"}}


def test_without_keys_everybody_is_let_in_but_to_the_admin(running: Callable[..., Any]) -> None:
    service = running()
    assert service.post("/v1/rerank", BODY).status_code == 200
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer anything"}):
        assert service.together(("POST", "/admin/reload", {"headers": headers}))[0].status_code == 401


def test_keys(running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the environment and of a file; the admin's is another."""
    monkeypatch.setenv("SIRIUS_API_KEYS", f"{KEY}, another-key-here")
    monkeypatch.setenv("SIRIUS_ADMIN_KEY", "the-admin-himself")
    (tmp_path / "keys").write_text("# shop\nkey-from-a-file\n")
    service = running(api_keys=tmp_path / "keys")
    for key in (KEY, "another-key-here", "key-from-a-file"):
        assert service.post("/v1/rerank", BODY, **bearer(key)).status_code == 200
    wrong = ["", KEY[:-1], KEY + "x", "the-admin-himself", "# shop"]
    refused = [service.post("/v1/rerank", BODY, **bearer(key)) for key in wrong] + [service.post("/v1/rerank", BODY)]
    refused.append(service.post("/v1/rerank", BODY, headers={"authorization": f"Basic {KEY}"}))
    assert {(r.status_code, r.headers["www-authenticate"]) for r in refused} == {(401, "Bearer")}
    for path in ("/v1/models", "/v1/items?search=a", "/metrics"):
        assert service.get(path).status_code == 401 and service.get(path, **bearer(KEY)).status_code == 200
    assert [service.get(path).status_code for path in ("/health", "/ready", "/", "/openapi.json")] == [200] * 4
    assert service.together(("POST", "/admin/reload", bearer(KEY)))[0].status_code == 401
    assert service.together(("POST", "/admin/reload", bearer("the-admin-himself")))[0].status_code == 200
    assert KEY not in json.dumps(service.log) and "the-admin-himself" not in json.dumps(service.log)


def test_a_line_of_the_log_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """print writes the newline behind it, and a signal's line came between."""
    pieces: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stderr", Stream())
    json_log({"event": "ready"})
    assert len(pieces) == 1 and pieces[0].endswith('"event": "ready"}\n')


def test_keys_that_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n\n")
    for path, why in ((tmp_path / "none", "cannot be read"), (tmp_path / "empty", "has no key")):
        with pytest.raises(ConfigError, match=why):
            api_keys(path)
    (tmp_path / "other").write_text("schlüssel-und-schloss\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="letters outside ASCII"):
        api_keys(tmp_path / "other")
    monkeypatch.setenv("SIRIUS_API_KEYS", "short")
    with pytest.raises(ConfigError, match="fewer than 8 characters") as caught:
        api_keys(None)
    assert "'short'" not in str(caught.value)


def call(service: Any, messages: list[Any], headers: dict[str, str], path: str = "/v1/rerank") -> list[dict[str, Any]]:
    """What the application sends for a body that comes in these parts; a number among them is a wait in seconds."""
    left, sent = iter(messages), []

    async def receive() -> dict[str, Any]:
        for message in left:
            if isinstance(message, float):
                await asyncio.sleep(message)
                continue
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "server": ("s", 80),
        "client": ("c", 1), "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip
    asyncio.run(service.app(scope, receive, send))
    return sent


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


JSON = {"content-type": "application/json; charset=utf-8"}


def test_bodies_are_bounded(running: Callable[..., Any]) -> None:
    service = running(limits={"body": 1000, "body_seconds": 0.2})
    whole = json.dumps(BODY).encode()
    for messages, headers, status in (
        ([part(whole[:9], True), part(whole[9:], False)], JSON, 200),
        ([], {**JSON, "content-length": "1001"}, 413),
        ([part(b"[" * 600, True), part(b"[" * 600, True)], JSON, 413),  # a length that was not announced
        ([part(whole[:9], True), 5.0, part(whole[9:], False)], JSON, 408),
        ([part(whole, False)], {"content-type": "text/plain"}, 415),
        ([part(whole, False)], {}, 415),
    ):
        sent = call(service, messages, headers)
        assert sent[0]["status"] == status, sent
        assert json.loads(sent[1]["body"]).get("detail", "").count("\n") == 0
        assert ((b"connection", b"close") in sent[0]["headers"]) == (status != 200)


def test_who_goes_away_costs_nothing(running: Callable[..., Any], scripted: Any) -> None:
    noticed = threading.Event()  # else a quick answer may come before the client is seen to have gone
    scripted.before = lambda requests: noticed.wait(30)
    service = running(scripted, batching={"wait": 0})
    gone = {"type": "http.disconnect"}
    assert call(service, [part(b"{", True), gone], JSON) == []
    assert call(service, [part(json.dumps(BODY).encode(), False), gone], JSON) == []
    noticed.set()
    assert [line["outcome"] for line in service.log] == ["disconnected"] * 2
    assert service.metric('sirius_requests_total{endpoint="/v1/rerank",outcome="disconnected"}') == 2
    assert service.post("/v1/rerank", BODY).status_code == 200


def test_the_log_has_no_content_unless_it_is_asked_for(running: Callable[..., Any]) -> None:
    service = running()
    secret = {"history": ["i0", "a secret"], "candidates": ["i1"]}
    service.post("/v1/rerank", secret)
    service.post("/v1/rerank", {"history": [], "candidates": ["a secret"]})
    service.post("/v1/rerank", {"a secret": []})
    service.get("/v1/items?search=a+secret")
    service.get("/a secret")
    assert "secret" not in json.dumps(service.log) and len(service.log) == 5
    first = service.log[0]
    assert {name: value for name, value in first.items() if name not in ("id", "ms", "queued_ms")} == {
        "method": "POST", "path": "/v1/rerank", "status": 200, "outcome": "ok", "history": 2, "candidates": 1,
        "model": "lm", "batch": 1,
    }  # fmt: skip
    assert service.log[4]["path"] == "other" and service.log[4]["status"] == 404
    open_ = running(log_content=True)
    open_.post("/v1/rerank", secret)
    assert open_.log[0]["content"]["history"] == ("i0", "a secret")


def test_an_answer_names_its_request(running: Callable[..., Any]) -> None:
    service = running()
    answer = service.post("/v1/rerank", BODY)
    assert answer.headers["x-request-id"] == answer.json()["id"] == service.log[0]["id"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_sites_are_kept_out_unless_named(running: Callable[..., Any]) -> None:
    origin = {"origin": "https://shop.example"}
    ask = {**origin, "access-control-request-method": "POST"}
    closed = running().together(("OPTIONS", "/v1/rerank", {"headers": ask}))[0]
    assert "access-control-allow-origin" not in closed.headers
    service = running(cors=("https://shop.example",))
    for name, allowed in (("https://shop.example", True), ("https://other.example", False)):
        answer = service.together(("OPTIONS", "/v1/rerank", {"headers": {**ask, "origin": name}}))[0]
        assert (answer.headers.get("access-control-allow-origin") == name) is allowed


def test_the_page_loads_nothing_from_elsewhere(running: Callable[..., Any]) -> None:
    service = running()
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = service.get(path)
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        for word in ("http://", "https://", "innerHTML", "eval(", "document.write", " style=", "onclick="):
            assert word not in answer.text, (path, word)


def test_searching_the_catalogue(running: Callable[..., Any]) -> None:
    service = running()

    def titles(query: str) -> list[str]:
        return [item["title"] for item in service.get(f"/v1/items?{query}").json()["items"]]

    assert titles("search=red+paint") == ["Red House Painters"]
    assert titles("search=%C3%96X") == ["Öx"]
    assert titles("search=i1") == ["Blur", "i1"]  # an id as a whole, then titles
    assert titles("search=a&limit=2") == ["Air", "Can"]
    assert len(set(titles("sample=4"))) == 4
    assert titles("search=nothing+like+it") == []


def test_a_parameter_out_of_range_is_refused_in_one_line(running: Callable[..., Any]) -> None:
    answer = running().get("/v1/items?sample=secret")
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])
    assert answer.json()["detail"].startswith("sample: Input should be a valid integer") and "secret" not in answer.text


def test_the_description_has_every_route_and_field(running: Callable[..., Any]) -> None:
    described = running().get("/openapi.json").json()
    schema = described["paths"]["/v1/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"query", "documents", "history", "candidates", "top_n", "return_documents"} <= set(schema["properties"])
    assert "Document" in described["components"]["schemas"]
    assert {"/v1/recommend", "/v1/models", "/health", "/ready", "/metrics", "/admin/reload"} <= set(described["paths"])


@pytest.mark.parametrize(
    ("service", "why"),
    [
        (Service(port=70_000), "--port 70000: ports go up to 65535"),
        (Service(workers=0), "--workers 0: give 1 or more"),
        (Service(limits=Limits(candidates=0)), "--candidates 0"),
        (Service(limits=Limits(seconds=float("nan"))), "--seconds nan"),
        (Service(batching=Batching(prefix_cache=-1)), "--prefix-cache -1: give 0 or more"),
        (Service(cors=("*",)), "--cors *: give an origin"),
    ],
)
def test_options_out_of_range(service: Service, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(service)
    assert why in str(caught.value)
    check(Service())


def test_the_description_is_a_page_that_loads_nothing_from_elsewhere(running: Any) -> None:
    """Every route and field of the description, and no script: Swagger's viewer would come from a CDN."""
    service = running()
    described, answer = service.get("/openapi.json").json(), service.get("/docs")
    assert answer.status_code == 200 and "script-src 'self'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text and "//" not in re.sub(r"</?\w+>|<!doctype html>", "", answer.text)
    for path, methods in described["paths"].items():
        assert f"<code>{next(iter(methods)).upper()} {path}</code>" in answer.text
    for field in described["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "properties"
    ]:
        assert f"<code>{field}</code>" in answer.text
    assert "<code>?search</code></td><td>string" in answer.text
    assert "<code>documents</code></td><td>list of string or {&quot;text&quot;: …}" in answer.text
    assert service.get("/page.css").status_code == 200  # where it looks


def test_what_the_description_says_is_escaped() -> None:
    from sirius_rec.serving.description import description_page

    field = {"type": "string", "description": "<i>"}
    query = [{"name": "<b>", "schema": field}]
    about = {"title": "<a>", "version": "1", "description": "&"}
    page = description_page({"info": about, "paths": {"/<p>": {"get": {"parameters": query}}}})
    assert not {"<a>", "<b>", "<i>", "<p>"} & set(re.findall("<[abip]>", page.replace("<p>&amp;</p>", "")))
