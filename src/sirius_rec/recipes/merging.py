"""`sirius merge`: seeds that were trained apart, in an array job say, become one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from sirius_rec import atomic
from sirius_rec.config import Config, MethodSection
from sirius_rec.config_sections import EvaluationSection
from sirius_rec.errors import RunError
from sirius_rec.recipes.adoption import first_difference
from sirius_rec.recipes.methods.arms import OBJECTIVE
from sirius_rec.recipes.models import ATTENTION, gguf_file_of
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import ENVIRONMENT, RunFolder
from sirius_rec.recipes.scoring import check_trained

# What belongs to one seed: folders s<seed> and files of its name, below these.
_BY_SEED = ("start", "pretrain", "sft", "align", "methods", "reference")
_TABLES = ("scores", "generation")


def merge_runs(paths: Sequence[Path], out: Path) -> RunFolder:
    """Copy the seeds of several run folders into one, with all of their seeds in its configuration.

    RunError for runs on other data or with another configuration (naming the first difference), with something not
    trained yet, for a seed that two of them trained, and where `out` exists.
    """
    runs = [Run.open(path) for path in paths]
    first = runs[0]
    if out.exists():
        raise RunError(f"{out}: exists: choose another --out")
    for other in runs[1:]:
        where = f"{other.folder.path} and {first.folder.path}"
        if other.dataset.fingerprint != first.dataset.fingerprint:
            raise RunError(f"{where} are on different data: runs can be merged on the same prepared data only")
        if gguf_file_of(other.folder) != gguf_file_of(first.folder):
            raise RunError(f"{where} were made with different files of backbone '{first.config.backbone.model}'")
        one, two = (run.config.changed(seeds=(0,)) for run in (first, other))
        difference = first_difference(other.folder, two, one, whole=True)
        if difference:
            key = difference.removeprefix("evaluation.").partition(":")[0].partition(".")[0]
            measured = difference.startswith("evaluation.") and key in EvaluationSection.MEASURED
            same = "; `sirius evaluate` makes them alike" if measured else ""
            words = difference.replace(": saved ", ": ").replace(", now ", " and ")
            raise RunError(f"{where} have different configurations ({words}{same})")
        if (one.arms, _named(one)) != (two.arms, _named(two)):
            raise RunError(f"{where} have different arms or methods: train the missing ones first")
        for arm in one.arms:
            trained = [run.folder.path / "align" / arm.key for run in (first, other)]
            saved = [json.loads(file.read_text()) for path in trained for file in path.glob(f"s[0-9]*/{OBJECTIVE}")]
            if any(earlier != saved[0] for earlier in saved):
                raise RunError(f"{where} trained {arm.key} with different objectives, though it is called the same")
    seeds = [seed for run in runs for seed in run.config.seeds]
    if len(set(seeds)) < len(seeds):
        twice = next(seed for n, seed in enumerate(seeds) if seed in seeds[:n])
        raise RunError(f"seed {twice} was trained in two of the runs: leave one of them out")
    with ExitStack() as held, atomic.replacing(out) as partial:
        for run in runs:
            held.enter_context(run.folder.lock())
            check_trained(run)
        partial.mkdir()
        _copy(first.folder.path, partial, (first.folder.data.name, first.folder.backbone.name, ENVIRONMENT, ATTENTION))
        for run in runs:
            _copy(run.folder.path, partial, (*_BY_SEED, *_TABLES))
        RunFolder(partial).write_config(first.config.changed(seeds=tuple(sorted(seeds))))
    return RunFolder(out)


def _named(config: Config) -> list[MethodSection]:
    """The methods, whatever seeds of their own they have."""
    return [entry.changed(seeds=None) for entry in config.methods]


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        entry = source / name
        if entry.is_dir():
            shutil.copytree(entry, target / name, dirs_exist_ok=True)
        elif entry.is_file():
            shutil.copy2(entry, target / name)
