"""The paper's figures for any run: 1b and 3b–d (margin against HR@1), 3a (insensitive shares), 4 (golden reward).

One figure per base method, drawn with its +SIRIUS version where both were trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sirius_rec.diagnostics.curves import HIT, MARGIN, ordered, series
from sirius_rec.diagnostics.golden import GoldenFit
from sirius_rec.evaluation.results import Facts
from sirius_rec.report.plots import (
    EPOCHS,
    INK,
    PANELS,
    STYLE,
    Panel,
    colours_of,
    curve_figure,
    family,
    line_style,
    marker_fill,
    new_figure,
    seed_band,
    seed_spread,
    text_colour,
)
from sirius_rec.report.text import on_axis

PAPER_SHARE: Final = 0.4
"""The paper's claim on its three data sets: more than 40 % of the triples inside the 0.1-insensitive region."""
EXACT: Final = "exact over the slate's renormalised distribution"
_DISTANCE: Final = r"$d$ = √KL($\pi_\theta$ ‖ $\pi_\mathrm{ref}$) (√nats),"
_SHARE = re.compile(r"insensitive@([0-9.]+)")

Curves = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A figure with its file name, title and how to read it."""

    name: str
    title: str
    reading: str
    figure: Figure


def onset_epochs(curves: Curves, diagnostics: Mapping[str, Any] | None) -> dict[str, float]:
    """Method → epoch at which hacking set in, of the methods where it did (mean over seeds)."""
    found = {}
    for method, onset in ((diagnostics or {}).get("onset") or {}).items():
        step = onset["all"]["step"]
        points: list[dict[str, Any]] = next(iter(curves.get(method, {}).values()), [])
        epochs = [float(point["epoch"]) for point in points if point["step"] == step]
        if step is not None and epochs:
            found[method] = epochs[0]
    return found


def families(curves: Curves, facts: Facts) -> list[list[str]]:
    """[base, its variants …] of every family of arms, what was trained of it."""
    arms = [method for method in sorted(curves) if facts[method]["role"] == "arm"]
    bases = sorted({family(method, facts) for method in arms})
    return [sorted((m for m in arms if family(m, facts) == base), key=lambda m: m != base) for base in bases]


def shares(curves: Curves, facts: Facts) -> list[dict[str, Any]]:
    """Share of triples inside Ω_ε at the last evaluation: method, epsilon, mean, low, high, seeds (one value each)."""
    found = []
    for method in sorted(curves):
        last = [points[-1] for points in curves[method].values() if points]
        keys = {key: match for key in sorted(last[0] if last else ()) if (match := _SHARE.fullmatch(key))}
        for key, match in keys.items():
            values = [float(p[key]) for p in last if p.get(key) is not None]
            if facts[method]["role"] == "arm" and len(values) == len(last):
                mean, low, high = seed_spread(values)
                found.append({"method": method, "epsilon": float(match[1]), "mean": mean, "low": max(low, 0.0),
                              "high": min(high, 1.0), "seeds": values})  # fmt: skip
    return found


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def margin_figure(
    curves: Curves, methods: Sequence[str], labels: Mapping[str, str], onsets: Mapping[str, float], facts: Facts
) -> Figure | None:
    """Figures 1b, 3b–d: reward margin above held-out HR@1 over epochs; None where no margin was logged."""
    bands = {
        method: (seed_band(curves[method], MARGIN, method), seed_band(curves[method], HIT, method))
        for method in methods
    }
    bands = {method: pair for method, pair in bands.items() if None not in pair}
    if not bands:
        return None
    colours = colours_of(sorted(curves), facts)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 4.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for method, pair in bands.items():
            for axes, key, (epochs, mean, low, high) in zip((upper, lower), (MARGIN, HIT), pair, strict=True):
                axes.plot(epochs, mean, line_style(method, facts), color=colours[method], lw=1.9, label=labels[method])
                axes.fill_between(epochs, low, high, color=colours[method], alpha=0.15, lw=0)
                for points in curves[method].values():
                    rows = ordered(points, method)
                    values = series(rows, key, f"curve of {method}")
                    filled = marker_fill(method, colours[method], facts)
                    axes.plot([p["epoch"] for p in rows], values or [], "o", color=colours[method], ms=3, alpha=0.7,
                              markerfacecolor=filled, markeredgewidth=0.8)  # fmt: skip
                if method in onsets:
                    axes.axvline(onsets[method], color=text_colour(colours[method]), lw=1.4, ls=(0, (1, 1.5)))
        for method in bands:
            if method in onsets:
                upper.annotate("onset", (onsets[method], 1), xytext=(3, -2), xycoords=("data", "axes fraction"),
                               textcoords="offset points", va="top", fontsize=8.5,
                               color=text_colour(colours[method]))  # fmt: skip
        upper.set(ylabel="reward margin (β · nats)")
        lower.set(xlabel=EPOCHS, ylabel="held-out HR@1")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()
        _legend(figure, upper, 1)
    return figure


def share_figure(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], facts: Facts) -> Figure:
    """Figure 3a: share of triples inside Ω_ε after the last epoch, by ε and method. rows: of `shares`."""
    epsilons = sorted({row["epsilon"] for row in rows})
    least = {row["method"]: row["mean"] for row in rows if row["epsilon"] == epsilons[0]}
    methods = sorted({row["method"] for row in rows}, key=lambda m: (least.get(m, 0.0), m))
    colours = colours_of(methods, facts)
    markers = ("o", "s", "D", "^", "P")
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure, axes = new_figure(5.2, 1.7 + 0.3 * max(2, len(methods)))
        for row in rows:
            n = epsilons.index(row["epsilon"])
            y = methods.index(row["method"]) + 0.2 * ((len(epsilons) - 1) / 2 - n)
            colour = colours[row["method"]]
            axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=2, alpha=0.5)
            axes.plot(row["seeds"], [y] * len(row["seeds"]), "|", color=colour, ms=5, alpha=0.8)
            axes.plot([row["mean"]], [y], markers[n % len(markers)], color=colour, ms=6, markeredgewidth=1.4,
                      markerfacecolor=colour if n == 0 else "white")  # fmt: skip
        for n, epsilon in enumerate(epsilons):
            axes.plot([], [], markers[n % len(markers)], color=INK, markerfacecolor=INK if n == 0 else "white",
                      label=f"ε = {epsilon:g}")  # fmt: skip
        if 0.1 in epsilons:
            axes.axvline(PAPER_SHARE, color=INK, lw=1, ls="--", label="paper, ε = 0.1: more than 0.40")
        axes.set_yticks(range(len(methods)), [on_axis(labels.get(m, m)) for m in methods])
        axes.set(xlabel=r"share of triples inside $\Omega_\varepsilon$, last epoch", ylim=(-0.7, len(methods) - 0.3))
        axes.set_xlim(-0.01, max(0.5, axes.get_xlim()[1]))
        axes.tick_params(axis="y", length=0)
        _legend(figure, axes, 3)
    return figure


def golden_points(seeds: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[np.ndarray, np.ndarray]:
    """(d, gain) of every evaluation after the start: √KL in √nats, HR@1 minus the seed's own HR@1 at the start."""
    pairs = [(p["distance"], p[HIT] - line[0][HIT]) for line in seeds.values() for p in line[1:] if "distance" in p]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _fit_name(label: str, fit: Mapping[str, Any]) -> str:
    if fit["failed"] is not None:
        return f"{label}: cannot be fitted"
    r2 = "–" if fit["r2"] is None else f"{fit['r2']:.2f}".replace("-", "−")
    if fit["peak_d"] is None:
        return f"{label}: no peak in reach, R² {r2}"
    gain = f"{fit['peak_gain']:+.3f}".replace("-", "−")
    where = "" if fit["peak_inside"] else ", outside the data"
    return f"{label}: R² {r2},\npeak {gain} at d = {fit['peak_d']:.3g}{where}"


