"""Impressions: which belong to a target, the slates made of them, and the logs that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from scipy import stats

from sirius_rec.data.checking import check_lines
from sirius_rec.data.impressions import Impressions, filled_up, impression_slates
from sirius_rec.data.prepare import prepare
from sirius_rec.data.slates import ExcludedItems
from sirius_rec.data.sources.table import load
from sirius_rec.data.store import Dataset
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.schema import Interactions, SlateName


def shown(rows: list[tuple[int, int, int]]) -> Impressions:
    """Impressions of (user, item, time)."""
    user, item, time = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Impressions(user, item, time)


def before(impressions: Impressions, events: list[tuple[int, int]]) -> list[list[int]]:
    user, time = np.array(events, dtype=np.int64).T
    return impressions.before(user, time, np.arange(len(events))).to_list()


def test_an_impression_goes_with_the_first_event_at_or_after_it() -> None:
    """User 0 has events at 10 and 20: shown at 5 and 10 with the first, at 11 with the second, at 21 with none."""
    rows = [(0, 3, 5), (0, 1, 10), (0, 2, 11), (0, 9, 21), (1, 7, 1)]
    assert before(shown(rows), [(0, 10), (0, 20), (1, 4)]) == [[1, 3], [2], [7]]


def test_where_nothing_was_shown_since_the_last_page_shown_before_stands() -> None:
    """One page at 10, two clicks on it, at 12 and 15: both have it; what was shown at 3, before the page, neither."""
    rows = [(0, 8, 3), (0, 1, 10), (0, 2, 10), (1, 5, 10)]
    assert before(shown(rows), [(0, 4), (0, 12), (0, 15)]) == [[8], [1, 2], [1, 2]]
    assert before(shown([(0, 1, 10)]), [(0, 9), (1, 50), (2, 50)]) == [[], [], []]


def test_events_of_one_time_share_what_was_shown_with_them() -> None:
    assert before(shown([(0, 4, 10), (0, 6, 2)]), [(0, 1), (0, 10), (0, 10)]) == [[], [4, 6], [4, 6]]


def naive(impressions: Impressions, events: list[tuple[int, int]]) -> list[list[int]]:
    found = []
    all_shown = list(zip(impressions.user_N, impressions.item_N, impressions.time_N, strict=True))
    for user, time in events:
        earlier = [t for u, t in events if u == user and t < time]
        own = [(t, i) for u, i, t in all_shown if u == user and t <= time]
        since = {int(i) for t, i in own if not earlier or t > max(earlier)}
        last = {int(i) for t, i in own if t == max(own)[0]}
        found.append(sorted(since or last))
    return found


def test_random_logs_agree_with_the_definition() -> None:
    rng = np.random.default_rng(0)
    some, fallbacks = 0, 0
    for _ in range(200):
        events = sorted(zip(rng.integers(0, 4, 12).tolist(), rng.integers(-9, 9, 12).tolist(), strict=True))
        rows = rng.integers([0, 0, -12], [5, 20, 12], size=(rng.integers(0, 25), 3))
        impressions = shown([tuple(row) for row in rows.tolist()])  # type: ignore[misc]
        got = before(impressions, events)
        assert got == naive(impressions, events)
        some += sum(map(bool, got))
        fallbacks += sum(a == b != [] for a, b in zip(got[1:], got[:-1], strict=True))
    assert some > 500 and fallbacks > 50


# --- slates ---------------------------------------------------------------------------------------------------------

NAME = SlateName("test", "impressions", 4, 0)


def slates(
    impressions: list[list[int]],
    excluded: list[list[int]],
    *,
    n_items: int = 12,
    name: SlateName = NAME,
    first: int = 0,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(examples, slates); the target of row r is the first item it excludes."""
    n = len(impressions)
    examples = pl.DataFrame(
        {"row_id": np.arange(first, first + n), "target": [row[0] for row in excluded], "impressions": impressions},
        schema={"row_id": pl.Int64, "target": pl.Int32, "impressions": pl.List(pl.Int32)},
    )
    stop = np.cumsum([len(row) for row in excluded])
    out = ExcludedItems(np.concatenate(excluded), np.r_[0, stop[:-1]], stop)
    return examples, impression_slates(examples, out, n_items=n_items, name=name, fingerprint="f")


