"""Result tables for the terminal: in 80 columns where they fit, trivial baselines dim, the best with a star."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sirius_rec.evaluation.generated import VALID
from sirius_rec.evaluation.results import TRIVIAL, TRUE_REWARD, UNTESTED, decision
from sirius_rec.progress import duration
from sirius_rec.report.answer import answer, pair_names
from sirius_rec.report.text import NO_MODEL, marked_labels
from sirius_rec.schema import RETRIEVED, SlateName

Row = Mapping[str, Any]
_COLUMNS = {"hr@1": "HR@1", "ndcg@10": "NDCG@10", "mrr": "MRR", VALID: "Valid", TRUE_REWARD: "Truth"}
# Where the whole catalogue is ranked, or what a retriever found of it, lists are what counts.
_LISTS = {"hr@1": "HR@1", "hr@10": "HR@10", "ndcg@10": "NDCG@10", "hr@100": "HR@100", TRUE_REWARD: "Truth"}
_WIDE = {"hr@1": "HR@1", "hr@5": "HR@5", "hr@10": "HR@10", "ndcg@5": "NDCG@5", "ndcg@10": "NDCG@10", VALID: "Valid"}
_LABEL = 12  # cells that a label keeps, however narrow the terminal is
_UNLIMITED = 10_000


def _table(headers: Sequence[str], left: Sequence[str], gap: int = 2) -> Table:
    """No lines; numbers stand right, the columns in `left` left."""
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="underline")
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if header in left else "right", no_wrap=number > 0)
    return table


def _label(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _print(console: Console, table: Table) -> None:
    """Whole; only the labels of the first column are cut, to `_LABEL` at least, and only where the table then fits."""
    full = console.measure(table, options=console.options.update_width(_UNLIMITED)).maximum
    longest = max(cell_len(str(cell)) for cell in table.columns[0].cells)
    fits = full - max(longest - _LABEL, 0) <= console.width
    table.width = min(full, console.width) if fits else full
    console.print(table, crop=False)


def print_comparison(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Per slates: every method by falling HR@1 with the paper's columns, cost, and its test against the baseline."""
    console = console or Console(highlight=False)
    results = _with_marks(results)
    labels = {row["method"]: row["label"] for row in results["summary"]}
    for slates, checkpoint in sorted({(row["slates"], row["checkpoint"]) for row in results["summary"]}):
        summary, rows, tests = (
            [row for row in results[part] if (row["slates"], row["checkpoint"]) == (slates, checkpoint)]
            for part in ("summary", "rows", "paired")
        )
        title = f"{slates}, {checkpoint} epoch, {summary[0]['n']:,} rows{_ceiling(summary[0])}"
        against = labels.get(results["baseline"], results["baseline"])
        console.print(Text(f"\n{title}; tests: HR@1 against {against}, p by Holm\n"), soft_wrap=True)
        verdicts = {test["method"]: test for test in tests if test["against"] == results["baseline"]}
        _print(console, _comparison(summary, rows, verdicts))
    _print_legend(console, results, "dim: trivial baselines")


