"""No dropout where policy and reference are compared, however an architecture keeps its dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sirius_rec.errors import TrainingError
from sirius_rec.scoring.packed import in_half_precision, in_mode, unwrapped
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import logps


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0: a dropped-out policy against a whole reference is a margin of pure noise.

    Modules, probabilities that modules keep as numbers (OPT, XGLM, BioGPT, BLOOM, Starcoder2: `attention_dropout`,
    `layerdrop`, …), and those in the configuration, which Falcon reads at every forward pass; a checkpoint's
    config.json then says 0 too.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero(module)
        if "config" in vars(module):
            _zero(module.config)


def _zero(owner: Any) -> None:
    for name, value in vars(owner).items():
        if "drop" in name and isinstance(value, float):
            setattr(owner, name, 0.0)


@torch.no_grad()
def check_no_noise(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int, mode: str) -> None:
    """TrainingError unless two forward passes in training mode agree, on a few candidates of the first row.

    mode: `packed` or `naive`, as resolved. The random state is left as it is.
    """
    some = [PromptCompletions(rows[0].prompt, rows[0].completions[:3])]
    with in_mode(model, training=True), torch.random.fork_rng():
        first_BC, second_BC = (logps(model, some, pad_id, mode).float() for _ in range(2))
    difference = float((first_BC - second_BC).abs().max())
    if not difference <= (1e-2 if in_half_precision(model) else 1e-3):
        raise TrainingError(
            f"dropout is off, yet two forward passes of {type(unwrapped(model)).__name__} in training mode differ by "
            f"{difference:.3g} nats, which would be noise in every reward margin: set what is random in its "
            "configuration to 0 (dropout under another name, router noise), or disable_dropout: false to accept it"
        )
