"""Curves, onset of hacking, golden-reward fit and influence probe of a run → diagnostics.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec import atomic
from sirius_rec.atomic import write_json
from sirius_rec.diagnostics.curves import MARGIN, diagnose
from sirius_rec.diagnostics.slates import Rows
from sirius_rec.diagnostics.trajectory import (
    check_alike,
    golden_of,
    golden_over_seeds,
    measured_points,
    onset_over_seeds,
)
from sirius_rec.errors import DataError, RunError
from sirius_rec.evaluation.results import read_results
from sirius_rec.evaluation.tables import user_groups
from sirius_rec.recipes.methods import Method, build_methods
from sirius_rec.recipes.methods.sft import Sft
from sirius_rec.recipes.models import load_stage_model, place
from sirius_rec.recipes.records import validation_row_ids, validation_set
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.run_folder import DONE, RunFolder, read_done
from sirius_rec.schema import CANDIDATES, TARGET, USER_ID
from sirius_rec.training.held_out import Snapshot, check_rows, read_context, read_held_out
from sirius_rec.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset

Curves = dict[str, dict[str, list[dict[str, Any]]]]
SAME_ROWS = (
    "SFT's best epoch was or may have been chosen on rows that the onset looks at (a run of an earlier version, one "
    "user's rows alone, or another run's SFT), which flatters the start of alignment: the test leaves the start out, "
    "and finds an onset in 6 to 7 % of runs without one instead of 5 %."
)


def _trainings(run: Run) -> dict[str, dict[str, Path]]:
    """Method → seed → folder, of SFT and the arms, wherever there are logs."""
    out: dict[str, dict[str, Path]] = {}
    for method in _studied(run).values():
        for seed in method.seeds:
            folder = method.folder(run, seed)
            if (folder / "metrics.jsonl").is_file():
                out.setdefault(method.key, {})[str(seed)] = folder
    return out


def _studied(run: Run) -> dict[str, Method]:
    """SFT and the arms, by key."""
    return {key: method for key, method in build_methods(run.config).items() if method.role in ("sft", "arm")}


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line.pop("kind") == "eval"]


def _held_out_slates(run: Run) -> tuple[list[list[int]], np.ndarray] | None:
    """Items of every held-out slate, the target first, as they were scored; and the users of the rows."""
    name, rows = run.validation_slates, run.validation_rows
    if name is None:
        return None
    examples = run.dataset.examples("val")
    targets = examples[TARGET].to_numpy()[rows]
    slates = run.dataset.slates(name)[CANDIDATES].gather(rows.tolist()).to_list()
    items = [[int(t), *(i for i in slate if i != t)] for t, slate in zip(targets, slates, strict=True)]
    return items, user_groups(examples[USER_ID].gather(rows.tolist()))


def _popularity(dataset: Dataset, items: list[list[int]]) -> Rows:
    """Share of training users who have each candidate."""
    sequences = dataset.train_sequences()
    counts = np.zeros(dataset.n_items)
    for sequence in sequences:
        counts[np.unique(sequence)] += 1
    shares = counts / max(len(sequences), 1)
    return [shares[row] for row in items]


def read_curves(run: Run) -> Curves:
    """Per-epoch validation metrics of every trained method and seed; epoch 0 is where its training began.

    Where the held-out log-probs were kept, rank, kl, distance, entropy, logp_drift and top_popularity are added.
    """
    slates = _held_out_slates(run)
    popularity = _popularity(run.dataset, slates[0]) if slates is not None else None
    row_ids = validation_row_ids(run) if slates is not None else []
    curves: Curves = {}
    for method, seeds in _trainings(run).items():
        for seed, folder in seeds.items():
            points = _evaluations(folder)
            check_rows(folder / "held_out", row_ids)
            snapshots = read_held_out(folder / "held_out")
            if snapshots:
                points = measured_points(snapshots, points, popularity, f"{method}, seed {seed}")
            if points:
                curves.setdefault(method, {})[seed] = points
    return curves


def read_diagnostics(run: Run) -> dict[str, Any] | None:
    """diagnostics.json; None where the run was not diagnosed."""
    file = run.folder.diagnostics
    return dict(json.loads(file.read_text())) if file.is_file() else None


def diagnose_run(run: Run, *, influence_rows: int = 0, log: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Reward-hacking evidence from results.json and the held-out log-probs → diagnostics.json.

    Beside `diagnose`'s evidence: "onset" and "golden_fit" per aligned method (where held-out log-probs were kept), and
    with influence_rows > 0 "influence", the probe on so many validation slates of every method's last checkpoint; with
    0 what an earlier probe of the same trainings found is kept.
    """
    run.check_measured()
    results = read_results(run.folder.results)
    diagnostics = diagnose(results)
    studied, slates = _studied(run), _held_out_slates(run)
    users = slates[1] if slates is not None else None
    diagnostics["onset"], diagnostics["golden_fit"] = {}, {}
    apart = slates is not None and _chosen_apart(run)
    for method, seeds in _trainings(run).items():
        points = results["curves"].get(method, {})
        # An arm or a seed that was trained after the last evaluation has no curve yet.
        seeds = {seed: folder for seed, folder in seeds.items() if seed in points}
        measured = all("distance" in point for line in points.values() for point in line)
        if studied[method].role != "arm" or not seeds or not measured:
            continue
        snapshots: Mapping[str, list[Snapshot]] = {
            seed: read_held_out(folder / "held_out") for seed, folder in seeds.items()
        }
        margins = {seed: [p.get(MARGIN) for p in points[seed]] for seed in snapshots}
        tested = diagnostics["methods"][method]["margin_trained"]
        if tested and all(value is not None for line in margins.values() for value in line):
            onset = _onset(run, snapshots, margins, users, apart, f"onset of {method}")
            if onset is not None:
                diagnostics["onset"][method] = onset
        diagnostics["golden_fit"][method] = golden_over_seeds(points).as_dict()
    if diagnostics["onset"] and not apart:
        diagnostics["notes"].append(SAME_ROWS)
    if influence_rows:
        diagnostics["influence"] = probe_run(run, influence_rows, log or (lambda line: None))
    elif earlier := _earlier_probes(run):
        diagnostics["influence"] = earlier
    write_json(run.folder.diagnostics, diagnostics)
    return diagnostics


