"""Paired tests against any baseline, floors included, from the score tables; results.json has the configured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.floors import FLOORS
from sirius_rec.evaluation.intervals import GroupBootstrap, holm, paired_test
from sirius_rec.evaluation.metrics import per_example, target_positions
from sirius_rec.evaluation.results import PAIRED_METRIC
from sirius_rec.evaluation.tables import SCORES, ScoreTable
from sirius_rec.schema import CANDIDATES, ROW_ID, TARGET, USER_ID

BySeed = dict[int, np.ndarray]


def check_baseline(results: Mapping[str, Any], baseline: str) -> None:
    """Raise ConfigError where no such method was scored, naming those that were."""
    scored = sorted({row["method"] for row in results["summary"]})
    if baseline not in scored:
        raise ConfigError(f"--baseline {baseline!r} was not scored: choose one of {', '.join(scored)}")


def paired_against(tables: Sequence[ScoreTable], examples: pl.DataFrame, baseline: str) -> list[dict[str, Any]]:
    """Tests of HR@1 of every trained method against `baseline` and of <x>_sirius against <x>, as in results.json.

    examples: row_id, user_id, target. A floor has one seed: it is deterministic, and stands against every seed.
    """
    groups: dict[tuple[str, str], list[ScoreTable]] = {}
    for table in tables:
        groups.setdefault((table.slates, table.checkpoint), []).append(table)
    return [test for key in sorted(groups) for test in _tests(groups[key], examples, baseline)]


def _tests(tables: Sequence[ScoreTable], examples: pl.DataFrame, baseline: str) -> list[dict[str, Any]]:
    plan, hits = None, dict[str, BySeed]()
    for table in sorted(tables, key=lambda t: (t.method, t.seed)):
        frame = table.frame.sort(ROW_ID).join(examples, on=ROW_ID, maintain_order="left")
        place = target_positions(frame[CANDIDATES], frame[TARGET].to_numpy(), frame[ROW_ID].to_list())
        values = per_example(frame[SCORES], place)[PAIRED_METRIC].to_numpy()
        hits.setdefault(table.method, {})[table.seed] = values
        plan = plan or GroupBootstrap(len(values), _users(frame))
    assert plan is not None
    out = []
    for method, other in _pairs(sorted(hits), baseline):
        a, b, seeds = _matched(hits[method], hits[other], other in FLOORS)
        found = paired_test(a, b, bootstrap=plan)
        out.append({
            "method": method, "against": other, "slates": tables[0].slates, "checkpoint": tables[0].checkpoint,
            "metric": PAIRED_METRIC, "seeds": seeds, "n": a.shape[-1], "difference": found.difference,
            "low": _finite(found.low), "high": _finite(found.high), "p": found.p,
        })  # fmt: skip
    for test, adjusted in zip(out, holm([test["p"] for test in out]), strict=True):
        test["p_holm"] = adjusted
    return out


def _users(frame: pl.DataFrame) -> np.ndarray:
    """Group labels; a row without a user is a group of its own, and sorts after the users."""
    label = pl.coalesce("0" + pl.col(USER_ID).cast(pl.String), "1" + pl.col(ROW_ID).cast(pl.String).str.zfill(20))
    return frame.select(label.alias("who"))["who"].to_numpy()


def _pairs(methods: Sequence[str], baseline: str) -> list[tuple[str, str]]:
    trained = [method for method in methods if method not in FLOORS]
    pairs = [(method, baseline) for method in trained if method != baseline and baseline in methods]
    bases = [(method, method.removesuffix("_sirius")) for method in trained if method.endswith("_sirius")]
    return pairs + [pair for pair in bases if pair[1] in trained and pair not in pairs]


def _matched(left: BySeed, right: BySeed, floor: bool) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Values [seeds, rows] seed by seed; seed means where no seed is shared."""
    if floor:
        a = np.stack(list(left.values()))
        return a, np.broadcast_to(next(iter(right.values())), a.shape), sorted(left)
    shared = sorted(left.keys() & right.keys())
    if not shared:
        return np.mean(list(left.values()), axis=0), np.mean(list(right.values()), axis=0), []
    return np.stack([left[s] for s in shared]), np.stack([right[s] for s in shared]), shared


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
