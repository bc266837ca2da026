"""`audit`: every probe on one set of slates, and a verdict. `read_audit` reads what was found in a dataset folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from sirius_rec import atomic
from sirius_rec.audit import (
    alike,
    baselines,
    channels,
    contamination,
    negatives,
    order,
    popularity,
    slots,
    wording,
)
from sirius_rec.audit.evidence import ALPHA, CLEAN, LEAK, MIN_EFFECT, Evidence, bootstraps, interval, judge, worst
from sirius_rec.audit.learned_order import learned_order
from sirius_rec.audit.model_scores import surviving
from sirius_rec.audit.readers import AuditInput, read_audit_input
from sirius_rec.audit.recurring_negatives import recurring_negatives
from sirius_rec.audit.slates import Catalogue, Floats, SlateSet, joined
from sirius_rec.errors import DataError, RunError
from sirius_rec.evaluation.intervals import GroupBootstrap
from sirius_rec.evaluation.results import clean
from sirius_rec.schema import SlateName

FORMAT: Final = 2
AUDIT_FILE: Final = "audit.json"

Skipped = list[dict[str, str]]


def audit(
    path: Path | str,
    *,
    train: Sequence[Path | str] = (),
    val: Sequence[Path | str] = (),
    ids: Path | str | None = None,
    items: Path | str | None = None,
    slates: str | None = None,
    scores: Path | str | None = None,
    seed: int = 0,
    write: bool = True,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run every probe that the files allow and judge them.

    Args:
        path: a dataset folder, or a file of slates: S-DPO's JSON, TRL records, or JSON lines.
        train: files that probes may learn from.
        val: the same, of the validation split.
        ids: a CSV of numeric ids by item_id or title, orders to try.
        items: a CSV of item_id, title; one beside the files is found by itself.
        slates: which slates of a dataset folder; None takes test slates of fixed size where there are any.
        scores: a model's scores on these slates: a table of a run's `scores/`, or JSON lines of {"row", "scores"}.
        seed: of shuffles, resamples and sign flips.
        write: into a dataset folder also write audit.json, for reports.
        progress: called with one line per probe.

    Returns:
        {"rows", "slate_size", "chance", "probes": [{"name", "hr1", "ci_low", "ci_high", "verdict", "why", …}],
        "verdict", …}. `slate_size` is the mean size where slates differ; `hr1` is null where nothing is guessed.

    Raises:
        DataError, ConfigError: one line.
    """
    path = Path(path)
    given = read_audit_input(
        path,
        train=[Path(file) for file in train],
        val=[Path(file) for file in val],
        ids=None if ids is None else Path(ids),
        items=None if items is None else Path(items),
        slates=slates,
    )
    found, skipped = run_probes(given, seed=seed, progress=progress)
    judge(found)
    result = _as_json(given, found, skipped, seed)
    if scores is not None:
        result["model"] = surviving(Path(scores), given.audited, found, seed)
    cleaned: dict[str, Any] = clean(result, "audit")
    if write and given.form == "folder":
        _write(path / AUDIT_FILE, cleaned)
    return cleaned


def run_probes(
    given: AuditInput, *, seed: int = 0, progress: Callable[[str], None] | None = None
) -> tuple[list[Evidence], Skipped]:
    """Every probe that the input allows, not judged yet, and the others with the reason why they were left out."""
    say = progress or (lambda line: None)
    slates, catalogue, learn = given.audited, given.catalogue, given.learn
    found: list[Evidence] = []
    skipped: Skipped = []
    counting = learn.get("train", learn.get("val"))
    counts_I = None if counting is None else baselines.interaction_counts(counting, catalogue.n_items)
    say("slots")
    _slots(given, counts_I, seed, found, skipped)
    say("negatives")
    _negatives(given, counting, counts_I, seed, found, skipped)
    if counting is None or counts_I is None:
        for name in ("popularity", "first_order_markov", "exact_windows", "near_windows", "split_time_order"):
            skipped.append({"name": name, "why": "nothing to learn from; give --train or --val"})
    else:
        say("popularity, Markov, windows")
        found.append(baselines.popularity(slates, counts_I, counting.where))
        _against_learning(given, counting, counts_I, found, skipped)
    say("orders of ids")
    _orders(given, counting, seed, found, skipped)
    say("titles and repeats")
    found.append(channels.target_in_history(slates, seed))
    found.append(channels.duplicate_titles(slates, catalogue, seed))
    found.append(baselines.title_overlap(slates, catalogue))
    found.append(baselines.title_length(slates, catalogue, counts_I, seed))
    if len(catalogue.tabled) == catalogue.n_items:
        skipped.append({"name": "spelling", "why": "items are named by id, or as in the items table"})
    else:
        found.append(wording.spelling(slates, list(learn.values()), catalogue, seed))
    if given.mentions is None:
        skipped.append({"name": "answer_in_prompt", "why": "the file has no prompts"})
    else:
        found.append(wording.answer_in_prompt(slates, given.mentions, seed))
    repeated = contamination.repeated_slates({"audited": slates, **learn})
    if repeated is None:
        skipped.append({"name": "repeated_slates", "why": "no file names epochs (field `epoch`)"})
    else:
        found.append(repeated)
    return found, skipped


