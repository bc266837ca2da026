"""One bench by name → rows and the environment they were measured in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sirius_rec.bench.shapes import CPU_SHAPE, LLAMA_2_7B, SMOLLM2_135M
from sirius_rec.errors import ConfigError

if TYPE_CHECKING:
    from sirius_rec.bench.catalogue import CatalogueTask

BENCHES = ("step", "score", "memory", "cost", "end-to-end", "cuda", "catalogue")


def environment(processor: str, versions: dict[str, str]) -> dict[str, Any]:
    """What the figures depend on; the load average says whether the machine was busy with something else."""
    return {
        "processor": processor,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "shapes": [shape.described() for shape in (CPU_SHAPE, SMOLLM2_135M, LLAMA_2_7B)],
        "batch": "random tokens: step and memory on rows of a log (bench/shapes.py: log_rows), others on prompts of "
        "300 tokens ± 2 %, candidates of 3 to 9 tokens with the end of sequence",
    }


def run_bench(
    name: str, *, quick: bool, say: Callable[[str], None], plot: Path | None = None, task: CatalogueTask | None = None
) -> tuple[list[dict[str, Any]], float]:
    """The rows of a bench and its seconds. ConfigError for an unknown one.

    plot: where `cost` draws its figure. task: what `catalogue` searches, instead of what it makes up.
    """
    started = time.monotonic()
    if name in ("step", "score", "memory"):
        from sirius_rec.bench import measures

        benches: dict[str, Callable[..., list[dict[str, Any]]]] = {
            "step": measures.bench_step, "score": measures.bench_score, "memory": measures.bench_memory
        }  # fmt: skip
        rows = benches[name](quick=quick, say=say)
    elif name == "cost":
        from sirius_rec.bench import cost

        rows = cost.bench_flops(say) + cost.bench_cost(quick=quick, say=say)
        if plot is not None:
            cost.draw_cost(rows, plot)
            say(f"figure: {plot}")
    elif name == "end-to-end":
        from sirius_rec.bench.end_to_end import bench_end_to_end

        rows = bench_end_to_end(quick=quick, say=say)
    elif name == "cuda":
        from sirius_rec.bench.cuda import bench_cuda

        rows = bench_cuda(quick=quick, say=say)
    elif name == "catalogue":
        from sirius_rec.bench.catalogue import bench_catalogue

        rows = bench_catalogue(quick=quick, say=say, task=task)
    else:
        raise ConfigError(f"no bench is called '{name}': choose one of {', '.join(BENCHES)}")
    return rows, time.monotonic() - started
