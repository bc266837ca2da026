"""How far the training of a network has come, in one file: written after every epoch, so that a stopped one goes on."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sirius_rec import atomic
from sirius_rec.errors import RunError


@dataclass
class Reached:
    """epoch: done so far. best: the highest validation NDCG@10, its weights, and epochs since. seconds: spent."""

    epoch: int = 0
    best: float = -1.0
    since: int = 0
    best_state: dict[str, torch.Tensor] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


class ProgressFile:
    """The state of a fit: weights, optimiser, random streams and `Reached`. Without a path nothing is kept."""

    def __init__(self, path: Path | None, options: Any, seed: int, sequences: Sequence[npt.NDArray[Any]]) -> None:
        digest = hashlib.sha256(repr((options.model_dump(), seed, list(map(len, sequences)))).encode())
        for sequence in sequences:
            digest.update(np.ascontiguousarray(sequence, dtype=np.int64).tobytes())
        self.path, self.of = path, digest.hexdigest()

    def load(self, network: Any, optimiser: Any, rng: np.random.Generator, generator: torch.Generator) -> Reached:
        """Put everything back and say how far it is. A file of another fit counts as none.

        Raises RunError for a file that cannot be read.
        """
        if self.path is None or not self.path.is_file():
            return Reached()
        try:
            state = torch.load(self.path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
            raise RunError(f"{self.path}: cannot be read: delete it, and this method starts anew") from error
        if state.get("of") != self.of:
            return Reached()
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        rng.bit_generator.state = state["rng"]
        generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        return Reached(**state["reached"])

    def save(
        self, reached: Reached, network: Any, optimiser: Any, rng: np.random.Generator, generator: torch.Generator
    ) -> None:
        """Atomic."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        content = {
            "of": self.of, "network": network.state_dict(), "optimiser": optimiser.state_dict(),
            "rng": rng.bit_generator.state, "generator": generator.get_state(), "torch": torch.get_rng_state(),
            "reached": vars(reached),
        }  # fmt: skip
        torch.save(content, buffer)
        atomic.write_bytes(self.path, buffer.getbuffer())
