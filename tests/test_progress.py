"""Lines that say how far long work is: seldom, with the time left, and before anything is done as well."""

from __future__ import annotations

import pytest

from sirius_rec import progress
from sirius_rec.progress import Pace, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_about_every_ten_seconds(clock: list[float]) -> None:
    said: list[str] = []
    pace = Pace("shards", 2_000, said.append)
    for at, count in ((4, 100), (11, 100), (15, 100), (22, 100), (30, 1_500), (45, 100)):
        clock[0] = at
        pace(count)
    assert said == ["shards: 200 of 2,000, 2 min left", "shards: 400 of 2,000, 88 s left"]


def test_work_of_which_nothing_is_done_yet_is_not_silent(clock: list[float]) -> None:
    said: list[str] = []
    pace = Pace("rows", 8, said.append)
    for clock[0] in (6, 12, 130, 135):
        pace(0)
    assert said == ["rows: 0 of 8, 12 s so far", "rows: 0 of 8, 2 min so far"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (11_100, "3 h 05 min")]
)
def test_a_time_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