def _with_marks(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The results with labels as the report's tables write them."""
    labels = marked_labels(results)
    return {**results, "summary": [{**row, "label": labels[row["method"]]} for row in results["summary"]]}


def _print_legend(console: Console, results: Mapping[str, Any], words: str) -> None:
    """What marks and shades mean, and how many rows each method learned from where these differ."""
    if any(NO_MODEL in row["label"] for row in results["summary"]):
        words += f"; {NO_MODEL} no language model"
    console.print(f"\n{words}", markup=False)
    for note in results.get("notes", ()):
        if note.startswith(UNTESTED):
            console.print(note, markup=False)
    seen: dict[int, list[str]] = {}
    for method, label in {row["method"]: row["label"] for row in results["summary"]}.items():
        rows = results["methods"][method].get("train_rows")
        if rows is not None:
            seen.setdefault(rows, []).append(label)
    if len(seen) > 1:
        for rows, labels in seen.items():
            console.print(f"learned from {rows:,} train rows: {', '.join(labels)}", markup=False)


def print_answer(
    results: Mapping[str, Any], diagnostics: Mapping[str, Any] | None, console: Console | None = None
) -> None:
    """What the top of the report says: the best method, the anchor, reward hacking."""
    console = console or Console(highlight=False)
    console.print()
    for sentence in answer(results, diagnostics):
        console.print(Text(sentence))
    console.print()


def _comparison(summary: Sequence[Row], rows: Sequence[Row], tests: Mapping[str, Row]) -> Table:
    left = ("method", "95 % HR@1", "against")
    table = _table(["method", *_WIDE.values(), "95 % HR@1", "seconds", "trained", "against"], left)
    for row in sorted(summary, key=lambda r: -r["hr@1"]):
        of_method = [r for r in rows if r["method"] == row["method"]]
        seconds = [r["training_seconds"] for r in of_method if r.get("training_seconds")]
        trained = {r["trainable_parameters"] for r in of_method} - {None}
        test = tests.get(row["method"])
        cells = [
            *(f"{row[key]:.3f}" if row.get(key) is not None else "–" for key in _WIDE),
            _interval(row["hr@1_low"], row["hr@1_high"]),
            f"{sum(seconds) / len(seconds):.0f}" if seconds else "",
            _short(max(trained)) if trained else "",
            f"{test['difference']:+.3f} {decision(test)}" if test else "",
        ]
        table.add_row(_label(row["label"]), *map(Text, cells), style="dim" if row["role"] == TRIVIAL else None)
    return table


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def _short(number: int) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:  # what rounds to 1000 of the smaller unit is 1 of this one
            return f"{number / size:.3g}{unit}"
    return str(number)


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Per slate set and checkpoint: methods by falling HR@1 with its interval, then +SIRIUS against each base."""
    console = console or Console(highlight=False)
    results = _with_marks(results)
    for slates, checkpoint in sorted({(row["slates"], row["checkpoint"]) for row in results["summary"]}):
        rows, tests = (
            [row for row in results[part] if (row["slates"], row["checkpoint"]) == (slates, checkpoint)]
            for part in ("summary", "paired")
        )
        _print_part(console, slates, checkpoint, rows, tests)
    _print_legend(console, results, "* best; [95 % interval]; dim: trivial baselines")


def _print_part(console: Console, slates: str, checkpoint: str, rows: Sequence[Row], tests: Sequence[Row]) -> None:
    title = f"\n{slates}, {checkpoint} epoch, {rows[0]['n']:,} rows, {_seeds(rows)}"
    console.print(f"{title}{_ceiling(rows[0])}\n", markup=False, soft_wrap=True)
    _print(console, _summary(rows))
    labels = {row["method"]: row["label"] for row in rows}
    pairs = [test for test in tests if test["against_base"]]
    if not pairs:
        return
    console.print("\nWith the anchor against without, HR@1 on the same rows (paired test, p by Holm)")
    table = _table(["which", "difference", "95 %", "p", "decision"], ("which", "95 %", "p", "decision"))
    table.show_header = False
    for test, name in zip(pairs, pair_names(pairs, labels), strict=True):
        p = "p < 0.001" if test["p_holm"] < 0.001 else f"p = {test['p_holm']:.3f}"
        interval = _interval(test["low"], test["high"], "+")
        cells = (f"{test['difference']:+.3f}", interval, p, decision(test))
        table.add_row(_label(name), *map(Text, cells))
    _print(console, table)


def _seeds(rows: Sequence[Row]) -> str:
    """How many seeds there are of what is trained: `3 seeds`, `1 to 3 seeds`."""
    counts = sorted({len(row["seeds"]) for row in rows if row["role"] != TRIVIAL}) or [0]
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{span} seed{'' if counts == [1] else 's'}"


def _ceiling(row: Row) -> str:
    """How far a metric can rise where retrieved candidates may lack the target."""
    return "" if row.get("ceiling") is None else f"; target among the candidates: {row['ceiling']:.3f}"


def _summary(rows: Sequence[Row]) -> Table:
    """Methods by falling HR@1; a column that no method has is left out."""
    protocol = SlateName.parse(rows[0]["slates"]).protocol
    columns = _LISTS if protocol == "full" or protocol.startswith(RETRIEVED) else _COLUMNS
    shown = [key for key in columns if any(row.get(key) is not None for row in rows)]
    values = {key: [row[key] for row in rows if row.get(key) is not None] for key in shown}
    # Where all are equal none is best.
    best = {key: max(values[key]) if len(set(values[key])) > 1 else None for key in shown}
    headers = ["method", "HR@1", "95 %", *(columns[key] for key in shown[1:])]
    table = _table(headers, headers, gap=1)
    for row in sorted(rows, key=lambda row: (-row["hr@1"], row["label"])):
        cells = [_number(row.get(key), best[key], values[key]) for key in shown]
        cells.insert(1, Text(_interval(row.get("hr@1_low"), row.get("hr@1_high"))))
        table.add_row(_label(row["label"]), *cells, style="dim" if row["role"] == TRIVIAL else None)
    return table


def _number(value: float | None, best: float | None, column: Sequence[float]) -> Text:
    if value is None:
        return Text("")
    number = f"{value:.3f}".rjust(max(len(f"{other:.3f}") for other in column))
    return Text(f"{number}*", style="bold") if value == best else Text(number)


def print_diagnostics(diagnostics: Mapping[str, Any], console: Console | None = None) -> None:
    """One block per method: the onset test, and what moved between the first epoch and the last."""
    from sirius_rec.diagnostics.curves import HEADER, lines
    from sirius_rec.diagnostics.wording import golden_line, influence_line, verdict

    more = (("golden_fit", golden_line), ("influence", influence_line))
    console = console or Console(highlight=False)
    names = HEADER[1:]
    for method, line in zip(diagnostics["methods"], lines(diagnostics), strict=True):
        entry = dict(zip(HEADER, line, strict=True))
        console.print(Text(f"\n{entry['method']}: {verdict(diagnostics, method)}", style="bold"))
        facts = {name: str(entry[name]) for name in names}
        for key, in_words in more:
            if method in diagnostics.get(key, {}):
                facts[key.replace("_", " ")] = in_words(diagnostics[key][method])
        block = Table.grid(padding=(0, 2, 0, 0))
        block.add_column(no_wrap=True, min_width=max(map(len, names)))
        for name, value in facts.items():
            block.add_row(name, Text(value))
        console.print(Padding(block, (0, 0, 0, 2)))


def print_theory(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Areas beside Monte Carlo and the paper's print, Example 1, and the errata."""
    console = console or Console(highlight=False)
    console.print(f"\nArea of the insensitive region, {content['model']}, share of the unit square\n")
    table = _table(["ε", "square", "area", "Monte Carlo", "printed"], ("square",))
    for row in content["areas"]:
        cells = [
            f"{row['epsilon']:g}", f"({row['coordinates'].replace(',', ', ')})", f"{row['area']:.4f}",
            f"{row['monte_carlo']:.4f} ± {row['stderr']:.4f}",
            f"{row['printed']:.3f}" if row["printed"] is not None else "",
        ]  # fmt: skip
        table.add_row(*map(Text, cells))
    _print(console, table)
    console.print("\nExample 1 (printed: p_ik 0.04, derivative 0.19)\n")
    for row in content["example1"]:
        rewards = ", ".join(f"{r:g}" for r in row["rewards"])
        console.print(
            f"({rewards}): p_ij {row['p_ij']:.3f}, p_ik {row['p_ik']:.3f}, derivative {row['sensitivity']:.3f}"
        )
    console.print("\nWhat does not hold as the paper prints it (Bradley–Terry; docs/theory.md explains each)\n")
    for item in content["errata"]:
        console.print(Text(item["where"], style="bold"))
        block = Table.grid(padding=(0, 1, 0, 0))
        block.add_column(justify="right", no_wrap=True, min_width=7)
        for part in ("says", "holds", "check"):
            block.add_row(f"{part}:", Text(item[part]))
        console.print(block)
        console.print()


def print_tuning(content: Mapping[str, Any], console: Console | None = None) -> None:
    """Every arm and method by falling test HR@1: what was chosen, and validation beside fresh seeds and test."""
    console = console or Console(highlight=False)
    methods = sorted(content["methods"].values(), key=lambda m: -m["test_hr@1"])
    title = f"{content['trials']} trials each by {content['metric']} on validation, {len(content['seeds'])} fresh seeds"
    console.print(f"\n{title}; test: {methods[0]['slates']}\n", markup=False, soft_wrap=True)
    names = ["method", "chosen", "configured", "fresh seeds", "test HR@1", "95 %", "values"]
    table = _table(names, ("method", "95 %", "values"))
    for method in methods:
        values = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in method["values"].items())
        values = values or "as configured"
        numbers = (method["validation"], method["configured"], method["fresh_validation"], method["test_hr@1"])
        cells = ["–" if number is None else f"{number:.3f}" for number in numbers]
        cells += [_interval(method["test_hr@1_low"], method["test_hr@1_high"]), values]
        table.add_row(_label(method["label"]), *map(Text, cells))
    _print(console, table)
    lost = {name: sum(method[name] for method in methods) for name in ("pruned", "failed")}
    console.print(
        f"\nchosen, configured: {content['metric']} of the best trial and of the configuration's own values, one seed, "
        "on validation; fresh seeds: the winner's, their mean; "
        f"trials pruned {lost['pruned']}, failed {lost['failed']}", markup=False, soft_wrap=True,
    )  # fmt: skip


