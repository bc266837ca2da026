"""What a dataset holds, for dataset.json and for printing."""

from __future__ import annotations

from typing import Any

import polars as pl

from sirius_rec.data.store import Dataset
from sirius_rec.schema import HISTORY, SPLIT, SPLITS


def row_statistics(examples: pl.DataFrame) -> dict[str, Any]:
    """Rows per split, and the least, mean and greatest history length."""
    counts = dict(examples.group_by(SPLIT).len().iter_rows())
    lengths = examples[HISTORY].list.len()
    return {
        "rows": {split: counts.get(split, 0) for split in SPLITS},
        "history_length": {"min": lengths.min(), "mean": lengths.mean(), "max": lengths.max()},
    }


def summary_lines(dataset: Dataset) -> list[str]:
    """A few lines about a dataset, to be printed."""
    info, numbers = dataset.info, dataset.info["statistics"]

    def show(value: float | None, form: str = ",") -> str:
        return "unknown" if value is None else format(value, form)

    rows = ", ".join(f"{split} {count:,}" for split, count in numbers["rows"].items())
    length = numbers["history_length"]
    lines = [
        f"dataset {dataset.path} (source {info['source']['name']}, fingerprint {dataset.fingerprint[:12]})",
        f"users {show(numbers['n_users'])}, items {show(numbers['n_items'])} ({show(numbers['n_items_seen'])} seen), "
        f"interactions {show(numbers['n_interactions'])}, sequences {show(numbers['n_sequences'])}, "
        f"density {show(numbers['density'], '.3%')}",
        f"rows: {rows}; history length {length['min']} to {length['max']}, mean {length['mean']:.1f}",
    ]
    for step in info["filters"]["steps"]:
        lines.append(f"filter {step['name']}: -{step['users']} users, -{step['items']} items, -{step['events']} events")
    if renamed := info["titles"]["renamed_to_be_distinct"]:
        lines.append(f"titles: {renamed} made distinct by a number in brackets")
    lines += [f"slates {name}: {slate['rows']:,} rows of {slate['size']}" for name, slate in info["slates"].items()]
    return lines
