"""What a report is made of, and whether it can be: one `ReportedRun` per run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sirius_rec.diagnostics.curves import HIT, MARGIN, labels_of
from sirius_rec.errors import DataError
from sirius_rec.evaluation.results import Facts
from sirius_rec.report.explorer import Explorer
from sirius_rec.report.generated import Answers
from sirius_rec.report.text import marked_labels


@dataclass(frozen=True)
class ReportedRun:
    """One run.

    name: what the page calls it. results: what `build_results` or `read_results` gave. diagnostics: what `diagnose_run`
    gave. audit: what `read_audit` gave. audit_command: what makes one. explorer: what `sample_examples` gave.
    generated: what `sample_answers` gave. What is None is left out, and the page says so.
    """

    name: str
    results: Mapping[str, Any]
    diagnostics: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None
    audit_command: str | None = None
    explorer: Explorer | None = None
    generated: Answers | None = None

    @property
    def methods(self) -> Facts:
        """What each method is: role, base, objective."""
        facts: Facts = self.results["methods"]
        return facts

    @property
    def labels(self) -> dict[str, str]:
        """Method → how sentences and curves call it."""
        return labels_of(self.results)

    @property
    def marked(self) -> dict[str, str]:
        """Method → how tables call it: methods without a language model marked, where others have one."""
        return marked_labels(self.results)


def check_run(run: ReportedRun) -> None:
    """Raise DataError, in one line, where a run holds no scores, a NaN, or a curve of rewards with one epoch only."""
    if not run.results.get("summary"):
        raise DataError(f"report: {run.name}: the results hold no scores; evaluate at least one method first")
    for row in run.results["summary"]:
        value = row[HIT]
        if value is None or not math.isfinite(value):
            raise DataError(
                f"report: {run.name}: {HIT} of {row['method']} on {row['slates']} is not a number; evaluate it again"
            )
    for method, seeds in (run.results.get("curves") or {}).items():
        for seed, points in seeds.items():
            if len(points) == 1 and MARGIN in points[0]:
                raise DataError(
                    f"report: {run.name}: the curve of {method}, seed {seed} has one epoch only; "
                    "log the start and at least one epoch more"
                )


def check_comparable(runs: Sequence[ReportedRun]) -> None:
    """Raise DataError naming two runs that are not over the same data and slates."""
    first = runs[0]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"report: two runs are called {max(names, key=names.count)}; give each run once")
    for other in runs[1:]:
        both = f"{first.name} and {other.name}"
        ours, theirs = (run.results.get("data") or {} for run in (first, other))
        for one, run in ((ours, first), (theirs, other)):
            if not one.get("fingerprint"):
                raise DataError(f"report: {run.name} does not say what data it is on; evaluate it again")
        slates = [_scored_slates(run.results) for run in (first, other)]
        prints = [one.get("slates") or {} for one in (ours, theirs)]
        for name in sorted(slates[0] & slates[1]):
            here, there = (entry.get(name, {}).get("fingerprint") for entry in prints)
            if here != there:
                found = f"{name} is {_short(here)} in the first, {_short(there)} in the second"
                raise DataError(f"report: {both} are over different slates ({found}); report them apart")
        if not slates[0] & slates[1]:
            found = f"{', '.join(sorted(slates[0]))}; {', '.join(sorted(slates[1]))}"
            raise DataError(f"report: {both} are over different slates ({found}); report them apart")
        if ours["fingerprint"] != theirs["fingerprint"]:
            found = f"fingerprints {_short(ours['fingerprint'])} and {_short(theirs['fingerprint'])}"
            raise DataError(f"report: {both} are over different data ({found}); report them apart")


def _scored_slates(results: Mapping[str, Any]) -> set[str]:
    return {row["slates"] for row in results["summary"]}


def _short(fingerprint: str | None) -> str:
    return fingerprint[:8] if fingerprint else "unknown"