def _chosen_apart(run: Run) -> bool:
    """Whether SFT's best epoch was chosen, with every seed, on other rows than those that the onset looks at."""
    sft = Sft(run.config)
    return run.selecting is not None and all(
        sft.chosen_apart(run, seed) for seed in sft.seeds if sft.is_done(run, seed)
    )


def _onset(
    run: Run,
    snapshots: Mapping[str, list[Snapshot]],
    margins: Mapping[str, list[float]],
    users: Any,
    apart: bool,
    where: str,
) -> dict[str, Any] | None:
    """The onset test on the rows that did not choose SFT's epoch; on all, without the start, where all chose it."""
    if not apart:
        later = {seed: line[1:] for seed, line in snapshots.items()}
        margins = {seed: line[1:] for seed, line in margins.items()}
        few = min(map(len, later.values())) < 2
        return None if few else onset_over_seeds(later, margins, users, where)
    assert run.selecting is not None
    rows = np.flatnonzero(~run.selecting)
    others = {
        seed: [replace(one, logp_R=[one.logp_R[r] for r in rows]) for one in line] for seed, line in snapshots.items()
    }
    return onset_over_seeds(others, margins, users[rows], where)


def _earlier_probes(run: Run) -> dict[str, Any]:
    """Influence probes of an earlier diagnosis, of arms that were not trained anew since."""
    file = run.folder.diagnostics
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    return {
        arm: entry
        for arm, entry in (earlier.get("influence") or {}).items()
        if entry.get("training") is not None and entry["training"] == _training(run.folder.arm(arm, entry["seed"]))
    }


def _training(folder: Path) -> dict[str, Any] | None:
    """What tells one training of an arm from another: its done.json."""
    done = folder / DONE
    return read_done(folder) if done.is_file() else None


