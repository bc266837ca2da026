"""What stands before every request: keys, the form and size of its body, time; and a line of log behind it."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sirius_rec.serving.bodies import Refused
from sirius_rec.serving.keys import Keys
from sirius_rec.serving.metrics import Metrics
from sirius_rec.serving.options import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ADMIN = "/admin/"
# Without a key: whether the process lives, and what holds no data.
OPEN = ("/health", "/ready", "/", "/page.css", "/page.js", "/docs", "/openapi.json", "/favicon.ico")
QUEUED = ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/recommend")
KNOWN = (
    *QUEUED, "/v1/models", "/v1/items", "/metrics", "/admin/reload",
    *OPEN,
)  # fmt: skip
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Disconnected(Exception):
    """The client went away."""


class Guard:
    """An ASGI application around another, which finds the whole body in `scope["state"]["body"]`.

    admit: raises Refused where nothing can be queued; asked before a body is read, because refusing has to be cheap.
    leaving: whether connections end with their answer.
    log: takes a line as a dictionary; never a key, and no content unless the application put it into
    `scope["state"]["log"]`.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        keys: Keys,
        admin: Keys,
        admit: Callable[[], None],
        leaving: Callable[[], bool],
        metrics: Metrics,
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        self.app, self.limits, self.keys, self.admin = app, limits, keys, admin
        self.admit, self.leaving, self.metrics, self.log = admit, leaving, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, path = time.perf_counter(), scope["path"]
        endpoint = path if path in KNOWN else "other"
        state = scope.setdefault("state", {})
        state["id"], state["log"] = secrets.token_hex(16), {}
        status = 499  # as others log a client that went away

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", state["id"].encode()), *HEADERS]
                if self.leaving():
                    own.append((b"connection", b"close"))
                given = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((n, v) for n, v in own if n not in given)]
            await send(message)

        try:
            try:
                self._check_head(scope)
                self._check_key(scope)
                if path in QUEUED:
                    self.admit()
                state["body"] = await self._body(scope, receive)
                await self.app(scope, receive, answer)
            except Refused as refused:
                state["log"]["outcome"] = refused.outcome
                if "content" in state["log"] or refused.status in (401, 429, 503):  # others quote the request
                    state["log"]["why"] = refused.why
                await refusal(refused)(answer)
            except Disconnected:
                state["log"]["outcome"] = "disconnected"
            except Exception as error:
                state["log"] |= {"outcome": "error", "error": type(error).__name__}
                if status == 499:
                    await refusal(Refused(500, "the service failed; its log has the request's id"))(answer)
                raise
        finally:
            seconds = time.perf_counter() - started
            outcome = state["log"].setdefault("outcome", "ok" if status < 400 else "bad_request")
            self.metrics.requests.labels(endpoint, outcome).inc()
            self.metrics.seconds.labels(endpoint).observe(seconds)
            line = {"id": state["id"], "method": scope["method"], "path": endpoint, "status": status}
            self.log({**line, "ms": round(seconds * 1e3, 2), **state["log"]})

    @staticmethod
    def _check_head(scope: Scope) -> None:
        """A head with two lengths: a proxy in front may take the other one, and what follows for another's request."""
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            raise Refused(400, "send Content-Length or Transfer-Encoding, not both", ends=True)

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        if path in OPEN or scope["method"] == "OPTIONS":
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        if path.startswith(ADMIN):
            if not self.admin.admit(given):
                raise Refused(401, "this needs the admin key as a bearer token", None, "unauthorized")
        elif not self.keys.open and not self.keys.admit(given):
            raise Refused(401, "this needs a key: Authorization: Bearer KEY", None, "unauthorized")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, within its limits of size and time. JSON alone, so that no form of another site sends it."""
        if scope["method"] != "POST":
            return b""
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if not scope["path"].startswith(ADMIN) and kind != b"application/json":
            raise Refused(415, "send JSON with Content-Type: application/json")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.limits.body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(
                408, f"the body took more than {self.limits.body_seconds:g} seconds", None, "timeout"
            ) from None

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self.limits.body} bytes")


def refusal(refused: Refused) -> Callable[[Send], Awaitable[None]]:
    """A JSON answer of one line, {"detail": …}; the connection is closed where the body was not read to its end."""
    body = json.dumps({"detail": refused.why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry is not None:
        headers.append((b"retry-after", str(refused.retry).encode()))
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.ends or refused.status in (408, 413, 415):
        headers.append((b"connection", b"close"))

    async def say(send: Send) -> None:
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return say


def json_log(entry: dict[str, Any]) -> None:
    """One line of JSON on standard error, in one piece: a signal may log in the middle of another line."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    sys.stderr.write(json.dumps({"time": f"{now}Z", **entry}, ensure_ascii=False) + "\n")
    sys.stderr.flush()
