"""A chat endpoint on this machine: real HTTP, answers by a function of the prompt, faults on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Answer = Callable[[str], str]


def completion(content: Any, asked: int = 10, said: int = 3) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
    }


class Endpoint:
    """faults: what comes before the right answers, one per request: a status, (status, headers, body), or a name."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.faults: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.key: str | None = None
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                with endpoint.lock:
                    endpoint.times.append(time.monotonic())
                    fault = endpoint.faults.pop(0) if endpoint.faults else None
                with suppress(OSError):  # the client has given up
                    self._answer(fault)

            def _answer(self, fault: Any) -> None:
                assert self.path == "/v1/chat/completions", self.path
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                authorization = self.headers.get("Authorization")
                with endpoint.lock:
                    endpoint.requests.append(body)
                    endpoint.keys.append(authorization)
                if endpoint.key is not None and authorization != f"Bearer {endpoint.key}":
                    # as unkind as can be: the body repeats what was sent
                    self._send(401, json.dumps({"error": {"message": f"bad key {authorization}"}}).encode())
                elif isinstance(fault, int):
                    self._send(fault, b'{"error": {"message": "no luck"}}')
                elif isinstance(fault, tuple):
                    self._send(fault[0], fault[2], fault[1])
                else:
                    prompt = body["messages"][0]["content"]
                    text = json.dumps(completion(self._thought(prompt), asked=len(prompt.split()))).encode()
                    self._misbehave(fault, text)

            def _thought(self, prompt: str) -> Any:
                """The answer, counted as active until it is there: once it is sent, the client may ask the next."""
                with endpoint.lock:
                    endpoint.active += 1
                    endpoint.most_active = max(endpoint.most_active, endpoint.active)
                try:
                    return endpoint.answer(prompt)
                finally:
                    with endpoint.lock:
                        endpoint.active -= 1

            def _misbehave(self, fault: str | None, text: bytes) -> None:
                if fault == "truncated":
                    self._send(200, text[: len(text) // 2], {"Content-Length": str(len(text))})
                elif fault == "truncated json":
                    self._send(200, text[: len(text) // 2])
                elif fault == "slow":
                    time.sleep(1.5)
                    self._send(200, text)
                elif fault == "drip":
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    for byte in text:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                elif fault == "hang up":
                    self.close_connection = True
                else:
                    self._send(200, text)

            def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Endpoint]]:
    """serve(answer) → a running endpoint; no key is set and no proxy stands between."""
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started: list[Endpoint] = []

    def start(answer: Answer) -> Endpoint:
        started.append(Endpoint(answer))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.close()
