"""One self-contained HTML page for one run or several: nothing is fetched, tables and figures work without scripts."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from sirius_rec import __version__, atomic
from sirius_rec.diagnostics import curves as evidence
from sirius_rec.report import answer, plots, sections, svg
from sirius_rec.report.beyond import beyond_sections, reliability_figure
from sirius_rec.report.evidence_plots import Drawn, epoch_figures, hacking_figures
from sirius_rec.report.explorer import Explorer
from sirius_rec.report.overstatement import Overstatement, overstatement, overstatement_figure
from sirius_rec.report.reported_run import ReportedRun, check_comparable, check_run
from sirius_rec.report.text import flat, slates_in_words
from sirius_rec.report.theory_plots import anchor_figure, sensitivity_figure

_THEORY_POINTS: Final = 161  # of the grid, per side: a page needs fewer than print
_MARGIN: Final = (
    "Above, what the loss pushes up: the mean reward of the positive minus that of the sampled negatives, in each "
    "loss's own scale. Below, what it is for: how often the held-out item is ranked first. The paper's sign of reward "
    "hacking is a margin that rises while HR@1 falls."
)
_GOLDEN: Final = (
    "Every dot is one evaluation of one seed; the curve is R(d) = d (α − β log d) by least squares, drawn as far as "
    "the data reach; a star marks its peak where the data reach it."
)


def write_report(runs: Sequence[ReportedRun], out: Path | str, figures: Path | str | None = None) -> Path:
    """Write the page to the file `out`, and every figure as PNG and SVG into the folder `figures`, if one is given.

    Equal runs give equal bytes. Raises DataError, in one line, for a run without scores, a NaN in its metrics or
    curves, a curve of one epoch, or runs over different data or slates.
    """
    for run in runs:
        check_run(run)
    check_comparable(runs)
    folder = Path(figures) if figures is not None else None
    shown = [_run(run, n, folder if len(runs) == 1 or folder is None else folder / run.name)
             for n, run in enumerate(runs)]  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sirius_rec.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    versions = (runs[0].results.get("environment") or {}).get("versions") or {}
    page = environment.get_template("report.html.j2").render(
        title=shown[0]["title"] if len(runs) == 1 else "Runs side by side: " + ", ".join(run.name for run in runs),
        runs=shown,
        several=len(runs) > 1,
        names=[run.name for run in runs],
        side_by_side=sections.side_by_side(runs) if len(runs) > 1 else [],
        theory=_theory(folder),
        explorer=_embedded([_examples(run, run.explorer) for run in runs if run.explorer is not None]),
        light=Markup(svg.colour_scheme(False)),
        dark=Markup(svg.colour_scheme(True)),
        version=versions.get("sirius-rec", __version__),
    )
    return _write(Path(out), page)


def _run(run: ReportedRun, number: int, folder: Path | None) -> dict[str, Any]:
    """One run's part of the page."""
    results, diagnostics, labels = run.results, run.diagnostics, run.labels
    curves, config = results.get("curves") or {}, results.get("config") or {}
    drawn = hacking_figures(curves, labels, diagnostics, run.methods)
    found = sections.result_sections(run)
    for n, section in enumerate(found):
        name = re.sub(r"\W+", "_", f"hr_1_{section['slates']}_{section['checkpoint']}")
        figure = plots.dot_figure(section.pop("rows"), run.methods)
        title = f"HR@1 with intervals on {section['words']}"
        section["svg"] = _svg(Drawn(name, title, "", figure), folder, f"r{number}dots{n}")
    beside = overstatement(results, labels)
    reliable = reliability_figure(results, labels, run.methods, found[0]["slates"])
    named = config.get("title") or config.get("name") or (results.get("data") or {}).get("name")
    return {
        "id": f"r{number}",
        "name": run.name,
        "title": str(named or "Preference alignment of a recommender"),
        "answer": answer.answer(results, diagnostics),
        "facts": sections.what_was_run(run),
        "audit": sections.audit_facts(run),
        "audit_command": run.audit_command,
        "sections": found,
        "beyond": beyond_sections(results, labels, run.methods),
        "reliability": [] if reliable is None else _figures([_reliability(reliable)], folder, number),
        "overstated": None if beside is None else beside.sentence(),
        "overstated_figures": [] if beside is None else _figures([_beside(beside, run)], folder, number),
        "baseline": labels.get(results.get("baseline", ""), ""),
        "margins": _figures(drawn["margin"], folder, number),
        "margin_reading": _MARGIN,
        "shares": _figures(drawn["share"], folder, number),
        "share_sentence": sections.share_sentence(run),
        "share_rows": sections.share_rows(run),
        "golden": _figures(drawn["golden"], folder, number),
        "golden_reading": _GOLDEN,
        "fits": sections.fit_rows(diagnostics, labels),
        "influence": sections.influence_rows(diagnostics, labels),
        "influence_sentence": sections.influence_sentence(diagnostics, labels),
        "epochs": _figures(epoch_figures(curves, labels, diagnostics, run.methods), folder, number),
        "evidence": sections.evidence_rows(diagnostics),
        "evidence_heads": list(evidence.HEADER[1:]),
        "evidence_notes": list(diagnostics["notes"]) if diagnostics else [],
        "onset_sentence": answer.hacking_sentence(diagnostics, labels),
        "generated": run.generated,
        "notes": list(results.get("notes", [])),
        "data": sections.data_facts(run),
        "config": json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False),
        "versions": flat(results.get("environment") or {}),
        "explorer": run.explorer is not None,
    }


