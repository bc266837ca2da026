"""Ordinary leaks that the audit once missed, each called by the probe meant for it; and honest sets of all kinds.

The worlds are those of benchmarks/audit_power.py, which runs all of them: benchmarks/results/audit-power_*.json.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sirius_rec.audit import alike, negatives, popularity, slots, wording
from sirius_rec.audit.audit import audit
from sirius_rec.audit.evidence import Evidence, judge
from sirius_rec.audit.learned import class_scores
from sirius_rec.audit.slates import Catalogue, SlateSet, expected_hits
from sirius_rec.data.options import SlateOptions, SplitOptions
from sirius_rec.data.prepare import prepare


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "audit_power.py"
    spec = importlib.util.spec_from_file_location("audit_power", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # for the worlds beside it, as when it is started
        spec.loader.exec_module(module)
    return module


power = _load()

# plant of audit_power.PLANTS → the probe that must call it a leak
CALLED_BY = {
    "home slot of the target, 10% of rows": "position_per_target",
    "slot seeded by the user, 40% of rows": "slot_of_the_user",
    "slot seeded by the last item, 40% of rows": "slot_after_the_last_item",
    "negatives drawn once per user, 40% of rows": "new_in_the_users_slates",
    "one pool of negatives, 40% of rows": "rarely_a_negative",
    "only popular negatives, 100% of rows": "popularity_band",
    "cold targets, warm negatives, 10% of rows": "cold_targets",
    "negatives that nobody had before the test date": "unpopular_negatives",
    "negatives never of the main category, 50% of rows": "category",
    "target written with lower case, 20% of rows": "spelling",
    "target written with a no-break space, 100% of rows": "spelling",
    "target written with a full stop, 30% of rows": "spelling",
    "target written with a trailing space, 100% of rows": "spelling",
    "answer in the prompt in a sentence, 20% of rows": "answer_in_prompt",
    "answer in the prompt in JSON, 100% of rows": "answer_in_prompt",
    "answer in the prompt on a line after the slate, 30% of rows": "answer_in_prompt",
    "items of later left out, leave-last-out": "rarely_a_negative_of_the_user",
    "items of later left out, by time": "rarely_a_negative_of_the_user",
}


@pytest.mark.parametrize("name", CALLED_BY)
def test_a_plant_is_called_by_its_probe(name: str) -> None:
    result = power.one_set(name, *power.PLANTS[name])
    assert result["verdict"] == "leak"
    assert CALLED_BY[name] in result["leaks"], result["leaks"]


# of the 60: all splits, ways to give ids, forms, sizes, both kinds of negatives, with and without train
@pytest.mark.parametrize("number", [0, 2, 5, 11, 19, 21, 25, 28, 34, 47, 52])
def test_an_honest_set_is_not_accused(number: int) -> None:
    world, form, with_train = power.honest_sets()[number]
    result = power.one_set("honest", None, 0.0, world, form, None, with_train)
    assert result["verdict"] != "leak", result["leaks"]
    channels = {"popularity", "first_order_markov", "title_overlap"}
    assert set(result["cautions"]) <= channels, "a caution on every other set is noise"


def test_the_honest_sets_are_of_all_kinds() -> None:
    sets = power.honest_sets()
    assert len(sets) == 60 and len(power.PLANTS) >= 25
    worlds = [world for world, _, _ in sets]
    assert {w.split for w in worlds} == {"user", "time", "leave_last_out"}
    assert {w.ids for w in worlds} == {"random", "popularity", "release"}
    assert {w.negatives for w in worlds} == {"uniform", "popularity"}
    assert {form for _, form, _ in sets} == {"ids", "titles", "records"}


def rows_of(
    candidates: list[list[int]],
    positions: list[int],
    *,
    history: list[list[int]] | None = None,
    users: list[str] | None = None,
    times: list[float] | None = None,
) -> SlateSet:
    table, place = np.array(candidates), np.array(positions)
    n = len(table)
    named = np.array(users if users is not None else [""] * n)
    group = np.unique(named, return_inverse=True)[1] if users is not None else np.arange(n)
    shown = np.array(history) if history is not None else np.zeros((n, 0), dtype=np.int64)
    when = np.full(n, np.nan) if times is None else np.array(times)
    target = table[np.arange(n), place]
    return SlateSet("here", shown, target, table, place, group, np.arange(n), when, named, users is not None)


def test_never_a_negative_of_the_user_by_hand() -> None:
    """User u had 1, 2, 2 as train negatives, v had 3. Rows of u: target 0 against 1; target 2 against 1; of v: 3, 1."""
    train = rows_of([[9, 1, 2], [9, 2, 8], [9, 3, 7]], [0, 0, 0], users=["u", "u", "v"])
    test = rows_of([[0, 1], [2, 1], [3, 1], [5, 6]], [0, 0, 0, 0], users=["u", "u", "v", "new"])
    evidence = negatives.rarely_a_negative_of_the_user(test, train, np.arange(10), 0)
    assert evidence is not None
    assert evidence.rows_R.tolist() == [0, 1, 2], "a user without train rows has no such negatives"
    assert evidence.hits_R.tolist() == [1.0, 0.0, 0.0]
    assert negatives.rarely_a_negative_of_the_user(test.select(np.array([3])), train, np.arange(10), 0) is None


def test_rarely_a_negative_counts_rows_in_which_an_item_could_be_one() -> None:
    """Item 1 is a negative in one of two rows open to it, item 2 in two of four: as rare. Item 3: one of four."""
    train = rows_of([[1, 7], [2, 7], [2, 8], [3, 8]], [1, 1, 1, 1], history=[[0], [0], [1], [1]])
    test = rows_of([[1, 2], [3, 2], [1, 3]], [0, 0, 1])
    evidence = negatives.rarely_a_negative(test, train, np.arange(9), 0)
    assert evidence.hits_R.tolist() == [0.5, 1.0, 1.0]


def test_no_row_teaches_itself_what_is_a_negative() -> None:
    """Two negatives, each in its own row only, were never negatives elsewhere: all tie."""
    rows = rows_of([[0, 1], [2, 3]], [0, 0])
    assert negatives.rarely_a_negative(rows, None, np.arange(4), 0).hits_R.tolist() == [0.5, 0.5]


def test_new_in_the_users_slates_by_hand() -> None:
    """u's rows share the negative 5; of 0 and 6, new both, one is the target; v has one row and is left out."""
    rows = rows_of([[0, 5, 6], [1, 5, 7], [2, 5, 6]], [0, 0, 0], users=["u", "u", "v"])
    known = alike.interacted(rows, None, 8)
    evidence = negatives.new_in_the_users_slates(rows, np.arange(8), known, 0)
    assert evidence is not None
    assert evidence.rows_R.tolist() == [0, 1] and evidence.hits_R.tolist() == [0.5, 0.5]


