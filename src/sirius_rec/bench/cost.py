"""Cost against negatives, prompt length and slate size, with the bound drawn in: every distinct token once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sirius_rec import atomic
from sirius_rec.bench import flops
from sirius_rec.bench.measures import STEPS
from sirius_rec.bench.rivals import SCORERS
from sirius_rec.bench.shapes import CPU_SHAPE, LLAMA_2_7B, PAD, Shape, build_model, log_rows, random_rows
from sirius_rec.bench.timing import interleaved
from sirius_rec.scoring.packed import use_tree_attention
from sirius_rec.scoring.rows import PromptCompletions

Rows = list[dict[str, Any]]
# What is varied → (values, rows of a value): candidates of 3 to 9 tokens, prompts of 300 tokens unless varied.
AXES: dict[str, tuple[Sequence[int], Callable[[int, int], list[PromptCompletions]]]] = {
    "negatives": ((1, 2, 3, 5, 9, 19), lambda n, v: random_rows(1, n + 1, vocabulary=v)),
    "prompt tokens": ((75, 150, 300, 600), lambda n, v: random_rows(1, 4, vocabulary=v, prompt=n)),
    "slate": ((5, 20, 50, 100), lambda n, v: random_rows(1, n, vocabulary=v)),
}


def bench_flops(say: Callable[[str], None]) -> Rows:
    """Operations of a tree's layout over the bound, counted from the layout; the model need not exist.

    Along the axes, and on the rows of a log that `step` times.
    """
    out: Rows = []
    for shape in (CPU_SHAPE, LLAMA_2_7B):
        made: list[tuple[dict[str, Any], list[PromptCompletions]]] = [
            ({axis: value}, make(value, shape.vocabulary)) for axis, (values, make) in AXES.items() for value in values
        ]
        made += [(log.described(), log_rows(log, n, vocabulary=shape.vocabulary)) for log, n in STEPS.items()]
        for said, rows in made:
            over = flops.layout(shape, rows) / flops.bound(shape, rows)
            saved = flops.separate(shape, rows) / flops.layout(shape, rows)
            out.append(
                {
                    "bench": "flops", "shape": shape.name, **said, "layout_over_bound": round(over, 4),
                    "attention_over_bound": round(flops.attention_over_bound(rows), 3),
                    "separate_over_layout": round(saved, 2),
                }
            )  # fmt: skip
        worst = max(row["layout_over_bound"] for row in out if row["shape"] == shape.name)
        say(f"operations, {shape.name}: layout at most {worst:.3f}× of the bound")
    return out


def bench_cost(*, quick: bool, say: Callable[[str], None], shape: Shape = CPU_SHAPE) -> Rows:
    """Seconds of scoring (forward) along every axis: trees, separate rows, and the bound on operations as seconds.

    The bound in seconds: its operations at the median rate that separate rows reach, which are ordinary dense rows.
    """
    model = build_model(shape).eval()
    use_tree_attention(model)
    out: Rows = []
    rates: list[float] = []
    for axis, (values, make) in AXES.items():
        for value in values[:: 2 if quick else 1]:
            rows = make(value, shape.vocabulary)

            def run(name: str, rows: list[PromptCompletions] = rows) -> Callable[[], object]:
                return lambda: SCORERS[name](model, rows, PAD)

            with torch.no_grad():
                runs = {name: run(name) for name in ("trees", "completion_logits")}
                seconds = interleaved(runs, rounds=1 if quick else 5)
            ours, theirs = (float(np.median(seconds[name])) for name in ("trees", "completion_logits"))
            rates.append(flops.separate(shape, rows) / theirs)
            out.append(
                {
                    "bench": "cost", "axis": axis, "value": value, "seconds_trees": round(ours, 5),
                    "seconds_separate": round(theirs, 5), "operations_bound": flops.bound(shape, rows),
                }
            )  # fmt: skip
        say(f"cost against {axis}: measured at {len(values[:: 2 if quick else 1])} points")
    rate = float(np.median(rates))
    for row in out:
        row["seconds_bound"] = round(row["operations_bound"] / rate, 5)
    return out


def draw_cost(rows: Rows, path: Path) -> None:
    """One panel per axis, seconds on a logarithmic scale; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    lines = (
        ("seconds_separate", "separate rows", "#D55E00", "o-"),
        ("seconds_trees", "trees", "#0072B2", "o-"),
        ("seconds_bound", "operations of the bound, at separate rows' median rate", "#222222", "--"),
    )
    for axes, axis in zip(figure.subplots(1, len(AXES), sharey=True, squeeze=False)[0], AXES, strict=True):
        points = [row for row in rows if row["bench"] == "cost" and row["axis"] == axis]
        for key, label, colour, style in lines:
            axes.plot([p["value"] for p in points], [p[key] for p in points], style, color=colour, label=label, ms=4)
        axes.set_yscale("log")
        axes.set_xlabel(axis)
        axes.grid(axis="y", color="#E6E6E6")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds per prompt (forward)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    with atomic.replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix(".") or "png", dpi=160)
