"""Backbones: the tiny Llama from scratch, or any causal LM from a hub id or a local folder, with or without LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sirius_rec.errors import ConfigError, RunError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a hub id or folder; ConfigError in one line if it cannot be had."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # the hub raises many kinds
        raise ConfigError(f"backbone '{name}': cannot load its tokenizer ({_first_line(error)})") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_backbone(name: str | Path, *, dtype: str = "float32", attention: str = "sdpa") -> Any:
    """A causal LM from a hub id or folder; ConfigError in one line if it cannot be had."""
    try:
        return AutoModelForCausalLM.from_pretrained(str(name), dtype=DTYPES[dtype], attn_implementation=attention)
    except Exception as error:
        raise ConfigError(f"backbone '{name}': cannot load the model ({_first_line(error)})") from error


def add_lora(model: Any, *, rank: int = 32, alpha: float = 8.0, dropout: float = 0.0) -> Any:
    """Wrap the model in a new LoRA adapter on all linear layers (the output head excluded, as PEFT does)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def load_trained(folder: Path, base: str | Path, *, dtype: str = "float32", attention: str = "sdpa") -> Any:
    """A model that a stage saved: the whole model, or an adapter (trainable) on `base`. RunError if it is damaged."""
    try:
        if not is_adapter(folder):
            return AutoModelForCausalLM.from_pretrained(str(folder), dtype=DTYPES[dtype], attn_implementation=attention)
        from peft import PeftModel

        return PeftModel.from_pretrained(
            load_backbone(base, dtype=dtype, attention=attention), str(folder), is_trainable=True
        )
    except ConfigError:
        raise
    except Exception as error:
        raise RunError(
            f"{folder.parent}: the model in {folder.name}/ cannot be read ({_first_line(error)}): delete this folder, "
            "and the run trains it again"
        ) from error
