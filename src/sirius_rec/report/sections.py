"""The page's tables as plain values: result tables, paired tests, evidence, audit. What is shown is decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sirius_rec.diagnostics import curves as evidence
from sirius_rec.diagnostics.wording import golden_line, influence_line, onset_found, verdict
from sirius_rec.evaluation.generated import GENERATED, VALID
from sirius_rec.evaluation.metrics import metrics_of
from sirius_rec.evaluation.results import TRIVIAL, TRUE_REWARD, Facts, decision
from sirius_rec.report.answer import DECISIONS, anchor_sentence, best_sentence, result_keys, rows_of, tests_of
from sirius_rec.report.evidence_plots import PAPER_SHARE, shares
from sirius_rec.report.reported_run import ReportedRun
from sirius_rec.report.text import NO_MODEL, count, flat, has_model, interval, minus, number, p_value, slates_in_words

_HEADINGS: Final = {TRUE_REWARD: "True reward", VALID: "Valid ratio", GENERATED: "HR@1 generated", "mrr": "MRR"}
_VERDICTS: Final = {"leak": "leak", "caution": "caution", "clean": "clean"}


def _metric_rows(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], methods: Facts) -> list[dict[str, Any]]:
    values = {metric: [row[metric] for row in rows if row[metric] is not None] for metric in metrics}
    # Where all are equal none is best: a valid ratio of 0 everywhere is nothing to be proud of.
    best = {metric: max(found) if len(set(found)) > 1 else None for metric, found in values.items()}
    seen = {row["method"]: methods[row["method"]].get("train_rows") for row in rows}
    shown = []
    for row in sorted(rows, key=lambda row: -row["hr@1"]):
        cells = [
            {
                "text": number(row[metric]),
                "value": row[metric] if row[metric] is not None else -1,
                "interval": interval(row, f"{metric}_low", f"{metric}_high"),
                "best": row[metric] is not None and row[metric] == best[metric],
            }
            for metric in metrics
        ]
        sd = row["hr@1_seed_sd"]
        shown.append({
            "label": row["label"], "method": row["method"], "trivial": row["role"] == TRIVIAL, "cells": cells,
            "sd": number(sd, 4), "sd_value": -1 if sd is None else sd,
            "seen": "–" if seen[row["method"]] is None else f"{seen[row['method']]:,}",
            "seen_value": seen[row["method"]] or -1,
        })  # fmt: skip
    return shown


def _test_rows(tests: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    rows = []
    for test in tests:
        word = decision(test)
        rows.append({
            "method": labels.get(test["method"], test["method"]),
            "against": labels.get(test["against"], test["against"]),
            "difference": number(test["difference"], signed=True), "value": test["difference"],
            "interval": interval(test, "low", "high", signed=True), "p": p_value(test["p"]), "p_value": test["p"],
            "p_holm": p_value(test["p_holm"]), "p_holm_value": test["p_holm"], "word": word,
            "decided": word in ("better", "worse"),
        })  # fmt: skip
    return rows


def _in_short(
    run: ReportedRun, rows: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]], answered: bool
) -> list[str]:
    """Sentences about one slate set; only what the tables below say. answered: the top of the page has the first."""
    trained, trivial = ([row for row in rows if (row["role"] == TRIVIAL) is is_trivial] for is_trivial in (False, True))
    labels, baseline = {row["method"]: row["label"] for row in rows}, run.results.get("baseline")
    lines = [] if answered else [best_sentence(rows, tests, run.methods)]
    if not answered and any(test["against_base"] for test in tests):
        lines.append(anchor_sentence(tests, labels))
    if trained and trivial:
        strongest = max(trivial, key=lambda row: row["hr@1"])
        below = [row["label"] for row in trained if row["hr@1"] <= strongest["hr@1"]]
        text = f"Highest trivial baseline: {strongest['label']}, {number(strongest['hr@1'])}"
        if not below:
            lines.append(f"{text}; every trained method’s value is higher.")
        elif len(below) == len(trained):
            lines.append(f"{text}; no trained method’s value is higher.")
        else:
            lines.append(f"{text}; trained methods whose value is not higher: {', '.join(below)}.")
    words = [decision(test) for test in tests if test["against"] == baseline]
    if words:
        tally = ", ".join(f"{words.count(word)} {word}" for word in DECISIONS if word in words)
        against = labels.get(baseline or "", baseline)
        lines.append(f"Paired tests against {against}, {count(len(words), 'method')}: {tally}.")
    return lines


def result_sections(run: ReportedRun) -> list[dict[str, Any]]:
    """One section per slate set and checkpoint: tables, tests, and what they say in short."""
    results, labels = run.results, run.marked
    sections: list[dict[str, Any]] = []
    for slates, checkpoint in result_keys(results):
        here = [{**row, "label": labels[row["method"]]} for row in rows_of(results, slates, checkpoint)]
        tests = tests_of(results, slates, checkpoint)
        ranking = list(metrics_of(slates))
        other = [m for m in (TRUE_REWARD, VALID, GENERATED) if any(row[m] is not None for row in here)]
        sections.append({
            "slates": slates, "checkpoint": checkpoint, "words": slates_in_words(slates), "n": f"{here[0]['n']:,}",
            "chance": number(here[0]["chance"]),
            "ceiling": None if here[0].get("ceiling") is None else number(here[0]["ceiling"]),
            "short": _in_short(run, here, tests, answered=not sections),
            "seen": len({run.methods[row["method"]].get("train_rows") for row in here} - {None}) > 1,
            "tables": [
                {"headings": [_HEADINGS.get(metric, metric.upper()) for metric in part],
                 "rows": _metric_rows(here, part, run.methods), "ranking": part is ranking}
                for part in (ranking, other) if part
            ],
            "valid_note": _valid_note(here), "tests": _test_rows(tests, labels), "rows": here,
            "marks": any(NO_MODEL in row["label"] for row in here), "models": any(map(has_model, run.methods.values())),
        })  # fmt: skip
    return sections


def _valid_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a low valid ratio means for the ranking metrics: nothing."""
    ratios = [row[VALID] for row in rows if row[VALID] is not None]
    if not ratios or min(ratios) >= 0.5:
        return ""
    if max(ratios) == 0:
        text = "A valid ratio of 0 means that no greedy answer was exactly one candidate’s title"
    else:
        text = "A low valid ratio means that few greedy answers were exactly one candidate’s title"
    return (
        f"{text}: the model has not learned to write titles freely. That does not touch the ranking metrics above, for "
        "which every candidate is scored by its log-probability and nothing is written."
    )


