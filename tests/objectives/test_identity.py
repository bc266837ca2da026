"""What a training was made with: another objective under the same name is noticed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.identity import difference, identity
from sirius_rec.objectives.losses import Objective
from sirius_rec.objectives.parts import ANCHORS, COMPARISONS, LINKS, REWARDS
from sirius_rec.objectives.presets import LOSSES, build_objective

LINK = """import torch
from sirius_rec.objectives.parts import COMPARISONS, LINKS, Link


def steep(margin, objective):
    return torch.exp(-margin)  # a comment


LINKS["own_exp"] = Link(steep, anchor=steep)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module with a link of its own, and imports it anew."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(LINKS, "own_exp", LINKS["logistic"])  # taken out again behind the test

    def load(text: str) -> Objective:
        name = f"own_link_{len(list(tmp_path.glob('*.py')))}"
        (tmp_path / f"{name}.py").write_text(text)
        importlib.import_module(name)
        return build_objective("dpo", link="own_exp")

    yield load
    for name in [name for name in sys.modules if name.startswith("own_link_")]:
        del sys.modules[name]


def saved(objective: Objective) -> Any:
    return json.loads(json.dumps(identity(objective)))


def test_the_same_objective_is_the_same_after_it_was_written() -> None:
    for name in LOSSES:
        objective = build_objective(name)
        assert difference(saved(objective), objective) is None
        assert not saved(objective)["code"]  # this package's parts go by their names


def test_numbers_and_parts_that_changed_are_named() -> None:
    before = saved(build_objective("softmax_dpo"))
    assert difference(before, build_objective("softmax_dpo", beta=2.0)) == "beta: then 1.0, now 2.0"
    assert difference(before, build_objective("dpo", negatives=3)) == "comparison: then 'softmax', now 'pairwise'"


def test_an_option_that_came_later_had_its_default() -> None:
    before = saved(build_objective("dpo"))
    del before["dpop_lambda"]
    assert difference(before, build_objective("dpo")) is None
    assert difference(before, build_objective("dpo", dpop_lambda=5.0)) == "dpop_lambda: then 0.0, now 5.0"


def test_code_of_ones_own_counts_but_not_its_layout(own: Any) -> None:
    before = saved(own(LINK))
    assert (
        difference(before, own("\n" + LINK.replace("  # a comment", "").replace("exp(-margin)", "exp( -margin )")))
        is None
    )
    other = own(LINK.replace("-margin", "-3 * margin"))
    assert difference(before, other) == "the code of link own_exp has changed"


def test_code_that_has_no_source_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Any] = {"__name__": "typed"}
    exec("def typed(reward_BC, kept_BC, gamma, link):\n    return reward_BC.sum(1)", space)
    monkeypatch.setitem(COMPARISONS, "typed", space["typed"])
    assert identity(build_objective("dpo", comparison="typed"))["code"] == {}
    assert "typed" not in REWARDS | ANCHORS


@pytest.mark.parametrize("value", ["1", [1.0]])
def test_numbers_that_are_none_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ConfigError, match="beta must be a finite number, got"):
        build_objective("dpo", beta=value)