def candidates(made: tuple[pl.DataFrame, pl.DataFrame]) -> np.ndarray:
    return np.array(made[1]["candidates"].to_list())


def test_negatives_are_what_was_shown_and_is_not_excluded() -> None:
    """Shown 1 to 5 of which 1 is the target and 2 excluded: 3, 4 and 5 are all there is."""
    got = candidates(slates([[1, 2, 3, 4, 5]] * 40, [[1, 2, 7]] * 40))
    assert {tuple(sorted(row)) for row in got.tolist()} == {(1, 3, 4, 5)}
    assert len({tuple(row) for row in got.tolist()}) > 12  # of 24 orders


def test_of_more_than_enough_each_is_drawn_alike_and_the_target_stands_anywhere() -> None:
    got = candidates(slates([list(range(1, 9))] * 8_000, [[0]] * 8_000))
    counts = np.bincount(got.ravel(), minlength=12)
    assert counts[0] == 8_000 and not counts[9:].any()
    assert stats.chisquare(counts[1:9]).pvalue > 1e-3
    places = [np.bincount(np.argwhere(got == item)[:, 1], minlength=4) for item in (0, 1, 5)]
    assert all(stats.chisquare(place).pvalue > 1e-3 for place in places)


def test_fewer_are_filled_up_uniformly_from_the_rest_and_stand_in_no_place_of_their_own() -> None:
    """Shown 4 and 5 of which 5 is excluded: 4 is in every slate, and two of the items 1, 2, 3, 6 to 11."""
    examples, made = slates([[4, 5]] * 9_000, [[0, 5]] * 9_000)
    got = np.array(made["candidates"].to_list())
    counts = np.bincount(got.ravel(), minlength=12)
    assert counts[0] == counts[4] == 9_000 and counts[5] == 0
    assert all(len(set(row)) == 4 for row in got.tolist())
    assert stats.chisquare(np.delete(counts, [0, 4, 5])).pvalue > 1e-3
    assert stats.chisquare(np.bincount(np.argwhere(got == 4)[:, 1], minlength=4)).pvalue > 1e-3
    assert filled_up(examples, made) == {"rows": 9_000, "negatives": 18_000}


def test_rows_of_both_kinds_are_told_apart_in_the_counts() -> None:
    examples, made = slates([[1, 2, 3], [], [1, 2]], [[0], [5], [0]])
    assert filled_up(examples, made) == {"rows": 2, "negatives": 3 + 1}


def test_a_rows_slate_is_its_own() -> None:
    """Not the other rows', not the target's, but another seed's or split's is another."""
    lists = [[1, 2, 3, 4, 5, 6], [2, 3], []]
    whole = candidates(slates(lists, [[0, 8], [9, 8], [7, 8]]))
    assert (candidates(slates(lists[1:], [[9, 8], [7, 8]], first=1)) == whole[1:]).all()
    negatives = [set(row) - {target} for row, target in zip(whole.tolist(), (0, 9, 7), strict=True)]
    other = candidates(slates(lists, [[10, 0, 8], [9, 8], [7, 8]]))[0]
    assert set(other) - {10} == negatives[0]
    for name in (SlateName("test", "impressions", 4, 1), SlateName("val", "impressions", 4, 0)):
        assert (candidates(slates(lists * 20, [[0, 8], [9, 8], [7, 8]] * 20, name=name))[:3] != whole).any()


def test_an_item_that_everyone_excludes_is_no_negative() -> None:
    examples, _ = slates([[1, 2, 3, 4]], [[0]])
    out = ExcludedItems(np.array([0]), np.array([0]), np.array([1]), everyone=np.array([2, 3]))
    made = impression_slates(examples, out, n_items=12, name=NAME, fingerprint="f")
    got = made["candidates"].to_list()[0]
    assert {0, 1, 4} < set(got) and not {2, 3} & set(got)


def test_too_few_items_for_the_slate_is_said() -> None:
    with pytest.raises(DataError, match="row 0 needs 3 negatives, but its user leaves only 2 of 4"):
        slates([[1]], [[0, 3]], n_items=4)


