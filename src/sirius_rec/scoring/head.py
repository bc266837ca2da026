"""Log-probs of chosen tokens through a model's own output head, without ever holding all its logits.

The head is replaced for the duration of one forward pass: what would be logits is the log-probs of the tree's scored
tokens. So adapters on the head and hooks around the model act as usual, and the vocabulary never meets all positions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Entries of float32 logits (128 MiB) up to which they are kept for the backward pass; beyond, they are computed again.
KEPT = 2**25
# Entries of a chunk (32 MiB).
CHUNK = 2**23

# Logits → logits as the model changes them behind its head: (where the value stands, what changes nothing, how).
_AFTER_HEAD: tuple[tuple[str, Any, Callable[[Tensor, Any], Tensor]], ...] = (
    ("final_logit_softcapping", None, lambda logits, cap: cap * torch.tanh(logits / cap)),
    ("logits_scaling", 1.0, lambda logits, scale: logits / scale),
    ("logit_scale", 1.0, lambda logits, scale: logits * scale),
)

_TURNS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_TURNS_LOCK = threading.Lock()


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


@contextmanager
def scoring_head(base: Any, keep_N: Tensor, source_M: Tensor, target_M: Tensor) -> Iterator[None]:
    """While it lasts, the model's `logits` are [1, M]: log π of token target_M[m] at position keep_N[source_M[m]].

    base: the transformers model itself. keep_N: positions counted through all rows of the batch. source_M: sorted. In
    nats, float32. Threads that score with one model take turns; a plain forward pass beside them is not kept apart.
    """
    head = base.get_output_embeddings()
    with _TURNS_LOCK:
        turn = _TURNS.setdefault(head, threading.RLock())
    with turn, _replaced(base, head, keep_N, source_M, target_M):
        yield


@contextmanager
def _replaced(base: Any, head: Any, keep_N: Tensor, source_M: Tensor, target_M: Tensor) -> Iterator[None]:
    original = head.forward
    undone, after = _without_changes_behind(base)

    def logits(hidden_NH: Tensor) -> Tensor:
        found_NV: Tensor = original(hidden_NH)
        for value, change in after:
            found_NV = change(found_NV, value)
        return found_NV.float()

    def forward(hidden_BTH: Tensor) -> Tensor:
        hidden_NH = hidden_BTH.flatten(0, 1).index_select(0, keep_N)
        return _token_logps(logits, hidden_NH, source_M, target_M, _vocabulary(base))[None]

    had_own = "forward" in vars(head)
    head.forward = forward
    try:
        with undone():
            yield
    finally:
        if had_own:
            head.forward = original
        else:
            del head.forward


def _vocabulary(base: Any) -> int:
    return int(base.config.get_text_config().vocab_size)


def _token_logps(
    logits: Callable[[Tensor], Tensor], hidden_NH: Tensor, source_M: Tensor, target_M: Tensor, vocabulary: int
) -> Tensor:
    """[M]; in chunks of positions where the logits would be too many."""

    def chunk(hidden_nH: Tensor, row_m: Tensor, token_m: Tensor) -> Tensor:
        found: Tensor = _TokenLogp.apply(logits(hidden_nH), row_m, token_m)  # type: ignore[no-untyped-call]
        return found

    if hidden_NH.shape[0] * vocabulary <= (KEPT if torch.is_grad_enabled() else CHUNK):
        return chunk(hidden_NH, source_M, target_M)
    size = max(CHUNK // vocabulary, 1)
    first_N = torch.arange(0, hidden_NH.shape[0], size, device=source_M.device)
    ends = torch.searchsorted(source_M, first_N + size).tolist()
    parts: list[Tensor] = []
    start = 0
    for part_nH, end in zip(torch.split(hidden_NH, size), ends, strict=True):
        row_m = source_M[start:end] - len(parts) * size
        parts.append(checkpoint(chunk, part_nH, row_m, target_M[start:end], use_reentrant=False))
        start = end
    return torch.cat(parts)


def _without_changes_behind(base: Any) -> tuple[Callable[[], Any], list[tuple[Any, Callable[[Tensor, Any], Tensor]]]]:
    """A context in which the model leaves alone what its head gives; and what it would have done, in order."""
    config = base.config.get_text_config()
    found: list[tuple[Any, str, Any, Any, Callable[[Tensor, Any], Tensor]]] = []
    for name, neutral, change in _AFTER_HEAD:
        for owner in (base, config):
            value = getattr(owner, name, None) if owner is config else vars(base).get(name)
            if value is not None:
                found.append((owner, name, value, neutral, change))

    @contextmanager
    def undone() -> Iterator[None]:
        for owner, name, _, neutral, _ in found:
            setattr(owner, name, neutral)
        try:
            yield
        finally:
            for owner, name, value, _, _ in found:
                setattr(owner, name, value)

    # A model that keeps a copy of its configuration's value uses the copy.
    own = {name for owner, name, *_ in found if owner is base}
    changes = [(v, change) for owner, name, v, _, change in found if owner is base or name not in own]
    return undone, changes
