"""Figures carry what they promise: means and bands of seeds, onsets, shares, fits, shared colours."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec.diagnostics.trajectory import golden_over_seeds
from sirius_rec.report import svg
from sirius_rec.report.evidence_plots import (
    EXACT,
    epoch_figures,
    golden_figure,
    golden_points,
    hacking_figures,
    margin_figure,
    onset_epochs,
    shares,
)
from sirius_rec.report.plots import PANELS, _spread, as_svg, colours_of, curve_figure, dot_figure, save, seed_spread

LABELS = {"dpo": "DPO", "dpo_sirius": "DPO + SIRIUS"}


def test_base_and_sirius_share_a_colour(facts):
    colours = colours_of(["dpo", "dpo_sirius", "simpo", "sft", "sft_continued"], facts)
    assert colours["dpo"] == colours["dpo_sirius"] != colours["simpo"]
    assert colours["sft"] == colours["sft_continued"]


def test_curve_figure_draws_seed_means_and_the_onset(results, facts):
    figure = curve_figure({"dpo": results["curves"]["dpo"]}, PANELS[0], LABELS, facts, onsets={"dpo": 2.0})
    line, mark = figure.axes[0].lines
    assert line.get_ydata().tolist() == pytest.approx([0, 1.1, 2.2, 3.3, 4.4])
    assert (mark.get_xdata(), mark.get_ydata()) == ([2.0], pytest.approx([2.2]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["DPO"]
    assert curve_figure(results["curves"], PANELS[2], {}, facts) is None


def test_every_figure_of_a_run(results, diagnostics, facts):
    names = [one.name for one in epoch_figures(results["curves"], LABELS, None, facts)]
    assert names == ["reward_margin", "hr_1", "insensitive_0_1", "misordered", "sft_hr_1"]
    drawn = hacking_figures(results["curves"], LABELS, diagnostics, facts)
    assert {kind: [one.name for one in found] for kind, found in drawn.items()} == {
        "margin": ["margin_dpo"], "share": ["insensitive_shares"], "golden": ["golden_dpo"],
    }  # fmt: skip
    assert drawn["margin"][0].title == "DPO and DPO + SIRIUS"
    assert hacking_figures(results["curves"], LABELS, None, facts)["golden"] == []


def test_misordered_counts_all_negatives():
    """`objectives.evidence` counts sampled and unsampled negatives alike."""
    (panel,) = [panel for panel in PANELS if panel.key == "misordered"]
    assert panel.title == "Misordered pairs" and "all negatives of the slate, sampled or not" in panel.reading


def test_spread_of_seeds():
    assert seed_spread([0.3]) == (0.3, 0.3, 0.3)
    assert seed_spread([0.1, 0.3]) == pytest.approx((0.2, 0.1, 0.3))
    # mean 2, sd 1, t(0.975, 2) = 4.3027: half width 4.3027 / sqrt(3)
    assert seed_spread([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4842, 2 + 2.4842), abs=1e-3)


def test_onsets_by_epoch(results, diagnostics, facts):
    """Step 20 is epoch 2 of the curves; a method without onset is not marked."""
    assert onset_epochs(results["curves"], diagnostics) == {"dpo": 2.0}
    assert onset_epochs(results["curves"], None) == {}
    upper, lower = margin_figure(results["curves"], ["dpo", "dpo_sirius"], LABELS, {"dpo": 2.0}, facts).axes
    assert [text.get_text() for text in upper.texts] == ["onset"]
    for axes, last in ((upper, 4.4), (lower, 0.415)):
        marks = [line for line in axes.lines if list(line.get_xdata()) == [2.0, 2.0]]
        assert len(marks) == 1
        mean = next(line for line in axes.lines if line.get_label() == "DPO")
        assert mean.get_ydata()[-1] == pytest.approx(last)


def test_shares_of_the_last_epoch(results, facts):
    rows = {(row["method"], row["epsilon"]): row for row in shares(results["curves"], facts)}
    assert set(rows) == set(itertools.product(LABELS, (0.1, 0.5)))
    assert rows["dpo", 0.5]["mean"] == pytest.approx(0.2) and rows["dpo", 0.5]["seeds"] == pytest.approx([0.2, 0.2])


def test_golden_figure(results, diagnostics, facts):
    """Both curves fall by 0.01 per epoch at distances of 0.1 per epoch."""
    d, gain = golden_points(results["curves"]["dpo"])
    assert d == pytest.approx([0.1, 0.2, 0.3, 0.4] * 2) and gain == pytest.approx(-0.1 * d)
    fits = diagnostics["golden_fit"]
    figure = golden_figure(results["curves"], fits, list(LABELS), LABELS, facts)
    (axes,) = figure.axes
    assert EXACT in axes.get_xlabel() and "nats" in axes.get_xlabel()
    fitted = next(line for line in axes.lines if line.get_label().startswith("DPO:"))
    assert fitted.get_xdata()[-1] == pytest.approx(0.4)  # as far as the data reach
    assert fitted.get_ydata()[-1] == pytest.approx(-0.04, abs=1e-3)
    assert f"R² {fits['dpo']['r2']:.2f}" in fitted.get_label()
    bare = {"dpo": fits["dpo"] | {"failed": "2 points", "alpha": None, "beta": None}}
    assert "cannot be fitted" in as_svg(golden_figure(results["curves"], bare, ["dpo"], LABELS, facts))


def test_golden_peak_is_marked_where_the_data_reach_it(facts):
    """R(d) = d (1 − log d) has its peak 1 at d = 1."""
    d = np.linspace(0.2, 2, 10)
    points = [{"epoch": 0, "step": 0, "hr@1": 0.0, "distance": 0.0}]
    points += [{"epoch": n + 1, "step": n + 1, "distance": x, "hr@1": x * (1 - np.log(x))} for n, x in enumerate(d)]
    curves = {"dpo": {"0": points}}
    fit = golden_over_seeds(curves["dpo"]).as_dict()
    (axes,) = golden_figure(curves, {"dpo": fit}, ["dpo"], LABELS, facts).axes
    (star,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == pytest.approx((1, 1), abs=1e-6)
    assert "DPO: R² 1.00,\npeak +1.000 at d = 1" in [line.get_label() for line in axes.lines]


def test_dot_figure_orders_methods_and_marks_floors(results, facts):
    axes = dot_figure(results["summary"], facts).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SFT continued", "DPO + SIRIUS", "DPO"]
    assert 0.18 in [line.get_xdata()[0] for line in axes.lines]


def test_spread_keeps_order_gap_and_bounds():
    placed = _spread([0.5, 0.5, 0.51, 0.99, 1.0], 0.1, 0.0, 1.0)
    ordered = sorted(placed)
    assert placed[0] < placed[1] < placed[2] < placed[3] < placed[4]
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 1 + 1e-9
    assert _spread([0.2, 0.8], 0.1, 0, 1) == [0.2, 0.8]


def _luminance(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(a, b):
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_figures_can_be_read_on_their_page(dark):
    """WCAG 2: text at 4.5 : 1; lines at 3 : 1 on dark, 2 : 1 on white (Okabe and Ito's sky blue is light)."""
    values = dict(re.findall(r"--fig-([\w-]+): (#[0-9a-f]{6});", svg.colour_scheme(dark)))
    page = "#1e2024" if dark else "#ffffff"
    texts = {name for name in values if name.startswith("t")} | {"ink", "grey"}
    lines = {name for name in values if name.startswith("c")}
    assert len(texts) == len(lines) + 3
    for names, least in ((texts, 4.5), (lines, 3.0 if dark else 2.0)):
        for name in names:
            assert _contrast(values[name], page) >= least, (name, values[name])


def test_inline_recolours_and_keeps_ids_apart(results, facts):
    text = as_svg(dot_figure(results["summary"], facts))
    made = svg.inline(text, "one", 'a "title"')
    assert "var(--fig-ink)" in made and "#222222" not in made and 'aria-label="a &#34;title&#34;"' in made
    ids = re.findall(r'\bid="([^"]+)"', made)
    assert ids and all(name.startswith("one-") for name in ids)
    assert all(link in ids for link in re.findall(r'href="#([^"]+)"', made))
    shade = '<svg><path d="M 0 0" style="fill: #08306b; stroke: #222222"/></svg>'
    assert "fill: #08306b; stroke: var(--fig-ink)" in svg.inline(shade, "one", "")


def test_a_label_of_many_options_leaves_room_for_the_figure(tmp_path: Path, facts: dict[str, Any]) -> None:
    """Warnings of ours are errors in tests: the layout used to collapse, which is one."""
    label = "MoRec (SASRec over titles), " + ", ".join(f"option{n}={n}" for n in range(20))
    row = {
        "method": "morec",
        "role": "baseline",
        "label": label,
        "hr@1": 0.3,
        "hr@1_low": 0.2,
        "hr@1_high": 0.4,
        "chance": 0.05,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(dot_figure([row], facts), tmp_path, "dots")


def test_names_at_the_ends_of_lines_leave_room_for_them(results, facts):
    """The winners of a tuning have all their options in their names."""
    labels = dict.fromkeys(
        results["curves"], "S-DPO (softmax, 3) + SIRIUS, beta=1.5, learning_rate=0.000364, gamma=0.4"
    )
    figure = curve_figure(results["curves"], PANELS[0], labels, facts)
    assert figure is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where axes have no room, and draws them anyhow
        as_svg(figure)
    assert figure.axes[0].get_position().width > 0.3
    assert {text.get_text() for text in figure.axes[0].texts} == {"S-DPO (softmax, 3) + SIRIUS…"}
