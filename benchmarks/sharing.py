"""What steps of whole users cost in quality: the same run with training.share none and user, paired row by row.

python benchmarks/sharing.py CONFIG OUT.json --runs FOLDER [key=value …]

Both runs are `sirius run CONFIG key=value …` in FOLDER, resumable. A difference is user − none of one method's HR@1 and
NDCG@10 on the same rows of the same slates, averaged over seeds; users and seeds are resampled as in every table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np


def rows_of(
    run: Path, metrics: tuple[str, ...]
) -> tuple[dict[tuple[str, str], dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """(method, slates) → metric → [seeds, rows]; and slates → whose the rows are."""
    from sirius_rec.data.store import open_dataset
    from sirius_rec.evaluation.metrics import per_example, target_positions
    from sirius_rec.evaluation.tables import read_tables
    from sirius_rec.schema import CANDIDATES, ROW_ID, TARGET, USER_ID

    examples = open_dataset(run / "data").examples("test").select(ROW_ID, TARGET, USER_ID)
    found: dict[tuple[str, str], dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    users: dict[str, np.ndarray] = {}
    for table in sorted(read_tables(run / "scores"), key=lambda table: table.seed):
        frame = table.frame.join(examples, on=ROW_ID, how="left", maintain_order="left")
        users[table.slates] = frame[USER_ID].to_numpy()
        positions = target_positions(frame[CANDIDATES], frame[TARGET])
        values = per_example(frame["scores"], positions)
        for metric in metrics:
            found[table.method, table.slates][metric].append(values[metric].to_numpy())
    stacked = {key: {m: np.stack(v) for m, v in by_metric.items()} for key, by_metric in found.items()}
    return stacked, users


def main() -> None:
    from sirius_rec.bench.run import environment
    from sirius_rec.evaluation.intervals import paired_test
    from sirius_rec.recipes.environment import processor, versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    arguments, overrides = parser.parse_known_args()
    runs = {share: arguments.runs / f"{arguments.config.stem}-share-{share}" for share in ("none", "user")}
    for share, folder in runs.items():
        command = ["-m", "sirius_rec", "run", str(arguments.config), "--out", str(folder), f"training.share={share}"]
        # The last epoch, because the best one would be chosen on other validation rows.
        command.append("evaluation.checkpoints=[last]")
        subprocess.run([sys.executable, *command, *overrides], check=True)
    metrics = ("hr@1", "ndcg@10")
    (none, users), (user, _) = (rows_of(folder, metrics) for folder in runs.values())
    out: list[dict[str, Any]] = []
    for (method, slates), values in sorted(user.items()):
        for metric in metrics:
            pair = np.stack([values[metric], none[method, slates][metric]])
            if np.array_equal(pair[0], pair[1]):  # what is not trained
                continue
            test = paired_test(pair[0], pair[1], groups=users[slates])
            out.append(
                {
                    "method": method, "slates": slates, "metric": metric, "seeds": len(pair[0]),
                    "user": round(float(pair[0].mean()), 4), "none": round(float(pair[1].mean()), 4),
                    **{key: round(float(value), 4) for key, value in vars(test).items() if isinstance(value, float)},
                }
            )  # fmt: skip
            print(out[-1], flush=True)
    said = {k: v for k, v in environment(processor(), versions()).items() if k not in ("shapes", "batch")}
    content = {
        "environment": said,
        "config": arguments.config.name,
        "overrides": [text for text in overrides if not text.startswith("data.input=")],
        "rows": out,
    }
    arguments.out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
