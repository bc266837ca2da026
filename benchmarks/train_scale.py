"""What memory SFT needs on a generated log whose rows are streamed, or held, and whether it goes on exactly.

python benchmarks/train_scale.py [--events N ...] [--held N ...] [--steps S] [--folder DIR] [--out FILE]

For each size: the log of `prepare_scale.py`, prepared in shards (windows of 10, uniform slates of 20), then `sirius
sft` of the tiny backbone with `training.stream`, an epoch over all train rows; stopped by SIGTERM after S steps.
`memory_mib` is what the process holds that is in no file (sampled twice a second): at the first step, at the last one,
and the most at any time; `mapped_mib` is what it has mapped of the row files, which the system may take back. A second
run is killed (SIGKILL) in the middle, after its last checkpoint, and gone on with: `resumed_equal` says whether the
losses of all its steps are those of the first, and `seconds_to_go_on` how long it took to its first new step. Sizes of
`--held` run without streaming. 16 million events are some 10 million train rows and take 6 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prepare_scale import PER_SHARD, load, show, write_log

CONFIG = """
name: train-scale
data:
  source: table
  input: {log}
  filter: {{min_item: 5, min_user: 5}}
  slates: [{{size: 20}}]
  shards: {shards}
prompts: {{slate: false}}
backbone: {{name: tiny, pretrain: null}}
training: {{stream: {stream}}}
sft: {{epochs: 1, batch_size: 128, learning_rate: 1.0e-3, save_steps: {save}}}
arms: [dpo]
evaluation: {{generation_rows: 0, validation_rows: 500, baseline: dpo}}
compute: {{device: cpu, jobs: 2, threads: 1}}
"""


def measure(folder: Path, events: int, steps: int, stream: bool) -> dict[str, Any]:
    """One size, in a folder that holds its log."""
    config = folder / f"{'streamed' if stream else 'held'}.yaml"
    shards = max(1, -(-events // PER_SHARD))
    config.write_text(CONFIG.format(log=folder, shards=shards, stream=str(stream).lower(), save=max(1, steps // 4)))
    run = folder / config.stem
    whole = until(config, run, steps, signal.SIGTERM)
    info = json.loads((run / "data" / "dataset.json").read_text())
    about = {
        "events": events, "streamed": stream, "train_rows": info["statistics"]["rows"]["train"], "steps": steps, **whole
    }  # fmt: skip
    print(json.dumps(about), file=sys.stderr)
    if not stream:
        return about
    broken = folder / "broken"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("sft"))
    until(config, broken, steps // 2 + steps // 8, signal.SIGKILL)
    resumed = until(config, broken, steps, signal.SIGTERM)
    ours, other = (losses(one)[:steps] for one in (broken, run))
    return about | {"resumed_equal": ours == other and len(ours) == steps, "seconds_to_go_on": resumed["to_first_step"]}


def until(config: Path, run: Path, steps: int, ends: signal.Signals) -> dict[str, Any]:
    """Train to a step and end it there; what it took."""
    before, started = len(losses(run)), time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", "sirius_rec", "sft", str(config), "--out", str(run)]
    with (run.parent / f"{run.name}.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    first, samples, most, mapped = None, list[int](), 0, 0
    while process.poll() is None:
        time.sleep(0.5)
        own, files = held_mib(process.pid)
        most, mapped, done = max(most, own), max(mapped, files), len(losses(run))
        if done != before and own:
            first = first or time.monotonic() - started
            samples.append(own)
        if done >= steps:
            process.send_signal(ends)
            process.wait()
    if not samples:
        raise SystemExit(f"{config}: no step: {(run.parent / f'{run.name}.log').read_text()}")
    return {
        "to_first_step": round(first or 0, 1),
        "steps_per_second": round((steps - before) / max(time.monotonic() - started - (first or 0), 1e-9), 2),
        "memory_mib": {"first_step": samples[0], "last_step": samples[-1], "most": most},
        "mapped_mib": mapped,
    }


def losses(run: Path) -> list[float]:
    """Of each step so far."""
    with suppress(OSError):
        lines = (run / "sft" / "s0" / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [json.loads(line) for line in lines if line.endswith("\n")]
        return [line["loss"] for line in kept if line["kind"] == "train"]
    return []


def held_mib(process: int) -> tuple[int, int]:
    """What it holds in no file, and of mapped files; 0 where it is gone."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith("Rss")}
        return sizes.get("RssAnon", 0), sizes.get("RssFile", 0)
    return 0, 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all sizes and print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, nargs="*", default=[1_600_000, 16_000_000], help="of streamed logs")
    parser.add_argument("--held", type=int, nargs="*", default=[1_600_000], help="of logs that are held")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where logs and runs are written; default: the temporary one")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    outcome: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count(), "runs": []}
    for stream, sizes in ((False, options.held), (True, options.events)):
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                write_log(Path(folder), size)
                outcome["runs"].append({"load_before": load(), **measure(Path(folder), size, options.steps, stream)})
                print(json.dumps(outcome["runs"][-1]), file=sys.stderr)
    show(outcome, options.out)


if __name__ == "__main__":
    main()
