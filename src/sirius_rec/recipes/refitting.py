"""`sirius refit`: the recipe that was chosen on validation slates, trained on all of the data.

What is served has then learned from the newest rows too, which validation and test had for themselves. Nothing is left
to measure it on: its figures are those of the run that it was chosen in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sirius_rec import processes
from sirius_rec.atomic import write_json
from sirius_rec.config import Config
from sirius_rec.config_yaml import apply_overrides
from sirius_rec.data.options import INTERACTED, INTERACTED_LEAKY, HoldOutOptions, SplitOptions
from sirius_rec.data.sources import FRAMES
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.results import read_results
from sirius_rec.recipes import starting
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.configuration import parse_config
from sirius_rec.recipes.methods import Method
from sirius_rec.recipes.ranking import chosen_method
from sirius_rec.recipes.reranking import retriever_of
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.scoring import measured_otherwise
from sirius_rec.recipes.story import FIT, Log, run_stages

_MEASURES = ("slates", "n", "hr@1", "hr@1_low", "hr@1_high", "ndcg@10", "ndcg@10_low", "ndcg@10_high")


def refit(
    run: Run,
    out: Path,
    *,
    method: str | None = None,
    seed: int | None = None,
    retriever: str | None = None,
    overrides: Sequence[str] = (),
    log: Log,
) -> Run:
    """Train a method of a finished run on all of its data; by default what had the highest HR@1 on validation slates.

    Every stage ends where it was best in that run, by the schedule that it had there. retriever: another method of the
    run, fitted beside it, that will find candidates for it. overrides: of the configuration, a newer log for example.
    Killed and called again it goes on.

    Raises:
        ConfigError: for rows that come with their split, a retriever that is none, and a bad override.
        RunError: where nothing of that name is trained and can be fitted again, or `out` holds something else.
    """
    chosen, seed = chosen_method(run, method, seed, lambda one: one.settles, "be fitted again")
    settled = _settled(run, chosen, seed)
    if retriever is not None:
        settled = _with_retriever(settled, run, retriever)
    config = parse_config(apply_overrides(json.loads(settled.model_dump_json()), list(overrides)), "sirius refit")
    _check_whole(config, settled)
    processes.join(cpu=config.compute.device == "cpu")
    with processes.one_for_all():
        folder = open_run(out, config) if processes.is_main() else RunFolder(out)
        fitted = Run(folder, config)
        if processes.is_main():
            _write_origin(fitted, run, chosen, seed, retriever)
            starting.hand_on(run, fitted, seed)
    run_stages(fitted, ("sft", "align", FIT), log)
    if _files(fitted) != _files(run):
        log(f"note: the input is another than that of {run.folder.path}, whose figures are of the data that it had")
    return fitted


def _files(run: Run) -> list[str]:
    """Of the files that the data was made of, the fingerprints."""
    return [file["sha256"] for file in run.dataset.info["source"]["notes"].get("files", [])]


def _check_whole(config: Config, settled: Config) -> None:
    """ConfigError for an override by which it would be another method's fit, or none on all of the data."""
    sections = [("", key) for key in ("arms", "methods", "seeds")] + [("data", key) for key in ("split", "hold_out")]
    for section, key in sections:
        ours, asked = (getattr(getattr(one, section) if section else one, key) for one in (settled, config))
        if ours != asked:
            raise ConfigError(
                f"{section}{'.' * bool(section)}{key}: sirius refit trains one method (--method, --seed) on all of the "
                "data: leave it out"
            )
    if any(set(slates.splits) != {"train"} for slates in config.data.slates):
        raise ConfigError("data.slates: sirius refit has train slates alone: set splits: [train]")


def _with_retriever(settled: Config, run: Run, key: str) -> Config:
    """With another method of the run, settled as well; baselines that every table has need no entry."""
    finder, seed = chosen_method(run, retriever_of(run, key).key, None)  # its own best; fitted with the other's seed
    if finder.role == "trivial" or key in (entry.key for entry in settled.methods):
        return settled
    return settled.changed(methods=(*settled.methods, *finder.settled(run, seed).methods))


def _write_origin(fitted: Run, run: Run, method: Method, seed: int, retriever: str | None) -> None:
    """refit.json. RunError where the folder was fitted from another training."""
    before = fitted.folder.origin()
    earlier = run.folder.origin()  # of a final fit's final fit: what was chosen, and measured, before
    origin = {
        "run": str(run.folder.path.resolve()) if earlier is None else earlier["run"],
        "data": run.dataset.fingerprint,
        "method": method.key,
        "seed": seed,
        "retriever": retriever or (before or {}).get("retriever"),
        "trained": method.trained_as(run, seed),
        "measured": _measured(run, method) if earlier is None else earlier["measured"],
    }
    if before is not None and any(before[key] != origin[key] for key in ("data", "method", "seed", "trained")):
        raise RunError(
            f"{fitted.folder.path}: was fitted from another run, or before that was trained anew: choose another --out"
        )
    write_json(fitted.folder.refit, origin)


def _settled(run: Run, method: Method, seed: int) -> Config:
    """The method's recipe with everything chosen, on data that is all for training."""
    data = run.config.data
    if data.source == FRAMES:
        raise ConfigError(
            "data.source frames: prepare them with split={'kind': 'user', 'ratios': [1, 0, 0]}, and train on what that "
            "makes (data.prepared)"
        )
    if run.dataset.info["statistics"]["n_interactions"] is None:
        raise ConfigError(
            f"data.source {data.source}: its rows come with their split: call all of them train in the files, and "
            "train on that"
        )
    excluded = run.dataset.info["slates"][str(run.train_slates)].get("exclude")
    exclude = INTERACTED if excluded == INTERACTED_LEAKY else excluded  # no user has rows in two splits now
    entry = next(slates for slates in data.slates if "train" in slates.splits)
    return method.settled(run, seed).changed(
        name=f"{run.config.name.removesuffix('-refit')}-refit",
        seeds=(seed,),
        data=data.changed(
            split=SplitOptions(kind="user", seed=data.split.seed, ratios=(1, 0, 0)),
            slates=(entry.changed(splits=("train",), exclude=exclude),),
            limits={split: rows for split, rows in data.limits.items() if split == "train"},
            hold_out=HoldOutOptions(),
            prepared=None,
        ),
        evaluation=run.config.evaluation.changed(slates=None, test_rows=None, retrieved=()),
    )


def _measured(run: Run, method: Method) -> list[dict[str, Any]]:
    """What results.json has of the method's best checkpoint; [] where it was not evaluated as the run is configured."""
    if not run.folder.results.is_file():
        return []
    results = read_results(run.folder.results)
    if measured_otherwise(results, run.config) is not None:
        return []
    rows = [row for row in results["summary"] if (row["method"], row["checkpoint"]) == (method.key, "best")]
    return [{name: row.get(name) for name in _MEASURES} for row in rows]
