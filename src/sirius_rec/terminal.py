"""Result tables for the terminal: nothing wraps in 80 columns, floors are dim, the best of a column carries a star."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from sirius_rec.evaluation.results import TRIVIAL, TRUE_REWARD, VALID, decision

Row = Mapping[str, Any]
_COLUMNS = {"hr@1": "HR@1", "ndcg@10": "NDCG@10", "mrr": "MRR", VALID: "Valid", TRUE_REWARD: "Truth"}
_HIT_WIDTH = len("0.000* [0.000, 0.000]")


_WIDE = {"hr@1": "HR@1", "hr@5": "HR@5", "hr@10": "HR@10", "ndcg@5": "NDCG@5", "ndcg@10": "NDCG@10", VALID: "Valid"}


def print_comparison(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Per slates: every method by falling HR@1 with the paper's columns, cost, and its test against the baseline."""
    console = console or Console(highlight=False)
    labels = {row["method"]: row["label"] for row in results["summary"]}
    for slates, checkpoint in sorted({(row["slates"], row["checkpoint"]) for row in results["summary"]}):
        here = [
            [row for row in results[part] if (row["slates"], row["checkpoint"]) == (slates, checkpoint)]
            for part in ("summary", "rows", "paired")
        ]
        _print_comparison_part(console, f"{slates}, {checkpoint} epoch", here, labels, results["baseline"])


def _print_comparison_part(
    console: Console, title: str, parts: Sequence[Sequence[Row]], labels: Mapping[str, str], baseline: str
) -> None:
    summary, rows, tests = parts
    room = max(map(len, labels.values()))
    console.print(f"\n{title}, {summary[0]['n']:,} rows; tests: HR@1 against {labels[baseline]}, p by Holm\n")
    head = "method".ljust(room) + "".join(f"{name:>9}" for name in _WIDE.values())
    head += "  95 % HR@1        seconds  trained  against"
    console.print(Text(head, style="underline"), soft_wrap=True)
    found = {test["method"]: test for test in tests if test["against"] == baseline}
    for row in sorted(summary, key=lambda r: -r["hr@1"]):
        cells = "".join(f"{row[key]:9.3f}" if row.get(key) is not None else f"{'–':>9}" for key in _WIDE)
        span = f"[{row['hr@1_low']:.3f}, {row['hr@1_high']:.3f}]" if row["hr@1_low"] is not None else ""
        seconds = [r["training_seconds"] for r in rows if r["method"] == row["method"] and r.get("training_seconds")]
        cost = f"{sum(seconds) / len(seconds):9.0f}" if seconds else " " * 9
        trained = {r["trainable_parameters"] for r in rows if r["method"] == row["method"]} - {None}
        cost += f"{_short(max(trained)):>9}" if trained else " " * 9
        test = found.get(row["method"])
        said = f"{test['difference']:+.3f} {decision(test)}" if test else ""
        line = f"{row['label']:<{room}}{cells}  {span:<16}{cost}  {said}"
        console.print(Text(line.rstrip(), style="dim" if row["role"] == TRIVIAL else ""), soft_wrap=True)


def _short(number: int) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:  # what rounds to 1000 of the smaller unit is 1 of this one
            return f"{number / size:.3g}{unit}"
    return str(number)


