"""results.json, diagnostics.json, audit, scores and data of one run or several → one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes.diagnosis import read_diagnostics
from sirius_rec.recipes.results import gather
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.scoring import answers_of, current_results, tables_of

if TYPE_CHECKING:
    from sirius_rec.report.reported_run import ReportedRun


def report_run(run: Run, *others: Run, baseline: str | None = None, out: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side.

    baseline: what the paired tests are against, instead of the configured one; any method that was scored. out: the
    page's file; without it RUN/report.html of one run, with its figures in RUN/figures/.
    """
    from sirius_rec.report.page import write_report

    if others and out is None:
        raise ConfigError("report: several runs have no folder of their own: name the page with --out FILE")
    reported = [_reported(one, baseline) for one in (run, *others)]
    return write_report(reported, out or run.folder.report, run.folder.path / "figures" if out is None else None)


def _reported(run: Run, baseline: str | None) -> ReportedRun:
    from sirius_rec.audit.audit import read_audit
    from sirius_rec.report.explorer import sample_examples
    from sirius_rec.report.generated import sample_answers
    from sirius_rec.report.reported_run import ReportedRun
    from sirius_rec.report.text import marked_labels

    folder = run.folder
    results = current_results(run)
    has_scores = folder.scores.is_dir() and folder.data.is_dir()
    if baseline is not None and baseline != results.get("baseline"):
        scored = sorted({row["method"] for row in results["summary"]})
        if baseline not in scored:
            raise ConfigError(f"--baseline {baseline!r} was not scored: choose one of {', '.join(scored)}")
        if not has_scores:
            where = folder.path
            raise RunError(f"{where}: tests against another baseline need its scores/ and data/: evaluate it again")
        again = gather(run, baseline)
        results |= {key: again[key] for key in ("paired", "baseline", "notes")}
    return ReportedRun(
        folder.path.resolve().name,
        results,
        read_diagnostics(run),
        read_audit(folder.data),
        f"sirius audit {folder.data}",
        sample_examples(tables_of(run), run.dataset, run.template, results["methods"]) if has_scores else None,
        sample_answers(answers_of(run), run.dataset, marked_labels(results)) if has_scores else None,
    )
