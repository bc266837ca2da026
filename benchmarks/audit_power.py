"""How often `sirius audit` calls planted leaks, by kind and strength, and how often it accuses honest slates.

    python benchmarks/audit_power.py --out benchmarks/results/audit-power_MACHINE_DATE.json

Every set comes from an event log of a made-up world: users with a taste for categories, items with a popularity and a
release date, 500 test rows of 20 or so. Honest slates are drawn as `sirius prepare` draws them; a plant changes one
thing in them. About five minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from audit_worlds import (
    SPLITS,
    Log,
    Splits,
    World,
    cold_targets,
    first_slot,
    home_slot,
    honest,
    middle_only,
    negatives_of_target,
    negatives_of_user,
    no_main_category,
    nobody_had_them,
    one_pool,
    popular_only,
    repeated_target,
    slot_of_last_item,
    slot_of_user,
    sorted_sequences,
    targets_excluded,
)

STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
WORLDS = 8

SPELLINGS: dict[str, Callable[[str], str]] = {
    "lower case": str.lower,
    "a no-break space": lambda title: title.replace(" ", "\u00a0", 1),
    "a full stop": lambda title: title + ".",
    "a trailing space": lambda title: title + " ",
}
ANSWERS: dict[str, Callable[[str], str]] = {
    "in a sentence": lambda title: f"\nThis user went on to {title}, as one would expect.",
    "in JSON": lambda title: f'\n{{"history": "above", "answer": "{title}"}}',
    "on a line after the slate": lambda title: f"\n{title}",
}

Plant = Callable[[Splits, Log, World, float, np.random.Generator], None]
OLD: dict[str, World] = {
    "items of later left out, leave-last-out, 8 train rows a user": World(split="leave_last_out", exclude="interacted"),
    "items of later left out, leave-last-out": World(split="leave_last_out", exclude="interacted", n_events=30),
    "items of later left out, by time": World(split="time", exclude="interacted", n_users=300, n_events=40),
    "items of later left out, popular negatives": World(
        split="leave_last_out", negatives="popularity", exclude="interacted", n_events=20
    ),
}
# name → (plant or None, share, world, form, spelling or answer)
PLANTS: dict[str, tuple[Plant | None, float, World, str, str | None]] = {
    **{
        f"{what}, {share:.0%} of rows": (plant, share, World(seed=100 + k), "ids", None)
        for k, (what, plant, share) in enumerate(
            (
                ("home slot of the target", home_slot, 0.2),
                ("home slot of the target", home_slot, 0.1),
                ("one slot preferred", first_slot, 0.1),
                ("slot seeded by the user", slot_of_user, 1.0),
                ("slot seeded by the user", slot_of_user, 0.4),
                ("slot seeded by the last item", slot_of_last_item, 1.0),
                ("slot seeded by the last item", slot_of_last_item, 0.4),
                ("negatives seeded by the target", negatives_of_target, 1.0),
                ("negatives seeded by the target", negatives_of_target, 0.3),
                ("negatives drawn once per user", negatives_of_user, 1.0),
                ("negatives drawn once per user", negatives_of_user, 0.4),
                ("one pool of negatives", one_pool, 1.0),
                ("one pool of negatives", one_pool, 0.4),
                ("only popular negatives", popular_only, 1.0),
                ("only popular negatives", popular_only, 0.5),
                ("negatives from the middle only", middle_only, 1.0),
                ("negatives never of the main category", no_main_category, 1.0),
                ("negatives never of the main category", no_main_category, 0.5),
                ("cold targets, warm negatives", cold_targets, 0.3),
                ("cold targets, warm negatives", cold_targets, 0.1),
                ("target in the history", repeated_target, 0.1),
                ("sequences sorted by id", sorted_sequences, 1.0),
            )
        )
    },
    "negatives that nobody had before the test date": (
        nobody_had_them,
        1.0,
        World(seed=141, split="time"),
        "ids",
        None,
    ),
    "test targets never negatives": (targets_excluded, 1.0, World(seed=140, n_items=1200), "ids", None),
    **{
        f"target written with {how}, {share:.0%} of rows": (None, share, World(seed=150 + k), form, how)
        for k, (how, share, form) in enumerate(
            (
                ("lower case", 1.0, "titles"),
                ("lower case", 0.2, "titles"),
                ("a no-break space", 1.0, "titles"),
                ("a full stop", 0.3, "titles"),
                ("a trailing space", 1.0, "records"),
                ("a trailing space", 0.2, "titles"),
            )
        )
    },
    **{
        f"answer in the prompt {how}, {share:.0%} of rows": (None, share, World(seed=160 + k), "records", how)
        for k, (how, share) in enumerate(
            (("in a sentence", 1.0), ("in a sentence", 0.2), ("in JSON", 1.0), ("on a line after the slate", 0.3))
        )
    },
    **{name: (None, 1.0, world, "ids", None) for name, world in OLD.items()},
}
CURVES: dict[str, tuple[Plant | None, str, str | None]] = {
    "home slot of the target": (home_slot, "ids", None),
    "one slot preferred": (first_slot, "ids", None),
    "slot seeded by the user": (slot_of_user, "ids", None),
    "slot seeded by the last item": (slot_of_last_item, "ids", None),
    "negatives seeded by the target": (negatives_of_target, "ids", None),
    "negatives drawn once per user": (negatives_of_user, "ids", None),
    "one pool of negatives": (one_pool, "ids", None),
    "only popular negatives": (popular_only, "ids", None),
    "negatives never of the main category": (no_main_category, "ids", None),
    "cold targets, warm negatives": (cold_targets, "ids", None),
    "target written in lower case": (None, "titles", "lower case"),
    "answer in the prompt, in a sentence": (None, "records", "in a sentence"),
}


def honest_sets() -> list[tuple[World, str, bool]]:
    """60 honest sets: (world, form, whether train is given); splits, ids, negatives, sizes and forms in turn."""
    sets = []
    for k in range(60):
        split = ("user", "time", "leave_last_out")[k % 3]
        size = (20, 10, 20, 2, 20)[k % 5]
        world = World(
            seed=1000 + k,
            split=split,
            ids=("random", "popularity", "release", "release")[k % 4],
            negatives="popularity" if k % 7 in (2, 5) else "uniform",
            # negatives as popular as in train, targets as popular as later: that leaks, if more is new than stays
            arrivals=not (split == "time" and k % 7 in (2, 5)),
            size=size,
            n_items=(500, 300, 900)[k // 3 % 3],
            n_users=(350, 250)[k // 9 % 2],
        )
        # without the train file nothing says how popular negatives drawn by its popularity are
        sets.append((world, ("ids", "titles", "records", "ids")[k // 2 % 4], k % 6 != 4 or k % 7 in (2, 5)))
    return sets


_WORDS = [
    "Amber",
    "Brook",
    "Cedar",
    "Delta",
    "Ember",
    "Fjord",
    "Grove",
    "Haven",
    "Iris",
    "Jade",
    "Karst",
    "Lumen",
    "Mesa",
    "North",
    "Opal",
    "Prism",
    "Quarry",
    "River",
]


def title_of(item: int) -> str:
    """Two or three words and a number; some titles lie inside others, some end on a stop, as real ones do."""
    first, second = _WORDS[item % 18], _WORDS[item * 7 // 18 % 18]
    return f"{first} {second} {item}" + (" Inc." if item % 23 == 0 else " Part Two" if item % 19 == 0 else "")


def write(
    rows: Splits, log: Log, folder: Path, form: str, how: str | None, share: float, rng: np.random.Generator
) -> Path:
    """test.jsonl, train.jsonl, val.jsonl and, with ids, items.csv; how: a spelling or an answer, in a share of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        lines = []
        for row in rows[name]:
            planted = how is not None and rng.random() < share
            shown = {item: title_of(item) for item in [*row["candidates"], *row["history"]]}
            answer = shown[row["target"]]
            if planted and how in SPELLINGS:
                answer = SPELLINGS[how](answer)
            common = {"user_id": row["user_id"], "timestamp": row["timestamp"]}
            history = [shown[item] for item in row["history"]]
            slate = [answer if item == row["target"] else shown[item] for item in row["candidates"]]
            if form == "ids":
                lines.append(
                    {**common, "history": row["history"], "target": row["target"], "candidates": row["candidates"]}
                )
            elif form == "titles":
                lines.append({**common, "history": history, "target": answer, "candidates": slate})
            else:
                listed = "\n".join(f"- {title.strip()}" for title in slate)
                prompt = f"This user liked, in this order: {', '.join(history)}.\nChoose the next one of\n{listed}"
                if planted and how in ANSWERS:
                    prompt += ANSWERS[how](answer)
                others = [title for title in slate if title != answer]
                lines.append({"prompt": prompt, "chosen": answer, "rejected": others, "user_id": row["user_id"]})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if form == "ids":
        top = max(max([*r["candidates"], r["target"]]) for part in rows.values() for r in part)
        n_items = max(len(log.category_I), top + 1)
        table = [
            f'{i},"{title_of(i)}",c{log.category_I[i] if i < len(log.category_I) else i % 6}' for i in range(n_items)
        ]
        (folder / "items.csv").write_text("item_id,title,category\n" + "\n".join(table) + "\n", encoding="utf-8")
    return folder / "test.jsonl"


