"""Score tables, generated answers and curves → results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.config import Config
from sirius_rec.data.protocols import train_counts
from sirius_rec.errors import RunError
from sirius_rec.evaluation.beyond import TrainCounts, beyond_accuracy
from sirius_rec.evaluation.results import build_results, clean, write_results
from sirius_rec.evaluation.tables import ScoreTable
from sirius_rec.recipes import starting
from sirius_rec.recipes.diagnosis import read_curves
from sirius_rec.recipes.environment import versions
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.prompt_file import is_exported
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.scoring import answers_of, tables_of
from sirius_rec.schema import HISTORY, ROW_ID, TARGET, USER_ID, SlateName

SFT_CONTINUED = "sft_continued"  # what tests are against where nothing is configured


def collect(run: Run) -> dict[str, Any]:
    """Write results.json, with paired tests against the folder's baseline: the configured one, else the one that
    `sirius compare` chose here before, as long as it is scored, else SFT continued."""
    chosen = _chosen(run)
    results = gather(run, chosen[0] if chosen else run.config.evaluation.baseline or SFT_CONTINUED)
    if chosen is not None:
        results["notes"].append(chosen_note(results["methods"][chosen[0]]["label"], chosen[1]))
    write_results(results, run.folder.results)
    return results


def _chosen(run: Run) -> tuple[str, str] | None:
    """The baseline that was chosen for comparison.json, and the slates that it was chosen on.

    None where none was, where one is configured, and where it has no scores of what is measured now. Older versions had
    one configured in every run, and `sirius compare` chose all the same: it counts once it is another than then.
    """
    choice, configured = read_choice(run), run.config.evaluation.baseline
    if choice is None or configured not in (None, choice["configured"]):
        return None
    scored = {table.method for table in tables_of(run)}
    return (choice["baseline"], choice["slates"]) if choice["baseline"] in scored else None


def read_choice(run: Run) -> dict[str, Any] | None:
    """What `sirius compare` chose in this folder: the baseline, the slates that it was chosen on, and the one that was
    configured then, in a folder of an older version; None where it never did, or its file cannot be read."""
    try:
        choice = json.loads(run.folder.comparison.read_text())["chosen"]
        return {"baseline": str(choice["baseline"]), "slates": str(choice["slates"]),
                "configured": choice.get("configured")}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def chosen_note(label: str, slates: str) -> str:
    """Where the baseline of a comparison comes from."""
    return (
        f"Tests are against {label}, chosen for its HR@1 on {slates}: the choice sees the test rows, which makes it "
        "harder to beat and easier to lose against."
    )


def gather(run: Run, baseline: str) -> dict[str, Any]:
    """What results.json holds, with paired tests against `baseline`."""
    dataset, scores = run.dataset, run.folder.scores
    tables = tables_of(run)
    if not tables:
        raise RunError(f"{scores}: no score tables: run `sirius evaluate` first")
    names = sorted({table.slates for table in tables})
    truths = {name: dataset.truth(name) for name in names}
    splits = sorted({SlateName.parse(name).split for name in names})
    examples = pl.concat([dataset.examples(split).select(ROW_ID, USER_ID, TARGET) for split in splits])
    results = build_results(
        tables,
        examples=examples,
        truths={name: truth for name, truth in truths.items() if truth is not None},
        generation=[{key: value for key, value in entry.items() if key != "text"} for entry in answers_of(run)],
        curves=read_curves(run),
        config=run.config.model_dump(mode="json", exclude={"compute": {"jobs"}, "data": {"shards"}}),
        environment={"versions": versions(), "seeds": list(run.config.seeds)},
        data={
            "fingerprint": dataset.fingerprint,
            "source": dataset.info["source"]["name"],
            "statistics": dataset.info["statistics"],
            "slates": dataset.info["slates"],
        },
        methods=_facts(run, tables),
        baseline=baseline,
    )
    every_train = dataset.all_train_examples()
    popularity = TrainCounts(train_counts(every_train, dataset.n_items), len(dataset.train_sequences()))
    histories = pl.concat([dataset.examples(split).select(ROW_ID, USER_ID, HISTORY, TARGET) for split in splits])
    results["beyond"] = clean(
        beyond_accuracy(tables, histories, popularity, methods=results["methods"], baseline=baseline)
    )
    if begun := starting.begun_from(run):
        results["begun_from"] = {str(seed): about for seed, about in begun.items()}
        results["notes"] += starting.notes(run)
    results["notes"] += [*titles_alone(run.config), *exported_backbone(run.config)]
    few, every = dataset.n_rows("train"), every_train.height
    results["notes"] += held_out_of(dataset.info, dataset.n_items, every)
    if few < every:
        results["notes"].append(
            f"data.limits.train: language models learned from {few:,} of {every:,} train rows; all other methods from "
            "all of them."
        )
    return results


def held_out_of(info: Mapping[str, Any], n_items: int, n_train: int) -> list[str]:
    """The note of what training was denied. info: what dataset.json holds. n_train: train rows that are left."""
    held = info.get("hold_out")
    if not held:
        return []
    before, lost = n_train + held["train_rows_dropped"], held.get("pairs_lost", 0)
    nowhere = f", and {lost:,} times a warm item that one of these users had is in none of them" if lost else ""
    return [
        f"data.hold_out: training met none of {len(held['items']):,} cold items (of {n_items:,}) and "
        f"{held['users']:,} of {held['of_users']:,} users: {n_train:,} of {before:,} train rows are left{nowhere}. "
        "Numbers of users, items and events are of the whole data; popularity is of what is left."
    ]


def exported_backbone(config: Config) -> list[str]:
    """The note that the backbone itself has learned from users."""
    if not is_exported(Path(config.backbone.name).expanduser()):
        return []
    return [
        f"backbone.name: {config.backbone.name} was trained on users already, and exported. Which of these "
        "evaluation rows, or items that are held out, it learned from is not known; sft.from begins at a run, and "
        "counts them."
    ]


def titles_alone(config: Config) -> list[str]:
    """The note that some language models did not read what others did."""
    methods = build_methods(config).values()
    those = [method.label for method in methods if (method.uses_backbone or method.remote) and not method.reads_fields]
    return [f"prompts.fields: read titles alone: {'; '.join(those)}."] if config.prompts.fields and those else []


def _facts(run: Run, tables: Sequence[ScoreTable]) -> dict[str, Any]:
    """What each method is; a score table that somebody put beside the run's own (`own_scores`) is a baseline's."""
    unknown = {"role": "baseline", "random": True, "base": None, "language_model": False, "probabilities": False}
    foreign: dict[str, Any] = {}
    for t in tables:
        about = {"label": t.label, **unknown, **t.facts}
        if (other := foreign.setdefault(t.method, about)) != about:
            raise RunError(f"{t.name}: says of its method {about}, and another table of it {other}: write both alike")
    return foreign | {key: method.facts(run) for key, method in build_methods(run.config).items()}
