"""A simulated catalogue whose users' true preference is known, so that reward hacking can be measured against it.

Items have a genre, a latent vector near its genre's centre, a quality, and an exposure popularity that has nothing to
do with quality: what is seen most is chosen most, so popularity is a real but imperfect signal, as in logged data. A
user likes a mixture of one or two genres. The true utility of an item y after a history h is

    U(u, h, y) = s · u·y + a · mean over the last 3 items x of h of x·y + q_y          (u, x, y unit vectors)

At each step the user sees 60 untouched items drawn by exposure popularity and chooses by softmax(U / temperature).

The constants were chosen once, for plausibility alone: over four seeds, ranking uniform slates of 20 by U puts the
chosen item first in 0.58 to 0.65 of the cases, popularity in 0.11 to 0.18 (chance 0.05). No method was looked at.

Every parameter is rounded to 6 decimals and sums run in a fixed order, so that the utilities have the same bytes on
any machine, whatever its mathematics library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.sources.title_words import ADJECTIVES, ENDINGS, GENRE_WORDS
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import ITEM_ID, TIMESTAMP, TITLE, USER_ID, Interactions

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

_START = 1_577_836_800  # 2020-01-01 UTC
_DAY = 86_400


@dataclass(frozen=True)
class SimulatedWorld:
    """A world of items and users; every array derives from the parameters and the seed.

    Items are numbered 0 … n_items - 1 with item_id `i<number>`, users 0 … n_users - 1 with user_id `u<number>`.
    """

    seed: int = 0
    n_items: int = 300
    n_users: int = 400
    n_genres: int = 8
    dim: int = 8
    events_per_user: int = 24
    exposure_size: int = 60
    taste_weight: float = 6.0
    history_weight: float = 3.0
    quality_std: float = 0.8
    zipf_exponent: float = 1.0
    item_noise: float = 0.7
    temperature: float = 0.6
    memory: int = 3

    def __post_init__(self) -> None:
        """Raise a `ConfigError` for a world that cannot be."""
        most = len(ADJECTIVES) * len(GENRE_WORDS[0]) * (1 + len(ENDINGS))
        limits = {
            "n_genres": (1, len(GENRE_WORDS)),
            "n_items": (2, most * self.n_genres),
            "n_users": (1, 10_000_000),
            "dim": (1, 1024),
            "events_per_user": (1, most * self.n_genres),
            "exposure_size": (1, most * self.n_genres),
            "memory": (1, 1000),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"simulated world: {name}={value} is not between {low} and {high}")
        # at the last step a user still has to be shown exposure_size items that are new to her
        if self.n_items < (needed := self.events_per_user + self.exposure_size):
            fewer = self.n_items - self.exposure_size
            or_lower = f", or lower events_per_user to at most {fewer}" if fewer > 0 else ""
            raise ConfigError(
                f"simulated world: n_items={self.n_items} is too small for events_per_user={self.events_per_user} and "
                f"{self.exposure_size} untouched items shown at each; raise n_items to at least {needed}{or_lower}"
            )
        if self.temperature <= 0:
            raise ConfigError(f"simulated world: temperature={self.temperature} is not above 0")

    @classmethod
    def from_notes(cls, notes: dict[str, Any]) -> SimulatedWorld:
        """Rebuild the world from the notes of its interactions (dataset.json: `source.notes`).

        >>> world = SimulatedWorld(seed=3, n_items=100, n_users=2)
        >>> SimulatedWorld.from_notes(world.notes()) == world
        True
        """
        known = {f.name for f in fields(cls)}
        parameters = notes.get("world")
        if not isinstance(parameters, dict) or set(parameters) != known:
            raise DataError("the notes do not describe a simulated world; prepare the data set again")
        return cls(**parameters)

    def notes(self) -> dict[str, Any]:
        """Everything that is needed to rebuild the world."""
        return {"files": [], "world": asdict(self)}

    def _rng(self, part: int) -> np.random.Generator:
        # one stream per part, so that a change to one part leaves the others as they are
        return np.random.default_rng([self.seed, part])

    @cached_property
    def genre_of_item(self) -> Int:
        """int64[n_items]; genres are as equal in size as they can be."""
        return self._rng(0).permutation(np.arange(self.n_items) % self.n_genres)

    @cached_property
    def genre_centre(self) -> Float:
        """float64[n_genres, dim], unit rows."""
        return _unit_rows(self._rng(1).standard_normal((self.n_genres, self.dim)))

    @cached_property
    def item_vector(self) -> Float:
        """float64[n_items, dim], unit rows: genre centre plus noise of expected length `item_noise`."""
        noise = self._rng(2).standard_normal((self.n_items, self.dim)) * (self.item_noise / np.sqrt(self.dim))
        return _unit_rows(self.genre_centre[self.genre_of_item] + noise)

    @cached_property
    def quality(self) -> Float:
        """float64[n_items], normal with standard deviation `quality_std`."""
        return np.round(self._rng(3).standard_normal(self.n_items) * self.quality_std, 6)

    @cached_property
    def log_exposure(self) -> Float:
        """float64[n_items]: log of the Zipf weight rank^-zipf_exponent; ranks are random, independent of quality."""
        rank = self._rng(4).permutation(self.n_items) + 1
        return np.round(-self.zipf_exponent * np.log(rank), 6)

    @cached_property
    def user_vector(self) -> Float:
        """float64[n_users, dim], unit rows: one genre's centre (half of the users) or a mixture of two."""
        rng = self._rng(5)
        genres = rng.random((self.n_users, self.n_genres)).argsort(axis=1)
        second = genres[:, 1 % self.n_genres]
        share = np.where(rng.random(self.n_users) < 0.5, 1.0, rng.uniform(0.5, 0.8, self.n_users))[:, None]
        return _unit_rows(share * self.genre_centre[genres[:, 0]] + (1 - share) * self.genre_centre[second])

    @cached_property
    def titles(self) -> list[str]:
        """Distinct titles of two or three words, one of which hints at the genre."""
        rng = self._rng(6)
        titles = [""] * self.n_items
        for genre in range(self.n_genres):
            two = [f"{a} {w}" for a, w in product(ADJECTIVES, GENRE_WORDS[genre])]
            three = [f"{start} {ending}" for start, ending in product(two, ENDINGS)]
            members = np.flatnonzero(self.genre_of_item == genre)
            n_two = min(len(two), (len(members) + 1) // 2)
            n_three = len(members) - n_two
            if n_three > len(three):
                n_two, n_three = len(members) - len(three), len(three)
            names = [two[i] for i in rng.choice(len(two), n_two, replace=False)]
            names += [three[i] for i in rng.choice(len(three), n_three, replace=False)]
            for item, name in zip(members, rng.permutation(np.array(names, dtype=object)), strict=True):
                titles[item] = str(name)
        return titles

    def user_index(self, user_ids: Sequence[str]) -> Int:
        """User numbers of ids `u<number>`."""
        return _numbers(user_ids, "u", self.n_users)

    def item_index(self, item_ids: Sequence[str]) -> Int:
        """Item numbers of ids `i<number>`."""
        return _numbers(item_ids, "i", self.n_items)

    def utility(self, user_id: str, history_items_M: npt.ArrayLike, candidates_N: npt.ArrayLike) -> Float:
        """True utilities float64[N] of world items for one user after a history (oldest first, may be empty)."""
        history = np.asarray(history_items_M, dtype=np.int64).reshape(1, -1)
        candidates = np.asarray(candidates_N, dtype=np.int64).reshape(1, -1)
        return np.asarray(self.utility_table(self.user_index([user_id]), history, candidates)[0], dtype=np.float64)

    def utility_table(self, users_R: Int, histories_RM: Int, candidates_RN: Int) -> Float:
        """True utilities float64[R, N].

        Args:
            users_R: user numbers.
            histories_RM: world items, oldest first; shorter histories are padded on the left with -1.
            candidates_RN: world items.
        """
        if candidates_RN.size and not 0 <= candidates_RN.min() <= candidates_RN.max() < self.n_items:
            raise DataError(f"simulated world: candidates must be items 0 to {self.n_items - 1}")
        candidate = self.item_vector[candidates_RN]
        total = self.quality[candidates_RN] + self.taste_weight * _dot(self.user_vector[users_R][:, None], candidate)
        recent = histories_RM[:, -self.memory :]
        count = (recent >= 0).sum(axis=1, keepdims=True)
        similarity = np.zeros_like(total)
        for column in recent.T:
            known = np.where(column >= 0, 1.0, 0.0)[:, None]
            similarity += known * _dot(self.item_vector[column][:, None], candidate)
        return np.asarray(total + self.history_weight * (similarity / np.maximum(count, 1)), dtype=np.float64)

    def simulate(self) -> Int:
        """int64[n_users, events_per_user]: each user's chosen items in order, all different."""
        rng = self._rng(7)
        everyone, everything = np.arange(self.n_users), np.arange(self.n_items)
        chosen = np.full((self.n_users, self.events_per_user), -1, dtype=np.int64)
        untouched = np.ones((self.n_users, self.n_items), dtype=bool)
        all_items = np.broadcast_to(everything, (self.n_users, self.n_items))
        for step in range(self.events_per_user):
            # Gumbel top-k is sampling without replacement by weight; Gumbel argmax is sampling by softmax
            key = self.log_exposure + rng.gumbel(size=untouched.shape)
            key[~untouched] = -np.inf
            hidden = np.argpartition(-key, self.exposure_size - 1, axis=1)[:, self.exposure_size :]
            history = chosen[:, max(0, step - self.memory) : step]
            score = self.utility_table(everyone, history, all_items) / self.temperature
            score = score + rng.gumbel(size=untouched.shape)
            np.put_along_axis(score, hidden, -np.inf, axis=1)
            chosen[:, step] = score.argmax(axis=1)
            untouched[everyone, chosen[:, step]] = False
        return chosen

    def interactions(self) -> Interactions:
        """The simulated log: users start within two years and go on every few days."""
        rng = self._rng(8)
        start = _START + rng.integers(0, 730 * _DAY, self.n_users)
        gaps = rng.integers(_DAY // 4, 20 * _DAY, (self.n_users, self.events_per_user))
        times = start[:, None] + gaps.cumsum(axis=1)
        users = np.repeat(np.arange(self.n_users), self.events_per_user)
        events = pl.DataFrame(
            {
                USER_ID: [f"u{u}" for u in users],
                ITEM_ID: [f"i{i}" for i in self.simulate().ravel()],
                TIMESTAMP: times.ravel(),
            }
        )
        items = pl.DataFrame({ITEM_ID: [f"i{i}" for i in range(self.n_items)], TITLE: self.titles})
        return Interactions(events, items, self.notes())


def load(
    path: Path | None = None,
    *,
    seed: int = 0,
    n_items: int = 300,
    n_users: int = 400,
    n_genres: int = 8,
    dim: int = 8,
    events_per_user: int = 24,
) -> Interactions:
    """Interactions of `SimulatedWorld(seed, …)`; no file is read.

    Raises:
        ConfigError: a path is given, or a size is out of range.
    """
    if path is not None:
        raise ConfigError(f"source 'simulated' reads no input (got {path}); leave the input out")
    world = SimulatedWorld(
        seed=seed, n_items=n_items, n_users=n_users, n_genres=n_genres, dim=dim, events_per_user=events_per_user
    )
    return world.interactions()


def _unit_rows(rows: Float) -> Float:
    return np.asarray(np.round(rows / np.sqrt(np.square(rows).sum(axis=1, keepdims=True)), 6), dtype=np.float64)


def _dot(a: Float, b: Float) -> Float:
    """Sum over the last axis in a fixed order; a BLAS product differs in the last bit between machines."""
    total = a[..., 0] * b[..., 0]
    for k in range(1, a.shape[-1]):
        total = total + a[..., k] * b[..., k]
    return np.asarray(total, dtype=np.float64)


def _numbers(ids: Sequence[str], prefix: str, n: int) -> Int:
    try:
        numbers = np.array([int(text.removeprefix(prefix)) for text in ids], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"simulated world: ids are {prefix}0 to {prefix}{n - 1} ({error})") from error
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n:
        raise DataError(f"simulated world: id {prefix}{numbers.max()} is not one of {prefix}0 to {prefix}{n - 1}")
    return numbers