def one_set(
    name: str, plant: Plant | None, share: float, world: World, form: str, how: str | None, with_train: bool = True
) -> dict[str, Any]:
    """Make one set, audit it, and say what was called."""
    from sirius_rec.audit.audit import audit

    rows, log = honest(world)
    rng = np.random.default_rng([world.seed, 4])
    if plant is not None:
        plant(rows, log, world, share, rng)
    with tempfile.TemporaryDirectory() as folder:
        test = write(rows, log, Path(folder), form, how, share, rng)
        learn = {s: [Path(folder) / f"{s}.jsonl"] for s in ("train", "val") if with_train and rows[s]}
        start = time.perf_counter()
        result = audit(test, **learn, seed=world.seed)
        seconds = time.perf_counter() - start
    cautions = [one["name"] for one in result["probes"] if one["verdict"] == "caution"]
    best = max((one["hr1"] or 0.0 for one in result["probes"] if one["kind"] == "channel"), default=0.0)
    return {
        "name": name, "share": share, "split": world.split, "ids": world.ids, "negatives": world.negatives,
        "form": form, "rows": result["rows"], "slate_size": result["slate_size"], "verdict": result["verdict"],
        "leaks": result["leaks"], "cautions": cautions, "best_hr1": round(best, 4), "seconds": round(seconds, 2),
    }  # fmt: skip


