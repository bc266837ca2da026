"""log π(y|x) of every candidate of every row of a batch, each distinct prefix computed once.

Everything runs through the model's public forward, so that LoRA adapters, DDP and FSDP hooks act as usual.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sirius_rec.scoring.head import scoring_head
from sirius_rec.scoring.masks import attention_masks, refusal
from sirius_rec.scoring.tree import CandidateTree, padded
from sirius_rec.scoring.tree_attention import TREE_ATTENTION, register


def unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT, DDP and compile wrappers: the one with `config` and a `forward` to ask."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return getattr(model, "_orig_mod", model)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside, the model is in training or in evaluation mode; afterwards, also after an error, in its own again."""
    own = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(own)


def context_of(model: Any) -> int | None:
    """Positions that the model was made for; None where its configuration names none."""
    config = unwrapped(model).config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config  # of several modes, that of text
    return getattr(text, "max_position_embeddings", None)


def in_half_precision(model: Any) -> bool:
    """Whether the products of the model round to 16 bits: those of its weights, or of a quantized base unpacked to it.

    The weights alone do not say: under QLoRA whatever is not quantized is float32 and computes in bfloat16 still, and
    accelerate wraps the forward pass of float32 weights in autocast (its `_original_forward` is kept beside it).
    """
    base = unwrapped(model)
    layers = (model, getattr(model, "module", model), base)
    if any(getattr(layer, "is_quantized", False) or "_original_forward" in vars(layer) for layer in layers):
        return True
    return base.dtype in (torch.bfloat16, torch.float16)


def takes_logits_to_keep(model: Any) -> bool:
    """Whether the model can be asked for the logits of some positions only."""
    return "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters


def use_tree_attention(model: nn.Module) -> str:
    """Put a model that runs on sdpa on the kernel for trees, which elsewhere is sdpa; what it is on now.

    An architecture that has no sdpa (Gemma-2, gpt-oss) runs on eager unless told otherwise, and is put on it, too.
    """
    base = unwrapped(model)
    if base.config._attn_implementation == TREE_ATTENTION:
        register()  # a model that was unpickled in another process than the one that put it there
    takes = "sdpa" if getattr(base, "_supports_sdpa", True) else "eager"
    if base.config._attn_implementation == takes and not refusal(base.config):
        register()
        base.set_attn_implementation(TREE_ATTENTION)
    return str(base.config._attn_implementation)


def tree_logps(model: nn.Module, tree: CandidateTree) -> Tensor:
    """log π(y|x) of every candidate, [B, C] in nats, float32, summed over tokens with the end of sequence.

    Absent candidates get 0. One forward pass over the tree's nodes. A model on sdpa is put on the kernel for trees, and
    left there. Raises ScoringError where the architecture is not known to be scored rightly.
    """
    base = unwrapped(model)
    if use_tree_attention(model) == "flex_attention":
        tree = padded(tree)
    inputs: dict[str, Any] = {
        "input_ids": tree.token_T[None],
        "position_ids": tree.depth_T[None],
        "attention_mask": attention_masks(base.config, tree, base.dtype),
        "use_cache": False,
    }
    if getattr(base.config, "output_router_logits", False):  # for a loss of theirs that reads the mask as 2-D
        inputs["output_router_logits"] = False
    with scoring_head(base, tree.keep_N, tree.source_M, tree.target_M):
        token_logp_M: Tensor = model(**inputs).logits[0].float()
    shape = tree.valid_BC.shape
    return token_logp_M.new_zeros(shape.numel()).index_add(0, tree.candidate_M, token_logp_M).view(shape)
