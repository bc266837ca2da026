"""What test rows share with train rows: windows, the future, and slates that come again every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from sirius_rec.audit.evidence import CAUTION, CLEAN, LEAK, MIN_EFFECT, Evidence
from sirius_rec.audit.slates import NONE, Bools, Floats, Int, SlateSet, expected_hits

MENTION: Final = 0.001
"""Least share of rows that is mentioned (caution)."""
NEAR_LEAK: Final = 0.05
"""Least share of near-duplicate windows called a leak: a few arise where many users read a series in order."""
SHORT: Final = 3
"""Histories below this length repeat by themselves, and so are not compared."""
SIMILAR: Final = 0.8
"""Least Jaccard similarity of two histories with the same target, both of at least 5 items, to be near-duplicates."""
_NEAR_LENGTH = 5
_PARTNERS = 400  # learning rows of one target compared with a test row


def _graded(share: float, leak_at: float) -> str:
    return LEAK if share >= leak_at else CAUTION if share >= MENTION else CLEAN


def exact_windows(slates: SlateSet, learn: SlateSet) -> Evidence:
    """Test rows whose whole window (history and target) is also a train or val row; guess what followed there."""
    width = max(slates.history_RH.shape[1], learn.history_RH.shape[1])
    followed = _followers(learn, width)
    mine = [row.tobytes() for row in _padded(slates.history_RH, width)]
    score_RC = np.zeros(slates.candidates_RC.shape)
    same = np.zeros(slates.n_rows, dtype=bool)
    for row, key in enumerate(mine):
        if (counts := followed.get(key)) is not None:
            score_RC[row] = [counts.get(item, 0) for item in slates.candidates_RC[row].tolist()]
            same[row] = int(slates.target_R[row]) in counts
    share = float(same.mean())
    why = f"{share:.2%} of rows have their whole window (history of {SHORT} or more, and target) in {learn.where}"
    hits = expected_hits(score_RC, slates.position_R, slates.valid_RC)
    return Evidence(
        "exact_windows", "check", why, hits, np.arange(slates.n_rows), verdict=_graded(share, MIN_EFFECT),
        learned_from=learn.where, facts={"share": share},
    )  # fmt: skip


def _padded(history_RH: Int, width: int) -> Int:
    pad = max(0, width - history_RH.shape[1])
    return np.ascontiguousarray(np.pad(history_RH, ((0, 0), (pad, 0)), constant_values=NONE))


def _followers(learn: SlateSet, width: int) -> dict[bytes, dict[int, int]]:
    """History (as bytes) → its targets, with counts."""
    followed: dict[bytes, dict[int, int]] = {}
    rows = zip(_padded(learn.history_RH, width), learn.target_R.tolist(), learn.length_R.tolist(), strict=True)
    for row, target, length in rows:
        if length >= SHORT:
            counts = followed.setdefault(row.tobytes(), {})
            counts[target] = counts.get(target, 0) + 1
    return followed


def near_windows(slates: SlateSet, learn: SlateSet) -> Evidence:
    """Test rows with nearly the same history as a train or val row of the same target (the exact ones left out)."""
    order = np.argsort(learn.target_R, kind="stable")
    ordered = learn.target_R[order]
    start, stop = (np.searchsorted(ordered, slates.target_R, side=side) for side in ("left", "right"))
    stop = np.minimum(stop, start + _PARTNERS)
    near = np.zeros(slates.n_rows, dtype=bool)
    block = max(1, 4_000_000 // max(1, slates.history_RH.shape[1] * learn.history_RH.shape[1] * 20))
    for first in range(0, slates.n_rows, block):
        rows = np.arange(first, min(first + block, slates.n_rows))
        count = stop[rows] - start[rows]
        owner = np.repeat(rows, count)
        if not owner.size:
            continue
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        partner = order[np.repeat(start[rows], count) + within]
        alike = _similar(slates.history_RH[owner], learn.history_RH[partner])
        near[owner[alike]] = True
    share = float(near.mean())
    why = (
        f"{share:.2%} of rows have the target and at least {SIMILAR:.0%} of the history (Jaccard, {_NEAR_LENGTH} or "
        f"more items, not the whole) of a row of {learn.where}"
    )
    return Evidence(
        "near_windows",
        "check",
        why,
        verdict=_graded(share, NEAR_LEAK),
        learned_from=learn.where,
        facts={"share": share},
    )


def _similar(one: Int, other: Int) -> Bools:
    """bool[P]: Jaccard similarity of at least SIMILAR, histories of items once each, but not equal as sequences."""
    shared = ((one[:, :, None] == other[:, None, :]) & (one != NONE)[:, :, None]).any(axis=2).sum(axis=1)
    a, b = (one != NONE).sum(axis=1), (other != NONE).sum(axis=1)
    long_enough = np.minimum(a, b) >= _NEAR_LENGTH
    width = max(one.shape[1], other.shape[1])
    equal = (_padded(one, width) == _padded(other, width)).all(axis=1)
    return np.asarray(long_enough & ~equal & (shared >= SIMILAR * (a + b - shared)))


def split_time_order(slates: SlateSet, learn: SlateSet, n_items: int) -> Evidence | None:
    """Train events later than the test row; guess the candidate with most of them. None without times.

    Events of other users are later in train with every split by user and with leave-last-out: that is said in the
    audit's notes and is no verdict. Later events of the same user are one.
    """
    if not (np.isfinite(slates.time_R).all() and np.isfinite(learn.time_R).all()) or not learn.n_rows:
        return None
    future_R = learn.n_rows - np.searchsorted(np.sort(learn.time_R), slates.time_R, side="right")
    share = float((future_R / learn.n_rows).mean())
    own = _own_future(slates, learn)
    score_RC = _later_counts(slates, learn)
    hits = expected_hits(score_RC, slates.position_R, slates.valid_RC)
    why = f"{own:.1%} of rows have later events of the same user in {learn.where}"
    return Evidence(
        "split_time_order", "check", why, hits, np.arange(slates.n_rows), verdict=_graded(own, MIN_EFFECT),
        learned_from=learn.where, facts={"share": share, "share_with_own_future": own},
    )  # fmt: skip


def time_note(share: float) -> str | None:
    """What every split by user has, once, outside the verdict."""
    if share <= MENTION:
        return None
    return (
        f"{share:.0%} of the train events are later than a row, as with any split that is not by time: what "
        "was popular later is known in advance"
    )


def _own_future(slates: SlateSet, learn: SlateSet) -> float:
    """Share of rows whose own user has later rows in the learning set."""
    if not (slates.users and learn.users):
        return 0.0
    names, code = np.unique(learn.user_R, return_inverse=True)
    latest = np.full(len(names), -np.inf)
    np.maximum.at(latest, code, learn.time_R)
    at = np.minimum(np.searchsorted(names, slates.user_R), len(names) - 1)
    return float(((names[at] == slates.user_R) & (latest[at] > slates.time_R)).mean())


def _later_counts(slates: SlateSet, learn: SlateSet) -> Floats:
    """float64[R, C]: learning rows with the candidate as target and a later time than the row."""
    times = np.unique(np.concatenate([learn.time_R, slates.time_R]))
    step = len(times) + 1
    keys = np.sort(learn.target_R * step + np.searchsorted(times, learn.time_R))
    item_RC = np.maximum(slates.candidates_RC, 0)
    now = item_RC * step + np.searchsorted(times, slates.time_R)[:, None]
    end = np.searchsorted(keys, (item_RC + 1) * step)
    return np.asarray(end - np.searchsorted(keys, now, side="right"), dtype=np.float64)


def repeated_slates(sets: Mapping[str, SlateSet]) -> Evidence | None:
    """Rows whose slate is the same in every epoch; None where no file names epochs."""
    with_epochs = {name: s for name, s in sets.items() if s.epoch_R is not None and len(np.unique(s.epoch_R)) > 1}
    if not with_epochs:
        return None
    same = total = 0
    for slates in with_epochs.values():
        found: dict[bytes, set[bytes]] = {}
        epochs: dict[bytes, set[int]] = {}
        assert slates.epoch_R is not None
        for row in range(slates.n_rows):
            key = slates.history_RH[row].tobytes() + slates.target_R[row].tobytes() + str(slates.user_R[row]).encode()
            found.setdefault(key, set()).add(slates.candidates_RC[row].tobytes())
            epochs.setdefault(key, set()).add(int(slates.epoch_R[row]))
        again = [key for key, seen in epochs.items() if len(seen) > 1]
        total += len(again)
        same += sum(len(found[key]) == 1 for key in again)
    share = same / total if total else 0.0
    why = f"{share:.1%} of rows keep one slate, in one order, in all epochs: a model can learn its negatives by heart"
    return Evidence(
        "repeated_slates", "check", why, verdict=CAUTION if share >= MIN_EFFECT else CLEAN, facts={"share": share}
    )
