"""Guessers that must be at their control in an honest protocol: positions, repeats, titles that stand twice."""

from __future__ import annotations

import numpy as np

from sirius_rec.audit.evidence import CAUTION, Evidence, compared, flip_p, groupings, monte_carlo_p
from sirius_rec.audit.slates import (
    NONE,
    Catalogue,
    Floats,
    Hits,
    Int,
    SlateSet,
    expected_hits,
    joined,
    rounds_for,
    shuffles,
)

_NOISE = 3.0  # standard deviations within which a habit is taken for noise
_FEW = 30


def _all_rows(slates: SlateSet) -> Int:
    return np.arange(slates.n_rows)


def _against_shuffles(evidence: Evidence, slates: SlateSet, hits: Hits, seed: int) -> Evidence:
    """Fill in hits, and the control with every slate in random order."""
    evidence.rows_R = _all_rows(slates)
    evidence.hits_R = hits(slates.candidates_RC, slates.position_R)
    rounds = rounds_for(slates)
    total_R, sums = np.zeros(slates.n_rows), np.empty(rounds)
    for k, (candidates_RC, position_R) in enumerate(shuffles(slates, rounds, seed)):
        drawn = hits(candidates_RC, position_R)
        total_R += drawn
        sums[k] = drawn.sum()
    evidence.control_R = total_R / rounds
    evidence.p = monte_carlo_p(evidence.hits_R, evidence.control_R, sums)
    return evidence


def position_marginal(slates: SlateSet, learn: SlateSet | None, seed: int) -> Evidence:
    """The slot that targets stand in most often; learned from other files, or from the other half of this one.

    Slots whose count lies within three standard deviations of an even share count as equal: noise is no hint.
    """
    half_R = slates.group_R % 2
    width = slates.candidates_RC.shape[1]

    def hits(candidates_RC: Int, position_R: Int) -> Floats:
        score_RC = np.zeros(candidates_RC.shape)
        if learn is not None:
            score_RC += _slot_scores(learn.position_R, learn.size_R, width)
        else:
            for half in (0, 1):
                other = half_R != half
                score_RC[half_R == half] = _slot_scores(position_R[other], slates.size_R[other], width)
        return expected_hits(score_RC, position_R, candidates_RC != NONE)

    evidence = Evidence("position_marginal", "channel", "", learned_from=_source(learn))
    _against_shuffles(evidence, slates, hits, seed)
    evidence.why = f"the slot that targets prefer {compared(evidence, 'slates in random order')}"
    return evidence


def _slot_scores(position_R: Int, size_R: Int, width: int) -> Floats:
    """float64[width]: standard deviations of each slot's count above an even share, 0 where below three."""
    counts = np.bincount(position_R, minlength=width)[:width]
    sizes, rows = np.unique(size_R, return_counts=True)
    inside = np.arange(width)[:, None] < sizes[None, :]
    expected = (inside * (rows / np.maximum(sizes, 1))).sum(axis=1)
    excess = (counts - expected) / np.sqrt(np.maximum(expected, 1e-12))
    return np.where((excess > _NOISE) & (expected > 0), excess, 0.0)


