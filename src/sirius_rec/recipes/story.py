"""A whole run, stage by stage; every stage can also be asked for alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_rec import processes
from sirius_rec.config import Config
from sirius_rec.errors import DataError, SiriusError
from sirius_rec.extras import missing
from sirius_rec.recipes import comparison, diagnosis, models, retrieving, scoring, starting, trackers
from sirius_rec.recipes.adoption import adopt
from sirius_rec.recipes.environment import note_start
from sirius_rec.recipes.methods import build_methods, in_order_of_check
from sirius_rec.recipes.reporting import report_run
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import ENVIRONMENT, RunFolder
from sirius_rec.recipes.schedule import Job, run_jobs
from sirius_rec.schema import SlateName

if TYPE_CHECKING:
    from sirius_rec.cluster import Cluster
    from sirius_rec.data.store import Dataset
    from sirius_rec.progress import Advance

Log = Callable[[str], None]


def prepare_data(
    config: Config,
    out: RunFolder | Path,
    log: Log,
    advance: Advance | None = None,
    cluster: Cluster | None = None,
) -> Dataset:
    """Prepare the configured data set into the run folder, or any other; reuses one of the same recipe."""
    from sirius_rec.data.options import Sharding
    from sirius_rec.data.prepare import prepare

    data = config.data
    target = out.data if isinstance(out, RunFolder) else out
    return prepare(
        data.source,
        data.input,
        target,
        options=data.options,
        filter=data.filter,
        split=data.split,
        window=data.window,
        slates=data.slates,
        seed=data.seed,
        limits={str(split): rows for split, rows in data.limits.items()},
        unusable=data.unusable,
        max_title=data.max_title,
        prepared=data.prepared,
        held_out=data.hold_out,
        sharding=None if data.shards is None else Sharding(data.shards, config.compute.jobs),
        cluster=cluster,
        progress=log,
        advance=advance,
    )


STAGES = ("sft", "align", "evaluate")
FIT = "fit"  # trains what `evaluate` does beside language models, and scores nothing


def stage_jobs(run: Run, stages: Iterable[str]) -> list[Job]:
    """Jobs of the training and scoring stages, each after what it needs."""
    wanted, path = set(stages), str(run.folder.path)
    built = build_methods(run.config)
    methods = built.values()

    def names(keys: Iterable[str], seed: int) -> frozenset[str]:
        return frozenset(f"{key} s{built[key].seed_for(seed) if key in built else seed}" for key in keys)

    # What no method waits for any more is not made again.
    needed = {
        (p.name, seed): p for m in methods for p in m.prerequisites() for seed in m.seeds if not m.is_done(run, seed)
    }
    jobs = [
        Job(f"{name} s{seed}", p.run, (path, seed), names(p.after, seed))
        for (name, seed), p in needed.items()
        if p.stage in wanted
    ]
    first: frozenset[str] = frozenset()
    if "evaluate" in wanted:
        retrieved = _retrievals(run)
        jobs += retrieved
        first = frozenset(job.name for job in retrieved)
    finder = (run.folder.origin() or {}).get("retriever")  # of a final fit, also where every table has it
    for method in methods:
        trains_alone = method.stage != "evaluate" or FIT in wanted
        if method.stage not in wanted and not (FIT in wanted and (method.role == "baseline" or method.key == finder)):
            continue
        for seed in method.seeds:
            job = scoring.fit if trains_alone else scoring.fit_and_score
            after = names(method.builds_on(), seed) | (frozenset() if trains_alone else first)
            after |= {f"evaluate {name}" for name in names(method.reads_tables_of(), seed)}
            jobs.append(Job(f"{method.key} s{seed}", job, (path, method.key, seed), after, alone=method.alone))
    if "evaluate" in wanted:
        jobs += [
            Job(
                f"evaluate {method.key} s{seed}",
                scoring.score_only,
                (path, method.key, seed),
                names([method.key], seed) | first,
            )
            for method in methods
            if method.stage != "evaluate"
            for seed in method.seeds
        ]
    return jobs


def _retrievals(run: Run) -> list[Job]:
    """Those of one retriever one after the other: the first trains it."""
    jobs, last = list[Job](), dict[str, str]()
    for name in run.retrieved_slates:
        by = SlateName.parse(name).protocol
        after = frozenset([last[by]] if by in last else [])
        last[by] = f"retrieve {name}"
        jobs.append(Job(last[by], retrieving.retrieve, (str(run.folder.path), name), after, alone=True))
    return jobs


def run_stages(run: Run, stages: Iterable[str], log: Log, cluster: Cluster | None = None) -> None:
    """Prepare what is missing and run `stages` (of `STAGES`) in order, resuming what a killed run left.

    cluster: where shards are prepared, and jobs done, instead of here. Under torchrun called by every process: the main
    one prepares, all train and score.
    """
    stages, folder, config = tuple(stages), run.folder, run.config
    processes.join(cpu=models.on_cpu(config))
    with ExitStack() as held:
        with processes.one_for_all():
            held.enter_context(folder.lock())
            if processes.is_main():
                new = folder.is_new()
                try:
                    models.check_device(config)
                    prepare_data(config, folder, log, cluster=None if config.data.shards is None else cluster)
                    starting.take_over(run, log)
                    _check(run, stages)
                    adopt(folder, config)
                    if changed := note_start(folder.path / ENVIRONMENT, config):
                        log(f"{folder.path}: goes on with {changed} (environment.json)")
                except SiriusError:
                    if new:  # what an earlier command prepared is not this one's to remove
                        folder.discard_if_untrained()
                    raise
        compute = config.compute
        run_jobs(
            stage_jobs(run, stages), workers=compute.jobs, threads=compute.threads, log=log, cluster=cluster,
            files=[folder.config_file],
        )  # fmt: skip


def _check(run: Run, stages: Collection[str]) -> None:
    """What can be known to fail before anything is trained, of the methods that are not done."""
    trackers.check(run.config.training.report_to)
    if "evaluate" in stages:
        scoring.check_slates(run)
    for method in in_order_of_check(build_methods(run.config).values()):
        asked = method.uses_backbone or method.stage in stages or FIT in stages
        if asked and not all(method.is_done(run, seed) for seed in method.seeds):
            method.check(run)


def finish(run: Run, log: Log, *, compared: bool = False) -> None:
    """Results, audit, diagnostics and report from the finished stages.

    compared: also comparison.json; its baseline is from then on that of all tests of this folder. Without curves (no
    arm, no validation) there is no diagnosis, and what the audit cannot read it leaves alone: both say so.
    """
    if not processes.is_main():
        return
    if compared:
        comparison.compare(run)
    else:
        comparison.remeasure(run)
    audit_once(run, log)
    _diagnose(run, log)
    _report(run, log)


def remeasure(run: Run, log: Log) -> dict[str, Any]:
    """Results of what is scored by now; a comparison, and a report with its diagnosis, are made anew where the folder
    has them. What stands in the way of the report is said, and costs no results."""
    results = comparison.remeasure(run)
    if run.folder.report.is_file():
        try:
            _diagnose(run, log)
            _report(run, log)
        except SiriusError as error:
            log(f"{run.folder.report} is of before: {error}")
    return results


def _diagnose(run: Run, log: Log) -> None:
    try:
        diagnosis.diagnose_run(run)
    except DataError as error:
        log(f"no diagnosis: {error}")


def _report(run: Run, log: Log) -> None:
    without_report = missing("report")
    if without_report:
        log(f"no report: {without_report}")
        return
    try:
        report_run(run)
    except ImportError as error:  # of a package that is there and broken
        log(f"no report: {error}")


def audit_once(run: Run, log: Log) -> None:
    """Audit the run's slates if nobody has, so that the report has a verdict on them."""
    from sirius_rec.audit.audit import AUDIT_FILE, audit

    if (run.folder.data / AUDIT_FILE).is_file():
        return
    try:
        result = audit(run.folder.data)
    except SiriusError as error:
        log(f"no audit: {error}")
        return
    found = {word: [one["name"].replace("_", " ") for one in result["probes"] if one["verdict"] == word]
             for word in ("leak", "caution")}  # fmt: skip
    named = "; ".join(f"{word}: {', '.join(names)}" for word, names in found.items() if names)
    log(f"audit of {result['slates']}: {named or result['verdict']}")