def _reliability(figure: Figure) -> Drawn:
    reading = (
        "On the line, a probability means what it says; below it, the model is too sure. Ten bins of equally many "
        "rows, first seed."
    )
    return Drawn("reliability", "Calibration of the top candidate", reading, figure)


def _beside(found: Overstatement, run: ReportedRun) -> Drawn:
    title = f"HR@1 on {slates_in_words(found.sampled)}, beside HR@10 on {slates_in_words(found.full)}"
    return Drawn("sampled_and_full", title, "", overstatement_figure(found, run.methods))


def _figures(drawn: Sequence[Drawn], folder: Path | None, number: int) -> list[dict[str, Any]]:
    return [{"title": one.title, "reading": one.reading, "svg": _svg(one, folder, f"r{number}{one.name}")}
            for one in drawn]  # fmt: skip


def _svg(drawn: Drawn, folder: Path | None, prefix: str) -> Markup:
    text = plots.save(drawn.figure, folder, drawn.name) if folder is not None else plots.as_svg(drawn.figure)
    return Markup(svg.inline(text, prefix, drawn.title))


def _theory(folder: Path | None) -> list[dict[str, Any]]:
    """Figures 2 and 5. Their shades are the message and stay; what is around them follows light and dark."""
    out = []
    for name, title, text, png in _drawn_theory(folder is not None):
        if folder is not None and png is not None:
            plots.write(folder, name, text, png)
        out.append({"title": title, "svg": Markup(svg.inline(text, name, title))})
    return out


@functools.cache
def _drawn_theory(png: bool) -> list[tuple[str, str, str, bytes | None]]:
    """Name, title, SVG and PNG, if asked for: the same in every report, and slow to draw."""
    two = Drawn("figure2", "Figure 2: where the derivative is small", "", sensitivity_figure(points=_THEORY_POINTS))
    five = Drawn("figure5", "Figure 5: with an anchor above all rewards", "", anchor_figure(points=_THEORY_POINTS))
    return [
        (one.name, one.title, plots.as_svg(one.figure), plots.as_png(one.figure) if png else None)
        for one in (two, five)
    ]


def _examples(run: ReportedRun, explorer: Explorer) -> dict[str, Any]:
    """The explorer's data with labels as the tables write them."""
    methods = [{**one, "label": run.marked.get(one["key"], one["label"])} for one in explorer["methods"]]
    return {"run": run.name, **explorer, "methods": methods}


def _embedded(content: Sequence[Mapping[str, Any]]) -> Markup | None:
    """JSON for a script element: nothing in it can end the element."""
    if not content:
        return None
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _write(path: Path, page: str) -> Path:
    atomic.write_text(path, page)
    return path
