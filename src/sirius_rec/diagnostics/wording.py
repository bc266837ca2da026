"""Onset, golden fit and influence in one line each, for terminal and report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def verdict(diagnostics: Mapping[str, Any], method: str) -> str:
    """The onset test of a method in words, or why there was none."""
    onset = (diagnostics.get("onset") or {}).get(method)
    if not diagnostics["methods"][method].get("margin_trained", True):
        return "not tested: no margin is trained"
    return f"onset: {onset_line(onset)}" if onset else "not tested: no log-probs of held-out slates"


def onset_found(diagnostics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Method → onset over its seeds, of the methods whose margin is trained; `step` None where there is none."""
    trained = {m for m, entry in diagnostics["methods"].items() if entry.get("margin_trained", True)}
    return {m: onset["all"] for m, onset in (diagnostics.get("onset") or {}).items() if m in trained}


def onset_line(onset: Mapping[str, Any]) -> str:
    """`onset_over_seeds` in words."""
    whole, seeds = onset["all"], onset["seeds"]
    side = "above" if whole["fall"] < -0.0005 else "below"  # what is shown as 0.000 is no rise
    fell = f"HR@1 {abs(whole['fall']):.3f} {side} its peak at step {whole['peak_step']}, p {_p(whole['p'])}"
    each = [f"{seed}: {entry['step']}" for seed, entry in seeds.items() if entry["step"] is not None]
    if whole["step"] is None:
        text = f"none in {whole['looks']} evaluations ({fell})"
    else:
        text = f"step {whole['step']} ({fell}; margin {whole['margin_rise']:+.2f} since)"
    return text + (f"; single seeds: {', '.join(each)}" if len(seeds) > 1 and each else "")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def golden_line(fit: Mapping[str, Any]) -> str:
    """`GoldenFit.as_dict()` in words."""
    if fit["failed"] is not None:
        return f"cannot be fitted: {fit['failed']}"
    parts = [f"{name} {fit[key]:.3f} [{fit[key + '_low']:.3f}, {fit[key + '_high']:.3f}]"
             for name, key in (("α", "alpha"), ("β", "beta"))]  # fmt: skip
    r2 = "–" if fit["r2"] is None else f"{fit['r2']:.2f}"
    if fit["peak_d"] is None:
        peak = "no peak in reach"
    else:
        where = "inside" if fit["peak_inside"] else "outside"
        peak = f"peak {fit['peak_gain']:+.3f} at d = {fit['peak_d']:.3g}, {where} the data"
    return f"{', '.join(parts)}; {peak}; R² {r2}, n {fit['n']}"


def influence_line(entry: Mapping[str, Any]) -> str:
    """One method of `probe_run` in words: what Eq. 10 predicts against what a gradient step did."""
    if entry["slope"] is None:
        return "no pair moved"
    parts = [
        f"{slope_text(part)} where p_ij is {which} than p_ik (n {part['n']:,})"
        for side, which in (("unsaturated", "steeper"), ("saturated", "flatter"))
        if (part := entry[side])["slope"] is not None
    ] or [slope_text(entry)]
    rank = "–" if entry["spearman"] is None else f"{entry['spearman']:.2f}"
    text = f"p_ik moved by {' and '.join(parts)}, of what Eq. 10 predicts; rank correlation {rank}"
    inner = entry["regions"][0]
    if inner["n"]:
        text += f"; inside Ω_0.1 by {inner['measured']:.3f} of Δp_ij, predicted {inner['predicted']:.3f}"
    return f"{text}; the positive's own share of the margin's change is {entry['moved_i']:.2f}"


def slope_text(part: Mapping[str, Any]) -> str:
    """A slope with its interval."""
    span = "" if part["slope_low"] is None else f" [{part['slope_low']:.2f}, {part['slope_high']:.2f}]"
    return f"{part['slope']:.2f}{span}"
