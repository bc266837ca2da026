"""A messy log, in any form that source `table` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 events of 60 users and 80 items, in no order: ties, repeats, titles twice, users with few events."""
    folder = tmp_path_factory.mktemp("log")
    events, items = messy()
    events.write_csv(folder / "interactions.csv")
    items.write_csv(folder / "items.csv")
    return folder


def messy(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """user_id, item_id, timestamp, rating, event; and item_id, title."""
    rng = np.random.default_rng(seed)
    n = 1500
    user, item = (rng.exponential(14, n) % 60).astype(int), (rng.exponential(40, n) % 80).astype(int)
    events = pl.DataFrame(
        {
            "user_id": [f"u{k}é" if k % 7 == 0 else f"u{k}" for k in user],
            "item_id": [f"i{k}" for k in item],
            "timestamp": 1_300_000_000 + rng.integers(0, 40, n) * 43_200,
            "rating": rng.integers(1, 6, n),
            "event": rng.choice(["view", "buy"], n, p=[0.3, 0.7]),
        }
    )
    titles = ["Same" if k % 20 == 3 else f"Title {'long ' * (k % 11 == 5)}{k}" for k in range(85)]
    return events, pl.DataFrame({"item_id": [f"i{k}" for k in range(85)], "title": titles})


def options(**changes: Any) -> dict[str, Any]:
    from sirius_rec.data.options import SlateOptions, WindowOptions

    return {
        "window": WindowOptions(max_history=4, min_history=2), "slates": (SlateOptions(size=5),), **changes
    }  # fmt: skip
