"""Events gathered from raw files: ids as numbers while they are many, each user's in time order at the end.

Many logs stamp events by the second or the day only, so a user's events of one time have no order of their own, and
the order of the file is often that of the item ids: keeping it would let a ranker guess the next item from the ids
alone. Ties are therefore put in a seeded random order unless the file's order is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.slates import mix64
from sirius_rec.data.sources.span import TIME, TimeSpan, time_notes
from sirius_rec.schema import ITEM_ID, TIMESTAMP, USER_ID

Ties = Literal["shuffle", "file"]

__all__ = ["TIME", "EventLog", "Ordered", "Ties"]

Codes = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint64]


class Codebook:
    """Texts as numbers in order of first appearance."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._number)

    def __iter__(self) -> Iterator[str]:
        return iter(self._number)

    def add(self, texts: pl.Series) -> Codes:
        """int32 numbers of texts, which must not be null."""
        distinct = texts.unique(maintain_order=True)
        number = self._number
        codes: Codes = np.array([number.setdefault(text, len(number)) for text in distinct.to_list()], dtype=np.int32)
        local = texts.cast(pl.Enum(distinct)).to_physical().to_numpy()
        return codes.take(local)

    def texts(self) -> pl.Series:
        """All texts by number."""
        return pl.Series(list(self._number), dtype=pl.String)


def text_hashes(texts: Iterable[str], salt: str) -> Bits:
    """64 bits per text, from the text and the salt alone."""
    start = hashlib.blake2b(salt.encode(), digest_size=8)
    digests = bytearray()
    for text in texts:
        one = start.copy()
        one.update(text.encode())
        digests += one.digest()
    return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)


def user_hashes(users: Iterable[str], seed: int) -> Bits:
    """What the order of a user's ties is drawn from, with `item_hashes`."""
    return text_hashes(users, f"users {seed}")


def item_hashes(items: Iterable[str], seed: int) -> Bits:
    """What the place of an item in a tie is drawn from, with `user_hashes`."""
    return text_hashes(items, f"items {seed}")


@dataclass(frozen=True)
class Ordered:
    """events: user_id, item_id, timestamp, as `schema.Interactions` wants them.

    repeated: events dropped because the user had the item before. of_short_users: of users with too few events.
    ties, times: for the notes. exact: float64 seconds of the events, not rounded down.
    """

    events: pl.DataFrame
    repeated: int
    of_short_users: int
    ties: dict[str, Any]
    times: dict[str, Any]
    exact: npt.NDArray[np.float64]


class EventLog:
    """Collects events, about 24 bytes each, and puts them in order."""

    def __init__(self, span: TimeSpan = TimeSpan()) -> None:
        self._users, self._items = Codebook(), Codebook()
        self._parts: list[tuple[Codes, Codes, npt.NDArray[Any]]] = []
        self._span = span
        self.outside = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Add user_id, item_id (text, not null) and `TIME` of a part of the file, in the file's order.

        Events outside the span are counted in `outside` and never happened: not even a later one is a repetition.
        """
        inside = self._span.keep(frame)
        self.outside += frame.height - inside.height
        frame = inside
        if frame.height:
            user, item = self._users.add(frame[USER_ID]), self._items.add(frame[ITEM_ID])
            self._parts.append((user, item, frame[TIME].to_numpy()))

    def __len__(self) -> int:
        return sum(user.size for user, _, _ in self._parts)

    def items(self) -> pl.Series:
        """The ids of all items added so far."""
        return self._items.texts()

    def finish(self, *, ties: Ties, seed: int, min_user: int = 1, keep_repeats: bool = False) -> Ordered:
        """All events: users in order of first appearance, each user's by time, ties by `ties`; empties the log.

        A repeated (user, item) pair keeps its first event, or all. After that, users with fewer than `min_user` are
        dropped.

        Args:
            ties: `shuffle`: events of one user and time in an order drawn from the seed, the user and the item, and
                thus not from the file; `file`: as they stand in the file.
        """
        user, item, time = self._gathered()

        def luck(who: Codes, what: Codes) -> Bits:
            users, items = user_hashes(self._users, seed), item_hashes(self._items, seed)
            return users[who] ^ items[what]

        order = time_order(user, item, time, luck if ties == "shuffle" else None)
        user, item, time = user[order], item[order], time[order]
        del order
        first = first_of_pairs(user, item, len(self._items), keep_repeats)
        selected = first
        if min_user > 1:
            counts = np.bincount(user[first], minlength=len(self._users))
            selected = first & (counts[user] >= min_user)
        if not selected.all():
            user, item, time = user[selected], item[selected], time[selected]
        events = pl.DataFrame(
            {
                USER_ID: self._users.texts().gather(user),
                ITEM_ID: self._items.texts().gather(item),
                TIMESTAMP: np.floor(time).astype(np.int64),
            }
        )
        repeated, short = int((~first).sum()), int(first.sum() - selected.sum())
        ties_found = tie_notes(ties, seed, *count_ties(user, time))
        return Ordered(events, repeated, short, ties_found, time_notes(time), time)

    def _gathered(self) -> tuple[Codes, Codes, npt.NDArray[Any]]:
        """user, item and time of all events in the file's order."""
        parts, self._parts = self._parts, []
        user = np.concatenate([np.empty(0, np.int32), *(part[0] for part in parts)])
        item = np.concatenate([np.empty(0, np.int32), *(part[1] for part in parts)])
        time = np.concatenate([part[2] for part in parts]) if parts else np.empty(0, np.int64)
        return user, item, time