def side_by_side(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """HR@1 and NDCG@10 of every method in every run, one table per slates and checkpoint that all runs share."""
    shared = set.intersection(*(set(result_keys(run.results)) for run in runs))
    keys = [key for key in result_keys(runs[0].results) if key in shared]
    tables = []
    for slates, checkpoint in keys:
        by_run = [{row["method"]: row for row in rows_of(run.results, slates, checkpoint)} for run in runs]
        labels = {method: run.marked[method] for run, rows in zip(runs, by_run, strict=True) for method in rows}
        roles = {method: row["role"] for rows in reversed(by_run) for method, row in rows.items()}
        order = sorted(labels, key=lambda m: -max(rows[m]["hr@1"] for rows in by_run if m in rows))
        tables.append({
            "slates": slates, "checkpoint": checkpoint, "words": slates_in_words(slates),
            "rows": [
                {"label": labels[method], "trivial": roles[method] == TRIVIAL,
                 "cells": [_side_cell(rows.get(method), metric) for metric in ("hr@1", "ndcg@10") for rows in by_run]}
                for method in order
            ],
        })  # fmt: skip
    return tables


def _side_cell(row: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    if row is None or row[metric] is None:
        return {"text": "–", "value": -1, "interval": ""}
    return {"text": number(row[metric]), "value": row[metric],
            "interval": interval(row, f"{metric}_low", f"{metric}_high")}  # fmt: skip


def evidence_rows(diagnostics: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row per method: the onset test, and what moved between the first epoch and the last."""
    if not diagnostics:
        return []
    found = {method for method, onset in onset_found(diagnostics).items() if onset["step"] is not None}
    return [
        {"label": line[0], "cells": [minus(cell) for cell in line[1:]], "verdict": minus(verdict(diagnostics, method)),
         "found": method in found}
        for method, line in zip(diagnostics["methods"], evidence.lines(diagnostics), strict=True)
    ]  # fmt: skip


def fit_rows(diagnostics: Mapping[str, Any] | None, labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """(method, golden-reward fit in words)."""
    fits = (diagnostics or {}).get("golden_fit") or {}
    return [(labels.get(method, method), minus(golden_line(fit))) for method, fit in fits.items()]


def influence_rows(diagnostics: Mapping[str, Any] | None, labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """(method, the influence probe in words)."""
    probed = (diagnostics or {}).get("influence") or {}
    return [(labels.get(method, method), minus(influence_line(entry))) for method, entry in probed.items()]


def influence_sentence(diagnostics: Mapping[str, Any] | None, labels: Mapping[str, str]) -> str | None:
    """The probe of all methods in one sentence with its numbers."""
    probed = (diagnostics or {}).get("influence") or {}
    spans = [
        f"{span} where p_ij is {which} than p_ik"
        for side, which in (("unsaturated", "steeper"), ("saturated", "flatter"))
        if (span := _slopes(probed, side, labels))
    ]
    if not spans:
        return None
    examples = max(entry["examples"] for entry in probed.values())
    return (
        f"A real gradient step on a sampled pair (i, j) moved p_ik by {', and '.join(spans)}, of what Eq. 10 predicts, "
        f"on {count(examples, 'held-out slate')}."
    )


def _slopes(probed: Mapping[str, Any], side: str, labels: Mapping[str, str]) -> str | None:
    """The smallest and the largest slope on one side, with their methods."""
    sides = {method: entry[side] for method, entry in probed.items()}
    slopes = sorted((part["slope"], method) for method, part in sides.items() if part["slope"] is not None)
    if not slopes:
        return None
    (low, least), (high, most) = slopes[0], slopes[-1]
    span = f"{number(low, 2)} ({labels.get(least, least)})"
    return span if len(slopes) == 1 else f"{span} to {number(high, 2)} ({labels.get(most, most)})"


def share_rows(run: ReportedRun) -> list[dict[str, Any]]:
    """Share inside Ω_ε per method, ε by ε."""
    found = shares(run.results.get("curves") or {}, run.methods)
    epsilons = sorted({row["epsilon"] for row in found})
    by = {(row["method"], row["epsilon"]): row for row in found}
    methods = sorted({row["method"] for row in found}, key=lambda m: run.labels.get(m, m))
    rows = []
    for method in methods:
        cells = []
        for epsilon in epsilons:
            row = by.get((method, epsilon))
            spread = "" if row is None or len(row["seeds"]) < 2 else f"[{number(row['low'])}, {number(row['high'])}]"
            cells.append({"text": number(row["mean"] if row else None), "value": row["mean"] if row else -1,
                          "interval": spread, "epsilon": epsilon})  # fmt: skip
        rows.append({"label": run.labels.get(method, method), "cells": cells})
    return rows


def share_sentence(run: ReportedRun) -> str | None:
    """The insensitive share at ε = 0.1 beside the paper's."""
    found = [row for row in shares(run.results.get("curves") or {}, run.methods) if row["epsilon"] == 0.1]
    if not found:
        return None
    ends = sorted((row["mean"], run.labels.get(row["method"], row["method"])) for row in found)
    (low, least), (high, most) = ends[0], ends[-1]
    share = f"{_percent(low)} ({least})" + (f" to {_percent(high)} ({most})" if len(ends) > 1 else "")
    return (
        f"Inside the 0.1-insensitive region after the last epoch: {share} of the triples; the paper reports more than "
        f"{PAPER_SHARE * 100:.0f} % on each of its three data sets."
    )


def audit_facts(run: ReportedRun) -> dict[str, Any] | None:
    """The audit as the page shows it; None where the data were not audited."""
    audit = run.audit
    if audit is None:
        return None
    rows = [
        {
            "name": one["name"].replace("_", " "), "kind": one["kind"], "verdict": one["verdict"],
            "text": number(one["hr1"]), "value": -1 if one["hr1"] is None else one["hr1"], "why": one["why"],
            "interval": interval(one, "ci_low", "ci_high"), "control": number(one.get("control")),
        }
        for one in audit["probes"]
    ]  # fmt: skip
    leaks = [row["name"] for row in rows if row["verdict"] == "leak"]
    cautions = [row["name"] for row in rows if row["verdict"] == "caution"]
    said = f"{audit['rows']:,} rows of {audit['slates']}, {count(len(rows), 'blind probe')}"
    for name, group in (("leak", leaks), ("caution", cautions)):
        said += f"; {name}: {', '.join(group)}" if group else ""
    return {"verdict": _VERDICTS.get(audit["verdict"], "caution"), "said": said, "rows": rows,
            "notes": list(audit.get("notes") or [])}  # fmt: skip


def what_was_run(run: ReportedRun) -> list[tuple[str, str]]:
    """Data, protocol, model, methods and seeds in a few lines."""
    results = run.results
    config, data = results.get("config") or {}, results.get("data") or {}
    numbers = data.get("statistics") or {}
    facts: list[tuple[str, str]] = []
    counts = [
        f"{numbers[key]:,} {name}"
        for key, name in (("n_users", "users"), ("n_items", "items"), ("n_interactions", "interactions"))
        if numbers.get(key) is not None
    ]
    source = data.get("source") or data.get("name")
    if source:
        facts.append(("Data", ", ".join([str(source), *counts])))
    for name in dict.fromkeys(slates for slates, _ in result_keys(results)):
        n = next(row["n"] for row in results["summary"] if row["slates"] == name)
        facts.append(("Slates", f"{slates_in_words(name)}; {n:,} rows"))
    backbone, prompts = config.get("backbone") or {}, config.get("prompts") or {}
    models = any(map(has_model, run.methods.values()))
    if models and backbone.get("name"):
        facts.append(("Language model", _backbone(backbone)))
    if models and prompts.get("template"):
        shown = "history and slate" if prompts.get("slate", True) else "history alone"
        template = prompts["template"]
        words = template if isinstance(template, str) else f"“{template['history']} …”"
        facts.append(("Prompt", f"{words}, {shown}"))
    lengths = [
        f"{name} {count(config[part]['epochs'], 'epoch')}" for part, name in (("sft", "SFT"), ("align", "alignment"))
        if (config.get(part) or {}).get("epochs") is not None
    ]  # fmt: skip
    if models and lengths:
        facts.append(("Training", ", ".join(lengths)))
    trained = [row for row in results["summary"] if row["role"] != TRIVIAL]
    seeds = sorted({seed for row in trained for seed in row["seeds"]})
    methods = dict.fromkeys(run.marked[row["method"]] for row in trained)
    facts.append(("Methods", "; ".join(methods) or "trivial baselines alone"))
    facts.append(("Seeds", ", ".join(map(str, seeds)) or "none"))
    if results.get("paired"):
        facts.append(("Baseline of the tests", run.marked.get(results["baseline"], results["baseline"])))
    return facts


def _backbone(backbone: Mapping[str, Any]) -> str:
    tiny, lora = backbone.get("tiny"), backbone.get("lora")
    text = "/".join(str(part) for part in (backbone["name"], backbone.get("gguf_file")) if part)
    if text == "tiny" and tiny:
        text += f", from scratch: {count(tiny['layers'], 'layer')}, width {tiny['hidden_size']}"
    if lora:
        text += f", LoRA rank {lora.get('rank')}, alpha {lora.get('alpha')}"
    return text + (f", {backbone['dtype']}" if backbone.get("dtype") else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def data_facts(run: ReportedRun) -> list[tuple[str, str]]:
    """Everything the results say about their data, fingerprints included."""
    return flat(run.results.get("data") or {})