def print_dry_run(content: Mapping[str, Any], console: Console | None = None) -> None:
    """What a run would take: data, model, one row per stage, memory and hours."""
    console = console or Console(highlight=False)
    data, model, device = content["data"], content["model"], content["device"]
    rows = ", ".join(f"{n:,} {split}" for split, n in data["rows"].items())
    sizes = f"{_short(model['parameters'])} parameters, {_short(model['trained'])} trained"
    for line in (
        "",
        f"data: {data['source']}, {data['items']:,} items, rows {rows}",
        f"model: {model['name']}, {sizes}",
        f"longest prompt with a candidate: {content['longest']} tokens, context {model['context']}; the first prompt:",
    ):
        console.print(line, markup=False, soft_wrap=True)
    console.print(Padding(Text(content["prompt"].rstrip()), (0, 0, 1, 2)))
    table = _table(["stage", "examples", "steps", "tokens", "shared", "separate", "time"], ("stage",))
    for stage in content["stages"]:
        tokens = stage["tokens_tree"]
        steps = f"{stage['steps']:,}" if stage["trains"] else ""
        times = [f"{stage[f'tokens_{how}'] / tokens:.2f}×" for how in ("shared", "separate")]
        took = duration(3600 * stage["hours"])
        cells = (f"{stage['examples'] * stage['epochs']:,}", steps, _short(tokens), *times, took)
        table.add_row(_label(stage["name"]), *map(Text, cells))
    _print(console, table)
    seeds = "1 seed" if content["seeds"] == 1 else f"{content['seeds']} seeds"
    needs = "" if content["memory_gib"] is None else (
        f"; a step takes about {content['memory_gib']:.0f} of {device['memory_gib']} GiB"
    )  # fmt: skip
    for line in (
        "",
        "tokens: as trees; shared, separate: times as many with one prompt per example, and with one per candidate",
        f"{duration(3600 * content['hours'])} for {seeds} on one {device['name']} (--on names another), at an assumed "
        f"{device['utilisation']:.0%} of {device['peak_tflops']} TFLOP/s, or 10 µs for each kernel where that is more"
        f"{needs}; not counted: {', '.join(content['not_counted'])}",
    ):
        console.print(line, markup=False, soft_wrap=True)


