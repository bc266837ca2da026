"""Reward-hacking evidence on curves made by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from sirius_rec.diagnostics.curves import HEADER, diagnose, lines, mean_interval, verdict
from sirius_rec.errors import DataError


def curve(hits, margins=None, **shares):
    points = [{"epoch": epoch, "step": epoch * 10, "hr@1": hit} for epoch, hit in enumerate(hits)]
    for epoch, point in enumerate(points):
        if margins:
            point["reward_margin"] = margins[epoch]
        point |= {key: values[epoch] for key, values in shares.items()}
    return points


def results(**curves):
    labels = [{"method": name, "label": name.upper()} for name in curves]
    return {"curves": curves, "summary": labels}


def test_one_seed_by_hand():
    points = curve([0.3, 0.5, 0.4], [0.0, 1.0, 3.0], **{"insensitive@0.1": [0.01, 0.02, 0.05]})
    found = diagnose(results(dpo={"0": points[::-1]}))["methods"]["dpo"]
    seed = found["seeds"]["0"]
    assert seed["hr@1"] == {"first": 0.3, "peak": 0.5, "last": 0.4, "best_epoch": 1}
    assert seed["reward_margin"] == {"first": 0.0, "last": 3.0, "change": 3.0}
    assert seed["insensitive@0.1"]["change"] == pytest.approx(0.04)
    assert seed["misordered"] is None
    assert seed["hacking"]["flagged"] and seed["hacking"]["margin_rise"] == 2.0
    assert found["hacking"]["hr@1_fall"] == pytest.approx(0.1) and found["hacking"]["hr@1_fall_low"] is None
    assert found["label"] == "DPO"
    assert "one seed" in verdict(found)


def test_seed_interval_is_students():
    falls = [0.10, 0.06]
    by_seed = {str(s): curve([0.3, 0.5, 0.5 - fall], [0, 1, 2]) for s, fall in enumerate(falls)}
    hacking = diagnose(results(dpo=by_seed))["methods"]["dpo"]["hacking"]
    half = stats.t.ppf(0.975, 1) * 0.04 / math.sqrt(2) / math.sqrt(2)
    assert hacking["hr@1_fall"] == pytest.approx(0.08)
    assert hacking["hr@1_fall_low"] == pytest.approx(0.08 - half)
    assert hacking["hr@1_fall_high"] == pytest.approx(0.08 + half)
    assert hacking["seeds_flagged"] == 2 and hacking["peak_epoch"] == 1


@pytest.mark.parametrize(
    ("hits", "margins", "flagged"),
    [
        ([0.3, 0.4, 0.5], [0, 1, 2], False),  # still improving
        ([0.3, 0.5, 0.4], [0, 2, 1], False),  # both fell
        ([0.5, 0.5, 0.5], [0, 1, 2], False),  # flat
        ([0.5, 0.4, 0.3], [0, 1, 2], True),
    ],
)
def test_flag_needs_both(hits, margins, flagged):
    found = diagnose(results(dpo={"0": curve(hits, margins)}))["methods"]["dpo"]
    assert found["hacking"]["flagged"] is flagged is found["seeds"]["0"]["hacking"]["flagged"]


def test_methods_without_a_margin_are_listed_only():
    found = diagnose(results(dpo={"0": curve([0.3, 0.4], [0, 1])}, sft={"0": curve([0.2])}))
    assert found["methods"]["sft"]["hacking"] is None
    rows = lines(found)
    assert [len(row) for row in rows] == [len(HEADER)] * 2
    assert rows[1][0] == "SFT" and rows[1][-1] == "no reward margin logged"


def test_a_margin_that_nothing_trains_is_never_hacking():
    """The same curve is a sign of hacking where a comparison is trained, and none in continued SFT."""
    hacked = {"0": curve([0.5, 0.4, 0.3], [0, 1, 2]), "1": curve([0.5, 0.4, 0.2], [0, 1, 3])}
    found = results(dpo=hacked, sft_continued=hacked, old=hacked)
    found["methods"] = {
        "dpo": {"reward": "dpo", "comparison": "pairwise"},
        "sft_continued": {"reward": "simpo_no_ln", "comparison": "none"},
    }
    diagnostics = diagnose(found)
    methods = diagnostics["methods"]
    assert [methods[name]["margin_trained"] for name in ("dpo", "sft_continued", "old")] == [True, False, True]
    assert methods["dpo"]["hacking"]["flagged"] and methods["old"]["hacking"]["flagged"]
    continued = methods["sft_continued"]
    assert continued["hacking"] is None and all(seed["hacking"] is None for seed in continued["seeds"].values())
    assert continued["mean"]["reward_margin"]["change"] == 2.5
    assert verdict(continued) == "no margin is trained"


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "no curves"),
        ({"sft": {"0": curve([0.1, 0.2])}}, "no curves with reward margins"),
        ({"dpo": {"0": curve([0.1], [1])}}, "dpo, seed 0 has one epoch only"),
        ({"dpo": {"0": curve([0.1, math.nan], [1, 2])}}, "hr@1 is not a number at epoch 1"),
        ({"dpo": {"0": curve([0.1, 0.2], [1, None])}}, "reward_margin is not a number at epoch 1"),
        ({"dpo": {"0": curve([0.1, 0.2], [1, 2]) * 2}}, "an epoch stands there twice"),
        ({"dpo": {"0": [{"epoch": 0, "reward_margin": 1}, {"epoch": 1, "reward_margin": 1}]}}, "has no hr@1"),
    ],
)
def test_unusable_curves(curves, message):
    with pytest.raises(DataError, match=message) as caught:
        diagnose(results(**curves))
    assert "\n" not in str(caught.value)


def test_mean_interval_of_one_value():
    assert mean_interval([0.4]) == (0.4, None, None)
