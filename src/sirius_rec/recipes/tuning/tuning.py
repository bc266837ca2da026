"""`sirius tune`: trials of everything, winners with fresh seeds, test slates once, and what the choice overstates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import atomic, processes
from sirius_rec.cluster import Cluster
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.results import clean
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.comparison import compare
from sirius_rec.recipes.environment import versions
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.methods.fusion import Fusion
from sirius_rec.recipes.methods.networks import require_validation
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.schedule import Job, run_jobs
from sirius_rec.recipes.starting import begins_at
from sirius_rec.recipes.story import STAGES, finish, run_stages
from sirius_rec.recipes.tuning.spaces import spaces, with_values
from sirius_rec.recipes.tuning.study import CONFIGURED, measured, open_study, tune_one

RESULTS = "tune.json"


def tune(config: Config, out: Path, cluster: Cluster | None = None) -> dict[str, Any]:
    """Everything of a tuning, gone on with where it stopped; tune.json. cluster: as `run_stages`.

    OUT/trials is a run folder with one seed, whose validation slates decide; OUT/winners one with fresh seeds and the
    chosen options, compared on test slates.

    ConfigError for spaces that do not fit, for fresh seeds that tuning has seen, and under several processes.
    """
    _check(config)
    keys = list(spaces(config))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be a folder of a tuning ({error.strerror}): choose another --out") from error
    with RunFolder(out).lock():
        return _tune(config, keys, out, cluster)


def _tune(config: Config, keys: Sequence[str], out: Path, cluster: Cluster | None) -> dict[str, Any]:
    one_seed = config.changed(seeds=config.seeds[:1], methods=[entry.changed(seeds=None) for entry in config.methods])
    trials = Run(open_run(out / "trials", one_seed), one_seed)
    run_stages(trials, (), log, cluster)  # the data, to see whether there is something to choose by
    require_validation(trials)
    run_stages(trials, ("sft",), log, cluster)
    needed = {key: method.prerequisites() for key, method in build_methods(one_seed).items()}
    first = {p.name: p for several in needed.values() for p in several}.values()
    jobs = [Job(p.name, p.run, (str(trials.folder.path), config.seeds[0]), frozenset(p.after)) for p in first]
    jobs += [Job(f"trials of {key}", tune_one, (str(out), key), frozenset(p.name for p in needed[key])) for key in keys]
    compute, seen = config.compute, [trials.folder.config_file]
    run_jobs(jobs, workers=compute.jobs, threads=compute.threads, log=log, cluster=cluster, files=seen)
    chosen = {key: _chosen(out, trials.config, key) for key in keys}
    winners = winning(config, chosen)
    run = Run(open_run(out / "winners", winners), winners)
    run_stages(run, STAGES, log, cluster)
    finish(run, log, compared=True)
    content = {
        "config": config.model_dump(mode="json", exclude={"compute"}),
        "versions": versions(),
        "metric": config.tune.metric,
        "trials": config.tune.trials,
        "seeds": list(config.tune.seeds),
        "methods": _beside(run, config, chosen),
    }
    atomic.write_json(out / RESULTS, clean(content))
    return content


def _check(config: Config) -> None:
    if processes.count() > 1:
        raise ConfigError("sirius tune: is one process with compute.jobs workers: start it without torchrun")
    if begins := begins_at(config):
        raise ConfigError(
            f"{begins[0]}.from: fresh seeds have no twins in the other run to begin at: tune without it, or name an "
            "exported model as backbone.name"
        )
    if fused := [entry.key for entry in config.methods if entry.method == Fusion.name]:
        raise ConfigError(
            f"methods ({', '.join(fused)}): sirius tune: what a fusion weighs is tuned itself: tune without it, then "
            "add it to OUT/winners/config.yaml and run that into OUT/winners"
        )
    again = set(config.tune.seeds) & set(config.seeds[:1])
    if again:
        raise ConfigError(f"tune.seeds: seed {again.pop()} is the one that trials are chosen with: give fresh ones")
    if len(set(config.tune.seeds)) < len(config.tune.seeds) or not config.tune.seeds:
        raise ConfigError("tune.seeds: give one seed or more, each once")


def _chosen(out: Path, config: Config, key: str) -> dict[str, Any]:
    """What a study came to: counts, the best values, and what they and the configured ones were worth."""
    study = open_study(out, config, key)
    counts = {name: sum(t.state.name == state for t in study.trials)
              for name, state in (("complete", "COMPLETE"), ("pruned", "PRUNED"), ("failed", "FAIL"))}  # fmt: skip
    complete = [t for t in study.trials if t.value is not None and t.state.name == "COMPLETE"]
    if not complete:
        raise ConfigError(f"{key}: none of its {len(study.trials)} trials came to an end: widen tune.spaces.{key}")
    best = max(complete, key=lambda t: (t.value, -t.number))
    first = study.trials[0]
    own = first.system_attrs.get("fixed_params") or first.user_attrs.get(CONFIGURED)
    as_configured = first.value if own and first in complete else None
    values = [{"value": t.value, "state": t.state.name, **t.params} for t in study.trials]
    return {**counts, "values": dict(best.params), "validation": best.value, "configured": as_configured, "all": values}


def winning(config: Config, chosen: dict[str, dict[str, Any]]) -> Config:
    """The configuration with the chosen options and fresh seeds, and nothing left to choose."""
    arms, methods = (
        [with_values(entry, chosen[entry.key]["values"]) for entry in entries]
        for entries in (config.arms, config.methods)
    )
    methods = [entry.changed(seeds=None) for entry in methods]
    settled = config.tune.changed(spaces={})
    return config.changed(seeds=config.tune.seeds, arms=arms, methods=methods, tune=settled)


def _beside(run: Run, config: Config, chosen: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each method what tuning promised beside what fresh seeds gave, on validation and on the first test slates."""
    results, slates, labels = compare(run), run.test_slates[0], build_methods(config)
    rows = {row["method"]: row for row in results["summary"] if (row["slates"], row["checkpoint"]) == (slates, "best")}
    found = {}
    for key, one in chosen.items():
        method = build_methods(run.config)[key]
        fresh = [measured(run, method, seed) for seed in method.seeds]
        row = rows[key]
        found[key] = {
            **one, "label": labels[key].label, "slates": slates,
            "fresh_validation": float(np.mean(fresh)),
            **{f"test_{name}": row[name] for name in ("hr@1", "hr@1_low", "hr@1_high", "ndcg@10")},
        }  # fmt: skip
    return found
