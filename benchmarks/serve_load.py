"""Load on `sirius serve` over the loopback: throughput, latency, refusals, memory, and whether every answer is right.

python benchmarks/serve_load.py OUT.json --run FOLDER [--plain smollm2] [--requests 1000] [--long 10000]

Without --plain a run of the tiny backbone is made in FOLDER (prompts without the slate, so that a user's slates share
their prompt). Closed loops of 1, 8 and 64 clients against servers with batches and prefix cache, with batches alone and
with neither (one request at a time); then an open loop of Poisson arrivals beyond what the closed loop reached; then a
long closed loop in which memory is watched. Every answer is compared with what `sirius rank` says of the same request.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SIZE = 20  # candidates of a slate
TINY = ("prompts.slate=false", "seeds=[0]", "backbone.pretrain.epochs=2", "sft.epochs=1", "arms=[]")
# What is compared: name → options of the service.
SERVERS: dict[str, tuple[str, ...]] = {
    "one at a time": ("--batch-requests", "1", "--batch-wait", "0", "--prefix-cache", "0"),
    "batches": ("--prefix-cache", "0"),
    "batches and prefix cache": ("--prefix-cache", "256"),
}
# Nats. `sirius rank` says 4e-5 otherwise of SmolLM2's −41 nats, depending on what else is in its batch.
TOLERANCE = 1e-4


@dataclass
class Load:
    """What came of one load. ms: latencies of answers. seconds: of the whole."""

    seconds: float = 0.0
    ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    without_retry: int = 0

    def said(self, expected: list[dict[int, float]]) -> dict[str, Any]:
        answered = len(self.ms)
        found: dict[str, Any] = {
            "requests": sum(self.statuses.values()),
            "statuses": dict(self.statuses),
            "lost": self.statuses["lost"],
            "wrong": sum(not right(json.loads(body), expected[n]) for n, body in self.answers),
            "largest_difference": max(difference(json.loads(body), expected[n]) for n, body in self.answers),
            "per_second": round(answered / self.seconds, 1),
        }
        if self.ms:
            found |= {f"p{p}_ms": round(float(np.percentile(self.ms, p)), 2) for p in (50, 99)}
        if self.refused_ms:
            found |= {"refused_p99_ms": round(float(np.percentile(self.refused_ms, 99)), 2)}
            found |= {"refusals_without_retry_after": self.without_retry}
        return found


def difference(answer: dict[str, Any], expected: dict[int, float]) -> float:
    """The largest of a log-prob, in nats; infinite where the candidates are others."""
    given = {result["index"]: result["log_prob"] for result in answer["results"]}
    if set(given) != set(expected) or len(answer["results"]) != len(expected):
        return float("inf")
    return max(abs(given[at] - expected[at]) for at in given)


def right(answer: dict[str, Any], expected: dict[int, float]) -> bool:
    """The same candidates with the same log-probs, in falling order; neighbours may swap within the tolerance."""
    results = answer["results"]
    if difference(answer, expected) > TOLERANCE:
        return False
    in_order = [expected[result["index"]] for result in results]
    return all(b - a <= 2 * TOLERANCE for a, b in itertools.pairwise(in_order))


class Connection:
    """One connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body; 0 where the connection broke."""
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            body = await reader.readexactly(length)
            if b"connection: close" in head.lower():
                self.close()
            return int(head[9:12]), head, body
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, b"", b""

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


async def ask(connection: Connection, bodies: list[bytes], n: int, load: Load) -> None:
    started = time.perf_counter()
    status, head, body = await connection.ask(bodies[n])
    ms = (time.perf_counter() - started) * 1e3
    load.statuses[str(status) if status else "lost"] += 1
    if status == 200:
        load.ms.append(ms)
        load.answers.append((n, body))
    elif status in (429, 503):
        load.refused_ms.append(ms)
        load.without_retry += b"retry-after:" not in head.lower()


async def closed_loop(port: int, bodies: list[bytes], clients: int, total: int, watch: Any = None) -> Load:
    """Clients that each send their next request when the last is answered."""
    load, left = Load(), iter(np.random.default_rng(clients).integers(0, len(bodies), total).tolist())

    async def client() -> None:
        connection = Connection(port)
        for n in left:
            await ask(connection, bodies, n, load)
            if watch is not None:
                watch(load)
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(port: int, bodies: list[bytes], rate: float, seconds: float) -> Load:
    """Poisson arrivals, whether or not earlier ones are answered."""
    load, rng = Load(), np.random.default_rng(7)
    free: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(n: int) -> None:
        connection = free.pop() if free else Connection(port)
        await ask(connection, bodies, n, load)
        free.append(connection)

    started = time.perf_counter()
    due = started
    while due < started + seconds:
        due += float(rng.exponential(1 / rate))
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(int(rng.integers(0, len(bodies)))))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - started
    for connection in free:
        connection.close()
    return load


class Server:
    """`sirius serve` as a process of its own."""

    def __init__(self, model: list[str], options: tuple[str, ...], log: Path) -> None:
        command = [sys.executable, "-m", "sirius_rec", "serve", *model, "--port", "0", "--max-seconds", "300", *options]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        if not found:
            sys.exit(f"the service did not start: {log} says why")
        self.port = int(found[1])

    @property
    def rss(self) -> float:
        """MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    @property
    def cpu(self) -> float:
        """Seconds of all its threads."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def metrics(self) -> dict[str, float]:
        async def read() -> bytes:
            head = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            return (await Connection(self.port).ask(head))[2]

        lines = asyncio.run(read()).decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def requests_of(run: Path, users: int, slates: int, *, titles: bool, seed: int = 0) -> list[dict[str, Any]]:
    """Test histories of some users, each with many slates; by item id or by title."""
    from sirius_rec.recipes.run import Run

    data = Run.open(run).dataset
    names = data.titles if titles else [str(item) for item in data.items["item_id"].to_list()]
    histories = data.examples("test")["history"].to_list()
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(histories))[:users]
    return [
        {
            "history": [names[i] for i in histories[u]],
            "candidates": [names[i] for i in rng.permutation(len(names))[:SIZE]],
        }
        for u in chosen
        for _ in range(slates)
    ]


def expected_of(model: list[str], requests: list[dict[str, Any]], folder: Path) -> list[dict[int, float]]:
    """Log-probs of each request's candidates by their place in it, by `sirius rank`."""
    given, out = folder / "requests.jsonl", folder / "ranked.jsonl"
    given.write_text("".join(json.dumps(request) + "\n" for request in requests))
    out.unlink(missing_ok=True)
    command = ["rank", "--model", *model, "--input", str(given), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "sirius_rec", *command], check=True)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    return [
        {request["candidates"].index(c): score for c, score in zip(a["candidates"], a["scores"], strict=True)}
        for request, a in zip(requests, answers, strict=True)
    ]


