"""How tables call an arm: its own name, its preset's label, and whatever it changes of the preset."""

from __future__ import annotations

from typing import Any

import pytest

from sirius_rec.config import parse_config
from sirius_rec.evaluation.floors import FLOOR_LABELS, FLOORS
from sirius_rec.recipes.evaluation import method_labels, objectives


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        ("softmax_dpo", "S-DPO (softmax, 3)"),
        ({"loss": "softmax_dpo", "negatives": 5}, "S-DPO (softmax), negatives=5"),
        ({"loss": "softmax_dpo", "negatives": 3}, "S-DPO (softmax, 3)"),
        ({"loss": "softmax_dpo_sirius", "negatives": "all"}, "S-DPO (softmax) + SIRIUS, negatives=all"),
        ({"loss": "softmax_dpo_all", "negatives": 5}, "S-DPO (softmax), negatives=5"),
        ({"loss": "softmax_ref_free", "negatives": 7}, "Reference-free softmax, negatives=7"),
        ({"loss": "simpo", "anchor": "constant"}, "SimPO, anchor=constant"),
        ({"loss": "simpo_sirius", "anchor_constant": 10}, "SimPO + SIRIUS, anchor_constant=10"),
        ({"loss": "simpo_no_ln_sirius_slate", "anchor": "constant"}, "SimPO w/o LN + SIRIUS, anchor=constant"),
        ({"loss": "dpo_sirius", "anchor": "none"}, "DPO, anchor=none"),
        ({"loss": "dpo_nll", "nll_weight": 0}, "DPO, nll_weight=0"),
        (
            {"loss": "dpo_nll", "nll_per_token": True, "nll_weight": 0.5},
            "DPO + NLL, nll_weight=0.5, nll_per_token=true",
        ),
        ({"loss": "simpo_no_ln", "filter": False}, "SimPO w/o LN, filter=false"),
        ({"loss": "dpo", "learning_rate": 1e-5}, "DPO, learning_rate=1e-05"),
        ({"loss": "dpo", "learning_rate": 2e-4}, "DPO"),  # that of all arms
        ({"loss": "dpo", "beta": 2.5}, "DPO"),
        ({"loss": "dpo", "beta": 1}, "DPO, beta=1"),  # the preset's own, but not this run's
        ({"loss": "softmax_dpo", "negatives": 5, "name": "five"}, "five"),
    ],
)
def test_arms(arm: Any, label: str) -> None:
    config = parse_config({"align": {"beta": 2.5, "learning_rate": 2e-4}, "arms": [arm]}, "c")
    assert method_labels(config) == {**FLOOR_LABELS, "sft": "SFT", config.arms[0].key: label}
    assert tuple(FLOOR_LABELS) == FLOORS


def test_objectives_say_what_is_compared() -> None:
    config = parse_config({"arms": ["sft_continued", "dpo", {"loss": "softmax_ref_free", "name": "whole"}]}, "c")
    nothing = {"reward": "simpo_no_ln", "comparison": "none"}
    assert objectives(config) == {
        "sft": nothing,
        "sft_continued": nothing,
        "dpo": {"reward": "dpo", "comparison": "pairwise"},
        "whole": {"reward": "simpo_no_ln", "comparison": "softmax"},
    }
