"""What a training was made with: another objective under the same name is noticed."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.identity import difference, identity
from sirius_rec.objectives.losses import Objective
from sirius_rec.objectives.parts import LINKS, Link
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
        assert set(saved(objective)["code"].values()) == {"sirius_rec"}  # whose parts go by their names


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
    said = LINK.replace("objective):", 'objective):\n    """exp(−z)."""')
    for same in ("\n" + LINK.replace("  # a comment", ""), LINK.replace("(-margin)", "( -margin )"), said):
        assert difference(before, own(same)) is None
    other = own(LINK.replace("-margin", "-3 * margin"))
    assert difference(before, other) == "the code of link own_exp has changed"
    # another version of Python compiles it otherwise
    assert difference({**before, "python": "3.0"}, other) is None


def test_code_counts_as_it_is_loaded_whatever_the_file_says_by_now(own: Any, tmp_path: Path) -> None:
    objective = own(LINK)
    before = saved(objective)
    (tmp_path / "own_link_0.py").write_text(LINK.replace("-margin", "-3 * margin"))
    assert difference(before, objective) is None


class Steep:
    def __init__(self, times: float) -> None:
        self.times = times

    def __call__(self, margin: Any, objective: Any) -> Any:
        return -self.times * margin


def closed(times: float) -> Any:
    def link(margin: Any, objective: Any) -> Any:
        return -times * margin

    return link


def scaled(margin: Any, objective: Any, times: float = 1.0) -> Any:
    return -times * margin


def keyed(default: float) -> Any:
    space: dict[str, Any] = {"__name__": "keyed", "times": default}
    exec("def link(margin, objective, *, by=times):\n    return -by * margin", space)
    return space["link"]


def again(margin: Any, objective: Any) -> Any:
    """Calls itself, and a closure that holds itself would too."""
    return again(margin - 1, objective) if margin > 1 else margin


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Link(Steep(1.0)), Link(Steep(3.0))),
        (Link(closed(1.0)), Link(closed(3.0))),
        (Link(functools.partial(scaled, times=1.0)), Link(functools.partial(scaled, times=3.0))),
        (Link(scaled), Link(again)),
        (Link(keyed(1.0)), Link(keyed(3.0))),
        (Link(scaled), Link(scaled, anchor=scaled)),
        (Link(scaled), Link(scaled, takes_smoothing=True)),
        (Link(lambda margin, objective: -margin), Link(lambda margin, objective: -2 * margin)),
        (LINKS["hinge"], Link(scaled)),
    ],
)
def test_what_changes_a_part(one: Link, other: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LINKS, "logistic", one)  # under a name of the package's, too
    objective = build_objective("dpo")
    before = saved(objective)
    assert difference(before, objective) is None
    monkeypatch.setitem(LINKS, "logistic", other)
    assert difference(before, objective) == "the code of link logistic has changed"
    monkeypatch.setitem(LINKS, "logistic", one)
    assert difference(before, objective) is None


def test_a_closure_that_holds_itself_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def outer() -> Any:
        def inner(margin: Any, objective: Any) -> Any:
            return inner(margin, objective)

        return inner

    monkeypatch.setitem(LINKS, "logistic", Link(outer()))
    assert len(saved(build_objective("dpo"))["code"]["link logistic"]) == 64


@pytest.mark.parametrize("value", ["1", [1.0]])
def test_numbers_that_are_none_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ConfigError, match="beta must be a finite number, got"):
        build_objective("dpo", beta=value)
