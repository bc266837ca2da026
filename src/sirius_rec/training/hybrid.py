"""Virtual tokens for LLaRA: ids beyond the vocabulary stand for items and are embedded through a trained projector.

`HybridEmbedding` takes the place of a model's input embedding. Everything else stays as it is: heads, LoRA, packed and
naive scoring, generation. On disk the language model is saved as if the wrapper were not there, with the projector
and the item embeddings in a file beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sirius_rec import atomic
from sirius_rec.errors import RunError
from sirius_rec.scoring.packed import unwrapped

FILE = "projector.safetensors"


class HybridEmbedding(nn.Module):
    """Ids [B, T] → [B, T, H]: below `first_virtual` the tokens' own embeddings, from there on projected items.

    tokens: the embedding that it replaces (its weights may be tied to the output head, and stay so). items_ID: one row
    per item from a sequential recommender, frozen. The projector is a perceptron of two layers; items come in with unit
    mean square and leave at the scale of token embeddings as the first layer gets them (Gemma's come out √H times as
    large as their weights), so that neither drowns the other at the start.
    """

    items_ID: Tensor
    scale: Tensor

    def __init__(self, tokens: nn.Embedding, items_ID: Tensor, *, seed: int = 0) -> None:
        super().__init__()
        width = tokens.weight.shape[1]
        self.tokens = tokens
        self.first_virtual = tokens.weight.shape[0]
        self.num_embeddings = self.first_virtual + items_ID.shape[0]
        items_ID = items_ID.detach().float()
        self.register_buffer("items_ID", items_ID / items_ID.square().mean().sqrt().clamp(min=1e-8))
        with torch.no_grad():
            every_VH = tokens(torch.arange(self.first_virtual, device=tokens.weight.device))
        self.register_buffer("scale", every_VH.float().square().mean().sqrt())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(items_ID.shape[1], width), nn.Linear(width, width)
            self.projector = nn.Sequential(layers[0], nn.GELU(), layers[1])
            for layer in layers:
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        self.to(tokens.weight.device)

    @property
    def weight(self) -> Tensor:
        """What code that asks an embedding for its weights means: the tokens'."""
        return self.tokens.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        virtual_BT = ids_BT >= self.first_virtual
        embedded_BTH: Tensor = self.tokens(ids_BT.masked_fill(virtual_BT, 0))
        if not bool(virtual_BT.any()):
            if not self.training:
                return embedded_BTH
            # Added at weight 0, so that every step has a gradient for the projector (wrappers for many devices ask).
            return embedded_BTH + 0.0 * self._project(ids_BT.new_zeros(1)).to(embedded_BTH.dtype)[0]
        items_N = ids_BT[virtual_BT] - self.first_virtual
        return embedded_BTH.masked_scatter(virtual_BT[..., None], self._project(items_N).to(embedded_BTH.dtype))

    def _project(self, items_N: Tensor) -> Tensor:
        out: Tensor = self.projector(self.items_ID[items_N]) * self.scale
        return out


def install(model: Any, items_ID: Tensor, *, seed: int = 0) -> HybridEmbedding:
    """Put a `HybridEmbedding` into the model (also inside LoRA), and return it."""
    base = unwrapped(model)
    hybrid = HybridEmbedding(base.get_input_embeddings(), items_ID, seed=seed)
    base.set_input_embeddings(hybrid)
    return hybrid


def installed(model: Any) -> HybridEmbedding:
    embedding = unwrapped(model).get_input_embeddings()
    assert isinstance(embedding, HybridEmbedding)
    return embedding


@contextmanager
def removed(model: Any) -> Iterator[None]:
    """The model with its own input embedding, for as long as it is saved or loaded."""
    base, hybrid = unwrapped(model), installed(model)
    base.set_input_embeddings(hybrid.tokens)
    try:
        yield
    finally:
        base.set_input_embeddings(hybrid)


def save_projector(model: Any, folder: Path) -> None:
    """Projector, item embeddings and the first virtual id, atomically."""
    hybrid = installed(model)
    tensors = {k: v.detach().cpu().contiguous() for k, v in hybrid.state_dict().items() if not k.startswith("tokens.")}
    with atomic.replacing(folder / FILE) as partial:
        save_file(tensors, partial, metadata={"first_virtual": str(hybrid.first_virtual)})


def load_projector(model: Any, folder: Path) -> None:
    """Into the model's installed `HybridEmbedding`, or a new one; RunError if the file does not fit or is damaged."""
    path = folder / FILE
    try:
        tensors = load_file(path)
        base = unwrapped(model)
        if not isinstance(base.get_input_embeddings(), HybridEmbedding):
            install(model, tensors["items_ID"])
        hybrid = installed(model)
        result = hybrid.load_state_dict(tensors, strict=False)
        whole = not result.unexpected_keys and all(key.startswith("tokens.") for key in result.missing_keys)
    except Exception as error:  # safetensors and torch each raise their own
        raise RunError(f"{path}: cannot be read ({type(error).__name__}): delete its folder and train again") from error
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        first = int((file.metadata() or {}).get("first_virtual", -1))
    if not whole or first != hybrid.first_virtual:
        raise RunError(
            f"{path}: was trained on a backbone of {first} token embeddings, this one has {hybrid.first_virtual}: "
            "delete its folder and train again"
        )
