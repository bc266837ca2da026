"""What the methods wrote: a few greedy answers beside their prompts, one row for every kind of answer there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import polars as pl

from sirius_rec.data.store import Dataset
from sirius_rec.schema import HISTORY, ROW_ID, TARGET, SlateName

ROWS: Final = 4
RECENT: Final = 3  # titles of a history that are shown
HIT, OTHER, OUTSIDE, NO_TITLE = "the target", "another candidate", "a title outside the slate", "no title"
Answers = dict[str, Any]


def sample_answers(
    entries: Sequence[Mapping[str, Any]], dataset: Dataset, labels: Mapping[str, str], rows: int = ROWS
) -> Answers | None:
    """Answers to the same prompts of every method, on the smallest test slates and their first seed, for the page.

    entries: the files of RUN/generation: method, seed, slates, checkpoint, and per row row_id, text, valid and hit. The
    rows are chosen so that every kind of answer is seen, so they say nothing of shares; `counts` do. None where
    nothing was generated on test slates.
    """
    shown = _choose([entry for entry in entries if entry["method"] in labels])
    if not shown:
        return None
    titles = set(dataset.titles)
    answers = {entry["method"]: _kinds(entry, titles) for entry in shown}
    shared = sorted(set.intersection(*(set(one) for one in answers.values())))
    if not shared:
        return None
    split = SlateName.parse(shown[0]["slates"]).split
    frame = dataset.examples(split).filter(pl.col(ROW_ID).is_in(shared)).select(ROW_ID, HISTORY, TARGET)
    prompts = {row[ROW_ID]: row for row in frame.iter_rows(named=True)}
    return {
        **{key: shown[0][key] for key in ("slates", "checkpoint", "seed")},
        "methods": [
            {"label": labels[method], "n": len(one), "hits": _times(one, HIT), "valid": _times(one, HIT, OTHER)}
            for method, one in answers.items()
        ],
        "rows": [
            {"id": row, "target": dataset.titles[prompts[row][TARGET]],
             "history": [dataset.titles[item] for item in prompts[row][HISTORY][-RECENT:]],
             "answers": [dict(zip(("text", "kind"), one[row], strict=True)) for one in answers.values()]}
            for row in _varied(answers, shared, rows)
        ],
    }  # fmt: skip


def _choose(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the smallest test slates, best checkpoint before last, and the lowest seed, by method."""
    keys = {(e["slates"], e["checkpoint"], e["seed"]) for e in entries if SlateName.parse(e["slates"]).split == "test"}
    if not keys:
        return []
    first = min(keys, key=lambda key: (SlateName.parse(key[0]).size, key[0], key[1] != "best", key[2]))
    chosen = [e for e in entries if (e["slates"], e["checkpoint"], e["seed"]) == first]
    return sorted(chosen, key=lambda entry: entry["method"])


def _kinds(entry: Mapping[str, Any], titles: set[str]) -> dict[int, tuple[str, str]]:
    """Row → (answer, what it is)."""
    out = {}
    for row, text, valid, hit in zip(*(entry[key] for key in ("row_id", "text", "valid", "hit")), strict=True):
        kind = HIT if hit else OTHER if valid else OUTSIDE if text.strip() in titles else NO_TITLE
        out[row] = (text.strip() or "(nothing)", kind)
    return out


def _times(answers: Mapping[int, tuple[str, str]], *kinds: str) -> int:
    return sum(kind in kinds for _, kind in answers.values())


def _varied(answers: Mapping[str, Mapping[int, tuple[str, str]]], shared: Sequence[int], rows: int) -> list[int]:
    """First one row for each kind of answer, then the first ones; in order."""
    picked: dict[int, None] = {}
    for kind in (HIT, OTHER, OUTSIDE, NO_TITLE):
        found = next((row for row in shared if any(one[row][1] == kind for one in answers.values())), None)
        if found is not None and len(picked) < rows:
            picked[found] = None
    for row in shared:
        if len(picked) < rows:
            picked[row] = None
    return sorted(picked)
