"""A training that has diverged ends before anything is saved, with the step and what was not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sirius_rec.errors import TrainingError


def stop_on_nan(means: Mapping[str, float], state: Any, *, observed: bool) -> None:
    """Raise TrainingError with the step and the first quantity that was not finite.

    means: of a step's "nonfinite …" counts. observed: whether the loss weights examples by observed rewards.
    """
    bad = [name.removeprefix("nonfinite ") for name, v in means.items() if name.startswith("nonfinite ") and v > 0]
    cause = {
        "log-probs": "the model's log-probs are not finite: the weights have diverged, lower the learning rate",
        "loss": "the loss overflowed: lower beta or the learning rate"
        + (", or raise reward_temperature" if observed else ""),
    }[bad[0] if bad else "loss"]
    raise TrainingError(
        f"NaN or infinite loss after step {state.global_step} (epoch {state.epoch or 0:.2f}): {cause}; "
        "nothing was saved after it, earlier checkpoints are kept"
    )


def check_weights(model: nn.Module, step: int) -> None:
    """A NaN gradient of a finite loss shows in the weights only: they must not be saved or handed out."""
    # Of sharded weights every process sees its own part; the one that finds a NaN ends all.
    own = (getattr(p, "to_local", lambda p=p: p)() for p in model.parameters() if p.requires_grad)
    if not all(bool(torch.isfinite(p).all()) for p in own):
        raise TrainingError(
            f"the weights are not finite after step {step}: lower the learning rate; "
            "nothing was saved after it, earlier checkpoints are kept"
        )
