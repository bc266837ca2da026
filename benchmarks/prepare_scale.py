"""How long preparing a generated log takes and how much memory it needs, from 5 to 100 million interactions.

python benchmarks/prepare_scale.py [--quick] [--sizes N ...] [--jobs J] [--shards S] [--folder DIR] [--out FILE]

Each size runs in a process of its own (and the workers that it starts), so that its peak memory is its own: the sum
over the processes of what they hold, sampled five times a second; `peak_mib` counts files that are mapped into memory,
too, `peak_anonymous_mib` what nothing else could use. The log: users with a geometric number of events (mean 50), items
by Zipf's law, seconds as timestamps, several events in a second (ties), rows in order of time. Preparing means all of
it: read CSV, break ties, 5-core, split by user, window, freeze uniform slates of 20 for every row of train, val and
test, fingerprint, write; in shards of some two million events with `--jobs` processes, and at up to 5 million events
also held in memory, where the outcome must be the same. Beside that, how long a raw gzip dump takes to read, and with
which memory, at two lengths. `--quick` runs a tenth of every size. The load average before each part stands beside its
figures: where other work keeps the cores busy, seconds are an upper bound, and `cpu_seconds` (of all processes) say
more. 100 million need some 15 GB of disk in `--folder`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SIZES = (5_000_000, 20_000_000, 100_000_000)
IN_MEMORY = 5_000_000  # the largest log that is held in memory, too
CHUNK = 5_000_000  # events that are generated at once
PER_SHARD = 2_000_000
USERS_PER_EVENT, N_ITEMS = 1 / 50, 50_000
STREAMS = (500_000, 2_000_000)
SLATE_ROWS, SLATE_SIZE = 100_000, 100


def write_log(folder: Path, events: int, seed: int = 0) -> None:
    """interactions.csv and items.csv of a generated log; ids are text of 7 to 9 characters."""
    rng = np.random.default_rng(seed)
    users = max(10, int(events * USERS_PER_EVENT))
    items = min(N_ITEMS, max(1000, events // 20))
    weight = 1 / np.arange(1, items + 1) ** 0.8
    numbers, activity, start = None, None, 1_500_000_000
    with (folder / "interactions.csv").open("wb") as file:
        for done in range(0, events, CHUNK):
            size = min(CHUNK, events - done)
            item = rng.choice(items, size=size, p=weight / weight.sum()).astype(np.int32)
            if numbers is None or activity is None:
                numbers, activity = rng.permutation(items).astype(np.int32), rng.exponential(size=users)
            user = rng.choice(users, size=size, p=activity / activity.sum()).astype(np.int32)
            when = start + np.sort(rng.integers(0, max(1000, size // 3), size))
            start += max(1000, size // 3)
            frame = pl.DataFrame({"user_id": user, "item_id": numbers[item], "timestamp": when})
            frame.select(
                pl.format("user{}", "user_id").alias("user_id"),
                pl.format("item{}", "item_id").alias("item_id"),
                "timestamp",
            ).write_csv(file, include_header=not done)
    listed = pl.int_range(items, eager=True).alias("item_id").to_frame()
    listed.select(
        pl.format("item{}", "item_id").alias("item_id"), pl.format("Title number {}", "item_id").alias("title")
    ).write_csv(folder / "items.csv")


def one(folder: Path, shards: int, jobs: int) -> dict[str, Any]:
    """Prepare the log in `folder`, held in memory if there are no shards; seconds and peak memory."""
    from sirius_rec.data.options import FilterOptions, Sharding, SlateOptions
    from sirius_rec.data.prepare import prepare

    stages: list[tuple[str, float]] = []
    start = time.perf_counter()

    def say(line: str) -> None:
        stages.append((line.split("/")[0].split(":")[0].strip(), time.perf_counter() - start))

    with PeakMemory() as peak:
        dataset = prepare(
            "table",
            folder,
            folder / ("sharded" if shards else "memory"),
            filter=FilterOptions(min_item=5, min_user=5),
            slates=(SlateOptions(),),
            sharding=Sharding(shards, jobs) if shards else None,
            progress=say,
        )
    seconds = time.perf_counter() - start
    ends = [at for _, at in stages[1:]] + [seconds]
    taken: dict[str, float] = {}
    for (name, at), end in zip(stages, ends, strict=True):  # a pass says several lines
        taken[name] = round(taken.get(name, 0) + end - at, 2)
    numbers = dataset.info["statistics"]
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "shards": shards,
        "jobs": jobs,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in usage), 2),
        "peak_mib": peak.whole,
        "peak_anonymous_mib": peak.anonymous,
        "stages": taken,
        "rows": numbers["rows"],
        "n_users": numbers["n_users"],
        "n_items": numbers["n_items"],
        "n_interactions": numbers["n_interactions"],
        "fingerprint": dataset.fingerprint,
    }


class PeakMemory:
    """The most that this process and its children held, together; memory that they share is counted once."""

    def __init__(self) -> None:
        self.whole = self.anonymous = 0
        self._ended = threading.Event()

    def __enter__(self) -> PeakMemory:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self.whole = self.whole or peak_mib()  # where the system does not tell

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            whole, anonymous = (sum(column) // 1024 for column in zip(*map(_held, _family()), strict=True))
            self.whole, self.anonymous = max(self.whole, whole), max(self.anonymous, anonymous)


def _family() -> list[int]:
    """This process and its children's children."""
    found, new = [os.getpid()], [os.getpid()]
    while new:
        tasks = Path(f"/proc/{new.pop()}/task")
        with suppress(OSError):
            below = [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
            found, new = found + below, new + below
    return found


def _held(process: int) -> tuple[int, int]:
    """kB of a process: its share of all that it maps, and of what is in no file."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        return sizes["Pss"], sizes["Pss"] - sizes.get("Pss_File", 0)
    return 0, 0


def write_dump(folder: Path, lines: int, seed: int = 0) -> None:
    """goodreads_interactions_x.json.gz with `lines` records of some 300 bytes, and a books file."""
    rng = np.random.default_rng(seed)
    books = 2000
    with gzip.open(folder / "goodreads_interactions_x.json.gz", "wt", compresslevel=1) as stream:
        for start in range(0, lines, 100_000):
            count = min(100_000, lines - start)
            user, book = rng.integers(0, lines // 40, count), rng.integers(0, books, count)
            rating, second = rng.integers(0, 6, count), rng.integers(10, 60, (2, count))
            stream.writelines(
                f'{{"user_id": "{u:032x}", "book_id": "{b}", "review_id": "{b:032x}", "is_read": true, "rating": {r}, '
                '"review_text_incomplete": "", '
                f'"date_added": "Fri Apr 19 08:{m}:{s} -0700 2013", "date_updated": "Fri Apr 19 08:15:15 -0700 2013", '
                '"read_at": "", "started_at": ""}\n'
                for u, b, r, m, s in zip(user, book, rating, *second, strict=True)
            )
    titles = (json.dumps({"book_id": str(k), "title": f"Book {k}"}) + "\n" for k in range(books))
    (folder / "goodreads_books_x.json").write_text("".join(titles))


def stream(folder: Path) -> dict[str, Any]:
    """Read the dump in `folder` by the goodreads source."""
    from sirius_rec.data.sources.goodreads import load

    start = time.perf_counter()
    loaded = load(folder, min_user=2)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "peak_mib": peak_mib(),
        "lines": loaded.notes["lines"][0]["read"],
        "kept": loaded.events.height,
    }


def peak_mib() -> int:
    """Peak memory of this process. Not ru_maxrss, which begins at that of the process that started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        return (
            int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) // 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def slates(rows: int) -> dict[str, Any]:
    """Seconds for `rows` uniform slates of 100 over 50,000 items, 50 of them excluded by each of the users."""
    from sirius_rec.data.slates import ExcludedItems, uniform_slates
    from sirius_rec.schema import SlateName

    rng = np.random.default_rng(0)
    groups = rows // 40
    excluded = np.sort(rng.integers(0, N_ITEMS - 50, (groups, 50)) + np.arange(50), axis=1)
    group = np.repeat(np.arange(groups), 40)[:rows]
    target = excluded[group, rng.integers(0, 50, rows)].astype(np.int32)
    ranges = ExcludedItems(excluded.ravel(), group * 50, group * 50 + 50)
    examples = pl.DataFrame({"row_id": np.arange(rows), "target": target})
    start = time.perf_counter()
    name = SlateName("test", "uniform", SLATE_SIZE, 0)
    made = uniform_slates(examples, ranges, n_items=N_ITEMS, name=name, fingerprint="f")
    seconds = time.perf_counter() - start
    return {"rows": made.height, "size": SLATE_SIZE, "n_items": N_ITEMS, "seconds": round(seconds, 2)}


def show(outcome: dict[str, Any], out: Path | None) -> None:
    """Print what was measured, and write it where a file is named."""
    text = json.dumps(outcome, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")


def _child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def load() -> float:
    """What keeps the cores busy, this script's own work of the last minute included."""
    return round(os.getloadavg()[0], 1)


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all sizes and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of every size")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="numbers of interactions")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--shards", type=int, help="instead of one for two million events")
    parser.add_argument("--folder", type=Path, help="where logs and datasets are written; default: the temporary one")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--slates", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(one(options.one, options.shards, options.jobs)))
        return
    if options.slates:
        print(json.dumps(slates(options.slates)))
        return
    if options.stream:
        print(json.dumps(stream(options.stream)))
        return
    share = 10 if options.quick else 1
    outcome: dict[str, Any] = {
        "python": platform.python_version(),
        "polars": pl.__version__,
        "numpy": np.__version__,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": cpu(),
        "quick": options.quick,
        "prepare": [],
        "stream": [],
        "slates": {"load_before": load(), **_child("--slates", str(SLATE_ROWS // share))},
    }
    print(f"slates: {outcome['slates']}", file=sys.stderr)
    for lines in (line // share for line in STREAMS):
        with tempfile.TemporaryDirectory() as folder:
            write_dump(Path(folder), lines)
            size_mib = (Path(folder) / "goodreads_interactions_x.json.gz").stat().st_size / 2**20
            measured = {"gz_mib": round(size_mib), "load_before": load(), **_child("--stream", folder)}
            outcome["stream"].append(measured)
        print(json.dumps(outcome["stream"][-1]), file=sys.stderr)
    for size in options.sizes or [size // share for size in SIZES]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_log(Path(folder), size)
            size_mib = (Path(folder) / "interactions.csv").stat().st_size / 2**20
            shards = options.shards or max(1, -(-size // PER_SHARD))
            for count in (shards, *([0] if size <= IN_MEMORY else [])):
                measured = {"interactions": size, "csv_mib": round(size_mib), "load_before": load()}
                measured |= _child("--one", folder, "--shards", str(count), "--jobs", str(options.jobs))
                outcome["prepare"].append(measured)
                print(json.dumps(measured), file=sys.stderr)
        if size <= IN_MEMORY:
            sharded, held = outcome["prepare"][-2:]
            assert sharded["fingerprint"] == held["fingerprint"], "the outcome depends on the shards"
    show(outcome, options.out)


if __name__ == "__main__":
    main()
