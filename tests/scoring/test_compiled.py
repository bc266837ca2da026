"""Layers under torch.compile: captured by it, and the log-probs and gradients of the plain model."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import nn

from sirius_rec.bench.shapes import TINY_SHAPE, build_model, random_rows
from sirius_rec.errors import ScoringError
from sirius_rec.scoring.compiled import compile_layers
from sirius_rec.scoring.packed import tree_logps
from sirius_rec.scoring.tree import build_tree
from sirius_rec.training.backbones import add_lora


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_the_same_log_probs_and_gradients_from_few_graphs(lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured as on a GPU, but run without generated code, whose C++ takes half a minute to compile."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()

    def passes(model: Any) -> list[torch.Tensor]:
        found = []
        for n in (2, 5):
            logp_BC = tree_logps(model, build_tree(random_rows(n, 3, vocabulary=TINY_SHAPE.vocabulary, prompt=20 * n)))
            trained = [p for p in model.parameters() if p.requires_grad]
            found += [logp_BC.detach(), *torch.autograd.grad(logp_BC.square().mean(), trained)]
        return found

    model = build_model(TINY_SHAPE)
    if lora:
        model = add_lora(model, rank=2).train()
    plain = passes(model)
    assert not counters["stats"]
    assert compile_layers(model) == TINY_SHAPE.layers
    for ours, expected in zip(passes(model), plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    # Before and behind attention, for all layers and all sizes of trees; under LoRA once more for the first layer, as
    # its inputs have no gradient.
    assert 0 < counters["stats"]["unique_graphs"] <= (7 if lora else 4)
    assert "_attend" in str(counters["graph_break"])


def test_a_model_without_equal_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ScoringError, match=r"backbone\.compile: the model has no list of equal layers: remove it"):
        compile_layers(model)
