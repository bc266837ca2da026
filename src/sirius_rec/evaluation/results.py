"""results.json: every metric with its interval, paired tests, training curves. No clock, no timings.

Two runs that computed the same numbers write the same bytes: keys are sorted, rows stand in a fixed order, floats are
rounded to 10 significant digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec import atomic
from sirius_rec.errors import DataError, RunError
from sirius_rec.evaluation.generated import GENERATED, VALID, Generated, Key, read_generations
from sirius_rec.evaluation.intervals import EXACT_GROUPS, FLIPS, RESAMPLES, GroupBootstrap, Interval, holm, paired_test
from sirius_rec.evaluation.metrics import METRICS, Floats, metrics_of, per_example, target_positions, true_reward
from sirius_rec.evaluation.tables import SCORES, ScoreTable, user_groups
from sirius_rec.schema import CANDIDATES, RETRIEVED, ROW_ID, TARGET, USER_ID, UTILITY, SlateName

FORMAT: Final = 3  # 1: methods told apart by their names; 2: intervals and p-values that held for few seeds only
TRIVIAL: Final = "trivial"
UNTESTED: Final = "No tests against"  # begins the note of a baseline that was not scored
TRUE_REWARD: Final = "true_reward"
ALL_METRICS: Final = (*METRICS, TRUE_REWARD, VALID, GENERATED)
PAIRED_METRIC: Final = "hr@1"
ALPHA: Final = 0.05

Facts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _Scored:
    """Per-example values of one table, in the order of row_id."""

    table: ScoreTable
    chance: float
    values: dict[str, Floats]


@dataclass
class _Block:
    """Everything on one set of slates: the rows are shared, and so are the resamples."""

    row_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    candidates: pl.Series
    first: str
    bootstrap: GroupBootstrap
    utility: pl.Series | None = None

    @property
    def ceiling(self) -> float | None:
        """Share of the rows whose target is among the candidates, where it may be missing: no HR@K can be higher."""
        found = self.positions >= 0
        return None if found.all() else float(found.mean())


def clean(value: Any, where: str = "results") -> Any:
    """Plain JSON of any nesting: text keys, floats to 10 significant digits, a number that is not finite as null."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        # + 0.0 turns -0.0 into 0.0
        return float(f"{value:.10g}") + 0.0 if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): clean(value[key], f"{where}.{key}") for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [clean(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    raise DataError(f"{where}: a {type(value).__name__} cannot stand in results.json; give numbers, text, lists, dicts")


def _open_block(table: ScoreTable, examples: pl.DataFrame, truth: pl.DataFrame | None, seed: int) -> _Block:
    frame = table.frame.sort(ROW_ID)
    users = examples.select(pl.col(ROW_ID).cast(pl.Int64), USER_ID, TARGET).unique(ROW_ID, keep="any")
    if len(users) != len(examples):
        raise DataError("examples: a row_id is duplicated; row ids must be unique")
    joined = frame.select(pl.col(ROW_ID).cast(pl.Int64)).join(users, on=ROW_ID, how="left", maintain_order="left")
    unknown = joined.filter(pl.col(TARGET).is_null())
    if not unknown.is_empty():
        raise DataError(
            f"{table.name}: row_id {unknown[ROW_ID][0]} is not among the examples; score this data's slates"
        )
    row_ids = joined[ROW_ID].to_numpy()
    retrieved = SlateName.parse(table.slates).protocol.startswith(RETRIEVED)
    targets = joined[TARGET].to_numpy()
    positions = target_positions(frame[CANDIDATES], targets, row_ids.tolist(), may_lack=retrieved)
    bootstrap = GroupBootstrap(len(row_ids), user_groups(joined[USER_ID]), seed=seed)
    block = _Block(row_ids, positions, frame[CANDIDATES].cast(pl.List(pl.Int64)), table.name, bootstrap)
    if truth is not None:
        utilities = truth.select(pl.col(ROW_ID).cast(pl.Int64), UTILITY)
        beside = joined.select(ROW_ID).join(utilities, on=ROW_ID, how="left", maintain_order="left")
        lost = beside.filter(pl.col(UTILITY).is_null())
        if len(beside) != len(joined) or not lost.is_empty():
            where = f"row_id {lost[ROW_ID][0]} is missing" if not lost.is_empty() else "a row_id is duplicated"
            raise DataError(f"truth of {table.slates}: {where}; prepare the data again")
        block.utility = beside[UTILITY]
    return block


def _score(block: _Block, table: ScoreTable) -> _Scored:
    frame = table.frame.sort(ROW_ID)
    if not np.array_equal(frame[ROW_ID].to_numpy(), block.row_ids):
        raise DataError(
            f"{table.name}: {len(frame)} rows that are not the {len(block.row_ids)} rows of {block.first}; "
            "every method must score the same rows"
        )
    slates = frame[CANDIDATES].cast(pl.List(pl.Int64))
    other = (slates != block.candidates).arg_true()
    if len(other):
        raise DataError(
            f"{table.name}: row_id {block.row_ids[other[0]]} has other candidates than in {block.first}; "
            "every method must score the same slates"
        )
    try:
        wanted = metrics_of(table.slates)
        catalogue = SlateName.parse(table.slates).protocol == "full"
        metrics = per_example(frame[SCORES], block.positions, block.row_ids.tolist(), catalogue=catalogue)
        values = {metric: metrics[metric].to_numpy() for metric in wanted}
        if block.utility is not None:
            values[TRUE_REWARD] = true_reward(frame[SCORES], block.utility, block.row_ids.tolist())
    except DataError as error:
        raise DataError(f"{table.name}: {error}") from error
    return _Scored(table, float(metrics["chance"].to_numpy().mean()), values)


def _put(row: dict[str, Any], metric: str, interval: Interval | None) -> None:
    row[metric] = interval.mean if interval else None
    row[f"{metric}_low"] = interval.low if interval else None
    row[f"{metric}_high"] = interval.high if interval else None


def _intervals(plan: GroupBootstrap, values: Mapping[str, Floats], slates: str) -> dict[str, Interval]:
    made = plan.intervals(np.stack(list(values.values())))
    return {
        metric: _ranged(plan, one, metric, values[metric], slates) for metric, one in zip(values, made, strict=True)
    }


def _ranged(plan: GroupBootstrap, interval: Interval, metric: str, values: Floats, slates: str) -> Interval:
    """Every metric is a share but the true reward, which may be negative. HR@10 of ten is 1 by definition."""
    (name, _, k), parsed = metric.partition("@"), SlateName.parse(slates)
    may_lack = parsed.protocol.startswith(RETRIEVED)  # the target
    certain = name == "hr" and k.isdigit() and int(k) >= parsed.size and not may_lack
    return interval if certain or metric == TRUE_REWARD else plan.of_share(interval, values)


def _row(block: _Block, scored: _Scored, generated: Generated | None) -> dict[str, Any]:
    table = scored.table
    row: dict[str, Any] = {
        "method": table.method, "label": table.label, "seed": table.seed, "slates": table.slates,
        "checkpoint": table.checkpoint, "n": len(block.row_ids), "chance": scored.chance, "ceiling": block.ceiling,
    }  # fmt: skip
    intervals = _intervals(block.bootstrap, scored.values, table.slates)
    if generated is not None:
        intervals |= _intervals(generated.bootstrap, generated.values, table.slates)
    for metric in dict.fromkeys((*ALL_METRICS, *metrics_of(table.slates))):
        _put(row, metric, intervals.get(metric))
    row["n_generated"] = len(generated.row_ids) if generated is not None else None
    return row


def _summary(block: _Block, members: list[_Scored], generated: list[Generated]) -> dict[str, Any]:
    table = members[0].table
    row: dict[str, Any] = {
        "method": table.method, "label": table.label, "slates": table.slates, "checkpoint": table.checkpoint,
        "seeds": [member.table.seed for member in members], "n": len(block.row_ids), "chance": members[0].chance,
        "ceiling": block.ceiling,
    }  # fmt: skip
    # generations are averaged over seeds only when every seed generated for the same rows
    whole = len(generated) == len(members) and all(
        np.array_equal(entry.row_ids, generated[0].row_ids) for entry in generated
    )
    for metric in dict.fromkeys((*ALL_METRICS, *metrics_of(table.slates))):
        if metric in members[0].values:
            matrix, plan = np.stack([member.values[metric] for member in members]), block.bootstrap
        elif metric in (VALID, GENERATED) and whole:
            matrix, plan = np.stack([entry.values[metric] for entry in generated]), generated[0].bootstrap
        else:
            _put(row, metric, None)
            row[f"{metric}_seed_sd"] = None
            continue
        _put(row, metric, _ranged(plan, plan.over_seeds(matrix), metric, matrix, table.slates))
        row[f"{metric}_seed_sd"] = float(matrix.mean(axis=1).std(ddof=1)) if len(members) > 1 else None
    row["n_generated"] = len(generated[0].row_ids) if whole else None
    return row


def _pairs(scored: Iterable[str], baseline: str, methods: Facts) -> list[tuple[str, str]]:
    """(method, against): every method but the trivial ones against the baseline, every variant against its base."""
    keys = list(scored)
    tested = [key for key in keys if methods[key]["role"] != TRIVIAL]
    pairs = [(key, baseline) for key in tested if key != baseline and baseline in keys]
    bases = [(key, methods[key]["base"]) for key in tested if methods[key]["base"] in keys]
    return pairs + [pair for pair in bases if pair not in pairs]


def _paired(
    block: _Block, by_method: dict[str, list[_Scored]], baseline: str, seed: int, methods: Facts
) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    unseeded = {key for key, facts in methods.items() if not facts["random"]}
    for method, against in _pairs(by_method, baseline, methods):
        left, right = ({m.table.seed: m.values[PAIRED_METRIC] for m in by_method[name]} for name in (method, against))
        if method in unseeded:  # stands against every seed of the other
            left = dict.fromkeys(right, next(iter(left.values())))
        if against in unseeded:
            right = dict.fromkeys(left, next(iter(right.values())))
        shared = sorted(left.keys() & right.keys())
        # without a common seed there is nothing to pair but the seed means
        a, b = (
            np.stack([side[s] for s in shared]) if shared else np.mean(list(side.values()), axis=0)
            for side in (left, right)
        )
        result = paired_test(a, b, seed=seed, bootstrap=block.bootstrap)
        table = by_method[method][0].table
        tests.append(
            {"method": method, "against": against, "slates": table.slates, "checkpoint": table.checkpoint,
             "metric": PAIRED_METRIC, "against_base": methods[method]["base"] == against,
             "seeds": shared, "n": len(block.row_ids), "difference": result.difference,
             "one_seed": len(shared) < 2 and not {method, against} <= unseeded,
             "seeded": not {method, against} <= unseeded,
             "low": result.low, "high": result.high, "p": result.p, "p_these_seeds": result.p_these_seeds}
        )  # fmt: skip
    for name, of in (("p_holm", "p"), ("p_holm_these_seeds", "p_these_seeds")):
        for test, adjusted in zip(tests, holm([test[of] for test in tests]), strict=True):
            test[name] = adjusted
    return tests


def decision(test: Mapping[str, Any]) -> str:
    """A paired test in words: `better`, `worse`, `no clear difference`, or `on these seeds only`.

    A verdict needs an interval off zero and p (Holm) below 5 %; both speak of other seeds and users. One seed of a
    trained method says nothing of other seeds, so it gets none, however small its p.
    """
    off_zero = test["low"] is not None and not test["low"] <= 0 <= test["high"]
    if test["p_holm"] < ALPHA and off_zero and not test["one_seed"]:
        return "better" if test["difference"] > 0 else "worse"
    seeds_differ = test["seeded"] and test["p_holm_these_seeds"] < ALPHA
    return "on these seeds only" if seeds_differ else "no clear difference"


def _notes(examples: pl.DataFrame, baseline: str, missing: list[str]) -> list[str]:
    notes = [
        f"Intervals of one seed: 95 % percentile bootstrap, {RESAMPLES:,} seeded resamples of users (all rows of a "
        "user together).",
        "Intervals over several seeds: mean ± √(t² s_user² + t² s_seed²/S), s_user the user-clustered standard error, "
        "each part with the t quantile of its own degrees of freedom (Banerjee 1960), cut to the metric's range. With "
        "2 seeds t is 12.7 and with 3 it is 4.3: few seeds that differ decide little.",
        "A share that is 0 in every row, or 1 in every one, has Clopper and Pearson's limit, each user one draw; "
        "a paired difference that is 0 in every row has it on either side.",
        "Ties count in expectation over their orders: constant scores give HR@1 = 1/N exactly.",
        "Paired tests: HR@1, the same rows, seed with seed, the seeds that both have. The p of these seeds: two-sided "
        f"sign flips of whole users' seed-mean differences, exact up to {EXACT_GROUPS} users, else {FLIPS:,} seeded "
        "flips. p: with several seeds the larger of it and of the interval's p, which speaks of other seeds too; one "
        "seed of a trained method gets no verdict.",
        "p (Holm): Holm's adjustment over all tests on the same slates and checkpoint; so of the p of these seeds.",
        "Generated HR@1 counts all prompts; an answer that is not exactly one candidate's title is a miss.",
    ]
    if examples[USER_ID].null_count():
        notes.append(
            f"{examples[USER_ID].null_count():,} examples carry no user id and were resampled one by one; "
            "their intervals are too narrow if rows of one user overlap."
        )
    return notes + [f"{UNTESTED} {baseline} on {where}: it was not scored there." for where in missing]


def _check_examples(examples: pl.DataFrame) -> None:
    missing = [column for column in (ROW_ID, USER_ID, TARGET) if column not in examples.columns]
    if missing:
        raise DataError(f"examples: column {missing[0]!r} is missing; found {', '.join(examples.columns)}")


def build_results(
    tables: Sequence[ScoreTable],
    *,
    examples: pl.DataFrame,
    truths: Mapping[str, pl.DataFrame] | None = None,
    generation: Sequence[Mapping[str, Any]] | None = None,
    curves: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    methods: Facts,
    baseline: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything results.json holds, ready for `write_results`.

    tables: in any order; tables on the same slates must hold the same rows and candidates. examples: row_id, user_id,
    target (further columns and rows are ignored). truths: per slates name, row_id and utility (aligned with the slate).
    generation: per method, seed, slates and checkpoint one dict with these four keys and "row_id", "valid", "hit"
    (equally long; 0 or 1; a hit is valid). curves: {method: {seed: [{"epoch", "step", …}]}}. methods:
    what each is: {"label", "role" (trivial, baseline, sft or arm), "random" (whether seeds matter), "base" (the method
    that it is a variant of, or None), "language_model" (whether it has one), "probabilities" (whether the softmax of
    its scores is meant as such, and its calibration is measured)}, of arms also the parts of their objectives, for
    `diagnose`; for tables "train_rows". baseline: the method that every other one but the trivial is
    tested against. seed: of resampling.

    Raises DataError, naming the table and row, when a table does not fit the examples or the other tables.
    """
    if not tables:
        raise DataError("results: no score tables; evaluate at least one method")
    _check_examples(examples)
    unknown = sorted({table.method for table in tables} - methods.keys())
    if unknown:
        raise DataError(f"results: scores of '{unknown[0]}', which is no method of this run: remove them from scores/")
    made = read_generations(generation or [], examples, seed)
    blocks: dict[str, _Block] = {}
    groups: dict[tuple[str, str], dict[str, list[_Scored]]] = {}
    seen: set[Key] = set()
    for table in sorted(tables, key=lambda t: (t.slates, t.checkpoint, t.method, t.seed)):
        if table.key in seen:
            raise DataError(f"{table.name}: given twice")
        seen.add(table.key)
        if table.slates not in blocks:
            blocks[table.slates] = _open_block(table, examples, (truths or {}).get(table.slates), seed)
        scored = _score(blocks[table.slates], table)
        groups.setdefault((table.slates, table.checkpoint), {}).setdefault(table.method, []).append(scored)
    stray = sorted(made.keys() - seen)
    if stray:
        raise DataError(f"generation: {table_label(stray[0])} has no score table; score the method on these slates too")
    rows, summary, paired, missing = [], [], [], []
    for (slates, checkpoint), by_method in groups.items():
        block = blocks[slates]
        for members in by_method.values():
            generations = [made.get(member.table.key) for member in members]
            rows += [_row(block, member, entry) for member, entry in zip(members, generations, strict=True)]
            made_by = [entry for entry in generations if entry is not None]
            summary.append({**_summary(block, members, made_by), "role": methods[members[0].table.method]["role"]})
        paired += _paired(block, by_method, baseline, seed, methods)
        if baseline not in by_method and any(methods[key]["role"] != TRIVIAL for key in by_method):
            missing.append(f"{slates}, checkpoint {checkpoint}")
    scored_keys = {table.method for table in tables}
    results = {
        "format": FORMAT, "config": config or {}, "environment": environment or {}, "data": data or {},
        "baseline": baseline, "rows": rows, "summary": summary, "paired": paired, "curves": curves or {},
        "methods": {key: methods[key] for key in scored_keys}, "notes": _notes(examples, baseline, missing),
    }  # fmt: skip
    cleaned: dict[str, Any] = clean(results)
    return cleaned


def table_label(key: Key) -> str:
    """One table in words, for messages."""
    return f"{key[0]}, seed {key[1]}, {key[2]}, {key[3]}"


def write_results(results: Mapping[str, Any], path: Path | str) -> Path:
    """Write results.json, atomically."""
    path = Path(path)
    text = json.dumps(clean(results), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    atomic.write_text(path, text + "\n")
    return path


def read_results(path: Path | str) -> dict[str, Any]:
    """Read results.json. Raises RunError when it is missing, broken, or of another format."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path}: no such file; run `sirius evaluate` first")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: not readable as JSON ({error}); evaluate again") from error
    version = results.get("format") if isinstance(results, dict) else None
    if version != FORMAT:
        raise RunError(f"{path}: results format {version}, this version reads {FORMAT}; evaluate again")
    return dict(results)
