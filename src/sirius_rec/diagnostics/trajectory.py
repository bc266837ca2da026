"""A training's course on held-out slates: what every evaluation says beyond its means, and where hacking sets in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sirius_rec.diagnostics.golden import GoldenFit, fit_golden
from sirius_rec.diagnostics.onset import Onset, find_onset
from sirius_rec.diagnostics.slates import Rows, hits, slate_measures
from sirius_rec.errors import DataError
from sirius_rec.training.held_out import Snapshot


def measured_points(
    snapshots: Sequence[Snapshot], points: Sequence[Mapping[str, Any]], popularity_R: Rows | None, where: str
) -> list[dict[str, Any]]:
    """The logged points with `slate_measures` added; the first snapshot is the reference (where training began).

    Raises DataError where logs and snapshots do not belong together.
    """
    check_alike(snapshots, points, where)
    reference = snapshots[0].logp_R
    return [
        {**point, **slate_measures(snapshot.logp_R, reference, popularity_R)}
        for point, snapshot in zip(points, snapshots, strict=True)
    ]


def check_alike(snapshots: Sequence[Snapshot], points: Sequence[Mapping[str, Any]], where: str) -> None:
    """DataError where logs and snapshots are of different evaluations."""
    if [s.step for s in snapshots] != [p["step"] for p in points]:
        raise DataError(f"{where}: metrics.jsonl and held_out/ are of different evaluations; the folder was mixed up")


def golden_of(points: Sequence[Mapping[str, Any]], reference: Rows | None) -> GoldenFit:
    """The fit through one training's evaluations: gain of HR@1 over the reference, log π_ref of each row."""
    start = 0.0 if reference is None else float(hits(reference).mean())
    return fit_golden([p["distance"] for p in points], [p["hr@1"] - start for p in points])


def onset_over_seeds(
    by_seed: Mapping[str, Sequence[Snapshot]], margins: Mapping[str, Sequence[float]], users_R: Any, where: str
) -> dict[str, Any]:
    """Onset of the mean over seeds (rows' hits averaged, margins averaged), and of every seed alone.

    Returns {"all": Onset as dict, "seeds": {seed: Onset as dict}}. DataError where seeds were not evaluated at the same
    steps on the same rows.
    """
    seeds = sorted(by_seed, key=int)
    steps = [[s.step for s in by_seed[seed]] for seed in seeds]
    if any(other != steps[0] for other in steps):
        raise DataError(f"{where}: its seeds were evaluated at different steps")
    hits_STR = [np.stack([hits(s.logp_R) for s in by_seed[seed]]) for seed in seeds]
    if len({part.shape for part in hits_STR}) > 1:
        raise DataError(f"{where}: its seeds were evaluated on different rows")

    def onset(hits_TR: np.ndarray, margin: Sequence[float]) -> Onset:
        return find_onset(steps[0], hits_TR, margin, users_R)

    alone = {s: onset(part, margins[s]).as_dict() for s, part in zip(seeds, hits_STR, strict=True)}
    together = onset(np.mean(hits_STR, axis=0), np.mean([margins[s] for s in seeds], axis=0).tolist())
    return {"all": together.as_dict(), "seeds": alone}


def golden_over_seeds(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> GoldenFit:
    """One fit through the evaluations of all seeds: gain of HR@1 over each seed's own start, against the distance."""
    distance, gain = [], []
    for line in points.values():
        for point in line[1:]:
            distance.append(point["distance"])
            gain.append(point["hr@1"] - line[0]["hr@1"])
    return fit_golden(distance, gain)
