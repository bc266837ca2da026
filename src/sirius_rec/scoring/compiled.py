"""Layers compiled with torch.compile: fewer and larger kernels, for models so small that a GPU waits for launches."""

from __future__ import annotations

from typing import Any

from torch import nn

from sirius_rec.errors import ScoringError
from sirius_rec.scoring.packed import unwrapped


def compile_layers(model: Any) -> int:
    """Have a model's repeated layers compiled at their first call, in place; how many they are.

    One layer's code serves all of them and trees of any size, so that it takes some ten seconds and not minutes.
    Attention over trees stays as it is. Log-probs differ from those of the plain model by rounding: compile policy and
    reference alike. ScoringError for a model without a list of equal layers.
    """
    found = max((m for m in unwrapped(model).modules() if _repeats(m)), key=len, default=None)
    if found is None:
        raise ScoringError("backbone.compile: the model has no list of equal layers: remove it")
    for layer in found:
        layer.compile(dynamic=True)
    return len(found)


def _repeats(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0 and len({type(layer) for layer in module}) == 1
