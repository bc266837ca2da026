"""Backbones: any causal LM from a hub id, a local folder or a GGUF file, with or without LoRA. `tiny` is in tiny.py."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sirius_rec import atomic, cache
from sirius_rec.errors import ConfigError, RunError, first_line
from sirius_rec.training.gguf import is_gguf, model_folder
from sirius_rec.training.options import LoraOptions

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cannot_read(name: str | Path, what: str, error: Exception) -> ConfigError:
    """The error for a backbone that cannot be had; for what may be a folder, that there is none."""
    if cache.holds(Path(name)):
        return ConfigError(
            f"backbone '{name}': cannot {what} ({first_line(error)}): delete this folder, and it is made again"
        )
    if Path(name).is_dir():
        return ConfigError(f"backbone '{name}': cannot {what} ({first_line(error)})")
    if str(name).startswith((".", "/", "~")) or not _HUB_ID.fullmatch(str(name)):
        return ConfigError(
            f"backbone '{name}': no such folder, seen from {Path.cwd()}: name a local folder or a Hugging Face id"
        )
    return ConfigError(
        f"backbone '{name}': cannot {what} ({first_line(error)}), and {Path.cwd()} has no folder of that name"
    )


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a backbone; ConfigError in one line if it cannot be had."""
    folder = Path(name)
    if is_adapter(folder) and not (folder / "tokenizer_config.json").is_file():
        name = adapter_base(folder)
    name = model_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the hub raises many kinds
        raise cannot_read(name, "load its tokenizer", error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def quantization_problem(name: str | Path) -> str | None:
    """Why a backbone cannot be had in 4 bits, or not on this machine; None where it can."""
    if is_adapter(Path(name)):  # merging would be into rounded weights
        return (
            f"backbone.quantization: '{name}' is an adapter, which cannot be merged into 4-bit weights: name a folder "
            "into which it is merged, or remove quantization"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        return "backbone.quantization: 4bit needs bitsandbytes: pip install 'sirius-rec[qlora]'"
    if not torch.cuda.is_available():
        return "backbone.quantization: 4bit needs a CUDA device, and torch sees none: remove quantization"
    return None


def _quantized(name: str | Path, quantization: str | None) -> dict[str, Any]:
    """What from_pretrained is told for NF4 weights with double quantisation, computing in bfloat16 (QLoRA's choice)."""
    if quantization is None:
        return {}
    problem = quantization_problem(name)
    if problem:
        raise ConfigError(problem)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def load_backbone(
    name: str | Path, *, dtype: str = "float32", attention: str = "sdpa", quantization: str | None = None
) -> Any:
    """A causal LM from a hub id, folder or GGUF file, an adapter's merged into its base; ConfigError if there is none.

    quantization: "4bit" for frozen NF4 weights under an adapter (QLoRA); None for weights in `dtype`.
    """
    extra = _quantized(name, quantization)
    if is_adapter(Path(name)):
        return _merged(Path(name), dtype=dtype, attention=attention)
    name = model_folder(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=DTYPES[dtype], attn_implementation=attention, **extra)
    except Exception as error:
        raise cannot_read(name, "load the model", error) from error
    if extra:
        from peft import prepare_model_for_kbit_training

        # Checkpointing is the stage's own choice.
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


def adapter_base(folder: Path) -> str:
    """The model that an adapter was made on; a relative folder is looked for beside the adapter, too."""
    base = str(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    if is_gguf(base):
        return base
    for place in (Path(base), folder / base, folder.parent / base):
        if place.is_dir():
            return str(place)
    return base


def name_base(folder: Path, base: str) -> None:
    """Let an adapter name its base as the configuration does: no other machine has this one's cache."""
    file = folder / "adapter_config.json"
    if file.is_file() and is_gguf(base):
        atomic.write_json(file, {**json.loads(file.read_text()), "base_model_name_or_path": base})


def backbone_context(name: str | Path) -> int | None:
    """A backbone's context in tokens; None where its configuration names none."""
    folder = Path(name)
    name = model_folder(adapter_base(folder) if is_adapter(folder) else name)
    try:
        loaded = AutoConfig.from_pretrained(name)
    except Exception as error:  # the hub raises many kinds
        raise cannot_read(name, "read its configuration", error) from error
    return getattr(loaded.get_text_config(), "max_position_embeddings", None)


def _merged(folder: Path, *, dtype: str, attention: str) -> Any:
    """A whole model of an adapter and its base."""
    from peft import PeftModel

    base = load_backbone(adapter_base(folder), dtype=dtype, attention=attention)
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def add_lora(model: Any, **options: Any) -> Any:
    """Wrap the model in a new LoRA adapter; options of `training.options.LoraOptions`.

    ConfigError for targets that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    chosen = LoraOptions(**options)
    config = LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules="all-linear" if chosen.targets is None else list(chosen.targets),
        use_dora=chosen.dora,
        use_rslora=chosen.rslora,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"backbone.lora.targets: {first_line(error)}") from error


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def load_trained(
    folder: Path,
    base: str | Path,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    quantization: str | None = None,
) -> Any:
    """A model that a stage saved: the whole model, or an adapter (trainable) on `base`. RunError if it is damaged."""
    try:
        if not is_adapter(folder):
            return AutoModelForCausalLM.from_pretrained(str(folder), dtype=DTYPES[dtype], attn_implementation=attention)
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(
            load_backbone(base, dtype=dtype, attention=attention, quantization=quantization),
            str(folder),
            is_trainable=True,
        )
        if is_gguf(base):  # PEFT looks for the base's configuration whenever it saves
            adapted.peft_config["default"].base_model_name_or_path = model_folder(base)
        return adapted
    except ConfigError:
        raise
    except Exception as error:
        raise RunError(
            f"{folder.parent}: the model in {folder.name}/ cannot be read ({first_line(error)}): delete this folder, "
            "and the run trains it again"
        ) from error
