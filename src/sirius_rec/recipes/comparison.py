"""`sirius compare`: every method × seed on the same slates, with paired tests against the strongest baseline."""

from __future__ import annotations

import json
from typing import Any

from sirius_rec.config import Config
from sirius_rec.data.store import Dataset
from sirius_rec.evaluation.floors import FLOORS
from sirius_rec.evaluation.results import write_results
from sirius_rec.recipes.baselines import method_seeds
from sirius_rec.recipes.evaluation import gather, test_slates
from sirius_rec.recipes.run_folder import RunFolder

FILE = "comparison.json"


def strongest_baseline(results: dict[str, Any], config: Config, slates: str) -> str:
    """The floor or method without a language model with the highest mean HR@1 on the first test slates."""
    known = {*FLOORS, *(m.key for m in config.methods)}
    rows = [row for row in results["summary"] if row["method"] in known and row["slates"] == slates]
    return str(max(rows, key=lambda row: (row["hr@1"], row["method"]))["method"])


def compare(run: RunFolder, config: Config, dataset: Dataset) -> dict[str, Any]:
    """comparison.json: results.json without curves, tests against the strongest baseline, and per row of a trained
    method its `parameters`, `trainable_parameters` and `training_seconds` (pretraining and SFT count for every arm)."""
    slates = test_slates(config, dataset)
    results = gather(run, config, dataset, config.evaluation.baseline)
    baseline = strongest_baseline(results, config, slates[0])
    if baseline != results["baseline"]:
        results = gather(run, config, dataset, baseline)
    costs = _costs(run, config)
    for row in results["rows"]:
        row |= costs.get((row["method"], row["seed"]), {})
    results["notes"].append(
        f"Tests are against {baseline}, chosen for its HR@1 on {slates[0]}: the choice sees the test rows, which can "
        "only make it harder to beat."
    )
    results = {key: value for key, value in results.items() if key != "curves"}
    write_results(results, run.path / FILE)
    return results


def _costs(run: RunFolder, config: Config) -> dict[tuple[str, int], dict[str, Any]]:
    def done(*folders: Any) -> dict[str, Any]:
        read = [json.loads((f / "done.json").read_text()) for f in folders if (f / "done.json").is_file()]
        if not read:
            return {}
        last = read[-1]
        return {
            "parameters": last.get("parameters"),
            "trainable_parameters": last.get("trainable_parameters", last.get("parameters")),
            "training_seconds": round(sum(entry["seconds"] for entry in read), 1),
        }

    costs = {(m.key, s): done(run.method(m.key, s)) for m in config.methods for s in method_seeds(config, m)}
    if config.trains_language_model:
        for seed in config.seeds:
            before = [run.stage(name, seed) for name in ("pretrain", "sft")]
            costs["sft", seed] = done(*before)
            for arm in config.arms:
                costs[arm.key, seed] = done(*before, run.stage(arm.key, seed))
    return costs
