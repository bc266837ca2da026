"""Pass 5: of a part's rows those within the limits, and their slates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.data.example_set import Windowed
from sirius_rec.data.freezing import excluded_by, freeze
from sirius_rec.data.impressions import filled_up
from sirius_rec.data.options import DRAWN
from sirius_rec.data.sharded.parts import EXAMPLES, in_dataset, read_part, selected
from sirius_rec.data.sharded.plan import load_plan
from sirius_rec.data.slates import Shortage, shortage
from sirius_rec.data.statistics import row_counts
from sirius_rec.data.store import ALL_TRAIN, check_slates, write_table
from sirius_rec.errors import DataError
from sirius_rec.schema import ROW_ID, SPLIT, SlateName

Fault = Shortage | str


def freeze_part(
    plan_file: Path,
    number: int,
    names: Mapping[SlateName, str | None],
    fingerprint: str,
    n_items: int,
    before: Mapping[str, int],
    limited: Mapping[str, Path],
    all_train: bool,
) -> dict[str, Any]:
    """Write a part's slates, and its examples where limits make them fewer, unless that was done before.

    names: with what each set excludes. before: rows of each split in earlier parts. limited: files with the places,
    among the rows of a split, of those that stay. all_train: write the train rows without their limit, too.

    Returns:
        counts: see `row_counts`, of the rows within the limits. faults: per name, of slates that cannot be made;
        nothing is kept then.
    """
    plan = load_plan(plan_file)
    target = plan.folder / "frozen" / f"{number:05d}"
    if target.is_dir():
        return {"counts": json.loads((target / "counts.json").read_text(encoding="utf-8")), "faults": {}}
    rows = read_part(plan, number)
    popularity = plan.folder / "popularity.npy"
    count_I = np.load(popularity) if popularity.is_file() else None
    try:
        with atomic.replacing(target) as partial:
            (partial / "slates").mkdir(parents=True)
            if all_train:
                every = in_dataset(rows.examples.filter(pl.col(SPLIT) == "train"))
                write_table(every, partial / f"{ALL_TRAIN}.parquet")
            if limited:
                kept = _within_limits(rows.examples, before, limited)
                rows = Windowed(*selected(rows, kept), {})
                write_table(in_dataset(rows.examples), partial / EXAMPLES)
            faults: dict[SlateName, Fault] = {}
            filled: dict[str, dict[str, int]] = {}
            for name, exclude in names.items():
                of_split = Windowed(*selected(rows, (rows.examples[SPLIT] == name.split).to_numpy()), {})
                file = partial / "slates" / f"{name}.parquet"
                if (fault := _freeze(of_split, name, exclude, n_items, fingerprint, count_I, file)) is not None:
                    faults[name] = fault
                elif name.protocol == "impressions":
                    filled[str(name)] = filled_up(of_split.examples, pl.read_parquet(file))
            counts = {**row_counts(rows.examples), "filled_up": filled}
            (partial / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
            if faults:
                raise _NotKept
    except _NotKept:
        return {"counts": counts, "faults": faults}
    return {"counts": counts, "faults": {}}


class _NotKept(Exception):
    """What cannot be made is told, and not kept."""


def _freeze(
    rows: Windowed,
    name: SlateName,
    exclude: str | None,
    n_items: int,
    fingerprint: str,
    count_I: npt.NDArray[np.int64] | None,
    file: Path,
) -> Fault | None:
    """Write the slates of rows of one split, or say why there are none."""
    if name.protocol in DRAWN:
        found = shortage(excluded_by(rows, exclude), rows.examples[ROW_ID].to_numpy(), n_items, name)
        if found is not None:
            return found
    try:
        frozen = freeze(rows, name, exclude, n_items=n_items, fingerprint=fingerprint, count_I=count_I)
        if name.protocol not in (*DRAWN, "full") and frozen.height:  # what we draw is checked when it is read
            check_slates(f"slates {name}", frozen, rows.examples, n_items)
    except DataError as error:
        return str(error)
    write_table(frozen, file)
    return None


def _within_limits(
    examples: pl.DataFrame, before: Mapping[str, int], limited: Mapping[str, Path]
) -> npt.NDArray[np.bool_]:
    split_R = examples[SPLIT].to_numpy()
    keep = np.ones(len(split_R), dtype=bool)
    for split, file in limited.items():
        rows = np.flatnonzero(split_R == split)
        places = np.load(file, mmap_mode="r")
        start, stop = np.searchsorted(places, [before[split], before[split] + len(rows)])
        keep[rows] = False
        keep[rows[places[start:stop] - before[split]]] = True
    return keep


def raise_first(parts: Sequence[Mapping[str, Any]], names: Mapping[SlateName, Any], n_items: int) -> None:
    """Raise a `DataError` for the first set of slates that some part cannot have. parts: what `freeze_part` returns."""
    for name in names:
        found = [part["faults"][name] for part in parts if name in part["faults"]]
        if not found:
            continue
        if isinstance(found[0], str):
            raise DataError(found[0])
        short = sum(fault.rows for fault in found if isinstance(fault, Shortage))
        every = short == sum(part["counts"]["rows"][name.split] for part in parts)
        raise replace(found[0], rows=short, every=every).error(name, n_items)
