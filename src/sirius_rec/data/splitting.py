"""Which split each event belongs to when it is a target.

Every function returns int8[E] of positions in `schema.SPLITS` (0 train, 1 val, 2 test), one per event. A window
belongs to the split of its target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import SPLITS

Labels = npt.NDArray[np.int8]
Int = npt.NDArray[np.int64]


def check_ratios(ratios: Sequence[int]) -> None:
    """Raise a `ConfigError` unless there are three whole numbers ≥ 0 with a positive sum (a share may be 0)."""
    whole = all(isinstance(r, int) and not isinstance(r, bool) and r >= 0 for r in ratios)
    if len(ratios) != len(SPLITS) or not whole or sum(ratios) == 0:
        raise ConfigError(
            f"split ratios {list(ratios)} are not three whole numbers ≥ 0 with a positive sum, as 8, 1, 1"
        )


def largest_remainder(total: int, ratios: Sequence[int]) -> list[int]:
    """Counts that add up to `total`, as near to the ratios as whole numbers can be; ties go to the earlier split.

    >>> largest_remainder(11, (8, 1, 1))
    [9, 1, 1]
    >>> largest_remainder(1892, (8, 1, 1))
    [1514, 189, 189]
    """
    check_ratios(ratios)
    whole = sum(ratios)
    counts = [total * r // whole for r in ratios]
    remainders = [total * r % whole for r in ratios]
    for k in sorted(range(len(ratios)), key=lambda k: (-remainders[k], k))[: total - sum(counts)]:
        counts[k] += 1
    return counts


def by_user(user_E: Int, *, ratios: Sequence[int] = (8, 1, 1), seed: int = 0) -> Labels:
    """Whole users, shuffled with the seed (the paper's split).

    Args:
        user_E: user numbers 0 … U-1, all of them in use.
    """
    return user_labels(int(user_E.max()) + 1 if user_E.size else 0, ratios=ratios, seed=seed)[user_E]


def user_labels(n_users: int, *, ratios: Sequence[int], seed: int) -> Labels:
    """Of whole users, int8[U]."""
    label_U = np.repeat(np.arange(len(SPLITS), dtype=np.int8), largest_remainder(n_users, ratios))
    shuffled = np.empty(n_users, dtype=np.int8)
    shuffled[np.random.default_rng(seed).permutation(n_users)] = label_U
    return shuffled


def by_time(timestamp_E: Int, *, ratios: Sequence[int] = (8, 1, 1)) -> Labels:
    """Global cut-offs: train up to the 0.8 quantile of event time, val up to the 0.9 quantile, test after (for 8:1:1).

    The q-quantile is the earliest event time at or before which at least the share q of events lies; events of one time
    never fall on two sides. Histories may reach back across a cut-off.

    Raises:
        DataError: a split that the ratios ask for gets no event, because too many events share one time.
    """
    ordered = np.sort(timestamp_E)
    cuts = cut_offs(ordered.size, ratios, lambda place: int(ordered[place]))
    labels = labels_at(cuts, timestamp_E)
    check_shares(np.bincount(labels, minlength=len(SPLITS)), cuts, ratios)
    return labels


def cut_offs(n_events: int, ratios: Sequence[int], at: Callable[[int], int]) -> tuple[int, int]:
    """The last times of train and of val. at: place (from 0) in the sorted times of all events → time."""
    check_ratios(ratios)
    needed = [-(-n_events * part // sum(ratios)) for part in (ratios[0], ratios[0] + ratios[1])]
    first, second = (at(count - 1) if count else int(np.iinfo(np.int64).min) for count in needed)
    return first, second


def labels_at(cuts: tuple[int, int], timestamp_E: Int) -> Labels:
    return np.searchsorted(np.array(cuts), timestamp_E, side="left").astype(np.int8)


def check_shares(got: Sequence[int] | Int, cuts: tuple[int, int], ratios: Sequence[int]) -> None:
    """Raise a `DataError` for a split that the ratios ask for and that got no event. got: events of each split."""
    for split, ratio, count in zip(SPLITS, ratios, got, strict=True):
        if ratio and not count:
            raise DataError(
                f"split by time: no event falls into {split} (cut-offs {cuts[0]} and {cuts[1]} s); too many events "
                "share one time, split by user instead"
            )


def leave_last_out(user_E: Int) -> Labels:
    """Each user's last event is test, the last but one val, the rest train.

    Args:
        user_E: user numbers; one user's events stand together, in time order.
    """
    labels = np.zeros(user_E.size, dtype=np.int8)
    ends = np.flatnonzero(np.diff(user_E, append=-1)) if user_E.size else np.array([], dtype=np.int64)
    before = ends - 1
    same = (before >= 0) & (user_E[before] == user_E[ends])
    labels[before[same]] = SPLITS.index("val")
    labels[ends] = SPLITS.index("test")
    return labels


def chosen(n_rows: int, limit: int, split: str, seed: int) -> Int:
    """int64[limit], ascending: which of a split's rows stay where a limit leaves fewer than there are."""
    return np.sort(np.random.default_rng([seed, SPLITS.index(split)]).permutation(n_rows)[:limit])
