"""Probes that must be at chance in an honest protocol: repeats, and titles that are duplicated in a slate."""

from __future__ import annotations

import numpy as np

from sirius_rec.audit.evidence import CAUTION, Evidence, flip_p, groupings
from sirius_rec.audit.slates import NONE, Catalogue, Floats, SlateSet, expected_hits


def target_in_history(slates: SlateSet, seed: int) -> Evidence:
    """The candidate that the history already holds. Negatives seldom do, so a repeated target stands out."""
    n, width = slates.candidates_RC.shape
    score_RC = np.zeros((n, width))
    for back in range(slates.history_RH.shape[1]):
        score_RC += (slates.candidates_RC == slates.history_RH[:, back][:, None]) & slates.valid_RC
    score_RC = np.minimum(score_RC, 1.0)
    share = float(score_RC[np.arange(n), slates.position_R].mean())
    evidence = _against_chance("target_in_history", slates, score_RC, seed)
    evidence.facts["rows_with_target_in_history"] = share
    negatives = float((score_RC.sum() - share * n) / max(1, slates.valid_RC.sum() - n))
    evidence.why = f"{share:.1%} of targets and {negatives:.1%} of negatives stand in the row's own history"
    return evidence


def duplicate_titles(slates: SlateSet, catalogue: Catalogue, seed: int) -> Evidence:
    """The candidate whose title (case and spaces aside) stands in the slate twice."""
    plain = [" ".join(title.casefold().split()) for title in catalogue.titles]
    key_I = np.unique(np.array(plain), return_inverse=True)[1].astype(np.int64)
    n, width = slates.candidates_RC.shape
    score_RC = np.zeros((n, width))
    block = max(1, 8_000_000 // max(1, width * width))
    for start in range(0, n, block):
        part = slates.candidates_RC[start : start + block]
        keys = np.where(part != NONE, key_I[np.maximum(part, 0)], -1 - np.arange(width)[None, :])
        score_RC[start : start + block] = (keys[:, :, None] == keys[:, None, :]).sum(axis=2) > 1
    evidence = _against_chance("duplicate_titles", slates, score_RC, seed)
    share = float(score_RC.any(axis=1).mean())
    evidence.facts["rows_with_duplicates"] = share
    evidence.why = f"{share:.1%} of slates hold a title twice, case and spaces aside"
    if share > 0:
        evidence.verdict = CAUTION
        evidence.why += "; such candidates are hard to tell apart, or not at all"
    return evidence


def _against_chance(name: str, slates: SlateSet, score_RC: Floats, seed: int) -> Evidence:
    rows = np.arange(slates.n_rows)
    hits = expected_hits(score_RC, slates.position_R, slates.valid_RC)
    p = flip_p(hits - slates.chance_R, groupings(slates, rows), seed)
    return Evidence(name, "channel", "", hits, rows, slates.chance_R, p)
