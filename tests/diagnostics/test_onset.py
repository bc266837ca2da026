"""Onset on synthetic curves with and without hacking, and its false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from sirius_rec.diagnostics.onset import find_onset
from sirius_rec.errors import DataError

STEPS = [0, 10, 20, 30, 40]


def simulate(rates: list[float], rows: int, seed: int, users: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """hits [T, R] with the given rates, correlated over looks as evaluations of one model on the same rows are."""
    rng = np.random.default_rng(seed)
    user = np.arange(rows) if users is None else rng.integers(0, users, rows)
    ability = rng.random(rows if users is None else users)[user]
    noise = rng.normal(0, 0.05, (len(rates), rows))
    return (ability + noise < np.array(rates)[:, None]).astype(float), user


@pytest.mark.parametrize("seed", range(5))
def test_hacking_is_found_where_it_sets_in(seed: int) -> None:
    hits, _ = simulate([0.30, 0.36, 0.38, 0.38, 0.30], 3000, seed)
    found = find_onset(STEPS, hits, [0.0, 0.5, 1.0, 1.5, 2.0])
    assert found.step == 40 and found.peak_step in (20, 30)
    assert found.p < 0.01 and found.fall == pytest.approx(0.08, abs=0.03) and found.margin_rise in (0.5, 1.0)


@pytest.mark.parametrize(
    ("rates", "margin"),
    [
        ([0.30, 0.33, 0.36, 0.37, 0.38], [0.0, 0.5, 1.0, 1.5, 2.0]),  # ranking rises with the margin
        ([0.36, 0.36, 0.36, 0.36, 0.36], [0.0, 0.5, 1.0, 1.5, 2.0]),  # a plateau
        ([0.30, 0.38, 0.36, 0.33, 0.30], [0.0, 2.0, 1.5, 1.0, 0.5]),  # the margin falls too: not hacking
    ],
)
def test_without_hacking_none_is_found(rates: list[float], margin: list[float]) -> None:
    hits, _ = simulate(rates, 3000, 1)
    assert find_onset(STEPS, hits, margin).step is None


def test_the_first_significant_fall_counts() -> None:
    hits, _ = simulate([0.5, 0.4, 0.3, 0.2, 0.1], 2000, 0)
    found = find_onset(STEPS, hits, [0, 1, 2, 3, 4])
    assert (found.step, found.peak_step, found.margin_rise) == (10, 0, 1.0)


def test_many_looks_do_not_raise_false_alarms() -> None:
    """20 looks at a curve that never moves, 200 times, at 10 %: 20 alarms are expected, more than 34 almost never."""
    alarms = 0
    for seed in range(200):
        hits, _ = simulate([0.35] * 20, 150, 1000 + seed)
        found = find_onset(range(20), hits, range(20), alpha=0.1, flips=400, seed=seed)
        alarms += found.step is not None
    assert 2 <= alarms <= 34


def aligned(seed: int, apart: bool) -> bool:
    """Whether an onset is found in an alignment that changes nothing, started from the best of 5 SFT epochs.

    The true HR@1 is 35 % at every epoch of both; rows' hits are correlated from one epoch to the next (0.8 of the
    latent noise). apart: SFT's epoch is chosen on half of 300 rows and onset looks at the other half; else both on all.
    """
    rng, rows, keeps = np.random.default_rng(seed), 300, 0.8
    ability, noise = rng.normal(size=(2, rows))

    def epochs(noise: np.ndarray) -> list[np.ndarray]:
        line = []
        for _ in range(5):
            noise = keeps * noise + np.sqrt(1 - keeps**2) * rng.normal(size=rows)
            line.append(noise)
        return line

    def hit(noise: np.ndarray) -> np.ndarray:
        return np.asarray(ability + noise < -0.545, dtype=float)  # the 35 % quantile of a variance of 2

    choosing = np.arange(rows) < rows // 2 if apart else np.ones(rows, dtype=bool)
    looking = ~choosing if apart else choosing
    start = max(epochs(noise), key=lambda noise: hit(noise)[choosing].mean())
    hits = np.stack([hit(noise)[looking] for noise in [start, *epochs(start)]])
    return find_onset(range(6), hits, range(6), flips=200, seed=seed).step is not None


def test_false_alarms_where_the_start_was_chosen_on_other_rows() -> None:
    """5 %, within three standard errors; chosen on the same rows, the start falls by itself (8 %)."""
    trials = 2_000
    apart, same = (np.mean([aligned(seed, way) for seed in range(trials)]) for way in (True, False))
    assert 0.035 < apart < 0.065 < same


def test_users_are_flipped_together() -> None:
    """One user with most rows causes the whole fall: by row it looks certain, by user it says nothing."""
    hits = np.ones((2, 400))
    hits[1, :60] = 0.0
    users = np.where(np.arange(400) < 60, 0, np.arange(400))
    assert find_onset([0, 1], hits, [0, 1]).step == 1
    by_user = find_onset([0, 1], hits, [0, 1], users)
    assert by_user.step is None and by_user.p > 0.3 and by_user.fall == pytest.approx(0.15)


def test_seeded() -> None:
    hits, users = simulate([0.4, 0.38, 0.35], 500, 3, users=50)
    again = [find_onset([0, 1, 2], hits, [0, 1, 2], users, flips=500, seed=s) for s in (5, 5, 6)]
    assert again[0] == again[1]
    assert abs(again[0].p - again[2].p) < 0.1


@pytest.mark.parametrize(
    ("steps", "hits", "margin", "message"),
    [
        ([0], np.ones((1, 3)), [0], "1 evaluation; it takes at least two"),
        ([0, 1], np.ones((3, 3)), [0, 1], "give one row of each per step"),
        ([0, 1], np.ones((2, 0)), [0, 1], "give one row of each per step"),
        ([0, 1], np.ones((2, 3)), [0, np.nan], "must be finite"),
        ([0, 0], np.ones((2, 3)), [0, 1], "steps must increase"),
    ],
)
def test_bad_input(steps: list[int], hits: np.ndarray, margin: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_onset(steps, hits, margin)


def test_groups_of_another_length() -> None:
    with pytest.raises(DataError, match="2 groups for 3 rows"):
        find_onset([0, 1], np.ones((2, 3)), [0, 1], ["a", "b"])