def test_like_popularity_and_its_exchange() -> None:
    """0 and 0; 4 and 5 (half of √4 is 1); 100 to 105 (half of √100 is 5)."""
    classes = alike.like_popularity(np.array([100.0, 0, 4, 105, 0, 5, 6, 106]))
    assert classes.tolist() == [3, 0, 1, 3, 0, 1, 2, 4]
    other = alike.swapped(classes, np.random.default_rng(0))
    assert sorted(other.tolist()) == list(range(8)) and (classes[other] == classes).all()


def test_redrawn_negatives_are_alike_and_not_of_the_user() -> None:
    rng = np.random.default_rng(0)
    slates = rows_of([rng.permutation(60)[:6].tolist() for _ in range(200)], [2] * 200,
                     history=[rng.permutation(60)[:5].tolist() for _ in range(200)])  # fmt: skip
    known, classes = alike.interacted(slates, None, 60), np.arange(60) % 3
    made = alike.redrawn_alike(slates, classes, known, rng)
    assert (made[:, 2] == slates.target_R).all()
    changed = made != slates.candidates_RC
    assert changed.mean() > 0.6
    assert (classes[made] == classes[slates.candidates_RC]).all()
    assert not known.has(slates.group_R[:, None], made)[changed].any()
    for row in alike.redrawn_uniformly(slates, 60, 0, known, rng).tolist():
        assert len(set(row)) == 6


def test_unseen_items_are_estimated_not_forgotten() -> None:
    """Nobody had items 4 to 9; 4, 5, 6 are negatives once, 7 twice: 3 · 2 / (2 · 2) = 1 more."""
    slates = rows_of([[0, 4], [1, 5], [0, 6], [1, 7], [0, 7]], [0] * 5)
    assert popularity._unseen(slates, popularity.Counts(np.array([3.0, 2, 1, 1, 0, 0, 0, 0, 0, 0]))) == 1


