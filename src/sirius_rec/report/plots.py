"""Figures of a run: one Matplotlib figure each, readable in print, by the colour-blind, and on a phone.

A base method and its +SIRIUS version share a colour (solid and dashed). Lines carry their names at their right ends, so
no legend has to be matched by colour alone. Colours: Okabe and Ito (2008), without its yellow, which print loses.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import optimize

from sirius_rec import atomic
from sirius_rec.diagnostics.curves import HIT, mean_interval, ordered, series
from sirius_rec.evaluation.results import TRIVIAL, Facts
from sirius_rec.report.text import on_axis

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7B3F00", "#4B0082")
GREY: Final = "#6B6B6B"
INK: Final = "#222222"
FADED: Final = "#BBBBBB"
FRAME: Final = "#888888"
GRID: Final = "#E6E6E6"
STYLE: Final[dict[Any, Any]] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.5,
    "axes.edgecolor": FRAME,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "sirius_rec",
}
_TRIVIAL_STYLES: Final[tuple[Any, ...]] = (":", "--", "-.", (0, (6, 1, 1, 1, 1, 1)))


EPOCHS: Final = "epoch (0 = after SFT)"


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
        "positive − sampled negative (reward, β · nats)",
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


def family(method: str, facts: Facts) -> str:
    """The base method of a variant, or the method itself."""
    return str(facts[method]["base"] or method)


def _only_likelihood(method: str, facts: Facts) -> bool:
    """SFT, and arms that compare nothing."""
    return facts[method]["role"] == "sft" or facts[method].get("comparison") == "none"


def colours_of(methods: Sequence[str], facts: Facts) -> dict[str, str]:
    """A colour per method; a base and its variants share it, SFT and trivial baselines are grey."""
    coloured = [m for m in methods if not _only_likelihood(m, facts) and facts[m]["role"] != TRIVIAL]
    names = sorted({family(method, facts) for method in coloured})
    shared = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    return {method: shared.get(family(method, facts), GREY) for method in methods}


def marker_fill(method: str, colour: str, facts: Facts) -> str:
    """Open markers for variants of a base (+ SIRIUS), filled ones for the rest."""
    return "white" if facts[method]["base"] else colour


def text_colour(colour: str) -> str:
    """The colour for text: dark enough to read on white."""
    red, green, blue = (0.66 * part for part in to_rgb(colour))
    return to_hex((red, green, blue))


def line_style(method: str, facts: Facts) -> str:
    """Base methods solid, variants (+ SIRIUS) dashed, SFT dotted."""
    if facts[method]["base"]:
        return "--"
    return ":" if _only_likelihood(method, facts) else "-"


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one pair of axes, without pyplot's global state; inside `rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    return figure, axes


def seed_band(by_seed: Mapping[str, Sequence[Mapping[str, Any]]], key: str, method: str) -> Any:
    """(epochs, mean, low, high) over the epochs that all seeds share, or None where the key was not logged.

    low … high: 95 % t interval over three seeds or more, the seeds themselves where there are two.
    """
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
    parts = [seed_spread([entry[epoch] for entry in found]) for epoch in epochs]
    mean, low, high = ([part[i] for part in parts] for i in range(3))
    return epochs, mean, low, high


def seed_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, low and high over seeds; with two seeds the t interval would say nothing, so the seeds themselves."""
    mean, low, high = mean_interval(values)
    if low is None or high is None or len(values) < 3:
        return mean, min(values), max(values)
    return mean, low, high


