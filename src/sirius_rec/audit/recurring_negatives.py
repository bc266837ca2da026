"""Negatives that come back with the same target."""

from __future__ import annotations

import numpy as np

from sirius_rec.audit.evidence import Evidence, compared, monte_carlo_p
from sirius_rec.audit.slates import NONE, Bools, Floats, Int, SlateSet, expected_hits

_ROUNDS = 20
_LEARNING_ROWS = 30_000  # rows whose negatives are learned; a seeded choice above
_NOISE = 3.0  # standard deviations within which shared negatives are taken for chance
_PAIRS = 2_000_000  # (slate item, teacher's negative) pairs compared per candidate and round


def recurring_negatives(slates: SlateSet, learn: SlateSet | None, seed: int) -> Evidence:
    """The candidate whose negatives, as seen where it was the target, stand in the slate beside it.

    score(c) = overlap of the slate's other items with the negatives of c's teacher, a random row whose target is c; for
    an item that was never a target, of any random row, so that frequent targets have no advantage. Without another
    file the other rows of this one teach (a row never teaches itself). Where
    learning rows of one target share no more negatives than chance has it (three standard deviations), all tie.
    Control: the same with every row's negatives dealt to the target of a random other row.
    """
    rng = np.random.default_rng([seed, 12])
    own = learn is None
    source = slates if learn is None else _some(learn, _LEARNING_ROWS, rng)
    rows = np.arange(slates.n_rows)
    most = max(1, _PAIRS // (slates.candidates_RC.shape[1] * source.candidates_RC.shape[1]))
    if len(rows) > most:
        rows = np.sort(rng.permutation(rows)[:most])
    asked = slates.select(rows)
    negatives_L = np.sort(np.where(_negatives(source), source.candidates_RC, NONE), axis=1)

    def hits(dealt_L: Int) -> Floats:
        own_rows = (rows, np.argsort(dealt_L)[rows]) if own else None
        teacher_RC = _teachers(asked, source.target_R[dealt_L], own_rows, rng)
        score_RC = _overlaps(asked, negatives_L, teacher_RC)
        return expected_hits(score_RC, asked.position_R, asked.valid_RC)

    source_name = "other rows of this file" if learn is None else learn.where
    evidence = Evidence("recurring_negatives", "channel", "", rows_R=rows, learned_from=source_name)
    pairs, shared, expected, habit = _sharing(source)
    evidence.facts |= {"negatives_shared": shared, "negatives_shared_by_chance": expected}
    sharing = (
        f"rows of one target share {shared:.2f} negatives, {expected:.2f} by chance" if pairs else "no repeated target"
    )
    if habit:
        total_R, sums = np.zeros(asked.n_rows), np.empty(_ROUNDS)
        for k in range(_ROUNDS):
            drawn = hits(rng.permutation(source.n_rows))
            total_R += drawn
            sums[k] = drawn.sum()
        evidence.hits_R, evidence.control_R = hits(np.arange(source.n_rows)), total_R / _ROUNDS
        evidence.p = monte_carlo_p(evidence.hits_R, evidence.control_R, sums)
        guess = f"the candidate whose negatives came back {compared(evidence, 'negatives dealt at random')}"
        evidence.why = f"{guess}; in {source_name}, {sharing}"
    else:
        evidence.hits_R, evidence.control_R, evidence.p = asked.chance_R, asked.chance_R, 1.0
        evidence.why = f"in {source_name}, {sharing}: nothing to go by"
    return evidence


def _teachers(asked: SlateSet, target_L: Int, own: tuple[Int, Int] | None, rng: np.random.Generator) -> Int:
    """int64[R, C]: for each candidate a random learning row whose target it is, or any row where there is none.

    own: where the asked rows are learning rows too, for each the learning row that holds its own negatives and the one
        that carries its own target; neither may teach it.
    """
    order = np.argsort(target_L, kind="stable")
    ordered = target_L[order]
    start = np.searchsorted(ordered, asked.candidates_RC)
    count = np.searchsorted(ordered, asked.candidates_RC, side="right") - start
    shape = asked.candidates_RC.shape
    pick = start + (rng.random(shape) * count).astype(np.int64)
    if own is not None:
        # leave the row itself out: draw from one fewer, and step over its place
        row = np.arange(shape[0]), asked.position_R
        place = np.argsort(order)[own[1]]
        fewer = count[row] - 1
        drawn = start[row] + (rng.random(shape[0]) * fewer).astype(np.int64)
        pick[row] = drawn + (drawn >= place)
        count[row] = fewer
    teacher = np.where(count > 0, order[np.minimum(pick, len(order) - 1)], rng.integers(0, len(order), shape))
    if own is None:
        return teacher
    # its own negatives, dealt to another target or drawn as anyone's, would agree with the slate whole
    return np.where(teacher == own[0][:, None], (teacher + 1) % len(order), teacher)


def _some(learn: SlateSet, most: int, rng: np.random.Generator) -> SlateSet:
    return learn if learn.n_rows <= most else learn.select(np.sort(rng.permutation(learn.n_rows)[:most]))


def _negatives(slates: SlateSet) -> Bools:
    return np.asarray(slates.valid_RC & (slates.candidates_RC != slates.target_R[:, None]))


def _overlaps(asked: SlateSet, negatives_L: Int, teacher_RC: Int) -> Floats:
    """float64[R, C]: how many of the slate's other items are negatives of the candidate's teacher."""
    n, width = asked.candidates_RC.shape
    overlap_RC = np.zeros((n, width))
    for column in range(width):
        theirs = negatives_L[teacher_RC[:, column]]
        others = np.where(asked.valid_RC, asked.candidates_RC, NONE - 1)
        others[:, column] = NONE - 1
        overlap_RC[:, column] = _matches(others, theirs)
    return overlap_RC


def _matches(mine: Int, theirs: Int) -> Floats:
    """float64[R]: how many entries of each row of `mine` stand in the same row of `theirs`."""
    found = np.zeros(len(mine))
    block = max(1, 4_000_000 // max(1, mine.shape[1] * theirs.shape[1]))
    for start in range(0, len(mine), block):
        part = slice(start, start + block)
        found[part] = (mine[part, :, None] == theirs[part, None, :]).any(axis=2).sum(axis=1)
    return found


def _sharing(source: SlateSet) -> tuple[int, float | None, float | None, bool]:
    """(pairs of neighbouring rows of one target, negatives a pair shares on average, by chance, whether that is more).

    By chance: items as frequent among negatives as these, drawn independently.
    """
    order = np.argsort(source.target_R, kind="stable")
    first = np.flatnonzero(source.target_R[order][1:] == source.target_R[order][:-1])
    if not first.size:
        return 0, None, None, False
    one, other = source.select(order[first]), source.select(order[first + 1])
    negatives = np.where(_negatives(one), one.candidates_RC, NONE - 1)
    shared = _matches(negatives, np.where(_negatives(other), other.candidates_RC, NONE))
    rate_I = np.bincount(source.candidates_RC[_negatives(source)]) / source.n_rows
    rates = np.where(negatives >= 0, np.append(rate_I, 0.0)[np.maximum(negatives, 0)], 0.0)
    excess, spread = float((shared - rates.sum(axis=1)).sum()), float(np.sqrt((rates * (1 - rates)).sum()))
    return len(first), float(shared.mean()), float(rates.sum(axis=1).mean()), excess > _NOISE * max(spread, 1e-12)
