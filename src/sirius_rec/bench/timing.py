"""Interleaved timing: every way runs once per round, so that a noisy moment hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, np.ndarray]:
    """Seconds per way and round, [rounds] each, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + warm_up):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if number or not warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: np.array(found) for name, found in seconds.items()}


def ratio(slow: np.ndarray, fast: np.ndarray, *, samples: int = 2000) -> dict[str, float]:
    """Median over median, with the 95 % interval of resampled rounds (the same rounds for both)."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(slow), (samples, len(slow)))
    spread = np.median(slow[drawn], 1) / np.median(fast[drawn], 1)
    low, high = np.quantile(spread, [0.025, 0.975])
    return {
        "ratio": round(float(np.median(slow) / np.median(fast)), 3),
        "ratio_low": round(float(low), 3),
        "ratio_high": round(float(high), 3),
    }


def compared(seconds: Mapping[str, np.ndarray], **said: Any) -> list[dict[str, Any]]:
    """One row per rival of `trees`: both medians in seconds, and the ratio."""
    ours = seconds["trees"]
    return [
        {
            **said,
            "baseline": name,
            "seconds_trees": round(float(np.median(ours)), 5),
            "seconds_baseline": round(float(np.median(theirs)), 5),
            "rounds": len(ours),
            **ratio(theirs, ours),
        }
        for name, theirs in seconds.items()
        if name != "trees"
    ]
