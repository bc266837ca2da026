"""An audit for people: one line per probe, then why, worst first. Nothing wraps in 80 columns but the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sirius_rec.audit.evidence import CAUTION, CLEAN, LEAK

_STYLE: Final = {LEAK: "bold red", CAUTION: "yellow", CLEAN: "green"}
_HEADINGS: Final = {
    "channel": "Must be at the control (the same probe with the suspected channel cut)",
    "baseline": "Legitimate signal: trivial baselines that a model must beat",
    "check": "Contamination between splits and epochs",
}
_NAME = 30


def print_audit(result: Mapping[str, Any], console: Console | None = None) -> None:
    """The whole audit: what was audited, the tables, the reasons, what was not run, the verdict."""
    console = console or Console(highlight=False)
    size = result["slate_size"]
    shown = size if isinstance(size, int) else f"{size:.1f} on average"
    console.print(f"\n{result['slates']}", style="bold", soft_wrap=True)
    console.print(f"{result['rows']:,} rows, {shown} candidates, chance {result['chance']:.3f}")
    for name, where in result["learned_from"].items():
        console.print(f"{name}: {where}", style="dim", soft_wrap=True)
    for note in result["notes"]:
        console.print(note, style="dim", soft_wrap=True)
    for kind, heading in _HEADINGS.items():
        rows = [one for one in result["probes"] if one["kind"] == kind]
        if rows:
            console.print(f"\n{heading}\n")
            for line in _table(rows):
                console.print(line, no_wrap=True, crop=False)
    _reasons(result["probes"], console)
    if result["skipped"]:
        console.print("\nNot run")
        for one in result["skipped"]:
            console.print(Padding(f"{one['name']}: {one['why']}", (0, 0, 0, 2)), style="dim")
    if "model" in result:
        _model(result["model"], console)
    console.print(Text("\nverdict: ").append(result["verdict"], style=_STYLE[result["verdict"]]))


def _table(rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    lines = [Text(f"{'probe':{_NAME}} {'HR@1':5} {'95 % interval':16} {'control':7} verdict", style="underline")]
    for one in rows:
        name = one["name"] if len(one["name"]) <= _NAME else one["name"][: _NAME - 1] + "…"
        value = "–" if one["hr1"] is None else f"{one['hr1']:.3f}"
        spread = "" if one["ci_low"] is None else f"[{one['ci_low']:.3f}, {one['ci_high']:.3f}]"
        control = "" if one["control"] is None else f"{one['control']:.3f}"
        line = Text(f"{name:{_NAME}} {value:5} {spread:16} {control:7} ")
        lines.append(line.append(one["verdict"], style=_STYLE[one["verdict"]]))
    return lines


def _reasons(probes: Sequence[Mapping[str, Any]], console: Console) -> None:
    for verdict in (LEAK, CAUTION):
        for one in probes:
            if one["verdict"] == verdict:
                console.print(Text("\n").append(f"{verdict}: {one['name']}", style=_STYLE[verdict]))
                console.print(Padding(one["why"], (0, 0, 0, 2)))


def _model(model: Mapping[str, Any], console: Console) -> None:
    def within(name: str) -> str:
        if model[f"{name}_low"] is None:
            return ""
        return f" [{model[f'{name}_low']:.3f}, {model[f'{name}_high']:.3f}]"

    console.print(f"\nModel {model['file']}: HR@1 {model['hr1']:.3f}{within('hr1')}", soft_wrap=True)
    if not model["leaking_probes"]:
        console.print("  no leaking probe: all of it is left")
    elif model["share"] is None:
        console.print("  no row is left on which no leaking probe is right")
    else:
        console.print(
            f"  on the {model['rows_left']:,} rows where no leaking probe is right: {model['hr1_left']:.3f}"
            f"{within('hr1_left')}; that is {model['share']:.3f}{within('share')} of it",
            soft_wrap=True,
        )