# --- logs -----------------------------------------------------------------------------------------------------------

ITEMS = "item_id,title\n" + "".join(f"{i},Title {i}\n" for i in range(30))


def log(folder: Path, *, users: int = 12, clicks: int = 5) -> Path:
    """Each user clicks on `clicks` items; with each, at its time, two others were shown."""
    rng, lines = np.random.default_rng(0), ["user_id,item_id,timestamp,event,stars"]
    for user in range(users):
        items = rng.permutation(30)[: 3 * clicks].tolist()
        for k in range(clicks):
            mine = items[3 * k : 3 * k + 3]
            lines += [f"u{user},{item},{100 * k + 50},impression," for item in mine[1:]]
            lines += [f"u{user},{mine[0]},{100 * k + 60},click,5"]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    (folder / "items.csv").write_text(ITEMS)
    return folder


OPTIONS = {"where": {"event": "click"}, "impressions": {"event": "impression"}}
WINDOW = {"max_history": 3, "min_history": 2}


def made(source: Any, folder: Path, out: Path, **more: Any) -> Dataset:
    given: dict[str, Any] = {"options": OPTIONS, "slates": {"protocol": "impressions", "size": 3}, "window": WINDOW}
    return prepare(source, folder, out, **{**given, **more})


def test_a_log_of_clicks_and_impressions(tmp_path: Path) -> None:
    lines: list[str] = []
    data = made("table", log(tmp_path), tmp_path / "out", progress=lines.append)
    table = load(tmp_path, **OPTIONS)
    assert table.events.height == 60 and table.impressions is not None and table.impressions.height == 120
    assert data.info["source"]["notes"]["impressions"]["kept"] == 120
    assert data.info["filters"]["impressions"] == {"kept": 120, "of_users_or_items_without_events_dropped": 0}
    of_user: dict[str, set[int]] = {}
    clicked: dict[str, set[int]] = {}
    for user, item in table.impressions.select("user_id", "item_id").rows():
        of_user.setdefault(user, set()).add(int(item))
    for user, item in table.events.select("user_id", "item_id").rows():
        clicked.setdefault(user, set()).add(int(item))
    for name in data.slate_names:
        rows = data.examples(SlateName.parse(name).split).join(data.slates(name), on="row_id")
        assert rows.height
        for user, target, slate in rows.select("user_id", "target", "candidates").rows():
            assert set(slate) - {target} <= of_user[user] - clicked[user]
        assert data.info["slates"][str(name)]["filled_up"] == {"rows": 0, "negatives": 0}
    assert "slates train-impressions-3-s0: 0.0% of the negatives, in 0 of" in "\n".join(lines)


def test_slates_of_other_protocols_are_what_they_are_without_impressions(tmp_path: Path) -> None:
    """Impressions are no events: histories, targets and ids are those of the clicks, and so are uniform slates."""
    folder = log(tmp_path)
    both = made("table", folder, tmp_path / "both", slates=[{"size": 5}])
    plain = made("table", folder, tmp_path / "plain", slates=[{"size": 5}], options={"where": OPTIONS["where"]})
    assert both.examples("train").equals(plain.examples("train"))
    assert both.examples("train").columns == plain.examples("train").columns
    for name in plain.slate_names:
        assert both.slates(name).equals(plain.slates(name))


def test_larger_slates_are_filled_up_and_it_is_said(tmp_path: Path) -> None:
    data = made("table", log(tmp_path), tmp_path / "out", slates={"protocol": "impressions", "size": 6})
    for name in data.slate_names:
        rows = data.slates(name).height
        assert data.info["slates"][str(name)]["filled_up"] == {"rows": rows, "negatives": 3 * rows}


