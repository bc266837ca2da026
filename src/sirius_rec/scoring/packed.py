"""Packed scoring: the prompt is computed once for all its candidates.

Everything runs through the model's public forward, so that LoRA adapters, DDP and FSDP hooks act as usual.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sirius_rec.scoring.masks import attention_masks
from sirius_rec.scoring.rows import PackedBatch
from sirius_rec.scoring.tree_attention import TREE_ATTENTION, in_chunks


def unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT, DDP and compile wrappers: the one with `config` and a `forward` to ask."""
    while hasattr(model, "module") and isinstance(model.module, nn.Module):
        model = model.module
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    return getattr(model, "_orig_mod", model)


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


def _keeps_by_mask() -> bool:
    """transformers ≥ 5.2x slices logits by a 2-D boolean mask; earlier versions by column only."""
    import transformers.modeling_utils as modeling

    return hasattr(modeling, "slice_logits_to_keep")


def _counting_waits(device: torch.device) -> bool:
    """Whether the host must wait for the device to learn how many entries of a mask are set."""
    return device.type == "cuda"


def kept_logits(model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Logits at the kept positions, [N or more, V], float32, and which of them are the batch's N, in order.

    On CUDA the model is given columns instead of a mask: a mask would have to be counted, and the host wait for it.
    """
    base = unwrapped(model)
    masks = attention_masks(base.config, batch.segment_BT, batch.position_ids_BT, base.dtype)
    if base.config._attn_implementation == TREE_ATTENTION:
        masks = in_chunks(base.config, masks, batch)
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids_BT,
        "position_ids": batch.position_ids_BT,
        "attention_mask": masks,
        "use_cache": False,
    }
    every_N = torch.arange(len(batch.slot_N), device=batch.slot_N.device)
    if not takes_logits_to_keep(model):
        all_BTV: Tensor = model(**inputs).logits
        return all_BTV[batch.keep_BT].float(), every_N
    if _keeps_by_mask() and _counting_waits(batch.keep_BT.device):
        padded_BPV: Tensor = model(**inputs, logits_to_keep=batch.keep_BP).logits
        return padded_BPV.flatten(0, 1).float(), batch.slot_N
    if _keeps_by_mask():
        logits_NV: Tensor = model(**inputs, logits_to_keep=batch.keep_BT).logits
        return logits_NV.float(), every_N
    columns = batch.keep_BT.any(0).nonzero()[:, 0]
    logits_BUV: Tensor = model(**inputs, logits_to_keep=columns).logits
    return logits_BUV[batch.keep_BT[:, columns]].float(), every_N


class _TokenLogp(torch.autograd.Function):
    """log softmax of chosen entries of [N, V] logits: one fused pass forward and two backward, instead of seven."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, row_M: Tensor, token_M: Tensor) -> Tensor:
        logp_NV = torch.log_softmax(logits_NV, 1)
        ctx.save_for_backward(logp_NV, row_M, token_M)
        return logp_NV[row_M, token_M]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logp_NV, row_M, token_M = ctx.saved_tensors
        (grad_M,) = grads
        grad_N = grad_M.new_zeros(len(logp_NV)).index_add_(0, row_M, grad_M)
        grad_NV = logp_NV.exp().mul_(-grad_N[:, None])
        grad_NV.view(-1).index_add_(0, row_M * logp_NV.shape[1] + token_M, grad_M)
        return grad_NV, None, None


def packed_logps(model: nn.Module, batch: PackedBatch) -> Tensor:
    """log π(y|x) of every candidate, [B, C] in nats, summed over tokens with the end of sequence.

    Absent candidates get 0. One forward pass over [prompt, y_1, …, y_C] rows. Raises ScoringError where the
    architecture is not known to be scored rightly.
    """
    logits_RV, row_N = kept_logits(model, batch)
    token_logp_M: Tensor = _TokenLogp.apply(  # type: ignore[no-untyped-call]
        logits_RV, row_N[batch.source_M], batch.target_M
    )
    shape = batch.valid_BC.shape
    return logits_RV.new_zeros(shape.numel()).index_add(0, batch.candidate_M, token_logp_M).view(shape)