def _call(arguments: tuple[Any, ...]) -> dict[str, Any]:
    return one_set(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=("honest", "plants", "curves"), default=None)
    args = parser.parse_args()
    start = time.perf_counter()
    jobs: dict[str, list[tuple[Any, ...]]] = {
        "honest": [
            (f"honest {k}", None, 0.0, world, form, None, train) for k, (world, form, train) in enumerate(honest_sets())
        ],
        "plants": [(name, *spec) for name, spec in PLANTS.items()],
        "curves": [
            (name, plant, share, World(seed=2000 + k), form, how)
            for name, (plant, form, how) in CURVES.items()
            for share in STRENGTHS
            for k in range(WORLDS)
        ],
    }
    with ProcessPoolExecutor(args.jobs) as pool:
        done = {key: list(pool.map(_call, todo)) for key, todo in jobs.items() if args.only in (None, key)}
    result: dict[str, Any] = {"machine_cpus": os.cpu_count(), "seconds": None}
    if "honest" in done:
        result["honest"] = {
            "sets": len(done["honest"]),
            "called_leak": [one for one in done["honest"] if one["verdict"] == "leak"],
            "cautions": sum(one["verdict"] == "caution" for one in done["honest"]),
            "each": done["honest"],
        }
    if "plants" in done:
        called = sum(one["verdict"] == "leak" for one in done["plants"])
        result["plants"] = {"sets": len(done["plants"]), "called_leak": called, "each": done["plants"]}
    if "curves" in done:
        table: dict[str, dict[str, int]] = {}
        for one in done["curves"]:
            line = table.setdefault(one["name"], {f"{s:.0%}": 0 for s in STRENGTHS})
            line[f"{one['share']:.0%}"] += one["verdict"] == "leak"
        result["power"] = {"worlds": WORLDS, "called_leak": table}
    result["seconds"] = round(time.perf_counter() - start, 1)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for key in ("honest", "plants"):
        for one in done.get(key, []):
            wrong = (one["verdict"] == "leak") == (key == "honest")
            print(f"{'!' if wrong else ' '} {key} {one['name']}: {one['verdict']} {one['leaks']} {one['cautions']}")
    for name, line in result.get("power", {}).get("called_leak", {}).items():
        print(f"{name:40}", " ".join(f"{share} {n}/{WORLDS}" for share, n in line.items()))


if __name__ == "__main__":
    main()