def time_order(
    user: Codes, item: Codes, time: npt.NDArray[Any], luck: Callable[[Codes, Codes], Bits] | None
) -> npt.NDArray[np.int64]:
    """Positions of events by user, then time; equal ones by the luck of (users, items), or as they stand if None."""
    key = user.astype(np.int64) << 32
    key |= _ranks(time)
    order: npt.NDArray[np.int64] = np.argsort(key, kind="stable")
    if luck is None:
        return order
    key = key[order]
    same = np.r_[False, key[1:] == key[:-1]]
    tied = np.flatnonzero(same | np.r_[same[1:], False])  # places in the order that ties fill
    if not tied.size:
        return order
    group = np.cumsum(~same[tied])
    del key, same
    drawn = mix64(luck(user[order[tied]], item[order[tied]]))
    order[tied] = order[tied][np.lexsort((drawn, group))]
    return order


def first_of_pairs(user: Codes, item: Codes, n_items: int, keep_repeats: bool = False) -> npt.NDArray[np.bool_]:
    """Which events are their (user, item) pair's first; all where repeats are kept."""
    if keep_repeats:
        return np.ones(user.size, bool)
    return pl.Series(user.astype(np.int64) * max(n_items, 1) + item).is_first_distinct().to_numpy()


def _ranks(time: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Numbers from 0 below 2^32 in the order of the times, equal for equal times."""
    if not time.size:
        return np.empty(0, np.int64)
    low, high = time.min(), time.max()
    whole = time.dtype.kind == "i" or bool((time == np.floor(time)).all())
    if whole and high - low < 2**32:
        shifted: npt.NDArray[np.int64] = (time - low).astype(np.int64)
        return shifted
    ranks: npt.NDArray[np.int64] = np.unique(time, return_inverse=True)[1].astype(np.int64)
    return ranks


def count_ties(user: Codes, time: npt.NDArray[Any]) -> tuple[int, int]:
    """In how many groups events share user and time, and how many events do; they are sorted by both."""
    if not user.size:
        return 0, 0
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    after, before = np.r_[False, same], np.r_[same, False]
    return int((before & ~after).sum()), int((before | after).sum())


def tie_notes(ties: Ties, seed: int, groups: int, rows: int) -> dict[str, Any]:
    """For dataset.json."""
    by = f"seeded shuffle, seed {seed}" if ties == "shuffle" else "order in the file"
    return {"broken_by": by, "groups": groups, "rows": rows}


def in_seconds(impressions: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Impressions (user_id, `TIME`, …) with their timestamp, whole seconds as events have them.

    What was shown after an event, but in the same second, is put into the next second: it may be the answer to that
    event, and is none of what was passed over for it.

    events: user_id, `TIME` of the same log, without what was dropped of it.
    """
    second = pl.col(TIME).floor().cast(pl.Int64)
    if (impressions[TIME] == impressions[TIME].floor()).all():  # so none comes after an event in its second
        return impressions.with_columns(second.alias(TIMESTAMP))
    before = events.select(USER_ID, TIME, second.alias("second of the event")).sort(TIME)
    joined = impressions.sort(TIME).join_asof(
        before, on=TIME, by=USER_ID, strategy="backward", allow_exact_matches=False, check_sortedness=False
    )
    after = (second == pl.col("second of the event")).fill_null(False)
    return joined.with_columns((second + after.cast(pl.Int64)).alias(TIMESTAMP)).drop("second of the event")