def _slots(given: AuditInput, counts_I: Floats | None, seed: int, found: list[Evidence], skipped: Skipped) -> None:
    slates = given.audited
    names = ("position_marginal", "position_per_target", "popularity_among_ties", *slots.HOMES)
    if not slates.ordered:
        skipped += [
            {"name": name, "why": "the file does not say in which order candidates are shown"} for name in names
        ]
        return
    ordered = [s for s in given.learn.values() if s.has_slates and s.ordered]
    learn = joined(ordered) if ordered else None
    found.append(slots.position_marginal(slates, learn, seed))
    everything = slates if learn is None else joined([learn, slates])
    same = slots.agreement(everything.target_R, everything, seed)
    found.append(slots.position_per_target(slates, learn, seed, same=same))
    if counts_I is None:
        skipped.append({"name": "popularity_among_ties", "why": "no popularity; give --train or --val"})
    else:
        found.append(slots.position_per_target(slates, learn, seed, counts_I, same))
    for name in slots.HOMES:
        keys = slots.keys(name, slates, learn)
        if keys is None:
            skipped.append({"name": name, "why": "the rows do not say"})
        else:
            found.append(slots.position_per_key(name, *keys, slates, learn, seed))


def _negatives(
    given: AuditInput, counting: SlateSet | None, counts_I: Floats | None, seed: int, found: list[Evidence],
    skipped: Skipped,
) -> None:  # fmt: skip
    slates, catalogue, n_items = given.audited, given.catalogue, given.catalogue.n_items
    with_slates = [s for s in given.learn.values() if s.has_slates]
    learn = joined(with_slates) if with_slates else None
    everything = joined(list(given.learn.values())) if given.learn else None
    known = alike.interacted(slates, everything, n_items)
    if counting is None or counts_I is None:
        source, counts_I = "other rows of this file", baselines.interaction_counts(slates, n_items)
        counts = earlier = popularity.Counts(counts_I, own=known)
    else:
        source, counts = counting.where, popularity.Counts(counts_I)
        earlier = popularity.counts_before(slates, counting, counts_I)
    class_I = alike.like_popularity(counts_I)
    found.append(recurring_negatives(slates, learn, seed))
    found.append(negatives.rarely_a_negative(slates, None, class_I, seed))
    if learn is None:
        skipped.append({"name": "rarely_a_negative_in_train", "why": "train and val have no slates"})
    else:
        found.append(negatives.rarely_a_negative(slates, learn, class_I, seed))
    for name, evidence, why in (
        (
            "rarely_a_negative_of_the_user",
            None if learn is None else negatives.rarely_a_negative_of_the_user(slates, learn, class_I, seed),
            "no user has slates in train or val too",
        ),
        (
            "new_in_the_users_slates",
            negatives.new_in_the_users_slates(slates, class_I, known, seed),
            "no user has two rows",
        ),
        (
            "category",
            None
            if catalogue.category_I is None
            else popularity.category(slates, catalogue.category_I, class_I, known, seed),
            "the items table has no column category or genre",
        ),
    ):
        if evidence is None:
            skipped.append({"name": name, "why": why})
        else:
            found.append(evidence)
    catalogued = bool(len(catalogue.tabled))
    found.append(popularity.popularity_band(slates, counts, source, seed))
    found.append(popularity.cold_targets(slates, counts, n_items, catalogued, known, source, seed))
    found.append(popularity.unpopular_negatives(slates, earlier, n_items, catalogued, known, source, seed))


def _against_learning(
    given: AuditInput, counting: SlateSet, counts_I: Floats, found: list[Evidence], skipped: Skipped
) -> None:
    slates, n_items = given.audited, given.catalogue.n_items
    everything = joined(list(given.learn.values()))
    if not slates.history_RH.shape[1]:
        for name in ("first_order_markov", "exact_windows", "near_windows"):
            skipped.append({"name": name, "why": "the rows show no history"})
    else:
        found.append(baselines.first_order_markov(slates, counting, counts_I))
        found.append(contamination.exact_windows(slates, everything))
        found.append(contamination.near_windows(slates, everything))
    timed = contamination.split_time_order(slates, counting, n_items)
    if timed is None:
        skipped.append({"name": "split_time_order", "why": "the rows have no timestamps"})
    else:
        found.append(timed)


