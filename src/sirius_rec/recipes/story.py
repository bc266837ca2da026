"""A whole run, stage by stage; every stage can also be asked for alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sirius_rec import processes
from sirius_rec.config import Config
from sirius_rec.errors import DataError, SiriusError
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.schedule import Job, run_jobs

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.progress import Advance

Say = Callable[[str], None]


def prepare_data(
    config: Config, out: RunFolder | None, say: Say, path: object = None, advance: Advance | None = None
) -> Dataset:
    """Prepare the configured data set into the run folder (or `path`); reuses one of the same recipe."""
    from pathlib import Path

    from sirius_rec.data.options import FilterOptions, SlateOptions, SplitOptions, WindowOptions
    from sirius_rec.data.prepare import prepare

    data = config.data
    target = Path(str(path)) if path is not None else None
    if target is None:
        assert out is not None
        target = out.data
    return prepare(
        data.source,
        data.input,
        target,
        options=data.options,
        filter=FilterOptions(**data.filter.model_dump()),
        split=SplitOptions(**data.split.model_dump()),
        window=WindowOptions(**data.window.model_dump()),
        slates=[SlateOptions(**slate.model_dump()) for slate in data.slates],
        seed=data.seed,
        limits={str(split): rows for split, rows in data.limits.items()},
        prepared=data.prepared,
        progress=say,
        advance=advance,
    )


def stage_jobs(run: RunFolder, config: Config, stages: Iterable[str]) -> list[Job]:
    """Jobs of the training and scoring stages, each after what it needs."""
    from sirius_rec.rankers.methods import METHODS
    from sirius_rec.recipes import baselines, evaluation, reference, training

    wanted = set(stages)
    path = str(run.path)
    jobs: list[Job] = []
    references = any(config.objective(arm).needs_reference for arm in config.arms)
    language = config.trains_language_model
    pretrained = any(METHODS[m.method].stage for m in config.methods) or language
    if "sft" in wanted and pretrained and training.pretrains(config):
        jobs += [Job(f"pretrain s{seed}", training.pretrain, (path, seed)) for seed in config.seeds]
    for seed in config.seeds if language else ():
        if "sft" in wanted:
            jobs.append(Job(f"sft s{seed}", training.sft, (path, seed), frozenset({f"pretrain s{seed}"})))
        if "align" in wanted and references:
            jobs.append(Job(f"reference s{seed}", reference.reference, (path, seed), frozenset({f"sft s{seed}"})))
    if "align" in wanted:
        for arm in config.arms:
            for seed in config.seeds:
                needs = {f"sft s{seed}", f"reference s{seed}"}
                jobs.append(Job(f"{arm.key} s{seed}", training.align, (path, arm.key, seed), frozenset(needs)))
    if "evaluate" in wanted:
        jobs.append(Job("floors", evaluation.floors, (path,), alone=True))
        # What others build on comes first.
        for entry in sorted(config.methods, key=lambda m: METHODS[m.method].kind == "language"):
            for seed in baselines.method_seeds(config, entry):
                after = frozenset(f"{name} s{seed}" for name in baselines.builds_on(config, entry))
                alone = METHODS[entry.method].kind != "language"
                job = Job(f"{entry.key} s{seed}", baselines.fit_method, (path, entry.key, seed), after, alone=alone)
                jobs.append(job)
        for method in ("sft", *(arm.key for arm in config.arms)) if language else ():
            for seed in config.seeds:
                needs = {f"{method} s{seed}"}
                name = f"evaluate {method} s{seed}"
                jobs.append(Job(name, evaluation.evaluate_model, (path, method, seed), frozenset(needs)))
    return jobs


STAGES = ("sft", "align", "evaluate")


def run_stages(run: RunFolder, config: Config, stages: Iterable[str], say: Say) -> None:
    """Prepare what is missing and run `stages` (of `STAGES`) in order, resuming what a killed run left.

    Under torchrun called by every process: the main one prepares, all train and score.
    """
    from sirius_rec.recipes import models
    from sirius_rec.recipes.preflight import ask_endpoints, check_methods, check_prompts

    stages = tuple(stages)
    processes.join(cpu=models.on_cpu(config))
    with run.lock():
        if processes.is_main():
            try:
                models.check_device(config)
                dataset = prepare_data(config, run, say)
                if "evaluate" in stages:
                    check_methods(run, config, dataset)
                if config.needs_backbone:
                    models.prepare_backbone(run, config, dataset)
                    check_prompts(run, config, dataset)
                if "evaluate" in stages:  # last, since it may cost money and begins the method
                    ask_endpoints(run, config, dataset)
                run.adopt(config)
            except SiriusError:
                run.discard_if_untrained()
                raise
        processes.wait()
        jobs = stage_jobs(run, config, stages)
        run_jobs(jobs, workers=config.compute.jobs, threads=config.compute.threads, say=say)


def finish(run: RunFolder, config: Config, say: Say) -> None:
    """Results, diagnostics and report from the finished stages; without curves (no arm, no validation) no diagnosis."""
    if not processes.is_main():
        return
    from sirius_rec.data.store import open_dataset
    from sirius_rec.recipes import diagnosis, evaluation

    evaluation.collect(run, config, open_dataset(run.data))
    try:
        diagnosis.diagnose_run(run)
    except DataError as error:
        say(f"no diagnosis: {error}")
    evaluation.report_run(run)
