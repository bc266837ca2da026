"""Probes that use a legitimate signal. They are trivial baselines: a model has to beat them, they are no leak."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from sirius_rec.audit.evidence import CAUTION, Evidence, flip_p, groupings
from sirius_rec.audit.slates import NONE, Catalogue, Floats, Int, SlateSet, expected_hits

HIGH_BASELINE: Final = 0.5
"""A baseline that goes more than half the way from chance to 1 is mentioned: the slates hardly need a model."""
TITLE_LEAK: Final = 0.10
"""Title length goes with popularity and genre; only this much HR@1 above the popularity control is called a leak."""
_WORD = re.compile(r"\w\w+")


def interaction_counts(learn: SlateSet, n_items: int) -> Floats:
    """float64[n_items]: distinct (user or run of windows, item) pairs over histories and targets."""
    flat = np.concatenate([learn.history_RH.ravel(), learn.target_R])
    group = np.concatenate([np.repeat(learn.group_R, learn.history_RH.shape[1]), learn.group_R])
    pairs = np.unique((group * n_items + flat)[flat != NONE])
    return np.bincount(pairs % n_items, minlength=n_items).astype(np.float64)


def _baseline(name: str, why: str, slates: SlateSet, score_RC: Floats, source: str) -> Evidence:
    hits = expected_hits(score_RC, slates.position_R, slates.valid_RC)
    evidence = Evidence(name, "baseline", why, hits, np.arange(slates.n_rows), learned_from=source)
    chance = float(slates.chance_R.mean())
    if evidence.hr1 is not None and evidence.hr1 > chance + HIGH_BASELINE * (1 - chance):
        evidence.verdict = CAUTION
        evidence.why += f"; right in {evidence.hr1:.1%} of rows: such slates hardly need a model"
    return evidence


def popularity(slates: SlateSet, counts_I: Floats, source: str) -> Evidence:
    """The candidate with the most interactions in train."""
    score_RC = counts_I[np.maximum(slates.candidates_RC, 0)]
    return _baseline("popularity", "legitimate: the most popular candidate", slates, score_RC, source)


def first_order_markov(slates: SlateSet, learn: SlateSet, counts_I: Floats) -> Evidence:
    """The candidate that followed the last history item most often in train, the most popular one of several."""
    n_items = len(counts_I)
    last, target = learn.last_R, learn.target_R
    known = last != NONE
    steps, counts = np.unique(last[known] * n_items + target[known], return_counts=True)
    asked = np.maximum(slates.last_R, 0)[:, None] * n_items + np.maximum(slates.candidates_RC, 0)
    score_RC = np.zeros(asked.shape)
    if steps.size:
        at = np.minimum(np.searchsorted(steps, asked), len(steps) - 1)
        score_RC = np.where((steps[at] == asked) & (slates.last_R != NONE)[:, None], counts[at], 0.0)
    score_RC = score_RC + counts_I[np.maximum(slates.candidates_RC, 0)] / (counts_I.max() + 1.0)
    why = "legitimate: the candidate that followed the last history item most often, ties by popularity"
    return _baseline("first_order_markov", why, slates, score_RC, learn.where)


def title_overlap(slates: SlateSet, catalogue: Catalogue) -> Evidence:
    """The candidate that shares most words (two letters or more) with the history's titles."""
    words = [frozenset(_WORD.findall(title.casefold())) for title in catalogue.titles]
    n, width = slates.candidates_RC.shape
    score_RC = np.zeros((n, width))
    for row, (history, slate) in enumerate(zip(slates.history_RH.tolist(), slates.candidates_RC.tolist(), strict=True)):
        seen: frozenset[str] = frozenset().union(*(words[item] for item in history if item != NONE))
        score_RC[row] = [len(seen & words[item]) if item != NONE else 0 for item in slate]
    why = "legitimate: the candidate whose title shares most words with the history (series, sequels)"
    return _baseline("title_overlap", why, slates, score_RC, "nothing")


def title_length(slates: SlateSet, catalogue: Catalogue, counts_I: Floats | None, seed: int) -> Evidence:
    """The longest (or shortest) title; which of the two is learned from the other half of the rows.

    Control: how often the guessed candidate would be the target if targets were drawn from the slate by train
    popularity (count + 1), or uniformly without train rows.
    """
    length_I = np.array([len(title) for title in catalogue.titles], dtype=np.float64)
    item_RC, valid_RC = np.maximum(slates.candidates_RC, 0), slates.valid_RC
    length_RC = np.where(valid_RC, length_I[item_RC], 0.0)
    target_R = length_I[slates.target_R]
    others_R = (length_RC.sum(axis=1) - target_R) / np.maximum(slates.size_R - 1, 1)
    half_R = slates.group_R % 2
    sign_R = np.ones(slates.n_rows)
    for half in (0, 1):
        other = half_R != half
        sign_R[half_R == half] = 1.0 if not other.any() or (target_R - others_R)[other].mean() >= 0 else -1.0
    score_RC = np.where(valid_RC, sign_R[:, None] * length_RC, -np.inf)
    hits = expected_hits(score_RC, slates.position_R, valid_RC)
    weight_RC = np.where(valid_RC, 1.0 if counts_I is None else counts_I[item_RC] + 1.0, 0.0)
    guessed = valid_RC & (score_RC == score_RC.max(axis=1, keepdims=True))
    control = (weight_RC / weight_RC.sum(axis=1, keepdims=True) * guessed).sum(axis=1) / guessed.sum(axis=1)
    rows: Int = np.arange(slates.n_rows)
    evidence = Evidence("title_length", "channel", "", hits, rows, control, leak_at=TITLE_LEAK)
    evidence.p = flip_p(hits - control, groupings(slates, rows), seed)
    way = "longest" if sign_R.mean() >= 0 else "shortest"
    evidence.why = (
        f"the {way} title; by {'popularity' if counts_I is not None else 'chance'} alone it would be right in "
        f"{control.mean():.1%} of rows"
    )
    return evidence
