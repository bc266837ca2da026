"""Which items are negatives, and of whom: what is never one is likely a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sirius_rec.audit.alike import Interacted, interacted, redrawn_alike, swapped
from sirius_rec.audit.evidence import Evidence, compared, monte_carlo_p
from sirius_rec.audit.slates import NONE, Floats, Int, SlateSet, expected_hits

RARE_LEAK: Final = 0.03
"""Least excess of `rarely_a_negative` called a leak: whom users exclude goes with popularity, which no control cancels
quite; honest slates of Last.fm and MovieLens are 0.01 above it."""
_ROUNDS = 20


def _over_rounds(evidence: Evidence, hits: Floats, again: Callable[[], Floats]) -> None:
    total, sums = np.zeros(len(hits)), np.empty(_ROUNDS)
    for k in range(_ROUNDS):
        drawn = again()
        total += drawn
        sums[k] = drawn.sum()
    evidence.hits_R, evidence.control_R = hits, total / _ROUNDS
    evidence.p = monte_carlo_p(evidence.hits_R, evidence.control_R, sums)


def negatives_of(slates: SlateSet) -> tuple[Int, Int]:
    """(row, item) of every negative."""
    row, column = np.nonzero(slates.valid_RC & (slates.candidates_RC != slates.target_R[:, None]))
    return row, slates.candidates_RC[row, column]


def rarely_a_negative(slates: SlateSet, learn: SlateSet | None, class_I: Int, seed: int) -> Evidence:
    """The candidate that is a negative least often: elsewhere (learn), or in the other rows of this file.

    Counts are taken per row in which the item could be one, its user never having interacted with it. Control: the same
    with the rates of items of like popularity exchanged, so that negatives drawn by popularity cancel.
    """
    rng = np.random.default_rng([seed, 21])
    source = slates if learn is None else learn
    n_items = len(class_I)
    count_I = np.bincount(negatives_of(source)[1], minlength=n_items).astype(np.float64)
    keys = interacted(source, None, n_items).keys
    rows_of_group = np.bincount(source.group_R)
    open_I = source.n_rows - np.bincount(keys % n_items, weights=rows_of_group[keys // n_items], minlength=n_items)
    item_RC = np.maximum(slates.candidates_RC, 0)
    # a negative is one in its own row at least; what stands in its place in the control is not
    own_RC = (item_RC != slates.target_R[:, None]) * float(learn is None)

    def hits(rate_RC: Floats) -> Floats:
        return expected_hits(-rate_RC, slates.position_R, slates.valid_RC)

    name = "rarely_a_negative" if learn is None else "rarely_a_negative_in_train"
    where = "other rows of this file" if learn is None else learn.where
    evidence = Evidence(
        name, "channel", "", rows_R=np.arange(slates.n_rows), learned_from=where,
        leak_at=RARE_LEAK, mention_at=RARE_LEAK * 2 / 3,
    )  # fmt: skip
    rate_I = count_I / np.maximum(open_I, 1)
    observed = hits((count_I[item_RC] - own_RC) / np.maximum(open_I[item_RC] - own_RC, 1))
    _over_rounds(evidence, observed, lambda: hits(rate_I[swapped(class_I, rng)[item_RC]]))
    never = float((count_I[slates.target_R] == 0).mean())
    evidence.facts["targets_never_a_negative"] = never
    evidence.why = (
        f"the candidate that is a negative least often in {where} "
        f"{compared(evidence, 'the rates of items of like popularity')}; {never:.1%} of targets never are"
    )
    return evidence


def rarely_a_negative_of_the_user(slates: SlateSet, learn: SlateSet, class_I: Int, seed: int) -> Evidence | None:
    """The candidate that is least often a negative of this user in train and val; None where no users are shared.

    Where train negatives leave out what a user interacts with later, that candidate is the target. Control: the user's
    counts, those of items of like popularity exchanged.
    """
    if not (slates.users and learn.users and learn.has_slates):
        return None
    names, code = np.unique(learn.user_R, return_inverse=True)
    user_R = np.minimum(np.searchsorted(names, slates.user_R), len(names) - 1)
    rows = np.flatnonzero(names[user_R] == slates.user_R)
    if not rows.size:
        return None
    asked, n_items = slates.select(rows), len(class_I)
    row, item = negatives_of(learn)
    keys, counts = np.unique(code[row] * n_items + item, return_counts=True)
    item_RC, first_R = np.maximum(asked.candidates_RC, 0), user_R[rows] * n_items
    rng = np.random.default_rng([seed, 22])

    def hits(other_I: Int) -> Floats:
        key_RC = first_R[:, None] + other_I[item_RC]
        at_RC = np.minimum(np.searchsorted(keys, key_RC), len(keys) - 1)
        return expected_hits(-np.where(keys[at_RC] == key_RC, counts[at_RC], 0.0), asked.position_R, asked.valid_RC)

    evidence = Evidence("rarely_a_negative_of_the_user", "channel", "", rows_R=rows, learned_from=learn.where)
    _over_rounds(evidence, hits(np.arange(n_items)), lambda: hits(swapped(class_I, rng)))
    evidence.why = (
        f"the candidate that is least often a negative of the row's own user in {learn.where} "
        f"{compared(evidence, 'items of like popularity exchanged')}"
    )
    return evidence


def new_in_the_users_slates(slates: SlateSet, class_I: Int, known: Interacted, seed: int) -> Evidence | None:
    """The candidate that stands in fewest other slates of its user; None where no user has two rows.

    Control: every negative gives way to an item of like popularity that the user did not interact with. What comes of
    never drawing a user's own items is in both; negatives drawn once for all rows of a user are not.
    """
    rows = np.flatnonzero(np.bincount(slates.group_R)[slates.group_R] > 1)
    if not rows.size:
        return None
    asked, rng = slates.select(rows), np.random.default_rng([seed, 23])

    def hits(candidates_RC: Int) -> Floats:
        key_RC = np.where(candidates_RC != NONE, asked.group_R[:, None] * known.n_items + candidates_RC, -1)
        _, code, counts = np.unique(key_RC, return_inverse=True, return_counts=True)
        return expected_hits(-counts[code.reshape(key_RC.shape)].astype(float), asked.position_R, asked.valid_RC)

    evidence = Evidence("new_in_the_users_slates", "channel", "", rows_R=rows, learned_from="other rows of this file")
    _over_rounds(evidence, hits(asked.candidates_RC), lambda: hits(redrawn_alike(asked, class_I, known, rng)))
    evidence.why = (
        f"the candidate that stands in fewest other slates of the row's user "
        f"{compared(evidence, 'negatives of like popularity drawn row by row')}"
    )
    return evidence
