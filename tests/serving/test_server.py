"""`sirius serve` as a process: what it says, how it ends, several workers, and a soak with clients of bad habits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(MINI, ["prompts.slate=false"])
    opened = Run(open_run(tmp_path_factory.mktemp("server") / "run", config), config)
    run_stages(opened, ("sft",), lambda line: None)
    build_methods(config)["popularity"].fit(opened, 0)
    return opened.folder.path


class Service:
    """A `sirius serve` process. log: its lines so far, those of JSON parsed."""

    def __init__(self, run: Path, *options: str) -> None:
        command = [sys.executable, "-m", "sirius_rec", "serve", str(run), "--method", "sft", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        assert found, (line, self.process.communicate())
        self.port = int(found[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def wait_until_ready(self) -> None:
        while self.process.poll() is None:
            try:
                if httpx2.get(self.address + "/ready", timeout=60).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError("".join(self.log))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.fixture
def serve(run: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(*options: str) -> Service:
        started.append(Service(run, *options))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for service in started:
        if service.process.poll() is None:
            service.process.kill()


BODY = {"history": ["i1", "i2"], "candidates": ["i3", "i4", "i5"]}


def test_refusals_of_the_command(run: Path, tmp_path: Path) -> None:
    def complaint(kind: type[Exception], *options: Any) -> str:
        with pytest.raises(kind) as caught:
            CliRunner().invoke(cli.app, ["serve", *map(str, options)], catch_exceptions=False)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "dpo is not trained; there is" in complaint(RunError, run, "--method", "dpo")
    assert "--port 99999" in complaint(ConfigError, run, "--port", "99999")
    assert "cannot be read" in complaint(ConfigError, run, "--api-keys", tmp_path / "none")
    assert "--template: for plain models alone" in complaint(ConfigError, run, "--template", "music")
    assert "--method: for run folders alone" in complaint(ConfigError, tmp_path, "--method", "sft")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "cannot be listened on" in complaint(ConfigError, run, "--port", port)


def test_a_missing_extra_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ConfigError, match=r"this needs fastapi: pip install 'sirius-rec\[serve\]'"):
        CliRunner().invoke(cli.app, ["serve", str(run)], catch_exceptions=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_loses_nothing(serve: Callable[..., Service], number: int) -> None:
    """Clients send as fast as they can; after the signal each gets its answer, 503, or no connection, and no other."""
    service = serve()
    answers: list[tuple[float, int]] = []
    broken: list[str] = []
    signalled = threading.Event()

    def client() -> None:
        with httpx2.Client(base_url=service.address, timeout=60) as own:
            while True:
                try:
                    answer = own.post("/v1/rerank", json=BODY)
                except httpx2.ConnectError:
                    return
                except httpx2.HTTPError as error:
                    broken.append(repr(error))
                    return
                answers.append((time.monotonic(), answer.status_code))
                if answer.status_code == 503:
                    assert answer.headers["retry-after"] == "1"
                    assert signalled.is_set()
                    return

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(client)
        while len(answers) < 100:
            time.sleep(0.02)
        signalled.set()
        assert service.end(number) == 0
    assert {status for _, status in answers} <= {200, 503} and not broken
    assert service.process.stdout is not None
    assert "drained: every open request was answered" in service.process.stdout.read()
    events = [json.loads(line).get("event") for line in service.log if line.startswith("{")]
    assert [event for event in events if event] == ["ready", "draining", "stopped"]


@pytest.mark.slow
def test_a_swap_under_load_drops_no_request(serve: Callable[..., Service]) -> None:
    service = serve()
    statuses: list[int] = []
    done = threading.Event()

    def client() -> None:
        with httpx2.Client(base_url=service.address, timeout=60) as own:
            while not done.is_set():
                statuses.append(own.post("/v1/rerank", json=BODY).status_code)

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(client) for _ in range(4)]
        for n in (1, 2):
            service.process.send_signal(signal.SIGHUP)
            while sum('"swapped"' in line for line in service.log) < n:
                time.sleep(0.05)
        done.set()
        for one in work:
            one.result()
    assert set(statuses) == {200} and len(statuses) > 20
    assert service.end() == 0


@pytest.mark.slow
def test_several_workers_count_together(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics are sums over the workers; a reload restarts them one by one while requests are answered."""
    monkeypatch.setenv("SIRIUS_ADMIN_KEY", "swap-it-now")
    service = serve("--workers", "2")

    def counted() -> float:
        text = httpx2.get(service.address + "/metrics", timeout=60).text
        line = 'sirius_requests_total{endpoint="/v1/rerank",outcome="ok"} '
        return sum(float(row[len(line) :]) for row in text.splitlines() if row.startswith(line))

    def ask(_: int = 0) -> int:
        return httpx2.post(service.address + "/v1/rerank", json=BODY, timeout=60).status_code

    while sum('"event": "ready"' in line for line in service.log) < 2:
        time.sleep(0.1)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(60))) == {200}
    assert counted() == 60 == counted()
    key = {"authorization": "Bearer swap-it-now"}
    assert httpx2.post(service.address + "/admin/reload", headers=key, timeout=60).status_code == 202
    asked = 60
    while sum('"event": "ready"' in line for line in service.log) < 4:
        assert ask() == 200
        asked += 1
    assert counted() == asked  # also of workers that are gone
    assert service.end() == 0


