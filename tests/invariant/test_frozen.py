"""What the numerical packages hand out cannot be changed under the hands of whoever else holds it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

MODULES = (
    "data.slates", "evaluation.intervals", "evaluation.metrics", "evaluation.tables", "objectives.losses",
    "objectives.presets", "scoring.masks", "scoring.packed", "scoring.rows",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_dataclasses_are_frozen(name: str) -> None:
    module = importlib.import_module(f"sirius_rec.{name}")
    own = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    for kind in filter(dataclasses.is_dataclass, own):
        assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
