"""The page's part on more than accuracy: width, popularity, HR@1 by the target's popularity, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

from sirius_rec.evaluation.beyond import BUCKETS, WIDTH
from sirius_rec.evaluation.results import ALPHA, TRIVIAL, Facts
from sirius_rec.report.answer import result_keys
from sirius_rec.report.plots import FADED, STYLE, colours_of, line_style, name_ends, new_figure
from sirius_rec.report.text import interval, minus, number, slates_in_words

_HEADINGS: Final = {"coverage": "Coverage", "gini": "Gini", "novelty": "Novelty (bits)",
                    "popularity_lift": "Popularity lift"}  # fmt: skip
_CURVES: Final = 8  # reliability curves on one pair of axes at most


def beyond_sections(results: Mapping[str, Any], labels: Mapping[str, str], facts: Facts) -> list[dict[str, Any]]:
    """One per set of slates and checkpoint: both tables and what the tests say in short; [] where none is."""
    beyond = results.get("beyond")
    if not beyond:
        return []
    sections = []
    for slates, checkpoint in result_keys(results):
        rows = [row for row in beyond["rows"] if (row["slates"], row["checkpoint"]) == (slates, checkpoint)]
        tests = [test for test in beyond["tests"] if (test["slates"], test["checkpoint"]) == (slates, checkpoint)]
        calibrated = any(row["calibration"] for row in rows)
        buckets = [name for name in BUCKETS if any(name == b["name"] for row in rows for b in row["buckets"])]
        counts = {b["name"]: b["n"] for row in rows for b in row["buckets"]}
        sections.append({
            "slates": slates, "words": slates_in_words(slates), "k": rows[0]["k"], "said": _said(tests, labels),
            "heads": [*_HEADINGS.values(), *(["ECE"] if calibrated else [])],
            "rows": [
                _line(row, [row[name] for name in (*WIDTH, *(["calibration"] if calibrated else []))], labels, facts)
                for row in sorted(rows, key=lambda row: row["gini"]["mean"])
            ],
            "buckets": [f"{name} ({counts[name]:,})" for name in buckets],
            "bucket_rows": [
                _line(row, [_bucket(row, name) for name in buckets], labels, facts)
                for row in sorted(rows, key=lambda row: -row["buckets"][0]["mean"])
            ],
        })  # fmt: skip
    return sections


def _bucket(row: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((bucket for bucket in row["buckets"] if bucket["name"] == name), None)


def _line(
    row: Mapping[str, Any], cells: Sequence[Mapping[str, Any] | None], labels: Mapping[str, str], facts: Facts
) -> dict[str, Any]:
    return {
        "label": labels[row["method"]], "trivial": facts[row["method"]]["role"] == TRIVIAL,
        "cells": [
            {"text": "–", "value": -1, "interval": ""} if cell is None else
            {"text": minus(number(cell["mean"])), "value": cell["mean"], "interval": interval(cell, "low", "high")}
            for cell in cells
        ],
    }  # fmt: skip


def _said(tests: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> str | None:
    """Which methods concentrate on fewer items than the baseline, and which on more, by the tests of Gini."""
    gini = [test for test in tests if test["metric"] == "gini"]
    if not gini:
        return None
    clear = [test for test in gini if test["p_holm"] < ALPHA]
    parts = []
    for words, sign in (("narrower", 1), ("wider", -1)):
        found = [
            f"{labels[test['method']]} ({minus(format(test['mean'], '+.3f'))})"
            for test in clear
            if test["mean"] * sign > 0
        ]
        if found:
            parts.append(f"{words}: {', '.join(found)}")
    against = labels[gini[0]["against"]]
    return (
        f"Against {against}, by the Gini index: {'; '.join(parts) if parts else 'no clear difference of any method'}."
    )


def reliability_figure(
    results: Mapping[str, Any], labels: Mapping[str, str], facts: Facts, slates: str
) -> Figure | None:
    """How often the top candidate is right against the probability that it got, one curve per language model, first
    seed; None without calibrated rows."""
    rows = [
        row for row in (results.get("beyond") or {"rows": []})["rows"]
        if row["slates"] == slates and row["calibration"]
    ][:_CURVES]  # fmt: skip
    if not rows:
        return None
    colours = colours_of([row["method"] for row in rows], facts)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure, axes = new_figure(5.6, 3.7)
        axes.plot([0, 1], [0, 1], color=FADED, lw=1)
        ends = []
        for row in rows:
            method, curve = row["method"], row["calibration"]["bins"][0]
            x, y = ([point[name] for point in curve] for name in ("confidence", "accuracy"))
            axes.plot(x, y, line_style(method, facts), color=colours[method], lw=1.6, marker="o", ms=3.2)
            ends.append((x[-1], y[-1], labels[method], colours[method]))
        axes.set(xlabel="probability of the top candidate", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
        name_ends(axes, ends)
    return figure