def _orders(given: AuditInput, counting: SlateSet | None, seed: int, found: list[Evidence], skipped: Skipped) -> None:
    slates, catalogue = given.audited, given.catalogue
    if not slates.history_RH.shape[1]:
        skipped.append({"name": "order", "why": "the rows show no history"})
        return
    if not catalogue.columns:
        skipped.append({"name": "order:item_id", "why": "no numeric ids; give --items or --ids"})
    found += order.id_order(slates, catalogue, seed)
    # Learned on other rows than it is tried on; a weak order is what honest sequences are made of, so only a strong
    # one is reported.
    teacher = counting if counting is not None else slates.select(slates.group_R % 2 == 0)
    rows = np.arange(slates.n_rows) if counting is not None else np.flatnonzero(slates.group_R % 2 == 1)
    sequences = teacher.history_RH
    if counting is not None:
        sequences = np.hstack([sequences, teacher.target_R[:, None]])
    learned = learned_order(sequences, catalogue.n_items) if len(rows) else None
    if learned is not None:
        tried = order.id_order(slates.select(rows), Catalogue(catalogue.titles, {"learned": learned}), seed, weak=CLEAN)
        for one in tried:
            one.rows_R = rows[one.rows_R]
            one.learned_from = teacher.where
        found += tried


def _as_json(given: AuditInput, found: list[Evidence], skipped: Skipped, seed: int) -> dict[str, Any]:
    slates = given.audited
    sizes = np.unique(slates.size_R)
    plans = bootstraps(slates, np.arange(slates.n_rows), seed)
    probes = [_entry(one, slates, plans, seed) for one in found]
    notes = list(given.notes)
    name = None if given.slates_name is None else SlateName.parse(given.slates_name)
    if name is not None and name.exclusion_leaks:
        notes.append("LEAKY: negatives leave out what users interacted with later, as asked for (exclude)")
    elif name is not None and name.leaky:
        notes.append("LEAKY: these slates follow the published protocol on purpose, seeded by the target")
    for one in found:
        if one.name == "split_time_order" and (note := contamination.time_note(one.facts["share"])) is not None:
            notes.append(note)
    return {
        "format": FORMAT,
        "slates": given.slates_name or slates.where,
        "form": given.form,
        "rows": slates.n_rows,
        "slate_size": int(sizes[0]) if len(sizes) == 1 else float(slates.size_R.mean()),
        "chance": float(slates.chance_R.mean()),
        "probes": probes,
        "skipped": skipped,
        "verdict": worst([one.verdict for one in found]),
        "leaks": [one.name for one in found if one.verdict == LEAK],
        "rule": {"family_wise_level": ALPHA, "adjustment": "Holm", "least_excess_for_leak": MIN_EFFECT},
        "learned_from": {name: s.where for name, s in given.learn.items()},
        "notes": notes,
        "seed": seed,
    }


def _entry(one: Evidence, slates: SlateSet, plans: list[GroupBootstrap], seed: int) -> dict[str, Any]:
    if one.hits_R.size < slates.n_rows:
        plans = bootstraps(slates, one.rows_R, seed)
    spread = interval(one.hits_R, plans) if one.hits_R.size else None
    return {
        "name": one.name,
        "kind": one.kind,
        "hr1": one.hr1,
        "ci_low": spread.low if spread else None,
        "ci_high": spread.high if spread else None,
        "verdict": one.verdict,
        "why": one.why,
        "rows": len(one.rows_R) if one.hits_R.size else None,
        "chance": float(slates.chance_R[one.rows_R].mean()) if one.hits_R.size else None,
        "control": float(one.control_R.mean()) if one.control_R is not None and one.control_R.size else None,
        "excess": one.excess,
        "effect": one.effect if one.effect is not None else one.excess,
        "p": one.p,
        "learned_from": one.learned_from,
        **one.facts,
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        atomic.write_text(path, json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); the folder must be writable") from error


def read_audit(folder: Path | str) -> dict[str, Any] | None:
    """What `audit` last found on a dataset folder, None where it was not audited.

    Raises:
        DataError: the file is not an audit of this version.
    """
    path = Path(folder) / AUDIT_FILE
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        current = result["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an audit ({error}); run `sirius audit {folder}` again") from error
    if not current:
        raise DataError(f"{path}: format {result['format']}, this version reads {FORMAT}; audit again")
    return dict(result)