def position_per_target(
    slates: SlateSet, learn: SlateSet | None, seed: int, popularity: Floats | None = None
) -> Evidence:
    """Each item's home slot: where it stood when it was the target, elsewhere.

    score(c in slot p) = (n_cp + 1/C) / (n_c + 1), n_cp the learning rows with target c in slot p: a candidate at home
    is likely, one that was never a target less so, one away from home hardly. Without another file the other rows of
    this one teach (a row never teaches itself). Where repeated targets keep their slot no more often than chance has it
    (three standard deviations), homes are noise and all candidates tie. popularity: breaks ties, per item.
    """
    source = learn if learn is not None else slates
    width = max(slates.candidates_RC.shape[1], source.candidates_RC.shape[1])
    targets = np.unique(source.target_R)
    number_I = np.full(1 + int(max(slates.candidates_RC.max(), targets.max())), len(targets))
    number_I[targets] = np.arange(len(targets))  # a row of the table per known target, and one for all other items
    tie_I = np.zeros(len(number_I)) if popularity is None else popularity / (1e6 * (popularity.max() + 1))
    taught = None if learn is None else _home_counts(number_I[learn.target_R], learn.position_R, width, len(targets))
    habit = _homes(source)[2]
    repeated, kept, _ = _homes(source if learn is None else joined([learn, slates]))
    row = _all_rows(slates)

    def hits(candidates_RC: Int, position_R: Int) -> Floats:
        item_RC = np.maximum(candidates_RC, 0)
        score_RC = tie_I[item_RC]
        if habit:
            table_TP = taught
            if table_TP is None:
                table_TP = _home_counts(number_I[slates.target_R], position_R, width, len(targets))
            code_RC = number_I[item_RC]
            here_RC = table_TP[code_RC, np.arange(code_RC.shape[1])[None, :]]
            total_RC = table_TP.sum(axis=1)[code_RC]
            if taught is None:
                here_RC[row, position_R] -= 1
                total_RC[row, position_R] -= 1
            score_RC = score_RC + (here_RC + 1.0 / code_RC.shape[1]) / (total_RC + 1.0)
        return expected_hits(score_RC, position_R, candidates_RC != NONE)

    name = "position_per_target" if popularity is None else "popularity_among_ties"
    evidence = Evidence(name, "channel", "", learned_from=_source(learn))
    _against_shuffles(evidence, slates, hits, seed)
    what = "each item's home slot" + ("" if popularity is None else ", ties by popularity,")
    evidence.why = f"{what} {compared(evidence, 'slates in random order')}"
    evidence.facts |= {"repeated_targets": repeated, "repeated_targets_in_one_slot": kept}
    evidence.why += f"; {kept:,} of {repeated:,} repeated targets keep one slot" + ("" if habit else ": no home slots")
    return evidence


def _source(learn: SlateSet | None) -> str:
    return learn.where if learn is not None else "other rows of this file"


def _home_counts(target_R: Int, position_R: Int, width: int, n_targets: int) -> Floats:
    """float64[n_targets + 1, width]: rows with each target in each slot; the last line stays zero."""
    size = (n_targets + 1) * width
    return np.bincount(target_R * width + position_R, minlength=size).astype(np.float64).reshape(-1, width)


def _homes(source: SlateSet) -> tuple[int, int, bool]:
    """(targets with at least two rows, those of them that always stand in one slot, whether slots come back at all).

    Slots come back when neighbouring rows of one target agree on the slot more often than 1/C by three standard
    deviations; with fewer than 30 such pairs, when they agree in a fifth of them more than chance.
    """
    order = np.argsort(source.target_R, kind="stable")
    target, position, chance = source.target_R[order], source.position_R[order], source.chance_R[order]
    _, first, counts = np.unique(target, return_index=True, return_counts=True)
    same = np.minimum.reduceat(position, first) == np.maximum.reduceat(position, first)
    pair = target[1:] == target[:-1]
    agree, expected = (position[1:] == position[:-1])[pair], chance[1:][pair]
    habit = False
    if agree.size:
        needed = _NOISE * np.sqrt((expected * (1 - expected)).sum())
        habit = bool(agree.sum() - expected.sum() > max(needed, 0.2 * agree.size if agree.size < _FEW else 0.0))
    return int((counts > 1).sum()), int(((counts > 1) & same).sum()), habit


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
    evidence.why = f"{share:.1%} of slates hold a title twice"
    if share > 0:
        evidence.verdict = CAUTION
        evidence.why += "; two candidates that read the same cannot be told apart"
    return evidence


def _against_chance(name: str, slates: SlateSet, score_RC: Floats, seed: int) -> Evidence:
    rows = _all_rows(slates)
    hits = expected_hits(score_RC, slates.position_R, slates.valid_RC)
    p = flip_p(hits - slates.chance_R, groupings(slates, rows), seed)
    return Evidence(name, "channel", "", hits, rows, slates.chance_R, p)