def test_popularity_before_the_row_counts_no_later_event_and_nothing_of_its_own() -> None:
    learn = rows_of([[0, 1], [0, 1], [1, 0]], [0, 0, 0], times=[1.0, 5.0, 2.0])
    asked = rows_of([[0, 1], [0, 1], [0, 1]], [0, 0, 0], times=[1.0, 2.0, 9.0])
    counts = popularity.counts_before(asked, learn, np.array([2.0, 1.0]))
    assert counts.of(asked, asked.candidates_RC).tolist() == [[0, 0], [1, 0], [2, 1]]
    rows = rows_of([[0, 1]] * 3, [0, 0, 1], users=["u", "v", "v"])
    own = popularity.Counts(np.array([2.0, 1.0]), own=alike.interacted(rows, None, 2))
    assert own.of(rows, rows.candidates_RC).tolist() == [[1, 1], [1, 0], [1, 0]]


def test_classes_are_learned_from_the_other_half_and_noise_is_no_hint() -> None:
    """In even groups targets are of class 1 of 2, in odd ones of class 0: each half is told the other's habit."""
    rows = rows_of([[0, 1]] * 200, [k % 2 for k in range(200)])
    scores = class_scores(rows, rows.candidates_RC, rows.position_R)
    assert expected_hits(scores, rows.position_R, rows.valid_RC).max() == 0.0
    # 54 of 100 targets of each half are of class 1: 0.8 standard deviations above a blind guess
    mixed = rows_of([[0, 1]] * 200, [int((k // 2) % 100 < 54) for k in range(200)])
    assert not class_scores(mixed, mixed.candidates_RC, mixed.position_R).any()
    # of classes 1 and 2 the higher is never worth less; class 0 is free
    rising = class_scores(rows, 2 - rows.candidates_RC, rows.position_R, rising=True)
    assert (rising[::2, 0] == rising[::2, 1]).all() and (rising[1::2, 0] > rising[1::2, 1]).all()
    free = class_scores(rows, 1 - rows.candidates_RC, rows.position_R, rising=True)
    assert (free[::2, 0] < free[::2, 1]).all()


def test_agreement_of_slots() -> None:
    """100 keys of 4 rows of 10, a third of the rows at home: q̂ near a third; all in random slots: no habit."""
    rng = np.random.default_rng(0)
    key = np.repeat(np.arange(100), 4)
    home = rng.random(400) < 1 / 3
    place = np.where(home, key % 10, rng.integers(0, 10, 400))
    slate = [rng.permutation(1000)[:10].tolist() for _ in range(400)]
    got = slots.agreement(key, rows_of(slate, place.tolist()), 0)
    assert got.pairs == 600 and got.habit and got.at_home == pytest.approx(1 / 3, abs=0.08)
    assert not slots.agreement(key, rows_of(slate, rng.integers(0, 10, 400).tolist()), 0).habit
    # the same rows once more, as in a file of two epochs, are no second witness
    twice = rows_of(slate * 2, rng.integers(0, 10, 400).tolist() * 2)
    assert not slots.agreement(np.tile(np.arange(400), 2), twice, 0).habit


def test_no_row_teaches_itself_the_slot_of_its_user() -> None:
    """30 users of four rows keep their slot; 40 users of one row have nobody to learn it from."""
    rng = np.random.default_rng(0)
    users = [f"u{k // 4}" for k in range(120)] + [f"v{k}" for k in range(40)]
    places = [(k // 4) % 8 for k in range(120)] + rng.integers(0, 8, 40).tolist()
    rows = rows_of([rng.permutation(1000)[:8].tolist() for _ in range(160)], places, users=users)
    found = slots.keys("slot_of_the_user", rows, None)
    assert found is not None
    evidence = slots.position_per_key("slot_of_the_user", *found, rows, None, 0)
    assert (evidence.hits_R[:120] == 1.0).all() and evidence.hits_R[120:] == pytest.approx(1 / 8)


def test_p_of_agreement_is_uniform_without_a_habit() -> None:
    """300 sets of 300 rows: P(p < 0.05) within three standard deviations of 0.05."""
    low = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        key, place = rng.integers(0, 40, 300), rng.integers(0, 8, 300)
        slate = [rng.permutation(1000)[:8].tolist() for _ in range(300)]
        low += slots.agreement(key, rows_of(slate, place.tolist()), seed).p < 0.05
    assert abs(low / 300 - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 300)


def test_the_effect_of_a_weak_habit_decides_where_hits_understate_it() -> None:
    weak = Evidence("w", "channel", "", np.full(100, 0.055), np.arange(100), np.full(100, 0.05), 1e-9, effect=0.1)
    judge([weak])
    assert weak.verdict == "leak"
    shy = Evidence("s", "channel", "", np.full(9, 0.1), np.arange(9), np.full(9, 0.05), 1e-9, mention_at=0.06)
    judge([shy])
    assert shy.verdict == "clean"


def test_mentions_take_the_longest_title_in_any_wording() -> None:
    titles = ["Air", "Air Supply", "The Wall (1979)", "air"]
    prompts = ["Air Supply, then AIR.", '{"answer": "The Wall (1979)"}', "a hair", ""]
    assert wording.mentions(prompts, titles) == [{1: 1, 0: 1, 3: 1}, {2: 1}, {}, {}]


def test_spelling_is_compared_with_how_a_title_is_written_elsewhere() -> None:
    """Half of the items are always in lower case, and popular: no leak. The same for targets alone: a leak."""
    rng = np.random.default_rng(0)
    titles = [f"song {k}" if k < 20 else f"Song {k}" for k in range(40)] + [f"song {k}" for k in range(20, 40)]
    for planted in (False, True):
        slates, places = [], []
        for k in range(800):
            target = int(rng.integers(20)) if rng.random() < 0.85 else int(rng.integers(20, 40))
            others = [i for i in rng.permutation(40).tolist() if i != target][:4]
            shown = target + 20 if planted and target >= 20 else target
            place = k % 5
            slates.append([*others[:place], shown, *others[place:]])
            places.append(place)
        history = [rng.permutation(40)[:3].tolist() for _ in range(800)]
        evidence = wording.spelling(rows_of(slates, places, history=history), [], Catalogue(titles), 0)
        judge([evidence])
        assert evidence.verdict == ("leak" if planted else "clean"), evidence.why


@pytest.mark.parametrize(
    ("one", "other"),
    [("The Wall", "the wall"), ("The Wall", "The\u00a0Wall"), ("The Wall", "The Wall."), ("The Wall", " The Wall ")],
)
def test_plain_titles(one: str, other: str) -> None:
    assert wording.plain(one) == wording.plain(other)
    assert wording._style(one) != wording._style(other)


def blind(folder: Path, slates: str) -> dict[str, Any]:
    result = audit(folder, slates=slates, write=False)
    return {one["name"]: one for one in result["probes"]}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["leave_last_out", "time"])
def test_movielens_slates_do_not_tell_later_targets(shared_data: Path, tmp_path: Path, split: str) -> None:
    """Never a negative of this user: at chance in our slates, and called a leak in those made the old way.

    Chance is 0.05; 943 rows of leave-last-out have a standard error of 0.007. Of the train rows 30,000 are kept, for
    time's sake; with all of them the old slates give 0.23 and 0.29 (0.42 where only train teaches).
    """
    kinds = [SlateOptions(protocol=p, exclude=e) for p in ("uniform", "popularity") for e in (None, "interacted-LEAKY")]
    folder = tmp_path / "out"
    limits = {"train": 30_000}
    prepare(
        "movielens", shared_data / "movielens_100k", folder, split=SplitOptions(kind=split), slates=kinds, limits=limits
    )
    for protocol in ("uniform", "popularity"):
        ours, old = blind(folder, f"test-{protocol}-20-s0"), blind(folder, f"test-{protocol}-LEAKY-20-s0")
        name = "rarely_a_negative_of_the_user"
        assert ours[name]["hr1"] == pytest.approx(0.05, abs=0.022)
        assert ours[name]["verdict"] == "clean" and old[name]["verdict"] == "leak"
        assert old[name]["hr1"] > 0.08
        for other in ("rarely_a_negative", "rarely_a_negative_in_train"):
            assert ours[other]["verdict"] == "clean"


def test_a_split_by_user_is_noted_once_and_is_no_caution(tmp_path: Path) -> None:
    prepare("simulated", None, tmp_path / "data", slates=(SlateOptions(size=10),))
    result = audit(tmp_path / "data", write=False)
    order = next(one for one in result["probes"] if one["name"] == "split_time_order")
    assert order["verdict"] == "clean" and order["share"] > 0.1
    assert sum("later than a row" in note for note in result["notes"]) == 1
    assert result["verdict"] == "clean"
