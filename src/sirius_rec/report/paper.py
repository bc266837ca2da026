"""The paper's tables from our runs: ours beside the paper's values, with protocol, backbone, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.results import FORMAT
from sirius_rec.report import paper_values as paper
from sirius_rec.report.formats import Table
from sirius_rec.report.text import slates_in_words
from sirius_rec.schema import SlateName

Results = Mapping[str, Any]

# The paper's row → what it is here: a loss of an arm, or a method.
ROWS: Final = {
    "GRU4Rec": "gru4rec", "Caser": "caser", "SASRec": "sasrec", "Llama2": "zero_shot", "ChatRec": "chatrec",
    "MoRec": "morec", "TALLRec": "tallrec_listwise", "LLaRA": "llara", "DPO": "dpo", "SimPO": "simpo",
    "SimPO w/o LN": "simpo_no_ln", "S-DPO": "softmax_dpo", "DPO + SIRIUS": "dpo_sirius",
    "SimPO w/o LN + SIRIUS": "simpo_no_ln_sirius",
}  # fmt: skip
_METRICS: Final = {"HR@1": "hr@1", "HR@5": "hr@5", "NDCG@5": "ndcg@5", "HR@10": "hr@10", "NDCG@10": "ndcg@10"}
_NONE: Final = "–"
_DASHES: Final = "Missing: what has a dash (runs on lastfm, goodreads and steam)."


def paper_table(number: int, runs: Sequence[Results]) -> Table:
    """Table 1 to 6 from the results of one run or several, the first that has a row for a data set.

    ConfigError for a number that the paper does not have, or where no run has anything of it.
    """
    if number not in _TABLES:
        raise ConfigError(f"--table {number}: the paper has tables {', '.join(map(str, _TABLES))}")
    table = _TABLES[number](runs)
    if not any(cell != _NONE for row in table.rows for cell in row[1::2]):
        have = ", ".join(sorted({str(run["data"].get("source")) for run in runs}))
        raise ConfigError(
            f"--table {number}: nothing of it in these runs (data: {have}; NAME=RUN says what they stand for). "
            f"{table.notes[-1]}"
        )
    return table


def find(results: Results, name: str) -> str | None:
    """The key of the method of that loss or name: the plain one, else with the paper's settings, else the first."""
    config = results["config"]
    arms = [arm["name"] or arm["loss"] for arm in config.get("arms", ()) if arm["loss"] == name]
    methods = [
        entry["name"] or (name if entry["preset"] == "tuned" else f"{name}_{entry['preset']}")
        for entry in sorted(config.get("methods", ()), key=lambda e: e["preset"] != "paper")
        if entry["method"] == name
    ]
    here = {row["method"] for row in results["summary"]}
    scored = [key for key in (*arms, *methods) if key in here]
    return next((key for key in scored if key == name and key in arms), scored[0] if scored else None)


def _row(results: Results, key: str | None, size: int) -> Mapping[str, Any] | None:
    """The summary row of a method on the test slates of that size with uniform negatives, best checkpoint."""
    return next((row for row in _rows(results, size) if row["method"] == key), None)


def _rows(results: Results, size: int) -> list[dict[str, Any]]:
    """Of the best checkpoints the rows on the first such slates. Slates that leak are no equal of the paper's."""
    rows = [dict(row) for row in results["summary"] if row["checkpoint"] == "best"]
    if not _has_intervals(results):
        rows = [{key: None if key.endswith(("_low", "_high")) else row[key] for key in row} for row in rows]
    names = {row["slates"]: SlateName.parse(row["slates"]) for row in rows}
    wanted = ("test", "uniform", size, False)
    first = next((name for name, n in names.items() if (n.split, n.protocol, n.size, n.leaky) == wanted), None)
    return [row for row in rows if row["slates"] == first]


def _has_intervals(results: Results) -> bool:
    """Whether its intervals hold for several seeds; those of earlier formats were bootstraps, too narrow over few."""
    return bool(results.get("format") == FORMAT)


