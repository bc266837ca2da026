"""How tables call an arm: its own name, its preset's label, and whatever it changes of the preset."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sirius_rec.recipes.configuration import parse_config
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder


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
        ("robust_dpo", "Robust DPO"),
        ({"loss": "robust_dpo", "label_smoothing": 0.3}, "Robust DPO, label_smoothing=0.3"),
        ({"loss": "dpop", "dpop_lambda": 5, "anchor": "reference"}, "DPOP, anchor=reference, dpop_lambda=5"),
        ({"loss": "ipo", "reward": "dpo"}, "IPO, reward=dpo"),
        ({"loss": "softmax_dpo", "link": "hinge"}, "S-DPO (softmax, 3), link=hinge"),
        ({"loss": "dpo", "learning_rate": 1e-5}, "DPO, learning_rate=1e-05"),
        ({"loss": "dpo", "learning_rate": 2e-4}, "DPO"),  # that of all arms
        ({"loss": "dpo", "beta": 2.5}, "DPO"),
        ({"loss": "dpo", "beta": 1}, "DPO, beta=1"),  # the preset's own, but not this run's
        ({"loss": "softmax_dpo", "negatives": 5, "name": "five"}, "five"),
    ],
)
def test_arms(arm: Any, label: str) -> None:
    config = parse_config({"align": {"beta": 2.5, "learning_rate": 2e-4}, "arms": [arm]}, "c")
    labels = {key: method.label for key, method in build_methods(config).items() if method.role != "trivial"}
    assert labels == {"sft": "SFT", config.arms[0].key: label}


def test_morec_says_that_its_own_encoder_is_not_pretrained() -> None:
    entries = [
        "morec",
        {"method": "morec", "name": "mine"},
        {"method": "morec", "preset": "paper", "options": {"encoder": "some/bert"}},
    ]
    methods = build_methods(parse_config({"arms": [], "methods": entries}, "c"))
    assert methods["morec"].label == "MoRec (SASRec over titles, encoder from scratch)"
    assert methods["mine"].label == "mine"
    assert methods["morec_paper"].label == "MoRec (SASRec over titles), paper's settings, encoder=some/bert"


def test_trivial_baselines_are_always_there() -> None:
    labels = {key: m.label for key, m in build_methods(parse_config({"arms": ["dpo"]}, "c")).items()}
    assert list(labels.items())[:4] == [
        ("random", "Random"),
        ("popularity", "Popularity"),
        ("item_knn", "Item-kNN (cosine)"),
        ("item_knn_directed", "Item-kNN (directed)"),
    ]


def test_a_variant_is_compared_with_its_base_whatever_they_are_called() -> None:
    """An arm with an anchor against the same objective without one: by the objective, not by the name."""
    arms = [
        {"loss": "dpo", "name": "plain"},
        {"loss": "dpo_sirius", "name": "mine"},
        {"loss": "dpo", "name": "foo"},
        {"loss": "dpo", "name": "foo_sirius", "beta": 3.0},
        {"loss": "dpo_sirius", "name": "other_beta", "beta": 2.0},
        {"loss": "dpo_sirius", "name": "other_rate", "learning_rate": 1e-6},
        {"loss": "simpo_no_ln", "name": "s"},
        {"loss": "simpo_no_ln_sirius", "name": "far", "anchor_constant": 10},
        {"loss": "simpo_no_ln_sirius_slate", "name": "slate", "anchor_margin": 0.5},
        {"loss": "dpo_nll", "name": "control"},
        {"loss": "dpo_sirius", "name": "same_rate", "learning_rate": 1e-4},
    ]
    methods = build_methods(parse_config({"arms": arms}, "c"))
    bases = {key: method.base for key, method in methods.items() if method.role == "arm"}
    assert bases == {
        "plain": None, "mine": "plain", "foo": None, "foo_sirius": None, "other_beta": None, "other_rate": None,
        "s": None, "far": "s", "slate": "s", "control": None,
        "same_rate": "plain",
    }  # fmt: skip


def test_objectives_say_what_is_compared() -> None:
    config = parse_config({"arms": ["sft_continued", "dpo", {"loss": "softmax_ref_free", "name": "whole"}]}, "c")
    run = Run(RunFolder(Path("nowhere")), config)
    run.__dict__["dataset"] = SimpleNamespace(n_rows=lambda split: 1, n_all_train=2)
    facts = {key: method.facts(run) for key, method in build_methods(config).items()}
    assert {facts[key]["train_rows"] for key in ("sft", "dpo")} == {1} and facts["popularity"]["train_rows"] == 2
    assert facts["random"]["train_rows"] is None
    assert [facts[key]["language_model"] for key in ("popularity", "sft", "dpo")] == [False, True, True]
    assert [facts[key]["role"] for key in ("popularity", "sft", "dpo")] == ["trivial", "sft", "arm"]
    assert {key: (facts[key]["reward"], facts[key]["comparison"]) for key in ("sft_continued", "dpo", "whole")} == {
        "sft_continued": ("simpo_no_ln", "none"),
        "dpo": ("dpo", "pairwise"),
        "whole": ("simpo_no_ln", "softmax"),
    }
