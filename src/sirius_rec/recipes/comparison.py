"""`sirius compare`: every method × seed on the same slates, with paired tests against the strongest baseline, or the
configured one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sirius_rec.evaluation.results import UNTESTED, write_results
from sirius_rec.rankers.chat.ranker import SPENT
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.results import SFT_CONTINUED, chosen_note, collect, gather, read_choice
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE, read_done

_COSTS = ("parameters", "trainable_parameters", "training_seconds")


def strongest_baseline(results: dict[str, Any], slates: str) -> str:
    """The trivial or other baseline (not SFT, not an arm, not a fusion of one) with the highest mean HR@1 on the first
    test slates."""
    methods = results["methods"]
    rows = [
        row
        for row in results["summary"]
        if row["slates"] == slates and methods[row["method"]]["role"] in ("trivial", "baseline")
        and not methods[row["method"]].get("studied")
    ]  # fmt: skip
    return str(max(rows, key=lambda row: (row["hr@1"], row["method"]))["method"])


def compare(run: Run) -> dict[str, Any]:
    """comparison.json: results.json without curves, tests against the configured baseline, else the strongest, and per
    row `parameters`, `trainable_parameters` and `training_seconds`, null where nothing is trained (pretraining and SFT
    count for every arm, and what a method builds on for that method); of a remote one what was spent (`SPENT`).
    results.json is written too, with the same tests: a folder has one baseline."""
    slates, configured, before = run.test_slates, run.config.evaluation.baseline, read_choice(run)
    if before is not None and configured == before["configured"]:  # by an older version, which chose all the same
        configured = None
    results = gather(run, configured or SFT_CONTINUED)
    if configured in results["methods"]:
        write_results(results, run.folder.results)
        return _write(run, results, None)
    baseline = strongest_baseline(results, slates[0])
    results = gather(run, baseline)
    if configured is not None:
        results["notes"].append(f"{UNTESTED} {configured}, which is configured: it was not scored.")
    results["notes"].append(chosen_note(results["methods"][baseline]["label"], slates[0]))
    write_results(results, run.folder.results)
    return _write(run, results, {"baseline": baseline, "slates": slates[0]})


def remeasure(run: Run) -> dict[str, Any]:
    """results.json, and comparison.json where the folder has one: against the baseline that was chosen then, as long as
    it is scored and none was configured since. The choice stays known."""
    choice, results = read_choice(run), collect(run)
    if run.folder.comparison.is_file():
        _write(run, results, choice)
    return results


def _write(run: Run, results: dict[str, Any], choice: Mapping[str, Any] | None) -> dict[str, Any]:
    """comparison.json. choice: `read_choice`."""
    costs = _costs(run)
    rows = [row | dict.fromkeys(_COSTS) | costs.get((row["method"], row["seed"]), {}) for row in results["rows"]]
    compared = {key: value for key, value in results.items() if key != "curves"} | {"rows": rows, "chosen": choice}
    write_results(compared, run.folder.comparison)
    return compared


def _costs(run: Run) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (method.key, seed): _cost(method.made_in(run, seed))
        for method in build_methods(run.config).values()
        for seed in method.seeds
    }


def _cost(folders: list[Path]) -> dict[str, Any]:
    trainings = [read_done(f) for f in folders if (f / DONE).is_file()]
    if not trainings:
        return {}
    last = trainings[-1]
    return {
        "parameters": last.get("parameters"),
        "trainable_parameters": last.get("trainable_parameters", last.get("parameters")),
        "training_seconds": round(sum(entry["seconds"] for entry in trainings), 1),
        **{name: last[name] for name in SPENT if name in last},
    }
