"""Figures of a run: one Matplotlib figure each, readable in print, by the colour-blind, and on a phone.

A base method and its +SIRIUS version share a colour (solid and dashed). Lines carry their names at their right ends, so
no legend has to be matched by colour alone. Colours: Okabe and Ito (2008), without its yellow, which print loses.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sirius_rec.diagnostics.curves import HIT, labels_of, mean_interval, ordered, series
from sirius_rec.evaluation.floors import FLOORS

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7B3F00", "#4B0082")
_GREY: Final = "#6B6B6B"
_INK: Final = "#222222"
STYLE: Final[dict[Any, Any]] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.5,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E6E6E6",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "sirius_rec",
}
_FLOOR_STYLES: Final[dict[str, Any]] = dict(zip(FLOORS, (":", "--", "-.", (0, (6, 1, 1, 1, 1, 1))), strict=True))


@dataclass(frozen=True)
class Panel:
    """One figure over epochs: the logged key, its title, axis label, and how to read it."""

    key: str
    title: str
    axis: str
    reading: str


PANELS: Final = (
    Panel(
        "reward_margin",
        "Reward margin on sampled pairs",
        "positive − sampled negative (nats)",
        "What the loss pushes up. Rewards carry each loss's own scale (β, length normalisation), so compare the "
        "course of a line, not the height of two. A margin that rises while HR@1 falls is the sign of reward hacking.",
    ),
    Panel(
        HIT,
        "Held-out HR@1",
        "HR@1",
        "How often the held-out item is ranked first. Differences inside the bands are seed noise.",
    ),
    Panel(
        "true_reward",
        "True reward",
        "true reward (1 best, 0 random)",
        "Known only in the simulated world: the true utility of the top choice, 1 when it is the best of the slate, 0 "
        "when it is worth what a random choice is.",
    ),
    Panel(
        "insensitive@0.1",
        "Triples inside Ω, ε = 0.1",
        "share of triples",
        "Share of (positive, sampled, unsampled) triples where training on the sampled pair moves the unsampled pair "
        "by less than a tenth as much: what is not sampled is no longer taught.",
    ),
    Panel(
        "misordered",
        "Misordered pairs",
        "share of pairs",
        "Share of all negatives of the slate, sampled or not, whose reward still stands above the positive's. "
        "Misordered and insensitive together is what hurts.",
    ),
)


def family(method: str) -> str:
    """The base method: +SIRIUS stripped."""
    return method.removesuffix("_sirius")


def colours_of(methods: Sequence[str]) -> dict[str, str]:
    """A colour per method; a base and its +SIRIUS version share it, SFT and floors are grey."""
    names = sorted({family(method) for method in methods if not method.startswith("sft") and method not in FLOORS})
    shared = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    return {method: shared.get(family(method), _GREY) for method in methods}


def _dark(colour: str) -> tuple[float, ...]:
    """The colour for text: dark enough to read on white."""
    return tuple(0.72 * part for part in to_rgb(colour))


def _line_style(method: str) -> str:
    if method.endswith("_sirius"):
        return "--"
    return ":" if method.startswith("sft") else "-"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    return figure, axes


def _band(by_seed: Mapping[str, Sequence[Mapping[str, Any]]], key: str, method: str) -> Any:
    """(epochs, mean, low, high) over the epochs that all seeds share, or None where the key was not logged."""
    found: list[dict[float, float]] = []
    for seed, points in by_seed.items():
        where = f"curve of {method}, seed {seed}"
        rows = ordered(points, where)
        values = series(rows, key, where)
        if values is not None:
            found.append(dict(zip((float(row["epoch"]) for row in rows), values, strict=True)))
    if not found:
        return None
    epochs = sorted(set.intersection(*(set(entry) for entry in found)))
    if not epochs:
        return None
    parts = [mean_interval([entry[epoch] for entry in found]) for epoch in epochs]
    mean = [part[0] for part in parts]
    low, high = ([part[0] if part[i] is None else part[i] for part in parts] for i in (1, 2))
    return epochs, mean, low, high


def _spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `targets`, in their order, at least `gap` apart and, where they fit, inside low … high."""
    order = np.argsort(targets, kind="stable")
    wanted = np.asarray(targets, dtype=float)[order]
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    steps = np.arange(len(wanted)) * gap
    # isotonic regression of wanted - steps is the least-squares placement under the gap
    blocks: list[list[float]] = []
    for value in wanted - steps:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2], blocks.pop()
            blocks[-1] = [(a * m + b * n) / (m + n), m + n]
    placed = np.concatenate([np.full(int(n), value) for value, n in blocks])
    placed = np.clip(placed, low, high - steps[-1]) + steps
    result = np.empty_like(placed)
    result[order] = placed
    return [float(value) for value in result]


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart, with a thin leader to each line's end."""
    low, high = axes.get_ylim()
    fractions = [(y - low) / (high - low) for _, y, _, _ in ends]
    for (x, y, text, colour), at in zip(ends, _spread(fractions, 0.066, 0.0, 1.0), strict=True):
        axes.annotate(
            text, (x, y), xytext=(1.06, at), textcoords="axes fraction", color=_dark(colour), fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkA": 2, "shrinkB": 2,
                        "relpos": (0, 0.5)},
            annotation_clip=False,
        )  # fmt: skip


