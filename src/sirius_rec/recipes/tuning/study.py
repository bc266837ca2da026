"""Trials of one arm or method: an Optuna study in the tuning's folder, gone on with after a kill.

A trial trains from the same SFT (or from nothing) with the seed of tuning, in a folder of its own, and is worth what
its best checkpoint reaches on validation slates. Test slates are not looked at.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.atomic import write_json
from sirius_rec.config import ArmSection, Config, MethodSection
from sirius_rec.errors import RunError, TrainingError
from sirius_rec.evaluation.metrics import per_example
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods import METHODS, Method
from sirius_rec.recipes.methods.arms import OBJECTIVE, Arm
from sirius_rec.recipes.methods.networks import validation
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.tuning.spaces import configured, spaces, suggest, with_values
from sirius_rec.training.metrics_log import read_metrics

JOURNAL = "journal.log"
VALUE = "value.json"  # what a finished trial was worth, beside its logs
CONFIGURED = "configured"  # of a first trial that has none of the space's values
_UNPRUNED = 4  # finished trials that a median takes, over all and at an epoch


def open_study(folder: Path, config: Config, key: str) -> Any:
    """The study of one arm or method; made where there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tune = config.tune
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED, n_min_trials=_UNPRUNED)
    return optuna.create_study(
        study_name=key,
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        sampler=_sampler(config, key, 0),
        pruner=pruner if tune.prune else optuna.pruners.NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )


def _sampler(config: Config, key: str, number: int, *, grouped: bool = False) -> Any:
    """What draws the values of a trial. Seeded by its number: a sampler that lived from trial to trial would draw those
    of the first ones again in a process that goes on after a kill.

    grouped: where a trial without values lies among the others, which would leave no values that all have.
    """
    import optuna

    tune = config.tune
    seed = int(np.random.default_rng([tune.seed, number, *key.encode()]).integers(2**31))
    startup = max(4, tune.trials // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=grouped)


def tune_one(path: str, key: str) -> None:
    """Job: the trials of an arm or method that are still to be done."""
    import optuna

    quiet()
    run = Run.open(Path(path) / "trials")
    config, folder = run.config, Path(path)
    entries: tuple[ArmSection | MethodSection, ...] = (*config.arms, *config.methods)
    entry = next(entry for entry in entries if entry.key == key)
    space = spaces(config)[key]
    if isinstance(entry, ArmSection):
        _require_one_objective(run, entry, space)
    study = open_study(folder, config, key)
    own = configured(config, entry, space)
    if not study.trials and own is not None:
        study.enqueue_trial(own)
    wanted = config.tune.trials if space else 1
    State = optuna.trial.TrialState
    while True:
        begun = study.get_trials(states=(State.RUNNING,))
        done = len(study.get_trials(states=(State.COMPLETE, State.PRUNED, State.FAIL)))
        number = begun[0].number if begun else len(study.trials)
        study.sampler = _sampler(config, key, number, grouped=own is None)
        if begun:  # by a process that was killed
            trial = optuna.trial.Trial(study, begun[0]._trial_id)
        elif done < wanted:
            trial = study.ask()
        else:
            return
        values = _values(trial, space, own)
        try:
            value = _worth(run, entry, key, trial, values)
        except TrainingError as error:  # diverged: a trial that came to nothing
            study.tell(trial, state=State.FAIL)
            said = f"failed ({error})"
        except optuna.TrialPruned:
            study.tell(trial, state=State.PRUNED)
            said = "pruned"
        else:
            study.tell(trial, value)
            said = f"{config.tune.metric} {value:.4f}"
        best = max((t.value for t in study.get_trials(states=(State.COMPLETE,))), default=None)
        shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        rest = "" if best is None else f"; best {best:.4f}"
        log(f"{key} trial {trial.number + 1}/{wanted}: {said} ({shown or 'as configured'}){rest}")


def _require_one_objective(run: Run, entry: ArmSection, space: Mapping[str, Any]) -> None:
    """RunError where earlier trials trained with another objective, beyond what is tuned."""
    from sirius_rec.objectives.identity import difference

    for file in sorted((run.folder.path / "align").glob(f"{entry.key}.t*/s[0-9]*/{OBJECTIVE}")):
        if changed := difference(json.loads(file.read_text()), run.config.objective(entry), but=tuple(space)):
            raise RunError(
                f"{file.parent}: trained with another objective ({changed}): trials of two cannot be compared: choose "
                "another --out"
            )


def _values(trial: Any, space: Mapping[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a trial tries. The first is the configuration itself, also where that has no place in the space (where the
    method chooses a value by itself, say)."""
    if trial.number == 0 and own is None and not trial.params:
        trial.set_user_attr(CONFIGURED, True)
        return {}
    return suggest(trial, space)


def _worth(run: Run, entry: Any, key: str, trial: Any, values: Mapping[str, Any]) -> float:
    """Train with these values, unless that is done, and leave only logs and what it was worth.

    What ends it otherwise than a divergence or the pruner, a full disk say, leaves all, to go on from.
    """
    from optuna import TrialPruned

    config, name = run.config, f"{key}.t{trial.number:03d}"
    section = with_values(entry, values).changed(name=name)
    seed = config.seeds[0]
    is_arm = isinstance(section, ArmSection)
    method: Method = Arm(config, section) if is_arm else METHODS[section.method](config, section)
    folder = method.folder(run, seed)

    def watch(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch:
            trial.report(metrics[config.tune.metric], epoch)  # trials have epochs in common, and not always steps
            if trial.should_prune():
                raise TrialPruned

    if not (folder / VALUE).is_file():
        run.watch = watch
        try:
            method.fit(run, seed)
        except (TrainingError, TrialPruned):
            _without_weights(folder)
            raise
        finally:
            run.watch = None
        write_json(folder / VALUE, {"value": measured(run, method, seed), "values": dict(values)})
    _without_weights(folder)
    return float(json.loads((folder / VALUE).read_text())["value"])


def _without_weights(folder: Path) -> None:
    """Of a trial that is over, its logs stay."""
    for weights in ("best", "last", "checkpoints", "mined"):
        shutil.rmtree(folder / weights, ignore_errors=True)
    for file in (*folder.glob("*.safetensors"), *folder.glob("*.pt")):
        file.unlink()


def measured(run: Run, method: Method, seed: int) -> float:
    """The metric of tuning on validation slates, of the best checkpoint; as training logged it, or scored now."""
    metric = run.config.tune.metric
    if isinstance(method, Arm):
        best = method.done(run, seed)["best_step"]
        logged = read_metrics(method.folder(run, seed) / "metrics.jsonl")
        return float(next(line[metric] for line in logged if line["kind"] == "eval" and line["step"] == best))
    held_out = validation(run)
    scores = method.ranker(run, seed, "best").score(held_out.histories, held_out.candidates)
    return float(per_example(scores, held_out.target)[metric].mean())  # type: ignore[arg-type]
