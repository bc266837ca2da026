"""Figures 2 and 5: where |∂p_ik/∂p_ij| is small under a pairwise preference model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sirius_rec.report.plots import GREY, STYLE, save
from sirius_rec.theory.claims import EXAMPLE_1, EXAMPLE_1_AS_MEANT
from sirius_rec.theory.preference import BRADLEY_TERRY, PreferenceModel
from sirius_rec.theory.regions import Coordinates, area

_LEVELS = (0.1, 0.2, 0.5, 0.99)
# Dark is insensitive, as in the paper; steps that stay apart in grey print. These and what is drawn on them keep their
# colours on a dark page, where those of `plots` change: none of them may be one of its colours, nor white.
_SHADES = ("#08306B", "#2171B5", "#6BAED6", "#C6DBEF", "#F7FBFF")
_ON_SHADES = "#1A1A1A"
_POINT = "#D9480F"
_POINTS = 801


def _contours(axes: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray) -> None:
    bounds = (0.0, *_LEVELS, max(float(values.max()), 1.0) * 1.01)
    axes.contourf(x, y, values, levels=bounds, colors=_SHADES)
    axes.contour(x, y, values, levels=_LEVELS, colors=_ON_SHADES, linewidths=0.8)
    axes.set_aspect("equal")
    axes.grid(False)


def _legend(figure: Figure, derivative: str, columns: int) -> None:
    """The shades and the derivative they stand for, below the axes."""
    names = [f"< {_LEVELS[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(_LEVELS)), f"> {_LEVELS[-1]:g}"]
    patches = [Patch(facecolor=c, edgecolor=GREY, label=n) for c, n in zip(_SHADES, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, title=derivative, frameon=False)


def _grid(upper: float, points: int) -> np.ndarray:
    return (np.arange(points) + 0.5) * (upper / points)


def sensitivity_figure(model: PreferenceModel = BRADLEY_TERRY, points: int = _POINTS) -> Figure:
    """Figure 2, in both coordinate systems, with Example 1 as printed and as meant. points: of the grid, per side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        grid = _grid(1.0, points)
        x, y = np.meshgrid(grid, grid)
        systems: tuple[tuple[Coordinates, str, np.ndarray], ...] = (
            ("p_ij,p_kj", "$p_{kj}$", model.sensitivity_ij_kj(x, y)),
            ("p_ij,p_ik", "$p_{ik}$", model.sensitivity_ij_ik(x, y)),
        )
        for number, (coordinates, label, values) in enumerate(systems):
            axes = figure.add_subplot(1, 2, number + 1)
            _contours(axes, x, y, values)
            for (r_i, r_j, r_k), marker, name in (
                (EXAMPLE_1, "o", "Example 1 as printed"),
                (EXAMPLE_1_AS_MEANT, "s", "with $r_k$ = −3"),
            ):
                other = r_k - r_j if coordinates == "p_ij,p_kj" else r_i - r_k
                at = [float(model.p(np.array(d))) for d in (r_i - r_j, other)]
                axes.plot(
                    *at, marker, color=_POINT, markeredgecolor=_SHADES[-1], markersize=7, label=name, clip_on=False
                )
            axes.set(xlabel="$p_{ij}$ (positive over sampled negative)", ylabel=label, xlim=(0, 1), ylim=(0, 1))
            share = area(0.5, coordinates, model)
            axes.set_title(f"($p_{{ij}}$, {label}): {share:.1%} of the square below 0.5")
            if number == 1:
                axes.legend(loc="center", frameon=True, framealpha=0.9, fontsize=8, facecolor=_SHADES[-1],
                            labelcolor=_ON_SHADES)  # fmt: skip
        _legend(figure, rf"$|\partial p_{{ik}} / \partial p_{{ij}}|$ under {model.name}", 5)
        return figure


def anchor_figure(model: PreferenceModel = BRADLEY_TERRY, points: int = _POINTS) -> Figure:
    """Figure 5: with an anchor above every reward, misordered pairs lie above the diagonal, outside every region."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 6.7), layout="constrained")
        axes = figure.add_subplot()
        grid = _grid(0.5, points)
        x, y = np.meshgrid(grid, grid)
        _contours(axes, x, y, model.sensitivity_ij_kj(x, y))
        axes.plot([0, 0.5], [0, 0.5], color=_POINT, linewidth=1.2)
        axes.text(
            0.13, 0.33, "misordered pairs\n$r_k > r_i$:\nderivative > 1", ha="center", fontsize=8.5, color=_ON_SHADES
        )
        axes.set(
            xlabel="$p_{i0}$ (positive over anchor)",
            ylabel="$p_{k0}$ (unsampled negative over anchor)",
            xlim=(0, 0.5),
            ylim=(0, 0.5),
            title="With an anchor $r_0$ above all rewards",
        )
        _legend(figure, rf"$|\partial p_{{ik}} / \partial p_{{i0}}|$ under {model.name}", 3)
        return figure


def write_theory_figures(folder: Path, model: PreferenceModel = BRADLEY_TERRY) -> list[Path]:
    """figure2 and figure5 as PNG and SVG into `folder`; the paths written."""
    figures = {"figure2": sensitivity_figure(model), "figure5": anchor_figure(model)}
    for name, figure in figures.items():
        save(figure, folder, name)
    return [folder / f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