def golden_figure(
    curves: Curves, fits: Mapping[str, Any], methods: Sequence[str], labels: Mapping[str, str], facts: Facts
) -> Figure | None:
    """Figures 4a–c: gain of HR@1 against d = √KL(π_θ‖π_ref) with the fitted R(d); None where no distances are known."""
    methods = [method for method in methods if method in fits]
    points = {method: golden_points(curves[method]) for method in methods}
    if not any(d.size for d, _ in points.values()):
        return None
    colours = colours_of(sorted(curves), facts)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.8, 3.9)
        axes.axhline(0, color="#888888", lw=0.8)
        for method, (d, gain) in points.items():
            colour, fit = colours[method], fits[method]
            filled = marker_fill(method, colour, facts)
            line: dict[str, Any] = {"color": colour, "lw": 1.9, "label": _fit_name(labels[method], fit)}
            axes.plot(d, gain, "o", color=colour, ms=4, markerfacecolor=filled, alpha=0.85)
            if fit["failed"] is not None:
                axes.plot([], [], line_style(method, facts), **line)
                continue
            x = np.linspace(0, float(d.max()), 200)
            axes.plot(x, GoldenFit(**fit).gain(x), line_style(method, facts), **line)
            if fit["peak_inside"]:
                axes.plot([fit["peak_d"]], [fit["peak_gain"]], "*", color=text_colour(colour), ms=13, mec="white")
        axes.set(xlabel=f"{_DISTANCE}\n{EXACT}", ylabel="golden reward: gain of HR@1")
        axes.set_xlim(left=0)
        _legend(figure, axes, 1)
    return figure