def _width(key: str) -> int:
    return _HIT_WIDTH if key == "hr@1" else max(len(_COLUMNS[key]), len("0.000*"))


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Per slate set and checkpoint: methods by falling HR@1 with its interval, then +SIRIUS against each base."""
    console = console or Console(highlight=False)
    for slates, checkpoint in sorted({(row["slates"], row["checkpoint"]) for row in results["summary"]}):
        rows, tests = (
            [row for row in results[part] if (row["slates"], row["checkpoint"]) == (slates, checkpoint)]
            for part in ("summary", "paired")
        )
        _print_part(console, slates, checkpoint, rows, tests)


def _print_part(console: Console, slates: str, checkpoint: str, rows: Sequence[Row], tests: Sequence[Row]) -> None:
    seeds = sorted({seed for row in rows if row["role"] != TRIVIAL for seed in row["seeds"]})
    many = "" if len(seeds) == 1 else "s"
    console.print(f"\n{slates}, {checkpoint} epoch, {rows[0]['n']:,} rows, {len(seeds)} seed{many}\n")
    for line in _table(rows, console.width):
        console.print(line, no_wrap=True, crop=True)
    console.print("\n* best of the column; [95 % interval]; dim: trivial baselines")
    labels = {row["method"]: row["label"] for row in rows}
    pairs = [test for test in tests if test["against_base"]]
    if pairs:
        console.print("\n+ SIRIUS against its base, HR@1 on the same rows (paired test, p by Holm)")
    wide = max((len(labels[test["against"]]) for test in pairs), default=0)
    for test in pairs:
        console.print(_pair(test, labels[test["against"]].ljust(wide)), soft_wrap=True)


def _table(rows: Sequence[Row], width: int) -> list[Text]:
    """Fixed columns; only a label gives way where the terminal is narrow."""
    shown = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    values = {key: [row[key] for row in rows if row.get(key) is not None] for key in shown}
    # Where all are equal none is best.
    best = {key: max(values[key]) if len(set(values[key])) > 1 else None for key in shown}
    room = max(width - sum(_width(key) + 1 for key in shown), 12)
    room = min(room, max(len(row["label"]) for row in rows))
    lines = [Text("method".ljust(room), style="underline")]
    for key in shown:
        lines[0].append(" " + f"{_COLUMNS[key]:{'<' if key == 'hr@1' else '>'}{_width(key)}}")
    for row in sorted(rows, key=lambda row: (-row["hr@1"], row["label"])):
        label = row["label"] if len(row["label"]) <= room else row["label"][: room - 1] + "…"
        line = Text(label.ljust(room), style="dim" if row["role"] == TRIVIAL else "")
        for key in shown:
            line.append(" ").append_text(_cell(row, key, best[key]))
        lines.append(line)
    return lines


def _cell(row: Row, key: str, best: float | None) -> Text:
    value = row.get(key)
    width = _width(key)
    if value is None:
        return Text(" " * width)
    star = value == best
    text = f"{value:.3f}{'*' if star else ' '}"
    if key != "hr@1":
        return Text(text.rjust(width), style="bold" if star else "")
    cell = Text(text, style="bold" if star else "")
    if row.get(f"{key}_low") is not None:
        cell.append(f" [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]", style="not bold")
    return Text("").append_text(cell).append(" " * (width - len(cell)))


def _pair(test: Row, base: str) -> Text:
    interval = "" if test["low"] is None else f" [{test['low']:+.3f}, {test['high']:+.3f}]"
    p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
    return Text(f"{base}  {test['difference']:+.3f}{interval}  {p}  {decision(test)}")


def print_diagnostics(diagnostics: Mapping[str, Any], console: Console | None = None) -> None:
    """One block per method: what moved between the first epoch and the last, and the verdict."""
    from sirius_rec.diagnostics.curves import HEADER, lines
    from sirius_rec.diagnostics.wording import golden_line, influence_line, onset_line

    more = (("onset", onset_line), ("golden_fit", golden_line), ("influence", influence_line))
    console = console or Console(highlight=False)
    names = [name for name in HEADER if name not in ("method", "verdict")]
    width = max(map(len, names))
    for method, line in zip(diagnostics["methods"], lines(diagnostics), strict=True):
        entry = dict(zip(HEADER, line, strict=True))
        console.print(f"\n{entry['method']}: {entry['verdict']}", style="bold")
        for name in names:
            console.print(f"  {name:<{width}}  {entry[name]}")
        for key, in_words in more:
            if method in diagnostics.get(key, {}):
                console.print(f"  {key.replace('_', ' '):<{width}}  {in_words(diagnostics[key][method])}")


def print_theory(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Areas beside Monte Carlo and the paper's print, Example 1, and the errata."""
    console = console or Console(highlight=False)
    console.print(f"\nArea of the insensitive region, {content['model']}, share of the unit square\n")
    console.print(Text("     ε  square         area     Monte Carlo         printed", style="underline"))
    for row in content["areas"]:
        printed = f"{row['printed']:.3f}" if row["printed"] is not None else ""
        estimate = f"{row['monte_carlo']:.4f} ± {row['stderr']:.4f}"
        square = f"({row['coordinates'].replace(',', ', ')})"
        line = f"{row['epsilon']:6g}  {square}  {row['area']:.4f}  {estimate}  {printed:>9}"
        console.print(line.rstrip(), soft_wrap=True)
    console.print("\nExample 1 (printed: p_ik 0.04, derivative 0.19)\n")
    for row in content["example1"]:
        rewards = ", ".join(f"{r:g}" for r in row["rewards"])
        console.print(
            f"({rewards}): p_ij {row['p_ij']:.3f}, p_ik {row['p_ik']:.3f}, derivative {row['sensitivity']:.3f}"
        )
    console.print("\nWhat does not hold as the paper prints it (Bradley–Terry; docs/theory.md explains each)\n")
    for item in content["errata"]:
        console.print(Text(item["where"], style="bold"))
        for part in ("says", "holds", "check"):
            line = Text(f"{part:>6}: {item[part]}")
            for number, piece in enumerate(line.wrap(console, max(console.width - 8, 40))):
                console.print(piece if number == 0 else Text("        ") + piece)
        console.print()
