"""Whether the searched top K is that of scoring every title, user by user, on a trained run; started again, it goes on.

python benchmarks/catalogue_exactness.py RUN OUT.json [--users 50]

Lists agree where their items do; items may change places only where their scores differ by less than rounding (1e-3
nat). Lines of the users done lie in OUT.json.partial.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import atomic
from sirius_rec.processes import log
from sirius_rec.rankers.catalogue.search import Found
from sirius_rec.rankers.catalogue.top import top_k
from sirius_rec.recipes.environment import versions
from sirius_rec.recipes.recommending import bench_task
from sirius_rec.recipes.run import Run

KS = (1, 10, 100)
TOLERANCE = 1e-3


def compared(searched: Found, every: Found) -> dict[str, Any]:
    """Of one user and K: whether the lists are equal, and up to rounding; the largest difference at a place."""
    gap = float(np.abs(searched.scores - every.scores).max())
    return {
        "exact": searched.exact, "opened": searched.opened, "gap": gap,
        "equal": searched.items.tolist() == every.items.tolist(),
        "equal_up_to_rounding": set(searched.items) == set(every.items) and gap < TOLERANCE,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--users", type=int, default=50)
    arguments = parser.parse_args()
    task = bench_task(Run.open(arguments.run), users=arguments.users)
    partial = arguments.out.with_name(arguments.out.name + ".partial")
    done = [json.loads(line) for line in partial.read_text().splitlines()] if partial.is_file() else []
    for user in range(len(done), len(task.prompts)):
        prompt, started = task.prompts[user : user + 1], time.monotonic()
        (every,) = top_k(task.model, task.trie, prompt, max(KS), pad_id=task.pad_id, way="exhaustive")
        row: dict[str, Any] = {"user": user, "seconds_exhaustive": round(time.monotonic() - started, 2)}
        for k in KS:
            (searched,) = top_k(task.model, task.trie, prompt, k, pad_id=task.pad_id, way="search")
            row[str(k)] = compared(searched, Found(every.items[:k], every.scores[:k], True, every.bound, every.opened))
        done.append(row)
        with partial.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (time.monotonic() - started) * (len(task.prompts) - user - 1)
        log(f"{user + 1}/{len(task.prompts)} users, {left:.0f} s left")
    summary = {
        str(k): {
            "users": len(done),
            **{name: sum(row[str(k)][name] for row in done) for name in ("exact", "equal", "equal_up_to_rounding")},
            "largest_gap": max(row[str(k)]["gap"] for row in done),
            "opened": float(np.mean([row[str(k)]["opened"] for row in done])),
        }
        for k in KS
    }
    content = {
        "model": task.name,
        "titles": task.trie.n_titles,
        "summary": summary,
        "rows": done,
        "versions": versions(),
    }
    atomic.write_json(arguments.out, content)
    partial.unlink()
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
