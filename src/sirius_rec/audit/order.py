"""Orders that sequences inherited from a file: the candidate that comes next in an id column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sirius_rec.audit.evidence import CAUTION, LEAK, Evidence, compared, flip_p, groupings
from sirius_rec.audit.slates import NONE, Bools, Catalogue, Floats, Int, SlateSet, expected_hits

SORTED: Final = 0.75
"""Least share of neighbouring items in order of an id column that is called an inherited order (leak, else caution)."""
TIED_ROWS: Final = 30
"""Least number of rows for a verdict on the order inside ties."""


@dataclass(frozen=True)
class _Order:
    """An id column read along the histories: +1 where they ascend, -1 where they descend."""

    sign: int
    share: float
    id_RC: Floats
    id_RH: Floats
    target_R: Floats


def _read_order(slates: SlateSet, column: Floats) -> _Order | None:
    def ids(items: Int) -> Floats:
        return np.where(items != NONE, column[np.maximum(items, 0)], np.nan)

    id_RH = ids(slates.history_RH)
    steps = np.diff(id_RH, axis=1)
    steps = steps[np.isfinite(steps) & (steps != 0)]
    if not steps.size:
        return None
    share = float((steps > 0).mean())
    sign = 1 if share >= 0.5 else -1
    return _Order(sign, max(share, 1 - share), ids(slates.candidates_RC), id_RH, ids(slates.target_R))


def _next_hits(order: _Order, anchor_R: Floats, slates: SlateSet) -> Floats:
    """Hits of "the candidate that comes next after the anchor" in an order."""
    ahead_RC = order.sign * (order.id_RC - anchor_R[:, None])
    score_RC = np.where(ahead_RC > 0, -ahead_RC, -np.inf)
    return expected_hits(score_RC, slates.position_R, slates.valid_RC)


def _earlier_anchor_hits(order: _Order, slates: SlateSet) -> Floats:
    """Mean hits of the same guess with every other history item as anchor; NaN where there is none."""
    total, count = np.zeros(slates.n_rows), np.zeros(slates.n_rows)
    for back in range(order.id_RH.shape[1] - 1):
        anchor_R = order.id_RH[:, back]
        known = np.isfinite(anchor_R)
        total += np.where(known, _next_hits(order, anchor_R, slates), 0.0)
        count += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def id_order(slates: SlateSet, catalogue: Catalogue, seed: int, *, weak: str = CAUTION) -> list[Evidence]:
    """Per id column: the candidate that follows the last history item most closely.

    Control: the same with the other history items as anchors. Ids given by popularity or release date help any anchor
    and cancel; an order that the sequences inherited from a file helps the last one only. Only where the histories
    themselves are sorted (SORTED) is it called a leak; otherwise the verdict is at most `weak`, since ids by date of
    release drift along honest sequences too.
    """
    found = []
    for name, column in catalogue.columns.items():
        order = _read_order(slates, column)
        if order is None:
            continue
        hits = _next_hits(order, order.id_RH[:, -1], slates)
        control = _earlier_anchor_hits(order, slates)
        rows = np.flatnonzero(np.isfinite(control) & np.isfinite(order.id_RH[:, -1]))
        if not rows.size:
            continue
        evidence = Evidence(f"order:{name}", "channel", "", hits[rows], rows, control[rows])
        # twice, because the direction was read off the same histories
        evidence.p = min(1.0, 2 * flip_p(hits[rows] - control[rows], groupings(slates, rows), seed))
        evidence.at_most = LEAK if order.share >= SORTED else weak
        evidence.facts["sorted_share"] = order.share
        way = "above" if order.sign > 0 else "below"
        evidence.why = (
            f"the nearest {name} {way} the last history item's {compared(evidence, 'other history items as anchor')}; "
            f"{order.share:.1%} of neighbouring history items are in that order"
        )
        found.append(evidence)
        if (tied := _order_in_ties(slates, name, column, order, seed, weak)) is not None:
            found.append(tied)
    return found


def _order_in_ties(slates: SlateSet, name: str, column: Floats, order: _Order, seed: int, weak: str) -> Evidence | None:
    """The same on rows whose target has the time of the event before it, where an honest order is a coin's toss."""
    tied = _tied_rows(slates)
    known = tied & np.isfinite(order.id_RH[:, -1]) & np.isfinite(order.target_R)
    rows = np.flatnonzero(known)
    if rows.size < TIED_ROWS:
        return None
    part = slates.select(rows)
    sub = _read_order(part, column)
    if sub is None:
        return None
    step = order.target_R[rows] - order.id_RH[rows, -1]
    up = float((step > 0).mean())
    sign = 1 if up >= 0.5 else -1
    ahead = sign * step > 0
    hits = _next_hits(_Order(sign, up, sub.id_RC, sub.id_RH, sub.target_R), sub.id_RH[:, -1], part)
    # a fair toss for which of two tied events comes first: the mirrored guess is as good
    mirrored = _next_hits(_Order(-sign, up, sub.id_RC, sub.id_RH, sub.target_R), sub.id_RH[:, -1], part)
    evidence = Evidence(f"order_in_ties:{name}", "channel", "", hits, rows, mirrored)
    evidence.p = min(1.0, 2 * flip_p(hits - mirrored, groupings(slates, rows), seed))
    evidence.at_most = LEAK if float(ahead.mean()) >= SORTED else weak
    evidence.facts["sorted_share"] = float(ahead.mean())
    evidence.why = (
        f"{len(rows):,} targets have the time of the event before them; {ahead.mean():.1%} of these pairs are in order "
        f"of {name} (50 % in an honest order), and the nearest candidate in that order "
        f"{compared(evidence, 'the order reversed')}"
    )
    return evidence


def _tied_rows(slates: SlateSet) -> Bools:
    """Rows whose target shares its time with the last history item (the target of the user's row before)."""
    tied = np.zeros(slates.n_rows, dtype=bool)
    if slates.n_rows > 1:
        same = (slates.group_R[1:] == slates.group_R[:-1]) & (slates.last_R[1:] == slates.target_R[:-1])
        tied[1:] = same & (slates.time_R[1:] == slates.time_R[:-1])
    return tied
