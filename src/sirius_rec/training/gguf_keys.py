"""What a GGUF file says of its model and transformers does not read: it must say nothing, or nothing new.

transformers passes over keys that it has no name for, and a model without the window or the soft caps that it was
trained with gives other log-probs, as if nothing were wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sirius_rec.errors import ConfigError

_INSTEAD = "name the model's own folder or Hugging Face id instead"
# The shapes of the weights say the same, and a weight of another shape is refused when the model is loaded.
_SHAPES = {
    "attention.key_length", "attention.value_length", "feed_forward_length", "expert_feed_forward_length",
    "expert_shared_feed_forward_length", "vocab_size",
}  # fmt: skip
# How tensors are stored; and scaled rotary positions, which are refused before.
_SILENT = {"tensor_data_layout", "rope.scaling.type", "rope.scaling.finetuned"}


def _rotary(config: Any) -> int:
    """Dimensions of a head that are turned."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor")
    return int(width * (turned or getattr(config, "partial_rotary_factor", None) or 1))


def _named(name: str) -> Callable[[Any], Any]:
    return lambda config: getattr(config, name, None)


# What the configuration of the loaded model must have of its own, since it is not read.
_SAME: Mapping[str, Callable[[Any], Any]] = {
    "rope.dimension_count": _rotary,
    "rope.scaling.original_context_length": _named("max_position_embeddings"),
    "attention.sliding_window": _named("sliding_window"),
    "attention.causal": lambda config: True,
    **{name: _named(name) for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual")},
}


def unread(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture's keys that transformers passes over, and that `check_same` can compare with a loaded model.

    ConfigError for one that nobody reads. What is 0 or false is not there; of an architecture that transformers does
    not know nothing is said here.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = str(fields["general.architecture"])
    mapping: Any = GGUF_CONFIG_MAPPING
    read = {name.replace("_", ""): names for name, names in mapping.items()}.get(
        architecture.replace("-", "").replace("_", "")
    )
    if read is None:
        return {}
    prefix, found = f"{architecture}.", {}
    for key, value in fields.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or read.get(name) is not None or name in _SHAPES | _SILENT:
            continue
        if name in _SAME:
            found[name] = value
        elif isinstance(value, list | str) or value:
            raise ConfigError(f"{file}: transformers does not read its {key}, and would make another model: {_INSTEAD}")
    return found


def check_same(file: Path, found: Mapping[str, Any], config: Any) -> None:
    """ConfigError where a loaded model's configuration has other values than those that were not read."""
    for name, value in found.items():
        own = _SAME[name](config)
        same = own is not None and not isinstance(value, list | str) and math.isclose(value, own, rel_tol=1e-6)
        if not same:
            said = "" if isinstance(value, list) else f" {value}"
            raise ConfigError(
                f"{file}: transformers does not read its {name}{said}, and makes a model with {own}: {_INSTEAD}"
            )
