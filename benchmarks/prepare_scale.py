"""How long preparing a generated log takes and how much memory it needs, from 1 to 20 million interactions.

python benchmarks/prepare_scale.py [--quick] [--out FILE]

Each size runs in a process of its own, so that its peak memory is its own. The log: users with a geometric number of
events (mean 50), items by Zipf's law, seconds as timestamps, several events in a second (ties), rows in order of time.
Preparing means all of it: read CSV, break ties, 5-core, split by user, window, freeze uniform slates of 20 for every
row of train, val and test, fingerprint, write. Beside that, how long a raw gzip dump takes to read, and with which
memory, at two lengths. `--quick` runs a tenth of every size. The load average before each part stands beside its
figures: where other work keeps the cores busy, seconds are an upper bound.
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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SIZES = (1_000_000, 5_000_000, 10_000_000, 20_000_000)
USERS_PER_EVENT, N_ITEMS = 1 / 50, 50_000
STREAMS = (500_000, 2_000_000)
SLATE_ROWS, SLATE_SIZE = 100_000, 100


def write_log(folder: Path, events: int, seed: int = 0) -> None:
    """interactions.csv and items.csv of a generated log; ids are text of 7 to 9 characters."""
    rng = np.random.default_rng(seed)
    users = max(10, int(events * USERS_PER_EVENT))
    items = min(N_ITEMS, max(1000, events // 20))
    weight = 1 / np.arange(1, items + 1) ** 0.8
    item = rng.choice(items, size=events, p=weight / weight.sum()).astype(np.int32)
    item = rng.permutation(items).astype(np.int32)[item]
    activity = rng.exponential(size=users)
    user = rng.choice(users, size=events, p=activity / activity.sum()).astype(np.int32)
    when = 1_500_000_000 + np.sort(rng.integers(0, max(1000, events // 3), events))
    text = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": when}).select(
        pl.format("user{}", "user_id").alias("user_id"), pl.format("item{}", "item_id").alias("item_id"), "timestamp"
    )
    text.write_csv(folder / "interactions.csv")
    numbers = pl.int_range(items, eager=True).alias("item_id")
    frame = numbers.to_frame().select(
        pl.format("item{}", "item_id").alias("item_id"), pl.format("Title number {}", "item_id").alias("title")
    )
    frame.write_csv(folder / "items.csv")


def one(folder: Path) -> dict[str, Any]:
    """Prepare the log in `folder`; seconds and peak memory of this process."""
    from sirius_rec.data.options import FilterOptions, SlateOptions
    from sirius_rec.data.prepare import prepare

    stages: list[tuple[str, float]] = []
    start = time.perf_counter()
    dataset = prepare(
        "table",
        folder,
        folder / "out",
        filter=FilterOptions(min_item=5, min_user=5),
        slates=(SlateOptions(),),
        progress=lambda line: stages.append((line.split("/")[0].strip(), time.perf_counter() - start)),
    )
    seconds = time.perf_counter() - start
    ends = [at for _, at in stages[1:]] + [seconds]
    numbers = dataset.info["statistics"]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "peak_mib": peak_mib(),
        "stages": {name: round(end - at, 2) for (name, at), end in zip(stages, ends, strict=True)},
        "rows": numbers["rows"],
        "n_users": numbers["n_users"],
        "n_items": numbers["n_items"],
        "n_interactions": numbers["n_interactions"],
        "fingerprint": dataset.fingerprint,
    }


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


def _child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _load() -> float:
    """What keeps the cores busy, this script's own work of the last minute included."""
    return round(os.getloadavg()[0], 1)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all sizes and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of every size")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="numbers of interactions")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--slates", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(one(options.one)))
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
        "cpu": _cpu(),
        "quick": options.quick,
        "prepare": [],
        "stream": [],
        "slates": {"load_before": _load(), **_child("--slates", str(SLATE_ROWS // share))},
    }
    print(f"slates: {outcome['slates']}", file=sys.stderr)
    for lines in (line // share for line in STREAMS):
        with tempfile.TemporaryDirectory() as folder:
            write_dump(Path(folder), lines)
            size_mib = (Path(folder) / "goodreads_interactions_x.json.gz").stat().st_size / 2**20
            measured = {"gz_mib": round(size_mib), "load_before": _load(), **_child("--stream", folder)}
            outcome["stream"].append(measured)
        print(json.dumps(outcome["stream"][-1]), file=sys.stderr)
    for size in options.sizes or [size // share for size in SIZES]:
        with tempfile.TemporaryDirectory() as folder:
            write_log(Path(folder), size)
            size_mib = (Path(folder) / "interactions.csv").stat().st_size / 2**20
            measured = {"interactions": size, "csv_mib": round(size_mib), "load_before": _load()}
            measured |= _child("--one", folder)
        outcome["prepare"].append(measured)
        print(json.dumps(measured), file=sys.stderr)
    text = json.dumps(outcome, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
