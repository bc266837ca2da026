"""The simulated catalogue and its true preference."""

from __future__ import annotations

import numpy as np
import pytest

from sirius_rec.data.sources.simulated import SimulatedWorld, load
from sirius_rec.errors import ConfigError, DataError

WORLD = SimulatedWorld(seed=5, n_items=120, n_users=30, events_per_user=20)


def test_the_same_seed_gives_the_same_world_and_another_another() -> None:
    again, other = load(seed=5, n_users=20), load(seed=6, n_users=20)
    first = load(seed=5, n_users=20)
    assert first.events.equals(again.events) and first.items.equals(again.items)
    assert not first.events.equals(other.events)


def test_rebuilt_from_its_notes() -> None:
    notes = WORLD.interactions().notes
    rebuilt = SimulatedWorld.from_notes(notes)
    assert rebuilt == WORLD
    assert np.array_equal(rebuilt.item_vector, WORLD.item_vector)
    with pytest.raises(DataError, match="do not describe a simulated world"):
        SimulatedWorld.from_notes({})


def test_utility_is_the_documented_formula() -> None:
    """By explicit loops: s u.y + a mean over the last 3 items x of x.y + q."""
    history, candidates = [4, 8, 15, 16, 23], [42, 7]
    for shown in (history, history[:2], []):
        got = WORLD.utility("u3", shown, candidates)
        for k, y in enumerate(candidates):
            taste = float(WORLD.user_vector[3] @ WORLD.item_vector[y])
            recent = [float(WORLD.item_vector[x] @ WORLD.item_vector[y]) for x in shown[-3:]]
            similar = sum(recent) / len(recent) if recent else 0.0
            expected = WORLD.taste_weight * taste + WORLD.history_weight * similar + WORLD.quality[y]
            assert got[k] == pytest.approx(expected, abs=1e-12)
    assert got.dtype == np.float64


def test_table_equals_single_rows_bit_for_bit() -> None:
    table = WORLD.utility_table(np.array([3, 9]), np.array([[-1, -1, 4], [5, 6, 7]]), np.array([[1, 2, 3], [4, 8, 9]]))
    assert np.array_equal(table[0], WORLD.utility("u3", [4], [1, 2, 3]))
    assert np.array_equal(table[1], WORLD.utility("u9", [5, 6, 7], [4, 8, 9]))


def test_log_holds_each_item_once_per_user_in_time_order() -> None:
    events = WORLD.interactions().events
    assert events.height == 30 * 20
    assert events.select("user_id", "item_id").n_unique() == events.height
    for _, rows in events.group_by("user_id"):
        assert rows["timestamp"].is_sorted()


def test_titles_are_distinct_and_hint_at_the_genre() -> None:
    assert len(set(WORLD.titles)) == WORLD.n_items
    words_of_genre = [set() for _ in range(WORLD.n_genres)]
    for title, genre in zip(WORLD.titles, WORLD.genre_of_item, strict=True):
        assert len(title.split()) in (2, 3)
        words_of_genre[genre].add(title.split()[1])
    assert all(len(words) <= 6 for words in words_of_genre)
    assert sum(map(len, words_of_genre)) == len(set.union(*words_of_genre))


def test_the_true_preference_matters_and_popularity_is_an_imperfect_signal() -> None:
    """The documented plausibility of the default world: oracle HR@1 0.5 to 0.7 on 20, popularity above chance."""
    world = SimulatedWorld(seed=11)
    chosen = world.simulate()
    rng = np.random.default_rng(0)
    rows = [(u, s) for u in range(world.n_users) for s in range(10, world.events_per_user)]
    slates = np.array([[chosen[u, s], *rng.choice(np.setdiff1d(range(300), chosen[u]), 19, False)] for u, s in rows])
    histories = np.array([chosen[u, s - 10 : s] for u, s in rows])
    oracle = world.utility_table(np.array([u for u, _ in rows]), histories, slates).argmax(axis=1) == 0
    popularity = np.bincount(chosen[:200].ravel(), minlength=300)[slates] + rng.random(slates.shape)
    held_out = np.array([u >= 200 for u, _ in rows])
    assert 0.5 < oracle.mean() < 0.7
    assert 0.08 < (popularity.argmax(axis=1) == 0)[held_out].mean() < 0.25


@pytest.mark.parametrize("options", [{"n_items": 1}, {"n_genres": 13}, {"n_users": 0}, {"events_per_user": 0}])
def test_impossible_worlds_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="is not between"):
        load(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"n_items": 83}, "raise n_items to at least 84, or lower events_per_user to at most 23$"),
        ({"n_items": 50}, "raise n_items to at least 84$"),
        ({"events_per_user": 241}, "raise n_items to at least 301, or lower events_per_user to at most 240$"),
    ],
)
def test_too_few_items_says_which_option_to_change(options: dict[str, int], fix: str) -> None:
    """Each user is shown 60 items that are new to her, also at the last of 24 events: 84 are needed."""
    with pytest.raises(ConfigError, match=fix) as caught:
        load(**options)  # type: ignore[arg-type]
    assert "exposure_size" not in str(caught.value)
    assert load(n_items=84, n_users=2).events.height == 2 * 24
    assert load(events_per_user=240, n_users=1).events.height == 240


def test_ids_are_checked() -> None:
    with pytest.raises(DataError, match="ids are u0 to u29"):
        WORLD.utility("someone", [1], [2])
    with pytest.raises(DataError, match="id u30 is not one of"):
        WORLD.utility("u30", [1], [2])
    with pytest.raises(DataError, match="candidates must be items 0 to 119"):
        WORLD.utility("u3", [1], [120])
