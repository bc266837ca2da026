"""What sampled slates overstate: HR@1 among a few random candidates beside HR@10 of the whole catalogue (Krichene &
Rendle 2020: sampled metrics need not keep the order of methods)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure
from scipy import stats

from sirius_rec.evaluation.results import TRIVIAL, Facts
from sirius_rec.report.answer import result_keys, rows_of
from sirius_rec.report.plots import GREY, STYLE, colours_of, marker_fill, name_ends, new_figure
from sirius_rec.report.text import count, number
from sirius_rec.schema import RETRIEVED, SlateName

SAMPLED: Final = "hr@1"
FULL: Final = "hr@10"


@dataclass(frozen=True)
class Overstatement:
    """points: (method, label, role, sampled HR@1, full HR@10). sampled, full: names of the slates."""

    points: list[tuple[str, str, str, float, float]]
    sampled: str
    full: str

    @property
    def swapped(self) -> list[tuple[str, str]]:
        """Labels of the pairs of methods that stand one way on one protocol and the other way on the other."""
        return [(a[1], b[1]) for a, b in combinations(self.points, 2) if (a[3] - b[3]) * (a[4] - b[4]) < 0]

    def sentence(self) -> str:
        """Whether the order of methods is the same, in numbers."""
        pairs = len(self.points) * (len(self.points) - 1) // 2
        tau = stats.kendalltau([p[3] for p in self.points], [p[4] for p in self.points]).statistic
        best = [max(self.points, key=lambda p: p[at])[1] for at in (3, 4)]
        first = f"{best[0]} is the best of both"
        if best[0] != best[1]:
            first = f"{best[0]} is the best on sampled slates, {best[1]} on the whole catalogue"
        return (
            f"{len(self.swapped)} of {count(pairs, 'pair')} of methods change places between the two (Kendall’s τ "
            f"{number(float(tau), 2)}); {first}."
        )


def overstatement(results: Mapping[str, Any], labels: Mapping[str, str]) -> Overstatement | None:
    """The smallest sampled test slates beside the whole catalogue, best checkpoints; None without both, or with fewer
    than three methods that were scored on both."""
    found: dict[bool, str] = {}
    for slates, checkpoint in result_keys(results):
        protocol = SlateName.parse(slates).protocol
        if checkpoint == "best" and not protocol.startswith(RETRIEVED):
            found.setdefault(protocol == "full", slates)
    if len(found) < 2:
        return None
    of_sampled, of_full = ({row["method"]: row for row in rows_of(results, found[k], "best")} for k in (False, True))
    points = [
        (key, labels[key], row["role"], row[SAMPLED], of_full[key][FULL])
        for key, row in of_sampled.items()
        if key in of_full
    ]
    return Overstatement(points, found[False], found[True]) if len(points) > 2 else None


def overstatement_figure(found: Overstatement, facts: Facts) -> Figure:
    """A point for each method: sampled HR@1 to the right, HR@10 of the whole catalogue upwards."""
    colours = colours_of([p[0] for p in found.points], facts)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure, axes = new_figure(6.2, max(3.4, 0.24 * len(found.points)))
        ends: list[tuple[float, float, str, str]] = []
        for method, label, role, x, y in sorted(found.points, key=lambda p: p[4]):
            colour = GREY if role == TRIVIAL else colours[method]
            fill = "white" if role == TRIVIAL else marker_fill(method, colour, facts)
            axes.plot([x], [y], "o", color=colour, markerfacecolor=fill, ms=6, markeredgewidth=1.6)
            ends.append((x, y, label, colour))
        axes.set_xlabel(f"HR@1 among {SlateName.parse(found.sampled).size} candidates")
        axes.set_ylabel(f"HR@10 of {SlateName.parse(found.full).size:,} items")
        axes.margins(0.05)
        axes.set_ylim(axes.get_ylim())
        name_ends(axes, ends)
    return figure