def _cell(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None or row.get(metric) is None:
        return _NONE
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return f"{row[metric]:.4f}" if low is None else f"{row[metric]:.4f} [{low:.3f}, {high:.3f}]"


def _of(runs: Sequence[Results], dataset: str) -> list[Results]:
    return [run for run in runs if run["data"].get("source") == dataset]


def _whose(run: Results) -> str:
    """What stands for one of the paper's data sets, and where it was read."""
    source, read_by = run["data"].get("source"), run["data"].get("read_by")
    return str(source) if read_by in (None, source) else f"{source} (named so; data.source {read_by})"


def _first(runs: Sequence[Results], dataset: str, name: str, size: int) -> Mapping[str, Any] | None:
    found = (_row(run, find(run, name), size) for run in _of(runs, dataset))
    return next((row for row in found if row is not None), None)


def _about(runs: Sequence[Results], size: int, needs: str) -> list[str]:
    """Whose numbers stand where; what it would need to be complete comes last."""
    notes = [
        f"Paper: {paper.BACKBONE}, slates of {size} of its own; its test sets are smaller (602 rows of Goodreads)."
    ]
    for run in runs:
        rows = _rows(run, size)
        if not rows:
            continue
        row, backbone, seeds = rows[0], run["config"]["backbone"]["name"], max(len(r["seeds"]) for r in rows)
        words = f"backbone {backbone}, {slates_in_words(row['slates'])}, {row['n']:,} rows"
        many = f"{seeds} seeds" if seeds > 1 else "one seed"
        intervals = "95 % intervals" if _has_intervals(run) else "no intervals: the file's are too narrow over seeds"
        notes.append(f"Ours, {_whose(run)}: {words}, {many}; {intervals}.")
    keys = {(key, name) for run in runs for name in ROWS.values() if (key := find(run, name)) not in (None, name)}
    if keys:
        notes.append(f"Ours are {', '.join(sorted(f'{key} for {name}' for key, name in keys))}.")
    return [*dict.fromkeys(notes), f"Missing: {needs}."]


def _missing(runs: Sequence[Results], rows: Sequence[str], size: int) -> str:
    lacking = [row for row in rows if not any(_first(runs, d, ROWS[row], size) for d in paper.DATASETS)]
    if not lacking:
        return "no row"
    return f"arms or methods {', '.join(ROWS[row] for row in lacking)} on slates of {size} (lastfm, goodreads, steam)"


def _table_1(runs: Sequence[Results]) -> Table:
    headings = ["Model"]
    for name in paper.DATASETS.values():
        headings += [f"{name} HR@1, ours", "paper", f"{name} ValidRatio, ours", "paper"]
    rows = []
    for label, printed in paper.TABLE_1.items():
        cells = [label]
        for dataset in paper.DATASETS:
            row = _first(runs, dataset, ROWS[label], 20)
            hit, valid = printed[dataset]
            cells += [_cell(row, "hr@1"), f"{hit:.4f}", _cell(row, "valid_ratio"), f"{valid:.4f}"]
        rows.append(cells)
    notes = _about(runs, 20, _missing(runs, list(paper.TABLE_1), 20))
    return Table("Table 1: HitRatio@1 and ValidRatio, 20 candidates", headings, rows, notes)


def _table_2(runs: Sequence[Results]) -> Table:
    keys = {"Sequences": "n_sequences", "Items": "n_items", "Interactions": "n_interactions"}
    headings = ["Data set", *(cell for key in keys for cell in (f"{key}, ours", "paper"))]
    rows = []
    for dataset, name in paper.DATASETS.items():
        statistics: dict[str, int] = next((run["data"]["statistics"] for run in _of(runs, dataset)), {})
        cells = [name]
        for key, printed in zip(keys.values(), paper.TABLE_2[dataset], strict=True):
            cells += [f"{statistics[key]:,}" if statistics.get(key) is not None else _NONE, f"{printed:,}"]
        rows.append(cells)
    return Table(
        "Table 2: Statistics of the data sets",
        headings,
        rows,
        [*(f"Ours, {_whose(run)}." for run in runs if run["data"].get("read_by")), _DASHES],
    )


def _table_3(runs: Sequence[Results]) -> Table:
    headings = ["Method", *(cell for n in paper.DATASETS.values() for cell in (f"{n}, ours", "paper"))]
    rows = []
    for label, printed in paper.TABLE_3.items():
        for at, (heading, metric) in enumerate(_METRICS.items()):
            cells = [f"{label} {heading}"]
            for dataset in paper.DATASETS:
                cells += [_cell(_first(runs, dataset, ROWS[label], 20), metric), f"{printed[dataset][at]:.4f}"]
            rows.append(cells)
    notes = _about(runs, 20, _missing(runs, list(paper.TABLE_3), 20))
    return Table("Table 3: HR@K and NDCG@K, 20 candidates", headings, rows, notes)


def _on_lastfm(title: str, printed: Mapping[str, Sequence[float]], size: int) -> Callable[[Sequence[Results]], Table]:
    def table(runs: Sequence[Results]) -> Table:
        headings = ["Method", *(cell for heading in _METRICS for cell in (f"{heading}, ours", "paper"))]
        rows = []
        for label, values in printed.items():
            row = _first(runs, "lastfm", ROWS[label], size)
            cells = [label]
            for metric, value in zip(_METRICS.values(), values, strict=True):
                cells += [_cell(row, metric), f"{value:.4f}"]
            rows.append(cells)
        lacking = [ROWS[label] for label in printed if _first(runs, "lastfm", ROWS[label], size) is None]
        needs = f"arms or methods {', '.join(lacking)} on lastfm, slates of {size}" if lacking else "no row"
        return Table(title, headings, rows, _about(_of(runs, "lastfm"), size, needs))

    return table


def _table_6(runs: Sequence[Results]) -> Table:
    headings = ["Data set, anchor", *(cell for epoch in range(6) for cell in (f"epoch {epoch}, ours", "paper"))]
    rows = []
    for dataset, anchors in paper.TABLE_6.items():
        for constant, printed in anchors.items():
            points = next(filter(None, (_curve(run, constant) for run in _of(runs, dataset))), {})
            cells = [f"{paper.DATASETS[dataset]}, r_0 = {constant:g}"]
            for epoch, value in enumerate(printed):
                ours = points.get(epoch)
                cells += [_NONE if ours is None else f"{ours:.4f}", f"{value:.4f}"]
            rows.append(cells)
    notes = [
        f"Paper: {paper.BACKBONE}. Ours: HR@1 on validation slates after each epoch, mean of seeds.",
        "Missing: what has a dash (arms {loss: simpo_no_ln_sirius, anchor_constant: 0, 1, 10} on each data set).",
    ]
    return Table("Table 6: the anchor of SimPO w/o LN + SIRIUS by epoch", headings, rows, notes)


def _curve(run: Results, constant: float) -> dict[int, float]:
    """Epoch → HR@1 of the arm with that anchor, averaged over seeds."""
    for arm in run["config"].get("arms", ()):
        key = arm["name"] or arm["loss"]
        if arm["loss"] != "simpo_no_ln_sirius" or (arm["anchor_constant"] or 0.0) != constant:
            continue
        by_epoch: dict[int, list[float]] = {}
        for points in (run.get("curves") or {}).get(key, {}).values():
            for point in points:
                if float(point["epoch"]).is_integer():
                    by_epoch.setdefault(int(point["epoch"]), []).append(point["hr@1"])
        if by_epoch:
            return {epoch: sum(values) / len(values) for epoch, values in by_epoch.items()}
    return {}


_TABLES: Final[dict[int, Callable[[Sequence[Results]], Table]]] = {
    1: _table_1,
    2: _table_2,
    3: _table_3,
    4: _on_lastfm(
        "Table 4: another backbone (the paper: Llama-3-8B-Instruct), LastFM, 20 candidates", paper.TABLE_4, 20
    ),
    5: _on_lastfm("Table 5: LastFM, 100 candidates", paper.TABLE_5, 100),
    6: _table_6,
}