def raw(port: int, *parts: bytes, wait: float = 0.0, read: bool = True, sip: int = 65536) -> bytes:
    """What comes back for bytes sent in parts; without `read` the connection is dropped. sip: bytes read at a time,
    with `wait` before each."""
    with socket.socket() as connection:
        connection.settimeout(60)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(sip, 65536))  # what is not read stays there
        connection.connect(("127.0.0.1", port))
        for part in parts:
            connection.sendall(part)
            time.sleep(wait)
        if not read:
            return b""
        found = b""
        while chunk := connection.recv(sip):
            found += chunk
            time.sleep(wait)
            if b"\r\n\r\n" in found:
                break
        return found


def head(length: int, path: str = "/v1/rerank") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    return lines.encode()


@pytest.mark.slow
def test_a_soak(serve: Callable[..., Service]) -> None:
    """Good clients beside broken bodies, slow senders and readers, dropped connections and histories of a megabyte.

    Every good request is answered, every answer is the same, memory does not grow, and SIGTERM in the middle drains.
    """
    psutil = pytest.importorskip("psutil")
    service = serve("--batch-wait", "1")
    whole = json.dumps(BODY).encode()
    big = json.dumps({**BODY, "history": ["i1"] * 180_000}).encode()
    assert len(big) > 2**20
    near = json.dumps({**BODY, "history": ["i1", "x" * (2**20 - 200)]}).encode()
    bad = [
        lambda: raw(service.port, head(9), b'{"history'),
        lambda: raw(service.port, b"GARBAGE\r\n\r\n"),
        lambda: raw(service.port, head(len(big)), big[:1000], read=False),
        lambda: raw(service.port, head(len(near)), near),
        lambda: raw(service.port, head(len(whole)), whole[:10], read=False),
        lambda: raw(service.port, head(len(whole)), whole, read=False),
        lambda: raw(service.port, head(len(whole)), whole[:20], whole[20:], wait=0.3),
        lambda: raw(service.port, head(len(whole)), whole, wait=0.02, sip=8),
        lambda: raw(service.port, head(3), b"\xff\xfe\x00"),
        lambda: raw(service.port, head(2), b"[]"),
    ]  # fmt: skip
    expected = httpx2.post(service.address + "/v1/rerank", json=BODY, timeout=60).json()["results"]
    until, answered, wrong, seen = time.monotonic() + 25, [0] * 4, [], set()
    process = psutil.Process(service.process.pid)
    memory: list[float] = []

    def good(n: int) -> None:
        with httpx2.Client(base_url=service.address, timeout=60) as own:
            while time.monotonic() < until:
                answer = own.post("/v1/rerank", json=BODY)
                if answer.status_code != 200 or answer.json()["results"] != expected:
                    wrong.append(answer.text)
                answered[n] += 1

    def broken(n: int) -> None:
        while time.monotonic() < until:
            for habit in bad[n::2]:
                found = habit()
                if found:
                    seen.add(int(found.split(b" ", 2)[1]))

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(good, n) for n in range(4)] + [pool.submit(broken, n) for n in range(2)]
        while time.monotonic() < until:
            time.sleep(1)
            memory.append(process.memory_info().rss / 2**20)
        for one in work:
            one.result()
    assert not wrong and min(answered) > 10
    assert seen == {200, 400, 413}
    assert memory[-1] < memory[len(memory) // 3] + 30, memory
    assert not any("Traceback" in line for line in service.log), "".join(service.log)[-3000:]
    slow = threading.Thread(target=lambda: raw(service.port, head(len(whole)), whole[:5], read=True))
    slow.start()  # a sender that never ends its body does not hold the end up beyond its time
    assert service.end() == 0
    slow.join()


def exchanged(port: int, sent: bytes) -> bytes:
    """All that comes back on a connection until the service ends it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_requests_that_are_made_to_be_misread(serve: Callable[..., Service]) -> None:
    service = serve()
    # A second request behind a body whose end two headers place differently: it is not answered.
    head = b"POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    hidden = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    answer = exchanged(service.port, head + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + hidden)
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1 and b"sirius_" not in answer
    # A slash too many redirects nobody to the host that the request names.
    answer = exchanged(service.port, b"GET /v1/models/ HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404") and b"evil" not in answer
    # A head without an end is given up, whichever parser reads it.
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection, pytest.raises(OSError):
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n")
        for n in range(1000):
            connection.sendall(b"x-%d: %s\r\n" % (n, b"a" * 100_000))
    assert httpx2.get(f"{service.address}/health").status_code == 200


def test_help_is_said_without_the_extra() -> None:
    code = (
        "import sys; sys.argv = ['sirius', 'serve', '--help']\n"
        "from sirius_rec.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "assert not {'torch', 'fastapi', 'uvicorn', 'prometheus_client'} & set(sys.modules)"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--prefix-cache" in done.stdout
