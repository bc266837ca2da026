"""Reward-hacking evidence on curves made by hand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from sirius_rec.diagnostics.curves import HEADER, diagnose, lines, mean_interval
from sirius_rec.diagnostics.wording import onset_found, verdict
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
    assert seed["hr@1"] == {"first": 0.3, "peak": 0.5, "last": 0.4, "peak_epoch": 1}
    assert seed["reward_margin"] == {"first": 0.0, "last": 3.0, "change": 3.0}
    assert seed["insensitive@0.1"]["change"] == pytest.approx(0.04)
    assert seed["misordered"] is None
    assert found["label"] == "DPO"


def test_seed_interval_is_students():
    half = stats.t.ppf(0.975, 1) * 0.04 / math.sqrt(2) / math.sqrt(2)
    assert mean_interval([0.10, 0.06]) == pytest.approx((0.08, 0.08 - half, 0.08 + half))


def test_methods_without_a_margin_are_listed_only():
    found = diagnose(results(dpo={"0": curve([0.3, 0.4], [0, 1])}, sft={"0": curve([0.2])}))
    rows = lines(found)
    assert [len(row) for row in rows] == [len(HEADER)] * 2
    assert rows[1][0] == "SFT" and rows[1][1] == "–"
    assert verdict(found, "sft") == "not tested: no log-probs of held-out slates"


def test_the_verdict_is_the_onset_test_and_nothing_else():
    """A margin that rises while HR@1 falls is what noise does after a peak: without an onset nothing is claimed."""
    hacked = {"0": curve([0.5, 0.4, 0.3], [0, 1, 2]), "1": curve([0.5, 0.4, 0.2], [0, 1, 3])}
    found = results(dpo=hacked, simpo=hacked, sft_continued=hacked, old=hacked)
    found["methods"] = {"dpo": {"comparison": "pairwise"}, "sft_continued": {"comparison": "none"}}
    diagnostics = diagnose(found)
    methods = diagnostics["methods"]
    assert {name: entry["margin_trained"] for name, entry in methods.items()} == {
        "dpo": True, "simpo": True, "sft_continued": False, "old": True,
    }  # fmt: skip
    assert methods["sft_continued"]["mean"]["reward_margin"]["change"] == 2.5
    onset = {"step": 20, "peak_step": 0, "fall": 0.25, "p": 0.0004, "margin_rise": 2.5, "looks": 3}
    none = {**onset, "step": None, "p": 0.2}
    diagnostics["onset"] = {"dpo": {"all": onset, "seeds": {}}, "simpo": {"all": none, "seeds": {}}}
    diagnostics["onset"]["sft_continued"] = diagnostics["onset"]["dpo"]  # of a version that tested it
    assert verdict(diagnostics, "dpo").startswith("onset: step 20 (HR@1 0.250 below its peak at step 0, p < 0.001")
    assert verdict(diagnostics, "simpo").startswith("onset: none in 3 evaluations")
    assert verdict(diagnostics, "sft_continued") == "not tested: no margin is trained"
    assert set(onset_found(diagnostics)) == {"dpo", "simpo"}
    assert not any("fell" in cell for row in lines(diagnostics) for cell in row)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "no curves"),
        ({"sft": {"0": curve([0.1, 0.2])}}, "no curves with reward margins"),
        ({"dpo": {"0": curve([0.1], [1])}}, "dpo, seed 0 has one epoch only"),
        ({"dpo": {"0": curve([0.1, math.nan], [1, 2])}}, "hr@1 is not a number at epoch 1"),
        ({"dpo": {"0": curve([0.1, 0.2], [1, None])}}, "reward_margin is not a number at epoch 1"),
        ({"dpo": {"0": curve([0.1, 0.2], [1, 2]) * 2}}, "an epoch is duplicated"),
        ({"dpo": {"0": [{"epoch": 0, "reward_margin": 1}, {"epoch": 1, "reward_margin": 1}]}}, "has no hr@1"),
    ],
)
def test_unusable_curves(curves, message):
    with pytest.raises(DataError, match=message) as caught:
        diagnose(results(**curves))
    assert "\n" not in str(caught.value)


def test_mean_interval_of_one_value():
    assert mean_interval([0.4]) == (0.4, None, None)