def as_http(request: dict[str, Any]) -> bytes:
    body = json.dumps({**request, "return_documents": False}).encode()
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    )
    return f"{head}\r\n\r\n".encode() + body


def long_run(server: Server, bodies: list[bytes], expected: list[dict[int, float]], total: int) -> dict[str, Any]:
    """Memory of the service over many requests: at the start, and at every tenth of them."""
    asyncio.run(closed_loop(server.port, bodies, 64, total // 10))  # what is allocated once
    rss = [round(server.rss, 1)]

    def watch(load: Load) -> None:
        if len(load.answers) % (total // 10) == 0:
            rss.append(round(server.rss, 1))

    load = asyncio.run(closed_loop(server.port, bodies, 64, total, watch))
    return {**load.said(expected), "rss_mib": rss}


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    from sirius_rec.bench.run import environment
    from sirius_rec.recipes.environment import processor, versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--plain", help="A model by name; its prompts show the history alone.")
    parser.add_argument("--users", type=int, default=32, help="Whose histories are asked with.")
    parser.add_argument("--slates", type=int, default=20, help="Of each user.")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--long", type=int, default=10_000)
    arguments = parser.parse_args()
    run: Path = arguments.run
    folder = run.parent
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not (run / "config.yaml").is_file():
        subprocess.run([sys.executable, "-m", "sirius_rec", "sft", "demo", *TINY, "--out", str(run)], check=True)
    plain = arguments.plain
    model = [plain, "--template", "movies", "--no-slate"] if plain else [str(run), "--method", "sft"]
    requests = requests_of(run, arguments.users, arguments.slates, titles=plain is not None)
    expected, bodies = expected_of(model, requests, folder), [as_http(request) for request in requests]
    found: dict[str, Any] = {
        "model": plain or "tiny, SFT of the simulated catalogue",
        "users": arguments.users,
        "slates_per_user": arguments.slates,
        "candidates": SIZE,
        "closed": {},
    }
    fastest = 0.0
    for name, options in SERVERS.items():
        server = Server(model, options, folder / "serve.log")
        asyncio.run(closed_loop(server.port, bodies, 8, min(200, arguments.requests)))  # warm
        found["closed"][name] = {}
        for clients in arguments.clients:
            before, cpu = server.metrics(), server.cpu
            load = asyncio.run(closed_loop(server.port, bodies, clients, arguments.requests))
            after = server.metrics()
            said = load.said(expected)
            batches = after["sirius_batch_requests_count"] - before["sirius_batch_requests_count"]
            computing = after["sirius_batch_seconds_sum"] - before["sirius_batch_seconds_sum"]
            said |= {"cpu_ms_per_request": round((server.cpu - cpu) / arguments.requests * 1e3, 3)}
            said |= {"requests_per_batch": round(arguments.requests / batches, 2)}
            said |= {"model_ms_per_request": round(computing / arguments.requests * 1e3, 3)}
            found["closed"][name][f"{clients} clients"] = said
            fastest = max(fastest, said["per_second"])
            print(name, clients, said, flush=True)
        if name == list(SERVERS)[-1]:
            rate = 2 * fastest
            load = asyncio.run(open_loop(server.port, bodies, rate, 10))
            found["open"] = {"arrivals_per_second": round(rate, 1), **load.said(expected)}
            print("open", found["open"], flush=True)
            if arguments.long:
                found["long"] = long_run(server, bodies, expected, arguments.long)
                print("long", found["long"], flush=True)
        found["closed"][name]["exit_code"] = server.stop()
    one, all_ = found["closed"]["one at a time"], found["closed"]["batches and prefix cache"]
    found["times_one_at_a_time"] = {
        "64 clients against 1 client": round(all_["64 clients"]["per_second"] / one["1 clients"]["per_second"], 2),
        "64 clients against 64 clients": round(all_["64 clients"]["per_second"] / one["64 clients"]["per_second"], 2),
    }
    print(found["times_one_at_a_time"])
    said = environment(processor(), versions())
    found["parsers"] = {name: installed(name) for name in ("httptools", "uvloop")}
    found["environment"] = {name: value for name, value in said.items() if name not in ("shapes", "batch")}
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