def print_probe(what: str, content: Mapping[str, Any], console: Console | None = None) -> None:
    """A probe in a few lines."""
    console = console or Console(highlight=False)

    def said(value: Mapping[str, float], sign: str = "") -> str:
        return f"{value['mean']:{sign}.3f} {_interval(value['low'], value['high'], sign)}"

    if what == "order":
        hits = content["hr@1"]
        lines = [
            f"{content['method']}, seed {content['seed']}, on {content['slates']}: {content['rows']} rows in "
            f"{content['orders']} orders each",
            f"the answer differs between two orders in {said(content['changed'])} of the rows",
            f"HR@1 by order: {', '.join(format(one['mean'], '.3f') for one in hits)}",
            f"HR@1 of log-probs averaged over the orders: {said(content['hr@1_averaged'])}, "
            f"{said(content['averaged_less_single'], '+')} against one order",
            f"the best stands first in {content['first']:.3f}, last in {content['last']:.3f} of the slates; anywhere "
            f"alike: p = {content['uniform_p']:.3g}",
        ]
    else:
        lines = [
            f"{content['backbone']}, before training; 0.5 is chance",
            f"the rest of a title is likelier behind its own beginning than another's rest: {said(content['titles'])} "
            f"of {content['titles']['n']} titles",
            f"a target is likelier behind its history in order than shuffled: {said(content['order'])} of "
            f"{content['order']['n']} rows, by {said(content['nats_in_order'], '+')} nats",
        ]
    for line in ("", *lines):
        console.print(line, markup=False, soft_wrap=True)