def curve_figure(
    curves: Mapping[str, Any], panel: Panel, labels: Mapping[str, str], *, epoch_axis: str = "epoch (0 = after SFT)"
) -> Figure | None:
    """Seed means per epoch with 95 % t bands over seeds; None where no method logged `panel.key`."""
    colours = colours_of(sorted(curves))
    bands = {method: _band(curves[method], panel.key, method) for method in sorted(curves)}
    bands = {method: band for method, band in bands.items() if band is not None}
    if not bands:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.6, 3.7)
        ends = []
        for method, (epochs, mean, low, high) in bands.items():
            colour = colours[method]
            marker = "o" if len(epochs) <= 12 else ""
            axes.plot(epochs, mean, _line_style(method), color=colour, lw=1.8, marker=marker, ms=3.2)
            if low != mean:
                axes.fill_between(epochs, low, high, color=colour, alpha=0.1, lw=0)
            ends.append((epochs[-1], mean[-1], labels.get(method, method), colour))
        axes.set(title=panel.title, xlabel=epoch_axis, ylabel=panel.axis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        axes.set_ylim(axes.get_ylim())
        _name_ends(axes, ends)
    return figure


def dot_figure(rows: Sequence[Mapping[str, Any]], metric: str = HIT, axis: str = "HR@1") -> Figure:
    """Methods by `metric` with intervals; floors and chance are vertical lines. rows: summary rows of one slate set."""
    trained = sorted((row for row in rows if row["method"] not in FLOORS), key=lambda row: row[metric])
    floors = [row for row in rows if row["method"] in FLOORS]
    colours = colours_of([row["method"] for row in trained])
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = _figure(5.6, 1.5 + 0.28 * max(2, len(trained)))
        for y, row in enumerate(trained):
            colour, value = colours[row["method"]], row[metric]
            if row[f"{metric}_low"] is not None:
                axes.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], color=colour, lw=2.2, alpha=0.55)
            filled = "white" if row["method"].endswith("_sirius") else colour
            axes.plot([value], [y], "o", color=colour, markerfacecolor=filled, ms=6, markeredgewidth=1.6)
        for row in sorted(floors, key=lambda row: row[metric]):
            style = _FLOOR_STYLES.get(row["method"], "--")
            name = f"{row['label']} {row[metric]:.3f}"
            axes.axvline(row[metric], color=_GREY, lw=1.2, ls=style, label=name, zorder=1)
        if rows:
            axes.axvline(rows[0]["chance"], color="#BBBBBB", lw=1, label=f"chance {rows[0]['chance']:.3f}", zorder=0)
        axes.set_yticks(range(len(trained)), [row["label"] for row in trained])
        axes.set_ylim(-0.7, max(len(trained), 1) - 0.3)
        axes.set_xlabel(f"{axis} with 95 % interval")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, handlelength=2.6)
    return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write `<folder>/<name>.png` (200 dpi) and `.svg`; returns the SVG. No dates: equal figures are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    (folder / f"{name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
    return buffer.getvalue()


def inline(svg: str, name: str, description: str) -> str:
    """The SVG for use inside a page: as wide as its column, ids prefixed by `name` so that several fit on one page."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{name}-\2"', text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


def all_figures(results: Mapping[str, Any]) -> list[tuple[str, str, str, Figure]]:
    """(name, title, reading, figure) of every figure over epochs that the run's curves allow."""
    curves, labels = results.get("curves") or {}, labels_of(results)
    aligned = {method: seeds for method, seeds in curves.items() if method != "sft"}
    found = []
    for panel in PANELS:
        figure = curve_figure(aligned, panel, labels) if aligned else None
        if figure is not None:
            found.append((re.sub(r"\W+", "_", panel.key), panel.title, panel.reading, figure))
    if any(len(points) > 1 for points in curves.get("sft", {}).values()):
        panel = Panel(HIT, "Held-out HR@1 during SFT", "HR@1", "The start that every preference arm shares.")
        figure = curve_figure({"sft": curves["sft"]}, panel, labels, epoch_axis="SFT epoch")
        if figure is not None:
            found.append(("sft_hr_1", panel.title, panel.reading, figure))
    return found
