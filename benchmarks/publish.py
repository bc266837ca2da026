"""A finished run → a result file that can be committed, and the README's table.

python benchmarks/publish.py RUN NAME HARDWARE DATE     for example: runs/lastfm lastfm-hetrec 2cpu-epyc 2026-11-23

Writes benchmarks/results/NAME_HARDWARE_DATE.json (comparison.json where there is one, else results.json, with paired
tests against item-kNN, the environment and the seconds of every training), and prints the Markdown table and those
tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sirius_rec.evaluation.results import decision
from sirius_rec.recipes.results import gather
from sirius_rec.recipes.run import Run

HERE = Path(__file__).parent / "results"


def cell(row: dict[str, Any], metric: str) -> str:
    """Mean and 95 % interval, or nothing."""
    if row.get(metric) is None:
        return ""
    return f"{row[metric]:.3f} [{row[metric + '_low']:.3f}, {row[metric + '_high']:.3f}]"


def table(results: dict[str, Any]) -> str:
    """One row per method, best first by HR@1 on the smallest slates; slates side by side."""
    names = sorted({row["slates"] for row in results["summary"]}, key=lambda name: int(name.split("-")[2]))
    by = {(row["method"], row["slates"]): row for row in results["summary"] if row["checkpoint"] == "best"}
    methods = sorted({method for method, _ in by}, key=lambda method: -by[method, names[0]]["hr@1"])
    sizes = [name.split("-")[2] for name in names]
    header = ["method", *(f"HR@1, {size} candidates" for size in sizes), f"NDCG@10, {sizes[0]}", "ValidRatio"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for method in methods:
        first = by[method, names[0]]
        cells = [cell(by.get((method, name), {}), "hr@1") for name in names]
        valid = "" if first.get("valid_ratio") is None else f"{first['valid_ratio']:.3f}"
        lines.append(f"| {first['label']} | {' | '.join(cells)} | {first['ndcg@10']:.3f} | {valid} |")
    return "\n".join(lines)


def main(run: Path, name: str, hardware: str, date: str) -> None:
    """Publish one run."""
    compared = run / "comparison.json"
    results = json.loads((compared if compared.is_file() else run / "results.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    environment.pop("argv")  # paths of one machine
    tests = gather(Run.open(run), "item_knn")["paired"]
    results["paired_item_knn"] = [test for test in tests if test["against"] == "item_knn"]
    results["run"] = {
        "environment": environment,
        "seconds": {
            str(done.parent.relative_to(run)): json.loads(done.read_text())["seconds"]
            for done in sorted(run.rglob("done.json"))
        },
        "devices": sorted({d for done in run.rglob("done.json") if (d := json.loads(done.read_text()).get("device"))}),
        "config_yaml": (run / "config.yaml").read_text(),
    }
    HERE.mkdir(parents=True, exist_ok=True)
    stem = f"{name}_{hardware}_{date}"
    for row in results.get("beyond", {}).get("rows", []):
        (row.get("calibration") or {}).pop("bins", None)  # a third of the file; the report draws them
    text = json.dumps(results, separators=(",", ":"), sort_keys=True) + "\n"
    if place := results["config"]["data"]["input"]:  # a path of one machine
        text = text.replace(place, "data/raw/" + results["config"]["data"]["source"])
    (HERE / f"{stem}.json").write_text(text)
    print(table(results))
    for test in results["paired_item_knn"]:
        if test["checkpoint"] == "best":
            span = f"{test['difference']:+.3f} [{test['low']:.3f}, {test['high']:.3f}], p {test['p_holm']:.3f} (Holm)"
            print(f"{test['slates']}: {test['method']} against item-kNN {span}: {decision(test)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
