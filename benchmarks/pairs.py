"""Paired differences of two methods' HR@K on a run's test slates, also where a target is not among the candidates.

python benchmarks/pairs.py RUN SLATES K A:B [A:B …] [--out FILE]   for example: runs/mine test-full-4606-s0 10 sft:dpo

FILE gets them as JSON, beside those that are there already.
Intervals and p-values are those of the comparison tables (over users and seeds), not corrected for the number of pairs.
Seed with seed, of those that both have; a method with one seed stands against every seed of the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.evaluation.intervals import paired_test
from sirius_rec.evaluation.metrics import hit_rate, rank_bounds, target_positions
from sirius_rec.evaluation.tables import read_table, table_name, user_groups
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.schema import CANDIDATES, ROW_ID, TARGET, USER_ID, SlateName


def hits(run: Run, method: str, slates: str, k: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """By seed HR@k of each row, as the tables have it: ties in expectation, a target that is missing a miss; and the
    rows' users."""
    examples = run.dataset.examples(SlateName.parse(slates).split).select(ROW_ID, TARGET, USER_ID)
    out: dict[int, np.ndarray] = {}
    for seed in build_methods(run.config)[method].seeds:
        file = run.folder.scores / table_name(method, seed, slates, "best")
        if file.is_file():
            frame = read_table(file).frame.join(examples, on=ROW_ID, how="left", maintain_order="left")
            place = target_positions(frame[CANDIDATES], frame[TARGET].to_numpy(), may_lack=True)
            above, tied = rank_bounds(frame["scores"], np.where(place < 0, 0, place))
            out[seed] = np.where(place < 0, 0.0, hit_rate(above, tied, k))
            users = user_groups(frame[USER_ID])
    return out, users


def side_by_side(a: Mapping[int, Any], b: Mapping[int, Any]) -> list[tuple[Any, Any]]:
    """What two methods came to, by seed, in pairs."""
    if 1 in (len(a), len(b)):
        return [(one, other) for one in a.values() for other in b.values()]
    return [(a[seed], b[seed]) for seed in a if seed in b]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("slates")
    parser.add_argument("k", type=int)
    parser.add_argument("pairs", nargs="+", metavar="A:B")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    run, found = Run.open(given.run), {}
    for pair in given.pairs:
        (a, users), (b, _) = (hits(run, method, given.slates, given.k) for method in pair.split(":"))
        test = paired_test(*map(list, zip(*side_by_side(a, b), strict=True)), users)
        name = f"HR@{given.k} {given.slates}: {pair.replace(':', ' - ')}"
        found[name] = {key: round(getattr(test, key), 5) for key in ("difference", "low", "high", "p")}
        print(f"{name}: {test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}], p {test.p:.3f}")
    if given.out is not None:
        what = f"paired differences of the run {run.config.name}, not corrected for their number"
        before = json.loads(given.out.read_text())["pairs"] if given.out.exists() else {}
        given.out.write_text(json.dumps({"what": what, "pairs": {**before, **found}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
