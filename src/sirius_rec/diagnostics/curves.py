"""What training curves did: margin, held-out ranking and shares over epochs. Descriptive; `onset` is the test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from scipy import stats

from sirius_rec.errors import DataError

MARGIN: Final = "reward_margin"
HIT: Final = "hr@1"
SHARES: Final = ("insensitive@0.1", "insensitive@0.5", "misordered")

NOTE: Final = (
    "First, peak and last are descriptive: they are of all validation rows, and the peak is chosen from the same rows, "
    "so every curve falls a little after it. Whether HR@1 fell while the margin rose is what the onset tests, on the "
    "rows of the users that did not choose SFT's epoch, where there are such users. A method whose loss compares no "
    "pairs (continued SFT) has a margin that nothing pushes up, and is not tested."
)

Point = Mapping[str, Any]


def labels_of(results: Mapping[str, Any]) -> dict[str, str]:
    """{method: label} of every method that was scored."""
    return {row["method"]: row["label"] for row in results.get("summary", [])}


def series(points: Sequence[Point], key: str, where: str) -> list[float] | None:
    """One value per epoch, or None where the key was not logged. Raises DataError on a gap or NaN."""
    values = [point.get(key) for point in points]
    if all(value is None for value in values):
        return None
    for point, value in zip(points, values, strict=True):
        if value is None or not math.isfinite(value):
            raise DataError(
                f"{where}: {key} is not a number at epoch {point['epoch']}; the run diverged or its log is cut"
            )
    return [float(value) for value in values]  # type: ignore[arg-type]


def ordered(points: Sequence[Point], where: str) -> list[Point]:
    """Points by epoch. Raises DataError when an epoch is missing its number or is duplicated."""
    epochs = [point.get("epoch") for point in points]
    for epoch in epochs:
        if not isinstance(epoch, (int, float)) or not math.isfinite(epoch):
            raise DataError(f"{where}: epoch is {epoch}; every point of a curve needs its epoch")
    if len(set(epochs)) != len(epochs):
        raise DataError(f"{where}: an epoch is duplicated; the log holds two runs, start it afresh")
    return sorted(points, key=lambda point: float(point["epoch"]))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean and t interval over seeds; no interval with one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def _ends(values: list[float] | None) -> dict[str, float] | None:
    return None if values is None else {"first": values[0], "last": values[-1], "change": values[-1] - values[0]}


def _one_seed(points: Sequence[Point], where: str) -> dict[str, Any]:
    hits = series(points, HIT, where)
    if hits is None:
        raise DataError(f"{where}: the curve has no {HIT}; evaluate every epoch on held-out rows")
    margin = series(points, MARGIN, where)
    epochs = [point["epoch"] for point in points]
    peak = int(np.argmax(hits))  # the earliest, where several epochs tie
    return {
        "epochs": [epochs[0], epochs[-1]],
        HIT: {"first": hits[0], "peak": hits[peak], "last": hits[-1], "peak_epoch": epochs[peak]},
        MARGIN: _ends(margin),
        **{share: _ends(series(points, share, where)) for share in SHARES},
    }


def _mean_ends(seeds: Sequence[Mapping[str, Any]], key: str) -> dict[str, float] | None:
    parts = [seed[key] for seed in seeds]
    if any(part is None for part in parts):
        return None
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def diagnose(results: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence per method from `results["curves"]` and `results["methods"]`.

    Returns {"methods": {method: {"label", "margin_trained", "seeds": {seed: evidence}, "mean": evidence averaged over
    seeds}}, "notes": [...]}. `margin_trained` is False where the objective's comparison is "none". Evidence holds
    `reward_margin`, `insensitive@0.1`, `insensitive@0.5`, `misordered` as {first, last, change} and `hr@1` as {first,
    peak, last, peak_epoch}; a key that was not logged is None.

    Raises DataError, in one line, when there are no curves, a curve of rewards has one epoch only, or a value is NaN.
    """
    curves = results.get("curves") or {}
    if not any(MARGIN in point for seeds in curves.values() for points in seeds.values() for point in points):
        raise DataError("diagnose: no curves with reward margins; align at least one method and evaluate every epoch")
    labels, facts = labels_of(results), results.get("methods") or {}
    methods: dict[str, Any] = {}
    for method in sorted(curves):
        by_seed = {
            str(seed): ordered(points, f"curve of {method}, seed {seed}")
            for seed, points in sorted(curves[method].items(), key=lambda entry: int(entry[0]))
        }
        by_seed = {seed: points for seed, points in by_seed.items() if points}
        if not by_seed:
            continue
        # `weighted_positive` never pushes a negative down: like SFT, it has no margin that it was asked to grow.
        trained = facts.get(method, {}).get("comparison") not in ("none", "weighted_positive")
        rewarded = trained and any(MARGIN in point for points in by_seed.values() for point in points)
        short = [seed for seed, points in by_seed.items() if len(points) < 2]
        if short and rewarded:
            raise DataError(
                f"diagnose: the curve of {method}, seed {short[0]} has one epoch only; "
                "log the start and at least one epoch more"
            )
        seeds = {seed: _one_seed(points, f"curve of {method}, seed {seed}") for seed, points in by_seed.items()}
        keys = (HIT, MARGIN, *SHARES)
        methods[method] = {
            "label": labels.get(method, method), "margin_trained": trained, "seeds": seeds,
            "mean": {key: _mean_ends(list(seeds.values()), key) for key in keys},
        }  # fmt: skip
    return {"methods": methods, "notes": [NOTE]}


HEADER: Final = (
    "method",
    "margin first → last",
    "HR@1 first / peak / last",
    "peak at epoch",
    "Ω_0.1",
    "Ω_0.5",
    "misordered",
)


def _arrow(ends: Mapping[str, float] | None, digits: int) -> str:
    return "–" if ends is None else f"{ends['first']:.{digits}f} → {ends['last']:.{digits}f}"


def lines(diagnostics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows for a terminal table under `HEADER`, one per method, means over seeds."""
    rows: list[tuple[str, ...]] = []
    for entry in diagnostics["methods"].values():
        mean, hits = entry["mean"], entry["mean"][HIT]
        # Older versions called it best_epoch.
        best = [f"{seed[HIT].get('peak_epoch', seed[HIT].get('best_epoch')):g}" for seed in entry["seeds"].values()]
        rows.append((
            entry["label"], _arrow(mean[MARGIN], 2),
            f"{hits['first']:.3f} / {hits['peak']:.3f} / {hits['last']:.3f}", ", ".join(best),
            _arrow(mean[SHARES[0]], 3), _arrow(mean[SHARES[1]], 3), _arrow(mean[SHARES[2]], 3),
        ))  # fmt: skip
    return rows
