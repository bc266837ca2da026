"""`sirius compare`: every method × seed on the same slates, with paired tests against the strongest baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sirius_rec.config import Config, MethodSection
from sirius_rec.data.store import Dataset
from sirius_rec.evaluation.floors import FLOORS
from sirius_rec.evaluation.results import write_results
from sirius_rec.rankers.chat.ranker import SPENT
from sirius_rec.rankers.methods import METHODS
from sirius_rec.recipes.baselines import method_seeds
from sirius_rec.recipes.evaluation import gather, test_slates
from sirius_rec.recipes.language import sasrec_folder
from sirius_rec.recipes.run_folder import RunFolder

FILE = "comparison.json"


def strongest_baseline(results: dict[str, Any], config: Config, slates: str) -> str:
    """The floor or method (not SFT, not an arm) with the highest mean HR@1 on the first test slates."""
    known = {*FLOORS, *(m.key for m in config.methods)}
    rows = [row for row in results["summary"] if row["method"] in known and row["slates"] == slates]
    return str(max(rows, key=lambda row: (row["hr@1"], row["method"]))["method"])


def compare(run: RunFolder, config: Config, dataset: Dataset) -> dict[str, Any]:
    """comparison.json: results.json without curves, tests against the strongest baseline, and per row
    `parameters`, `trainable_parameters` and `training_seconds`, null where nothing is trained (pretraining and SFT
    count for every arm, and what a method builds on for that method); of a remote one what was spent (`SPENT`)."""
    slates = test_slates(config, dataset)
    results = gather(run, config, dataset, config.evaluation.baseline)
    baseline = strongest_baseline(results, config, slates[0])
    if baseline != results["baseline"]:
        results = gather(run, config, dataset, baseline)
    costs = _costs(run, config)
    nothing = dict.fromkeys(("parameters", "trainable_parameters", "training_seconds"))
    for row in results["rows"]:
        row |= nothing | costs.get((row["method"], row["seed"]), {})
    results["notes"].append(
        f"Tests are against {baseline}, chosen for its HR@1 on {slates[0]}: the choice sees the test rows, which makes "
        "it harder to beat and easier to lose against."
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
            **{name: last[name] for name in SPENT if name in last},
        }

    costs = {(m.key, s): done(*_made_of(run, config, m, s)) for m in config.methods for s in method_seeds(config, m)}
    if config.trains_language_model:
        for seed in config.seeds:
            before = [run.stage(name, seed) for name in ("pretrain", "sft")]
            costs["sft", seed] = done(*before)
            for arm in config.arms:
                costs[arm.key, seed] = done(*before, run.stage(arm.key, seed))
    return costs


def _made_of(run: RunFolder, config: Config, method: MethodSection, seed: int) -> list[Path]:
    """Folders of all that a method's training took, its own last."""
    own = run.method(method.key, seed)
    before = [run.stage("pretrain", seed)] if METHODS[method.method].stage else []
    if method.method == "llara":
        before.append(sasrec_folder(run, config, method, seed))
    return [*before, own]
