"""`sirius rank` over many requests: one process, several, and actors of a Ray cluster on this machine.

python benchmarks/rank_scale.py RUN [--requests 1000000] [--jobs 2] [--method sft] [--engines one ray] [--out FILE]

Requests are those of the run's test rows and slates, over and over. Each engine answers all of them by the command, in
a process of its own; then the last engine is killed in the middle and gone on with. The file says seconds (loading
counted), requests per second, the greatest memory of all processes together, sampled every half second, in the first
and in the last quarter of the time, and whether all files hold the same bytes. OMP_NUM_THREADS should be 1: with other
numbers of threads scores differ by rounding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from sirius_rec.recipes.run import Run
from sirius_rec.schema import CANDIDATES, HISTORY, ITEM_ID

ENGINES = {"one": [], "processes": ["--jobs"], "ray": ["--engine", "ray", "--jobs"]}


def write_requests(run: Run, path: Path, count: int) -> None:
    ids = list(map(str, run.dataset.items[ITEM_ID].to_list()))
    histories, candidates = run.slate_arrays(run.sized_test_slates[0])
    rows = [
        {HISTORY: [ids[i] for i in history], CANDIDATES: [ids[i] for i in slate]}
        for history, slate in zip(histories, candidates, strict=True)
    ]
    with path.open("w") as file:
        for number, row in enumerate(islice(cycle(rows), count)):
            file.write(json.dumps({"id": number, **row}) + "\n")


def memory(root: int) -> int:
    """Resident bytes of a process and of all below it, and of Ray's own."""
    total, parents = 0, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = (int(fields[1]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), b"ray" in name)
    for pid, (_, size, of_ray) in parents.items():
        at = pid
        while at not in (0, 1, root) and at in parents:
            at = parents[at][0]
        total += size if at == root or of_ray else 0
    return total


def answered(command: list[str], kill_after: float | None = None) -> dict[str, Any]:
    """The command's seconds and memory; killed after so many seconds if asked."""
    started, sizes = time.perf_counter(), []
    # Ray lets its workers give way to all other work, which no other engine does.
    fair = {**os.environ, "RAY_worker_niceness": "0"}
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=fair
    )
    while child.poll() is None:
        sizes.append(memory(child.pid))
        time.sleep(0.5)
        if kill_after is not None and time.perf_counter() - started > kill_after:
            os.killpg(child.pid, signal.SIGKILL)
            break
    child.wait()
    if child.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    quarter = max(1, len(sizes) // 4)
    gib = [round(max(part) / 2**30, 2) for part in (sizes[quarter : 2 * quarter] or sizes, sizes[-quarter:])]
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "gib_second_quarter": gib[0],
        "gib_last_quarter": gib[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--method", default="sft")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "date": str(date.today()), "platform": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
        "run": given.run.name, "method": given.method, "requests": given.requests, "jobs": given.jobs, "engines": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, sums = folder / "requests.jsonl", {}
        write_requests(Run.open(given.run), source, given.requests)

        def command(engine: str, out: Path) -> list[str]:
            options = ENGINES[engine] + [str(given.jobs)] * bool(ENGINES[engine])
            return [sys.executable, "-m", "sirius_rec", "rank", "--model", str(given.run), "--method", given.method,
                    "--input", str(source), "--out", str(out), *options]  # fmt: skip

        for engine in given.engines:
            out = folder / f"{engine}.jsonl"
            found = answered(command(engine, out))
            sums[engine] = hashlib.sha256(out.read_bytes()).hexdigest()
            result["engines"][engine] = {**found, "per_second": round(given.requests / found["seconds"], 1)}
            print(engine, result["engines"][engine], flush=True)
        last = given.engines[-1]
        again, half = folder / "again.jsonl", result["engines"][last]["seconds"] / 2
        answered(command(last, again), kill_after=half)
        partial = again.with_name(again.name + ".partial")
        kept = sum(1 for _ in partial.open("rb")) - 1 if partial.exists() else 0
        seconds = answered(command(last, again))["seconds"]
        sums["killed"] = hashlib.sha256(again.read_bytes()).hexdigest()
        result["killed"] = {"engine": last, "after_s": round(half, 1), "answers_kept": kept, "then_s": seconds}
        result["same_bytes"] = len(set(sums.values())) == 1
    print(json.dumps(result["killed"]), "same bytes:", result["same_bytes"])
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
