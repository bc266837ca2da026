"""More than accuracy, from the same score tables: how wide and how popular recommendations are, whom they serve, and
whether a model's probabilities mean what they say.

Lists are a ranking's first K: K = 10 where the whole catalogue is ranked or what a retriever found of it, K = 1 on
sampled slates, whose further places are mostly decided by who was drawn.

Intervals and tests are by the delete-a-group jackknife over users in GROUPS groups, or one for each of fewer users (t
quantile, a degree of freedom less than groups), because coverage and concentration are no means of rows; they speak of
other users, not of other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from sirius_rec.errors import DataError
from sirius_rec.evaluation.intervals import holm, none_of
from sirius_rec.evaluation.metrics import flatten, hit_rate, rank_bounds, target_positions
from sirius_rec.evaluation.tables import SCORES, ScoreTable, user_groups
from sirius_rec.schema import CANDIDATES, HISTORY, RETRIEVED, ROW_ID, TARGET, USER_ID, SlateName

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GROUPS: Final = 20
BINS: Final = 10
WIDTH: Final = ("coverage", "gini", "novelty", "popularity_lift")
"""coverage: share of the catalogue that stands in at least one list. gini: concentration of places over the catalogue,
0 all items equally often, 1 one item alone. novelty: mean −log2 of the share of train users who had an item, in bits.
popularity_lift: mean train count of what is recommended over that of what these users had, less 1."""
BUCKETS: Final = ("head", "middle", "tail", "unseen")
"""By train count: the most popular items that hold a third of all train interactions, those of the next third, those of
the last, and items that no train user had."""


@dataclass(frozen=True)
class TrainCounts:
    """counts_I: int64[n_items], train users who had an item. n_users: train users."""

    counts_I: Ints
    n_users: int

    def buckets(self) -> Ints:
        """int64[n_items]: number of each item's bucket in BUCKETS; equal counts go by item number."""
        order = np.argsort(-self.counts_I, kind="stable")
        before = np.concatenate([[0], self.counts_I[order].cumsum()[:-1]])
        bucket_I = np.empty(len(order), dtype=np.int64)
        bucket_I[order] = np.minimum(3 * before // max(int(self.counts_I.sum()), 1), 2)
        bucket_I[self.counts_I == 0] = 3
        return bucket_I


@dataclass(frozen=True)
class _Rows:
    """What the tables of one set of slates share, in the order of row_id. user_R: number of a row's user. group_R: that
    user's jackknife group, of so many."""

    row_ids: Ints
    position_R: Ints
    target_R: Ints
    history_pop_R: Floats
    user_R: Ints
    group_R: Ints
    groups: int
    length: int


def list_length(slates: str) -> int:
    """How many places of a ranking count as recommended."""
    protocol = SlateName.parse(slates).protocol
    return 10 if protocol == "full" or protocol.startswith(RETRIEVED) else 1


def beyond_accuracy(
    tables: Sequence[ScoreTable],
    examples: pl.DataFrame,
    popularity: TrainCounts,
    *,
    methods: Mapping[str, Mapping[str, Any]],
    baseline: str,
    seed: int = 0,
) -> dict[str, Any]:
    """{"rows": one per method, slates and checkpoint, "tests": each method against the baseline}.

    examples: row_id, user_id, history, target. methods: facts as in results.json; of those that give
    probabilities calibration too, on slates where all candidates have a score.
    A row holds, of each of WIDTH, `{mean, low, high, seed_sd}`; `buckets`: of each of BUCKETS with rows `{name, n,
    mean, low, high}`, HR@1 of targets in it; `calibration`: the expected calibration error, `{mean, low, high, bins}`.
    bins: `{confidence, accuracy, n}`, of each seed.
    """
    bucket_I = popularity.buckets()
    rows_of: dict[str, _Rows] = {}
    measured: dict[tuple[str, str, str], list[tuple[int, dict[str, Floats]]]] = {}
    bins: dict[tuple[str, str, str], list[list[dict[str, Any]]]] = {}
    for table in sorted(tables, key=lambda t: t.key):
        if table.slates not in rows_of:
            rows_of[table.slates] = _rows(table, examples, popularity, seed)
        rows = rows_of[table.slates]
        values = _widths(table, rows, popularity) | _by_bucket(table, rows, bucket_I)
        key = (table.slates, table.checkpoint, table.method)
        whole = SlateName.parse(table.slates).protocol == "full"  # only the best of its candidates have a score
        if methods[table.method].get("probabilities") and not whole and (rows.position_R >= 0).any():
            values["ece"], curve = _calibration(table, rows)
            bins.setdefault(key, []).append(curve)
        measured.setdefault(key, []).append((table.seed, values))
    labels = {table.method: table.label for table in tables}
    out = [
        _row(key, labels[key[2]], found, rows_of[key[0]], bucket_I, bins.get(key)) for key, found in measured.items()
    ]
    return {"rows": out, "tests": _tests(measured, baseline)}


def _rows(table: ScoreTable, examples: pl.DataFrame, popularity: TrainCounts, seed: int) -> _Rows:
    frame = table.frame.sort(ROW_ID)
    joined = frame.select(pl.col(ROW_ID).cast(pl.Int64)).join(
        examples.select(pl.col(ROW_ID).cast(pl.Int64), USER_ID, HISTORY, TARGET), on=ROW_ID, how="left",
        maintain_order="left",
    )  # fmt: skip
    if joined[TARGET].null_count():
        raise DataError(f"{table.name}: a row_id is not among the examples; score this data's slates")
    may_lack = SlateName.parse(table.slates).protocol.startswith(RETRIEVED)
    target_R = joined[TARGET].to_numpy().astype(np.int64)
    codes = np.unique(user_groups(joined[USER_ID]), return_inverse=True)[1].reshape(-1)
    n_users = int(codes.max(initial=0)) + 1
    group_U = np.random.default_rng(seed).permutation(n_users) % GROUPS
    pops = [popularity.counts_I[row.to_numpy()] for row in joined[HISTORY]]
    return _Rows(
        joined[ROW_ID].to_numpy(),
        target_positions(frame[CANDIDATES], target_R, may_lack=may_lack),
        target_R,
        np.array([own.mean() if len(own) else np.nan for own in pops]),
        codes,
        group_U[codes],
        min(n_users, GROUPS),
        list_length(table.slates),
    )


def _lists(table: ScoreTable, k: int) -> tuple[Ints, Ints]:
    """(row, item) of every place in the lists; ties as the candidates stand."""
    frame = table.frame.sort(ROW_ID)
    rows, items = [], []
    for r, (slate, scores) in enumerate(zip(frame[CANDIDATES], frame[SCORES], strict=True)):
        best = np.argsort(-scores.to_numpy(), kind="stable")[:k]
        items.append(slate.to_numpy()[best])
        rows.append(np.full(len(best), r))
    return np.concatenate(rows), np.concatenate(items).astype(np.int64)


def _without(totals_G: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[1 + G, …]: the sum over all groups, then without each of them."""
    total = totals_G.sum(axis=0)
    return np.concatenate([total[None], total[None] - totals_G])


def _sums(values: npt.NDArray[Any], group: Ints, groups: int) -> Floats:
    """Sums over all groups, then without each, [1 + G]."""
    return np.asarray(_without(np.bincount(group, weights=values, minlength=groups)), dtype=np.float64)


def gini(counts_I: npt.NDArray[Any]) -> float:
    """Σ (2i − n − 1) x_i / (n Σ x), x ascending: 0 where all are equal, (n − 1) / n where one has everything."""
    x, n = np.sort(np.asarray(counts_I, dtype=np.float64)), len(counts_I)
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * x.sum())) if x.sum() else float("nan")


def _widths(table: ScoreTable, rows: _Rows, popularity: TrainCounts) -> dict[str, Floats]:
    """Each of WIDTH over all rows, then without each group, [1 + G]."""
    n_items = len(popularity.counts_I)
    row, item = _lists(table, rows.length)
    group, groups = rows.group_R[row], rows.groups
    places_GI = np.zeros((groups, n_items))
    np.add.at(places_GI, (group, item), 1.0)
    counted = _without(places_GI)
    bits = -np.log2((popularity.counts_I[item] + 1) / (popularity.n_users + 1))
    known = ~np.isnan(rows.history_pop_R)
    places = _sums(np.ones(len(item)), group, groups)
    with np.errstate(divide="ignore", invalid="ignore"):  # without its only user nothing is left of a table
        counts = _sums(known.astype(np.float64), rows.group_R, groups)
        total = _sums(np.where(known, rows.history_pop_R, 0.0), rows.group_R, groups)
        had = np.where(total > 0, total / counts, np.nan)  # of users who had nothing there is no lift
        lift = _sums(popularity.counts_I[item].astype(np.float64), group, groups) / places / had - 1
        novelty = _sums(bits, group, groups) / places
    return {
        "coverage": (counted > 0).mean(axis=1),
        "gini": np.array([gini(one) for one in counted]),
        "novelty": novelty,
        "popularity_lift": lift,
    }


def _hits(table: ScoreTable, rows: _Rows) -> Floats:
    found = rows.position_R >= 0
    above, tied = rank_bounds(table.frame.sort(ROW_ID)[SCORES], np.where(found, rows.position_R, 0))
    return np.where(found, hit_rate(above, tied, 1), 0.0)


def _by_bucket(table: ScoreTable, rows: _Rows, bucket_I: Ints) -> dict[str, Floats]:
    """HR@1 of the targets in each bucket, [1 + G]; NaN without any."""
    hit_R, bucket_R = _hits(table, rows), bucket_I[rows.target_R]
    out = {}
    for number, name in enumerate(BUCKETS):
        inside = (bucket_R == number).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            hits, targets = (_sums(values, rows.group_R, rows.groups) for values in (hit_R * inside, inside))
            out[name] = hits / targets
    return out


def _calibration(table: ScoreTable, rows: _Rows) -> tuple[Floats, list[dict[str, Any]]]:
    """(ECE over all rows and without each group, the reliability curve): the softmax of a slate's scores against how
    often its top is right, in BINS bins of equally many rows (Naeini et al. 2015, with equal mass).

    A softmax says how likely a candidate is given that one of them is right, so rows whose target a retriever did not
    find, which no reranker can get right, count for nothing.
    """
    found = rows.position_R >= 0
    flat, lengths = flatten(table.frame.sort(ROW_ID)[SCORES].filter(pl.Series(found)))
    starts = np.concatenate([[0], lengths.cumsum()[:-1]])
    highest = np.maximum.reduceat(flat, starts)
    sure_R = 1.0 / np.add.reduceat(np.exp(flat - np.repeat(highest, lengths)), starts)
    hit_R, group_R = _hits(table, rows)[found], rows.group_R[found]
    bin_R = np.empty(len(sure_R), dtype=np.int64)
    bin_R[np.argsort(sure_R, kind="stable")] = np.arange(len(sure_R)) * BINS // len(sure_R)
    off, weight, curve = np.zeros(1 + rows.groups), np.zeros(1 + rows.groups), []
    for b in range(BINS):
        inside = (bin_R == b).astype(np.float64)
        n, sure, hit = (_sums(values * inside, group_R, rows.groups) for values in (np.ones(len(bin_R)), sure_R, hit_R))
        off, weight = off + np.abs(hit - sure), weight + n
        if n[0]:
            curve.append({"confidence": sure[0] / n[0], "accuracy": hit[0] / n[0], "n": int(n[0])})
    with np.errstate(invalid="ignore"):
        return off / weight, curve


def _interval(values: Floats, *, share: bool = False, sizes_U: Ints | None = None) -> dict[str, Any]:
    """mean, low, high of a statistic over all rows and without each group, [1 + G]; of a share inside 0 … 1; NaN where
    one user leaves no group. sizes_U: rows of each user that a share is over, for the limit of one that is 0 or 1 in
    all."""
    half = float(stats.t.ppf(0.975, len(values) - 2)) * _error(values)
    low, high = float(values[0]) - half, float(values[0]) + half
    if share:
        low, high = np.clip([low, high], 0.0, 1.0).tolist()
    if sizes_U is not None and len(sizes_U) > 1 and values[0] in (0.0, 1.0):
        reach = none_of(sizes_U)
        low, high = (0.0, reach) if values[0] == 0.0 else (1.0 - reach, 1.0)
    return {"mean": float(values[0]), "low": low, "high": high}


def _error(values: Floats) -> float:
    """Standard error by the delete-a-group jackknife."""
    without = values[1:]
    return float(np.sqrt((len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum()))


def _row(
    key: tuple[str, str, str],
    label: str,
    found: Sequence[tuple[int, dict[str, Floats]]],
    rows: _Rows,
    bucket_I: Ints,
    bins: list[list[dict[str, Any]]] | None,
) -> dict[str, Any]:
    slates, checkpoint, method = key
    mean = {name: np.mean([values[name] for _, values in found], axis=0) for name in found[0][1]}
    several = len(found) > 1
    spread = {name: np.std([values[name][0] for _, values in found], ddof=1) if several else None for name in mean}
    return {
        "slates": slates, "checkpoint": checkpoint, "method": method, "label": label, "k": rows.length,
        "seeds": [seed for seed, _ in found], "n": len(rows.row_ids),
        **{
            name: {**_interval(mean[name], share=name in ("coverage", "gini")), "seed_sd": spread[name]}
            for name in WIDTH
        },
        "buckets": _buckets(mean, rows, bucket_I[rows.target_R]),
        "calibration": None if bins is None else {**_interval(mean["ece"], share=True), "bins": bins},
    }  # fmt: skip


def _buckets(mean: Mapping[str, Floats], rows: _Rows, bucket_R: Ints) -> list[dict[str, Any]]:
    """HR@1 in every bucket that has rows, by the jackknife over the groups that have some there."""
    found = []
    for number, name in enumerate(BUCKETS):
        inside = bucket_R == number
        if inside.any():
            here = np.unique(rows.group_R[inside])
            sizes_U = np.unique(rows.user_R[inside], return_counts=True)[1]
            interval = _interval(mean[name][[0, *(1 + here)]], share=True, sizes_U=sizes_U)
            found.append({"name": name, "n": int(inside.sum()), **interval})
    return found


def _tests(
    measured: Mapping[tuple[str, str, str], Sequence[tuple[int, dict[str, Floats]]]], baseline: str
) -> list[dict[str, Any]]:
    """Differences of each of WIDTH from the baseline, on the same rows; p by Holm over the methods of a table."""
    tests: list[dict[str, Any]] = []
    for slates, checkpoint in dict.fromkeys((key[0], key[1]) for key in measured):
        against = measured.get((slates, checkpoint, baseline))
        here = [key for key in measured if key[:2] == (slates, checkpoint) and key[2] != baseline]
        if against is None:
            continue
        for name in WIDTH:
            own = []
            for key in here:
                means = [np.mean([values[name] for _, values in found], axis=0) for found in (measured[key], against)]
                difference = means[0] - means[1]
                if not np.isfinite(difference).all():  # a lift over users who had nothing
                    continue
                error = _error(difference)
                t = abs(difference[0]) / error if error else (np.inf if difference[0] else 0.0)
                freedom = len(difference) - 2
                p = float(2 * stats.t.sf(t, freedom)) if freedom else 1.0  # one user tells nothing of others
                own.append({"slates": slates, "checkpoint": checkpoint, "method": key[2], "against": baseline,
                            "metric": name, **_interval(difference), "p": p})  # fmt: skip
            for test, adjusted in zip(own, holm([test["p"] for test in own]), strict=True):
                tests.append({**test, "p_holm": adjusted})
    return tests
