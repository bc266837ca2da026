"""Verdicts of result files made before results format 3, over users and seeds, where their score tables are gone.

    python benchmarks/recompute_verdicts.py benchmarks/results/*.json

With score tables, `sirius evaluate` and `sirius compare` compute them exactly; this is for files alone. Of a test over
several seeds it knows every seed's HR@1 and, from the old interval (a percentile bootstrap over users and seeds), the
variance over both: half its width is 1.96 √(s_user² + s_seed² (S − 1)/S²). s_user also holds a little of what single
seeds do to single users, which makes the new interval wider rather than narrower. p is then the interval's own, at
least the old one, and Holm's adjustment is over the same tests. Tests of one seed, or of methods without seeds, stay as
they are. Prints the tests of several seeds whose verdict changes, and the counts of all.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sirius_rec.evaluation.intervals import Spread, holm
from sirius_rec.evaluation.results import decision

_Z = stats.norm.ppf(0.975)


def recomputed(test: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A test with its interval and p over users and seeds."""
    old = {**test, "p_these_seeds": test["p"], "one_seed": test.get("one_seed", False)}
    seeds = test["seeds"]
    if len(seeds) < 2:
        return old
    here = [row for row in rows if (row["slates"], row["checkpoint"]) == (test["slates"], test["checkpoint"])]
    by = {(row["method"], row["seed"]): row[test["metric"]] for row in here}
    of = [[by.get((test[side], s), by.get((test[side], 0))) for s in seeds] for side in ("method", "against")]
    by_seed = float(np.subtract(*of).var(ddof=1)) / len(seeds)
    variance = ((test["high"] - test["low"]) / 2 / _Z) ** 2
    by_user = max(variance - by_seed * (len(seeds) - 1) / len(seeds), 0.0)
    # thousands of users in every committed file: their t is the normal quantile to three digits
    spread = Spread(by_user, test["n"] // 10, by_seed, len(seeds) - 1)
    half = spread.half(0.05)
    difference = test["difference"]
    return {
        **old, "low": difference - half, "high": difference + half, "p": max(test["p"], spread.p(difference)),
    }  # fmt: skip


def old_decision(test: dict[str, Any]) -> str:
    if test["p_holm"] >= 0.05:
        return "no clear difference"
    if test.get("one_seed") or test["low"] <= 0 <= test["high"]:
        return "on these seeds only"
    return "better" if test["difference"] > 0 else "worse"


def more_of_the_family(results: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The tests against bases, which `paired` lists and the tests against item-kNN were adjusted with."""
    if part not in results or part == "paired":
        return []
    listed = {(test["method"], test["against"]) for test in results[part]}
    others = [test for test in results["paired"] if test["against"] != results["baseline"]]
    return [recomputed(t, results["rows"]) for t in others if (t["method"], t["against"]) not in listed]


def adjust(tests: list[dict[str, Any]]) -> None:
    """Holm's adjustment within slates and checkpoint."""
    for group in {(test["slates"], test["checkpoint"]) for test in tests}:
        members = [test for test in tests if (test["slates"], test["checkpoint"]) == group]
        for of, into in (("p", "p_holm"), ("p_these_seeds", "p_holm_these_seeds")):
            for test, adjusted in zip(members, holm([test[of] for test in members]), strict=True):
                test[into] = adjusted


def main(files: list[str]) -> None:
    for name in files:
        results = json.loads(Path(name).read_text())
        if "paired" not in results or results["format"] > 2:
            continue
        print(f"\n{Path(name).name}")
        for part in ("paired", "paired_item_knn"):
            tests = results.get(part) or []
            new = [recomputed(test, results["rows"]) for test in tests]
            adjust(new + more_of_the_family(results, part))
            words = [(old_decision(test), decision(changed)) for test, changed in zip(tests, new, strict=True)]
            print(f" {part}: {dict(Counter(words))}")
            for test, changed, (before, after) in zip(tests, new, words, strict=True):
                if len(test["seeds"]) > 1 and before != after:
                    print(
                        f"  {test['slates']} {test['checkpoint']}: {test['method']} against {test['against']}",
                        f"{test['difference']:+.3f} {_interval(test)} {before} → {_interval(changed)} {after}",
                    )


def _interval(test: dict[str, Any]) -> str:
    return f"[{test['low']:.3f}, {test['high']:.3f}], p {test['p_holm']:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