def _spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `targets`, in their order, at least `gap` apart and, where they fit, inside low … high."""
    order = np.argsort(targets, kind="stable")
    wanted = np.asarray(targets, dtype=float)[order]
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    steps = np.arange(len(wanted)) * gap
    # the least-squares placement under the gap
    placed = np.clip(optimize.isotonic_regression(wanted - steps).x, low, high - steps[-1]) + steps
    result = np.empty_like(placed)
    result[order] = placed
    return [float(value) for value in result]


_END = 28  # characters of a name at a line's end: longer ones take the axes' place


def name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names at the right ends of lines, moved apart, with a thin leader to each line's end."""
    low, high = axes.get_ylim()
    fractions = [(y - low) / (high - low) for _, y, _, _ in ends]
    for (x, y, text, colour), at in zip(ends, _spread(fractions, 0.066, 0.0, 1.0), strict=True):
        axes.annotate(
            on_axis(text, _END), (x, y), xytext=(1.06, at), textcoords="axes fraction", color=text_colour(colour),
            fontsize=9, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkA": 2, "shrinkB": 2,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def curve_figure(
    curves: Mapping[str, Any],
    panel: Panel,
    labels: Mapping[str, str],
    facts: Facts,
    *,
    epoch_axis: str = EPOCHS,
    onsets: Mapping[str, float] | None = None,
) -> Figure | None:
    """Seed means per epoch with bands over seeds; None where no method logged `panel.key`.

    onsets: method → epoch at which hacking set in, marked on its line.
    """
    colours = colours_of(sorted(curves), facts)
    bands = {method: seed_band(curves[method], panel.key, method) for method in sorted(curves)}
    bands = {method: band for method, band in bands.items() if band is not None}
    if not bands:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.6, 3.7)
        ends = []
        for method, (epochs, mean, low, high) in bands.items():
            colour = colours[method]
            marker = "o" if len(epochs) <= 12 else ""
            axes.plot(epochs, mean, line_style(method, facts), color=colour, lw=1.8, marker=marker, ms=3.2)
            if low != mean:
                axes.fill_between(epochs, low, high, color=colour, alpha=0.1, lw=0)
            at = (onsets or {}).get(method)
            if at is not None and at in epochs:
                axes.plot([at], [mean[epochs.index(at)]], "v", color=text_colour(colour), ms=9, mec="white", zorder=4)
            ends.append((epochs[-1], mean[-1], labels.get(method, method), colour))
        axes.set(title=panel.title, xlabel=epoch_axis, ylabel=panel.axis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        axes.set_ylim(axes.get_ylim())
        name_ends(axes, ends)
    return figure


def dot_figure(rows: Sequence[Mapping[str, Any]], facts: Facts, metric: str = HIT, axis: str = "HR@1") -> Figure:
    """Methods by `metric` with intervals; trivial baselines and chance are vertical lines.

    rows: summary rows of one slate set.
    """
    ordered_rows = sorted(rows, key=lambda row: row[metric])
    trained = [row for row in ordered_rows if row["role"] != TRIVIAL]
    trivial = [row for row in ordered_rows if row["role"] == TRIVIAL]
    colours = colours_of([row["method"] for row in trained], facts)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = new_figure(5.2, 1.5 + 0.28 * max(2, len(trained)))
        for y, row in enumerate(trained):
            colour, value = colours[row["method"]], row[metric]
            if row[f"{metric}_low"] is not None:
                axes.plot([row[f"{metric}_low"], row[f"{metric}_high"]], [y, y], color=colour, lw=2.2, alpha=0.55)
            filled = marker_fill(row["method"], colour, facts)
            axes.plot([value], [y], "o", color=colour, markerfacecolor=filled, ms=6, markeredgewidth=1.6)
        for row, style in zip(trivial, cycle(_TRIVIAL_STYLES), strict=False):
            name = f"{row['label']} {row[metric]:.3f}"
            axes.axvline(row[metric], color=GREY, lw=1.2, ls=style, label=name, zorder=1)
        if rows:
            axes.axvline(rows[0]["chance"], color=FADED, lw=1, label=f"chance {rows[0]['chance']:.3f}", zorder=0)
        axes.set_yticks(range(len(trained)), [on_axis(row["label"]) for row in trained])
        axes.set_ylim(-0.7, max(len(trained), 1) - 0.3)
        axes.set_xlabel(f"{axis} with 95 % interval")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, handlelength=2.6)
    return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write `<folder>/<name>.png` (200 dpi) and `.svg`; returns the SVG. No dates: equal figures are equal files."""
    text = as_svg(figure)
    write(folder, name, text, as_png(figure))
    return text


def write(folder: Path, name: str, text: str, png: bytes) -> None:
    """Both files of a drawn figure."""
    atomic.write_bytes(folder / f"{name}.png", png)
    atomic.write_text(folder / f"{name}.svg", text)


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, 200 dpi, without the software's name."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def as_svg(figure: Figure) -> str:
    """The figure as SVG text, without a date."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