def diagnose_log(folder: Path) -> dict[str, Any]:
    """The same evidence from what `RewardHackingMonitor` wrote in anyone's training → FOLDER/diagnostics.json."""
    if not (folder / "metrics.jsonl").is_file():
        raise RunError(f"{folder}: neither a run folder (config.yaml) nor a monitor's (metrics.jsonl)")
    snapshots = read_held_out(folder / "held_out")
    if not snapshots:
        raise RunError(f"{folder / 'held_out'}: no held-out log-probs; let the monitor evaluate at least twice")
    points = _log_points(folder, snapshots)
    reference, users_R = read_context(folder / "held_out")
    diagnostics = diagnose({"curves": {folder.name: {"0": points}}})
    margins = {"0": [float(point[MARGIN]) for point in points]}
    diagnostics["onset"] = {folder.name: onset_over_seeds({"0": snapshots}, margins, users_R, str(folder))}
    diagnostics["golden_fit"] = {folder.name: golden_of(points, reference or snapshots[0].logp_R).as_dict()}
    write_json(folder / "diagnostics.json", diagnostics)
    return diagnostics


def _log_points(folder: Path, snapshots: Sequence[Snapshot]) -> list[dict[str, Any]]:
    """The evaluations of a monitor's folder as it measured them; of a training of ours, measured from its start."""
    points = _evaluations(folder)
    check_alike(snapshots, points, str(folder))
    measured = all("distance" in point for point in points)
    return points if measured else measured_points(snapshots, points, None, str(folder))


def probe_run(run: Run, rows: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The influence probe at the last checkpoint of every arm that compares pairs, first seed, validation slates."""
    from sirius_rec.diagnostics.influence import probe_influence, summarise_influence
    from sirius_rec.scoring.scorer import check_once, score_rows
    from sirius_rec.training.records import encode_records

    validation = validation_set(run)
    if validation is None:
        raise DataError("influence: there are no validation slates to probe on; give the split some rows")
    quiet()
    # Moves of a thousandth of a nat are lost in half precision.
    config = run.config.changed(backbone=run.config.backbone.changed(dtype="float32"))
    pad_id = run.encoder.pad_id
    encoded = encode_records(validation.records[:rows], run.encoder)
    seed, scoring = config.seeds[0], config.compute.scoring
    reference = place(load_stage_model(config, run.folder.sft(seed) / "best"), config)
    ref_logps = score_rows(reference, encoded, pad_id, mode=scoring)
    del reference
    probes: dict[str, Any] = {}
    for arm in config.arms:
        objective, folder = config.objective(arm), run.folder.arm(arm.key, seed)
        if not objective.uses_negatives or not (folder / "last").is_dir():
            continue
        model = place(load_stage_model(config, folder / "last"), config)
        check_once(model, encoded, pad_id, scoring)
        triples = probe_influence(model, encoded, pad_id, objective, ref_logps=ref_logps, mode=scoring)
        if not len(triples["r_i"]):
            log(f"influence probe: {arm.key} left out, its pairs are all beyond the hinge's margin")
            continue
        probes[arm.key] = {
            "seed": seed, "checkpoint": "last", "training": _training(folder), **summarise_influence(triples),
        }  # fmt: skip
        log(f"influence probe: {arm.key} done, {len(encoded)} slates")
    if not probes:
        raise RunError(f"{run.folder.path}: no aligned method that compares pairs; train one before probing it")
    return probes


def write_curves_csv(folder: Path, out: Path) -> None:
    """method, seed and every logged value, one line per evaluation, of a run or a monitor's folder."""
    import csv

    run = RunFolder(folder)
    if run.config_file.is_file():
        curves: Mapping[str, Any] = read_results(run.results)["curves"]
    else:
        curves = {folder.name: {"0": _log_points(folder, read_held_out(folder / "held_out"))}}
    lines = [
        {"method": method, "seed": seed, **point}
        for method, seeds in curves.items()
        for seed, points in seeds.items()
        for point in points
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    with atomic.replacing(out) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
