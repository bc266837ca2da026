"""One self-contained HTML page per run: nothing is fetched, figures are inline, tables work without scripts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from sirius_rec.diagnostics import curves as evidence
from sirius_rec.errors import DataError
from sirius_rec.evaluation.floors import FLOORS
from sirius_rec.evaluation.metrics import METRICS
from sirius_rec.evaluation.results import ALL_METRICS, GENERATED, TRUE_REWARD, VALID, decision
from sirius_rec.report import plots
from sirius_rec.schema import SlateName

_HEADINGS: Final = {TRUE_REWARD: "True reward", VALID: "Valid ratio", GENERATED: "HR@1 generated", "mrr": "MRR"}
_MINUS: Final = "\u2212"


def _number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Fixed digits with a typographic minus; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", _MINUS)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(row: Mapping[str, Any], low: str, high: str, signed: bool = False) -> str:
    if row[low] is None:
        return ""
    return f"[{_number(row[low], signed=signed)}, {_number(row[high], signed=signed)}]"


def _slates_in_words(name: str) -> str:
    try:
        slate = SlateName.parse(name)
    except ValueError:
        return name
    return f"{slate.split} split, {slate.size} candidates, {slate.protocol} negatives, slate seed {slate.seed}"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as ("a.b", text) pairs; long lists are shortened."""
    if isinstance(value, Mapping):
        return [pair for key in value for pair in _flat(value[key], f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        shown = ", ".join(json.dumps(entry, ensure_ascii=False) for entry in value[:8])
        return [(prefix, shown + (f", … ({len(value)})" if len(value) > 8 else "") if value else "none")]
    if isinstance(value, bool):
        return [(prefix, "yes" if value else "no")]
    if isinstance(value, int):
        return [(prefix, f"{value:,}" if abs(value) >= 10_000 else str(value))]
    return [(prefix, "–" if value is None else str(value))]


def _metric_rows(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    best = {metric: max((row[metric] for row in rows if row[metric] is not None), default=None) for metric in metrics}
    shown = []
    for row in sorted(rows, key=lambda row: -row["hr@1"]):
        cells = [
            {
                "text": _number(row[metric]),
                "value": row[metric] if row[metric] is not None else -1,
                "interval": _interval(row, f"{metric}_low", f"{metric}_high"),
                "best": row[metric] is not None and row[metric] == best[metric],
            }
            for metric in metrics
        ]
        sd = row["hr@1_seed_sd"]
        seeds = ", ".join(map(str, row["seeds"])) if row["method"] not in FLOORS else "–"
        shown.append({"label": row["label"], "method": row["method"], "floor": row["method"] in FLOORS, "cells": cells,
                      "seeds": seeds, "sd": _number(sd, 4) if sd is not None else "–"})  # fmt: skip
    return shown


def _test_rows(tests: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    rows = []
    for test in tests:
        word = decision(test)
        rows.append({
            "method": labels.get(test["method"], test["method"]),
            "against": labels.get(test["against"], test["against"]),
            "difference": _number(test["difference"], signed=True), "value": test["difference"],
            "interval": _interval(test, "low", "high", signed=True), "p": _p_value(test["p"]), "p_value": test["p"],
            "p_holm": _p_value(test["p_holm"]), "p_holm_value": test["p_holm"], "word": word,
            "decided": word in ("better", "worse"),
        })  # fmt: skip
    return rows


def _in_short(rows: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]], baseline: str | None) -> list[str]:
    """Two or three sentences about one slate set; only what the tables below say."""
    trained, floors = ([row for row in rows if (row["method"] in FLOORS) is floor] for floor in (False, True))
    said = []
    if trained:
        top = max(trained, key=lambda row: row["hr@1"])
        said.append(f"Highest HR@1: {top['label']}, {_number(top['hr@1'])} {_interval(top, 'hr@1_low', 'hr@1_high')}.")
    if trained and floors:
        floor = max(floors, key=lambda row: row["hr@1"])
        below = [row["label"] for row in trained if row["hr@1"] <= floor["hr@1"]]
        text = f"Strongest floor: {floor['label']}, {_number(floor['hr@1'])}"
        said.append(f"{text}; {'not above it: ' + ', '.join(below) if below else 'every trained method is above it'}.")
    sirius = [test for test in tests if test["method"].removesuffix("_sirius") == test["against"]]
    against = [test for test in tests if test["against"] == baseline]
    for name, group in (("+SIRIUS against its base", sirius), ("Against the baseline", against)):
        if group:
            words = [decision(test) for test in group]
            up, down = words.count("better"), words.count("worse")
            said.append(f"{name}: {up} of {len(group)} better, {down} worse, {len(group) - up - down} undecided.")
    return said


def _sections(results: Mapping[str, Any], figures: Path) -> list[dict[str, Any]]:
    """One section per slate set and checkpoint; floors stand in every section of their slates."""
    summary, labels = results["summary"], evidence.labels_of(results)
    keys = sorted({(row["slates"], row["checkpoint"]) for row in summary if row["method"] not in FLOORS})
    keys = keys or sorted({(row["slates"], row["checkpoint"]) for row in summary})
    sections = []
    for index, (slates, checkpoint) in enumerate(keys):
        here = [row for row in summary if row["slates"] == slates and row["checkpoint"] == checkpoint]
        named = {row["method"] for row in here}
        here += [r for r in summary if r["slates"] == slates and r["method"] in FLOORS and r["method"] not in named]
        tests = [t for t in results["paired"] if t["slates"] == slates and t["checkpoint"] == checkpoint]
        ranking = list(METRICS)
        other = [m for m in ALL_METRICS if m not in METRICS and any(row[m] is not None for row in here)]
        name = re.sub(r"\W+", "_", f"hr_1_{slates}_{checkpoint}")
        svg = plots.save(plots.dot_figure(here), figures, name)
        words = _slates_in_words(slates)
        sections.append({
            "slates": slates, "checkpoint": checkpoint, "words": words, "n": f"{here[0]['n']:,}",
            "chance": _number(here[0]["chance"]), "short": _in_short(here, tests, results.get("baseline")),
            "tables": [
                {"headings": [_HEADINGS.get(metric, metric.upper()) for metric in part],
                 "rows": _metric_rows(here, part), "ranking": part is ranking}
                for part in (ranking, other) if part
            ],
            "tests": _test_rows(tests, labels),
            "svg": Markup(plots.inline(svg, f"dots{index}", f"HR@1 with intervals on {words}")),
        })  # fmt: skip
    return sections


def _evidence_rows(diagnostics: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = diagnostics["methods"].values()
    found = [entry["hacking"] or {"flagged": False} for entry in entries]
    return [
        {"label": row[0], "cells": [cell.replace("-", _MINUS) for cell in row[1:-1]],
         "verdict": row[-1].replace("[-", f"[{_MINUS}").replace(" -", f" {_MINUS}"),
         "alarm": hacking["flagged"] and (hacking["hr@1_fall_low"] or 0) > 0}
        for hacking, row in zip(found, evidence.lines(diagnostics), strict=True)
    ]  # fmt: skip


def write_report(results: Mapping[str, Any], out_dir: Path | str, diagnostics: Mapping[str, Any] | None = None) -> Path:
    """Write `<out_dir>/report.html` and `<out_dir>/figures/*.png|svg`; returns the page's path.

    results: what `build_results` or `read_results` gave. diagnostics: what `diagnose` gave, or None to leave the table
    of evidence out. Raises DataError when the results hold no scores or a curve holds a NaN.
    """
    if not results.get("summary"):
        raise DataError("report: the results hold no scores; evaluate at least one method first")
    out_dir = Path(out_dir)
    folder = out_dir / "figures"
    made = plots.all_figures(results)
    drawn = {name: plots.save(figure, folder, name) for name, _, _, figure in made}
    config, data = results.get("config") or {}, results.get("data") or {}
    named = config.get("title") or config.get("name") or data.get("name")
    title = str(named or "Preference alignment of a recommender")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sirius_rec.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    seeds = sorted({seed for row in results["summary"] if row["method"] not in FLOORS for seed in row["seeds"]})
    page = environment.get_template("report.html.j2").render(
        title=title,
        sections=_sections(results, folder),
        data=_flat(data),
        curves=[{"title": t, "reading": reading, "svg": Markup(plots.inline(drawn[name], name, t)), "name": name}
                for name, t, reading, _ in made],
        evidence=_evidence_rows(diagnostics) if diagnostics else [],
        evidence_heads=list(evidence.HEADER[1:-1]),
        evidence_notes=list(diagnostics["notes"]) if diagnostics else [],
        notes=results.get("notes", []),
        config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False),
        versions=_flat(results.get("environment") or {}),
        seeds=", ".join(map(str, seeds)) or "none",
        baseline=evidence.labels_of(results).get(results.get("baseline", ""), results.get("baseline", "")),
    )  # fmt: skip
    path = out_dir / "report.html"
    partial = out_dir / f".report.html.{os.getpid()}.partial"
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