def hacking_figures(
    curves: Curves, labels: Mapping[str, str], diagnostics: Mapping[str, Any] | None, facts: Facts
) -> dict[str, list[Drawn]]:
    """{"margin", "share", "golden"}: figures 1b and 3b–d, 3a, 4, as far as the run's logs allow."""
    onsets, fits = onset_epochs(curves, diagnostics), (diagnostics or {}).get("golden_fit") or {}
    names = {method: labels.get(method, method) for method in curves}
    out: dict[str, list[Drawn]] = {"margin": [], "share": [], "golden": []}
    for methods in families(curves, facts):
        base = family(methods[0], facts)
        title = " and ".join(names[method] for method in methods)
        trained = [((diagnostics or {}).get("methods") or {}).get(m, {}).get("margin_trained", True) for m in methods]
        control = "" if any(trained) else "A control: its loss compares no pairs, so nothing pushes this margin up."
        made = {"margin": margin_figure(curves, methods, names, onsets, facts),
                "golden": golden_figure(curves, fits, methods, names, facts)}  # fmt: skip
        for kind, figure in made.items():
            if figure is not None:
                reading = control if kind == "margin" else ""
                out[kind].append(Drawn(f"{kind}_{re.sub(r'[^A-Za-z0-9]+', '_', base)}", title, reading, figure))
    rows = shares(curves, facts)
    if rows:
        reading = (
            "Share of (positive, sampled, unsampled) triples of the held-out slates inside Ω_ε after the last epoch, "
            "by method; ticks are seeds."
        )
        out["share"].append(
            Drawn("insensitive_shares", "Share of triples inside Ω_ε", reading, share_figure(rows, names, facts))
        )
    return out


def epoch_figures(
    curves: Curves, labels: Mapping[str, str], diagnostics: Mapping[str, Any] | None, facts: Facts
) -> list[Drawn]:
    """Every panel over epochs that the run's curves allow, all methods on one pair of axes; SFT apart."""
    aligned = {method: seeds for method, seeds in curves.items() if facts[method]["role"] == "arm"}
    start = {method: seeds for method, seeds in curves.items() if facts[method]["role"] == "sft"}
    onsets = onset_epochs(curves, diagnostics)
    found = []
    for panel in PANELS:
        figure = curve_figure(aligned, panel, labels, facts, onsets=onsets) if aligned else None
        if figure is not None:
            found.append(Drawn(re.sub(r"\W+", "_", panel.key), panel.title, panel.reading, figure))
    if any(len(points) > 1 for seeds in start.values() for points in seeds.values()):
        panel = Panel(HIT, "Held-out HR@1 during SFT", "HR@1", "The start that every preference arm shares.")
        figure = curve_figure(start, panel, labels, facts, epoch_axis="SFT epoch")
        if figure is not None:
            found.append(Drawn("sft_hr_1", panel.title, panel.reading, figure))
    return found
