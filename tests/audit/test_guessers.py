"""Single guessers on rows small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sirius_rec.audit import channels, contamination, floors, order
from sirius_rec.audit.audit import audit
from sirius_rec.audit.companions import companions
from sirius_rec.audit.evidence import LEAK, Evidence, flip_p, judge
from sirius_rec.audit.model_scores import surviving
from sirius_rec.audit.readers import _runs
from sirius_rec.audit.slates import Catalogue, SlateSet
from sirius_rec.data.options import SlateOptions, WindowOptions
from sirius_rec.data.prepare import prepare


def rows_of(
    candidates: list[list[int]],
    positions: list[int],
    *,
    history: list[list[int]] | None = None,
    groups: list[int] | None = None,
    times: list[float] | None = None,
) -> SlateSet:
    table, place = np.array(candidates), np.array(positions)
    n = len(table)
    return SlateSet(
        "here",
        np.array(history) if history is not None else np.zeros((n, 0), dtype=np.int64),
        table[np.arange(n), place],
        table,
        place,
        np.arange(n) if groups is None else np.array(groups),
        np.arange(n),
        np.full(n, np.nan) if times is None else np.array(times),
        np.array([""] * n),
    )


def test_flip_p_is_exact_one_sided_and_the_largest_over_groupings() -> None:
    """Four gains: one of 2^4 sign patterns reaches their sum; in two groups, one of 2^2."""
    gains = np.ones(4)
    assert flip_p(gains, [np.arange(4)], 0) == 1 / 16
    assert flip_p(gains, [np.arange(4), np.array([0, 0, 1, 1])], 0) == 1 / 4
    assert flip_p(-gains, [np.arange(4)], 0) == 1.0


def test_slots_are_learned_from_the_other_half() -> None:
    """Even users' targets stand in slot 0, odd users' in slot 2: what one half teaches is wrong in the other."""
    slates = rows_of([[0, 1, 2]] * 60, [0, 2] * 30)
    assert channels.position_marginal(slates, None, 0).hr1 == 0.0
    assert channels.position_marginal(slates, rows_of([[0, 1, 2]] * 30, [2] * 30), 0).hr1 == 0.5


def test_no_row_teaches_itself_its_home_slot() -> None:
    """20 targets of 10 rows keep their slot; 100 targets of one row teach nobody, so their rows are guessed blindly."""
    rng = np.random.default_rng(0)
    slates, places = [], []
    for k in range(300):
        target = k % 20 if k < 200 else k
        place = target % 5 if k < 200 else int(rng.integers(5))
        slate = (1000 + rng.permutation(400)[:5]).tolist()
        slate[place] = target
        slates.append(slate)
        places.append(place)
    evidence = channels.position_per_target(rows_of(slates, places), None, 0)
    assert (evidence.hits_R[:200] == 1.0).all()
    # neither taught by itself nor by others, and no rival was a target either: all five tie
    assert evidence.hits_R[200:] == pytest.approx(0.2)


def test_no_row_is_its_own_companion() -> None:
    """Four targets of 10 rows share their negatives; 60 targets of one row have negatives of their own."""
    rng = np.random.default_rng(0)
    shared = [(100 + rng.permutation(300)[:7]).tolist() for _ in range(4)]
    slates, places = [], []
    for k in range(100):
        target = k % 4 if k < 40 else 400 + k
        negatives = shared[target] if k < 40 else (100 + rng.permutation(300)[:7]).tolist()
        place = int(rng.integers(8))
        slates.append([*negatives[:place], target, *negatives[place:]])
        places.append(place)
    evidence = companions(rows_of(slates, places), None, 0)
    assert (evidence.hits_R[:40] == 1.0).all()
    assert evidence.hits_R[40:].mean() < 0.35
    assert evidence.control_R is not None and evidence.control_R.mean() == pytest.approx(1 / 8, abs=0.08)


def in_order(n: int, ascending_histories: bool) -> SlateSet:
    """Targets are the next id after the last history item; histories ascend, or are in no order."""
    rng = np.random.default_rng(1)
    histories, slates, places = [], [], []
    for _ in range(n):
        history = rng.permutation(500)[:6].tolist()
        if ascending_histories:
            history = sorted(history)
        near = history[-1] + 1
        slate = [near, *[item for item in rng.permutation(500).tolist() if item != near][:4]]
        turn = rng.permutation(5)
        histories.append(history)
        slates.append([slate[k] for k in turn])
        places.append(int(np.flatnonzero(turn == 0)[0]))
    return rows_of(slates, places, history=histories)


@pytest.mark.parametrize(("ascending", "verdict"), [(True, "leak"), (False, "caution")])
def test_an_order_is_a_leak_only_where_histories_are_in_it(ascending: bool, verdict: str) -> None:
    catalogue = Catalogue([str(k) for k in range(1000)], {"item_id": np.arange(1000.0)})
    (evidence,) = order.id_order(in_order(200, ascending), catalogue, 0)
    judge([evidence])
    assert evidence.excess is not None and evidence.excess > 0.1
    assert evidence.verdict == verdict


def test_an_honest_order_inside_ties_is_clean() -> None:
    """Pairs of events of one time in random order: half of them ascend, within noise."""
    catalogue = Catalogue([str(k) for k in range(100)], {"item_id": np.arange(100.0)})
    tried = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        histories, slates, places = [], [], []
        for _ in range(60):
            a, b, c, *others = rng.permutation(100)[:12].tolist()
            for history, target, negatives in (([a, b], c, others[:4]), ([b, c], others[8], others[4:8])):
                place = int(rng.integers(5))
                histories.append(history)
                slates.append([*negatives[:place], target, *negatives[place:]])
                places.append(place)
        users = np.repeat(np.arange(60), 2)
        slated = rows_of(slates, places, history=histories, groups=users.tolist(), times=users.astype(float).tolist())
        found = order.id_order(slated, catalogue, seed)
        judge(found)
        tied = next(one for one in found if one.name == "order_in_ties:item_id")
        tried += tied.excess is not None and tied.excess > 0.005
        assert len(tied.rows_R) == 60 and tied.verdict == "clean"
    assert tried, "no seed leaves anything to be judged"


def test_exact_copies_are_not_near_copies() -> None:
    histories = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 5, 4], [1, 2, 3, 4, 9]]
    asked = rows_of([[7, 8]] * 4, [0, 1, 0, 0], history=histories)
    learn = rows_of([[7, 8]], [0], history=[[1, 2, 3, 4, 5]])
    # row 1 has another target; row 2 is the same set in another order; row 3 shares 4 of 6
    assert contamination.exact_windows(asked, learn).facts["share"] == 0.25
    assert contamination.near_windows(asked, learn).facts["share"] == 0.25


def test_windows_of_one_user_count_an_item_once() -> None:
    slates = rows_of([[3, 0], [4, 0], [3, 0]], [0, 0, 0], history=[[1, 2], [2, 3], [1, 2]], groups=[0, 0, 1])
    assert floors.interaction_counts(slates, 5).tolist() == [0, 2, 2, 2, 1]


def test_a_run_goes_on_where_both_the_target_and_the_item_before_it_fit() -> None:
    history = np.array([[1, 2], [2, 3], [9, 4], [4, 5]])
    target = np.array([3, 4, 5, 6])
    # row 2 ends on row 1's target 4, but after 9, not 3: another user
    assert _runs(history, target).tolist() == [0, 0, 1, 1]


def test_a_guesser_of_some_rows_gives_away_those_rows_only(tmp_path: Path) -> None:
    slates = rows_of([[0, 1]] * 4, [0] * 4)
    (tmp_path / "s.jsonl").write_text("".join(f'{{"row": {k}, "scores": [1, 0]}}\n' for k in range(4)))
    some = Evidence("some", "channel", "", np.array([0.0, 1.0]), np.array([1, 3]), verdict=LEAK)
    assert surviving(tmp_path / "s.jsonl", slates, [some], seed=0)["rows_left"] == 3


def test_val_slates_of_a_folder_learn_from_train_alone(tmp_path: Path) -> None:
    prepare(
        "simulated",
        None,
        tmp_path / "data",
        window=WindowOptions(max_history=5, min_history=5),
        slates=(SlateOptions(size=10),),
    )
    result = audit(tmp_path / "data", slates="val-uniform-10-s0", write=False)
    assert list(result["learned_from"]) == ["train"]