def test_impressions_that_stay_after_filters_and_long_titles(tmp_path: Path) -> None:
    folder = log(tmp_path)
    text = (folder / "items.csv").read_text().replace("Title 7\n", f"{'long ' * 40}\n")
    (folder / "items.csv").write_text(text)
    data = made("table", folder, tmp_path / "out", max_title=50, unusable="drop", filter={"min_item": 2})
    kept = {int(item) for item in data.items["item_id"]}
    assert 7 not in kept and len(kept) < 29
    assert data.info["filters"]["impressions"]["of_users_or_items_without_events_dropped"] > 0
    for name in data.slate_names:  # by number of the catalogue that is left
        assert data.slates(name)["candidates"].explode().max() < len(kept)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"impressions": {"event": "impression"}}, "without a column in where events and impressions cannot be told"),
        ({**OPTIONS, "impressions": {}}, "without a column in impressions events and impressions cannot be told"),
        (
            {**OPTIONS, "impressions": OPTIONS["where"]},
            "is an event by where and an impression by impressions; let",
        ),
        (
            {**OPTIONS, "impressions": {"event": ["impression", "click"]}},
            "line 4: is an event by where and an",
        ),
        ({**OPTIONS, "impressions": {"event": "view"}}, "none of 180 rows is left; dropped: event is not view: 180"),
        ({**OPTIONS, "impressions": {"kind": "view"}}, "^impressions: .* has no column 'kind'"),
        ({**OPTIONS, "impressions": 5}, "option impressions=5"),
    ],
)
def test_options_that_name_no_impressions(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        made("table", log(tmp_path), tmp_path / "out", options=options)


def test_slates_of_impressions_need_a_source_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the source has no impressions; say which rows of the log they are"):
        made("table", log(tmp_path), tmp_path / "out", options={"where": OPTIONS["where"]})


def test_bad_impressions_are_refused_or_dropped_as_events_are(tmp_path: Path) -> None:
    folder = log(tmp_path)
    with (folder / "interactions.csv").open("a") as file:
        file.write("u1,99,50,impression,\nu1,3,soon,impression,\n")
    with pytest.raises(DataError, match="line 183"):
        load(folder, **OPTIONS)
    with pytest.raises(DataError, match="line 182: item is not in"):
        load(folder, **OPTIONS, bad_rows="drop")
    table = load(folder, **OPTIONS, bad_rows="drop", unknown_items="drop")
    assert table.impressions is not None and table.impressions.height == 120
    assert table.notes["impressions"]["dropped"]["item not listed"] == 1


def test_frames_hand_them_over_too(tmp_path: Path) -> None:
    table = load(log(tmp_path), **OPTIONS)
    frames = Interactions(table.events, table.items, impressions=table.impressions)
    of_log = made("table", tmp_path, tmp_path / "log")
    of_frames = made(frames, None, tmp_path / "frames", options=None)
    for name in of_log.slate_names:
        assert of_log.slates(name).equals(of_frames.slates(name))
    stranger = pl.DataFrame({"user_id": ["u1"], "item_id": ["99"], "timestamp": [5]})
    with pytest.raises(DataError, match="impressions: item '99' is not among the items"):
        made(Interactions(table.events, table.items, impressions=stranger), None, tmp_path / "x", options=None)
    assert table.impressions is not None
    with pytest.raises(RunError, match="hands over other events"):
        less = Interactions(table.events, table.items, impressions=table.impressions[1:])
        made(less, None, tmp_path / "frames", options=None)


@pytest.mark.parametrize(
    ("column", "click", "other", "where", "impressions"),
    [
        ("event", "click", "impression", {"event": "click"}, {"event": "impression"}),
        ("Is_Clicked", "1", "0", {"Is_Clicked": "1"}, {"Is_Clicked": "0"}),
        ("event", "view", "cart", None, None),
    ],
)
def test_a_check_takes_what_was_shown_for_no_event(
    tmp_path: Path, column: str, click: str, other: str, where: Any, impressions: Any
) -> None:
    folder = log(tmp_path)
    text = (folder / "interactions.csv").read_text().replace("event", column)
    text = text.replace(",click,", f",{click},").replace(",impression,", f",{other},")
    (folder / "interactions.csv").write_text(text)
    lines, problem = check_lines("table", folder, {})
    text = "\n".join(lines)
    assert problem == (where is not None)
    if where is None:
        assert f"column 'event' has {other} 120, {click} 60; choose with where: {{event: {other}}}" in text
        return
    assert f"where: {json.dumps(where)}" in text and f"impressions: {json.dumps(impressions)}" in text
    read = yaml.safe_load(text[text.index("  data:") : text.index("with it:")])["data"]["options"]
    table = load(folder, **read)
    assert (table.events.height, table.impressions.height) == (60, 120)  # type: ignore[union-attr]
    again, problem = check_lines("table", folder, read)
    assert not problem, again


def test_what_is_shown_after_a_click_in_its_second_is_none_of_its_negatives(tmp_path: Path) -> None:
    """A log of milliseconds: 20 and 21 answer the click at 10.2 s, and belong to the next; 5 was shown with it."""
    start = 1_600_000_000_000
    rows = [(1, 0, "click"), (2, 5_000, "click"), (5, 10_200, "impression"), (3, 10_200, "click"),
            (20, 10_900, "impression"), (21, 10_900, "impression"), (4, 60_000, "click")]  # fmt: skip
    lines = [f"u,{item},{start + time},{event}" for item, time, event in rows]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,event", *lines]) + "\n")
    (tmp_path / "items.csv").write_text(ITEMS)
    table = load(tmp_path, **OPTIONS)
    assert table.impressions is not None
    stamps = dict(table.impressions.select("item_id", "timestamp").rows())
    assert stamps == {"5": start // 1000 + 10, "20": start // 1000 + 11, "21": start // 1000 + 11}
    users, times = np.zeros(4, dtype=np.int64), table.events["timestamp"].to_numpy()
    shown = Impressions.of(table.impressions, pl.Series(["u"]), table.items)
    assert shown.before(users, times, np.arange(4)).to_list() == [[], [], [5], [20, 21]]


@pytest.mark.parametrize("kind", ["time", "leave_last_out"])
def test_with_users_in_several_splits_past_items_alone_are_excluded(tmp_path: Path, kind: str) -> None:
    folder = log(tmp_path)
    with (folder / "interactions.csv").open("a") as file:  # of one later event each, so that time can be cut
        file.writelines(f"u{user},{29 - user},{9_000 + user},click,\n" for user in range(12))
    unusable = {"unusable": "drop"} if kind == "time" else {}
    data = made("table", folder, tmp_path / "out", split={"kind": kind}, **unusable)
    assert data.slate_names
    for name in data.slate_names:
        assert data.info["slates"][name]["exclude"] == "past"
        assert data.info["slates"][name]["filled_up"]["negatives"] < 2 * data.slates(name).height


def test_ratings_choose_among_events_alone(tmp_path: Path) -> None:
    """Impressions have no stars, and are not dropped for it."""
    table = load(log(tmp_path), **OPTIONS, min_rating=4, columns={"rating": "stars"})
    assert table.impressions is not None and table.impressions.height == 120
    early = load(tmp_path, **OPTIONS, max_time=255)  # of the impressions at 50, 150, 250 … the first three pages
    assert early.impressions is not None and early.impressions.height == 12 * 3 * 2


def test_one_page_of_many_events_is_held_once() -> None:
    """1,000 events of one moment, 1,000 items shown: a million entries are never written out to be told apart."""
    shown_at = Impressions(np.zeros(1000, np.int64), np.arange(1000), np.full(1000, 5))
    lists = shown_at.before(np.zeros(1000, np.int64), np.full(1000, 5), np.arange(1000))
    assert lists.list.len().to_list() == [1000] * 1000 and lists[999].to_list() == list(range(1000))


def test_a_repeated_click_that_is_dropped_takes_no_page_away(tmp_path: Path) -> None:
    """The second click on 1, at 10.1 s, is no event: what is shown at 10.5 s goes with the click at 10.9 s."""
    start = 1_600_000_000_000
    rows = [(1, 0, "click"), (1, 10_100, "click"), (7, 10_500, "impression"), (2, 10_900, "click")]
    lines = [f"u,{item},{start + time},{event}" for item, time, event in rows]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,event", *lines]) + "\n")
    (tmp_path / "items.csv").write_text(ITEMS)
    table = load(tmp_path, **OPTIONS)
    assert table.events.height == 2 and table.impressions is not None
    assert table.impressions["timestamp"].to_list() == [start // 1000 + 10]
