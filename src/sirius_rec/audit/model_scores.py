"""What is left of a model's HR@1 on the rows where no leaking probe is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.audit.evidence import LEAK, Evidence, groupings
from sirius_rec.audit.slates import NONE, Bools, Floats, SlateSet, expected_hits
from sirius_rec.data.sources.files import open_text, require_file
from sirius_rec.errors import DataError
from sirius_rec.evaluation.intervals import GroupBootstrap
from sirius_rec.evaluation.tables import SCORES, read_table
from sirius_rec.schema import CANDIDATES, ROW_ID

_RIGHT = 0.5  # a probe that names the target alone, or against one rival


def surviving(path: Path, slates: SlateSet, found: list[Evidence], seed: int) -> dict[str, Any]:
    """hr1 of the model on all rows, on the rows where no leaking probe is right, and the share of it that survives.

    share = HR@1 on those rows / HR@1 on all rows: 1 says that the leak did not carry the model. Intervals: cluster
    bootstrap (the wider of user and target), both figures on the same resamples.

    Raises:
        DataError: the file does not hold one score per candidate for every row.
    """
    hits = expected_hits(_read_scores(path, slates), slates.position_R, slates.valid_RC)
    leaking = [one for one in found if one.verdict == LEAK and one.hits_R.size]
    given_away = np.zeros(slates.n_rows, dtype=bool)
    for one in leaking:
        given_away[one.rows_R[one.hits_R >= _RIGHT]] = True
    kept: Bools = ~given_away
    made: dict[str, Any] = {
        "file": str(path),
        "leaking_probes": [one.name for one in leaking],
        "rows_left": int(kept.sum()),
        "hr1": float(hits.mean()),
        "hr1_left": float(hits[kept].mean()) if kept.any() else None,
        "share": None, "share_low": None, "share_high": None, "hr1_left_low": None, "hr1_left_high": None,
        "hr1_low": None, "hr1_high": None,
    }  # fmt: skip
    if not kept.any() or not hits.any():
        return made
    made["share"] = made["hr1_left"] / made["hr1"]
    widest = -1.0
    for group in groupings(slates, np.arange(slates.n_rows)):
        plan = GroupBootstrap(slates.n_rows, group, resamples=1000, seed=seed)
        if plan.n_groups < 2:
            continue
        drawn = plan.means(np.vstack([hits, hits * kept, kept.astype(np.float64)]))
        with np.errstate(invalid="ignore", divide="ignore"):
            left = drawn[:, 1] / drawn[:, 2]
            shares = left / drawn[:, 0]
        bounds: dict[str, float] = {}
        for name, values in (("hr1", drawn[:, 0]), ("hr1_left", left), ("share", shares)):
            low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
            bounds |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        if bounds["share_high"] - bounds["share_low"] > widest:
            widest = bounds["share_high"] - bounds["share_low"]
            made |= bounds
    return made


def _read_scores(path: Path, slates: SlateSet) -> Floats:
    require_file(path, "score file")
    if path.suffix == ".parquet":
        frame = read_table(path).frame
        rows = zip(frame[ROW_ID].to_list(), frame[SCORES].to_list(), frame[CANDIDATES].to_list(), strict=True)
        return _aligned(path, slates, [(f"row_id {row}", row, scores, slate) for row, scores, slate in rows])
    entries: list[tuple[str, int, list[float], list[int] | None]] = []
    with open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                row = entry.get("row", entry.get(ROW_ID))
                entries.append((f"line {number}", int(row), [float(s) for s in entry[SCORES]], None))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                raise DataError(
                    f'{path}, line {number}: not {{"row": 0, "scores": [...]}} ({error}); correct it'
                ) from error
    return _aligned(path, slates, entries)


def _aligned(path: Path, slates: SlateSet, entries: list[tuple[str, int, list[float], list[int] | None]]) -> Floats:
    """float64[R, C] in the order of the slates' rows."""
    by_id = {int(row_id): number for number, row_id in enumerate(slates.row_id_R)}
    scores_RC = np.full(slates.candidates_RC.shape, np.nan)
    done: set[int] = set()
    for where, row_id, scores, slate in entries:
        row = by_id.get(row_id)
        if row is None:
            raise DataError(f"{path}, {where}: row {row_id} is not among the {slates.n_rows} rows; score these slates")
        size = int(slates.size_R[row]) if slate is None else len(slate)
        if len(scores) != size or size != (slates.candidates_RC[row] != NONE).sum():
            raise DataError(f"{path}, {where}: {len(scores)} scores for a slate of {slates.size_R[row]}; give one each")
        if slate is not None and slates.candidates_RC[row, :size].tolist() != list(slate):
            raise DataError(f"{path}, {where}: other candidates than the slate's; score these very slates")
        if row in done:
            raise DataError(f"{path}, {where}: row {row_id} has scores already; give every row once")
        done.add(row)
        scores_RC[row, :size] = scores
    bad = np.isnan(scores_RC) & slates.valid_RC
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        raise DataError(f"{path}: row {slates.row_id_R[row]} has no score for a candidate; score every row")
    return np.where(slates.valid_RC, scores_RC, -np.inf)
