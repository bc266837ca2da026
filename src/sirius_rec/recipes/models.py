"""Backbone and tokenizer of a run, fresh or from a stage's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError
from sirius_rec.recipes.run_folder import RunFolder

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset


def prepare_backbone(run: RunFolder, config: Config, dataset: Dataset) -> None:
    """Train the tiny backbone's tokenizer on the catalogue, once per run."""
    if config.backbone.name != "tiny" or (run.backbone / "tokenizer.json").is_file():
        return
    from sirius_rec.training.tiny import TinyOptions, train_tokenizer

    counts = np.zeros(dataset.n_items, dtype=np.int64)
    for sequence in dataset.train_sequences():
        counts[sequence] += 1
    order = np.argsort(-counts, kind="stable")
    form = config.prompts.form()
    options = TinyOptions(**config.backbone.tiny.model_dump())
    tokenizer = train_tokenizer(
        [dataset.titles[i] for i in order], [form.history, form.candidates, form.answer], options
    )
    temporary = run.path / ".backbone.tmp"
    tokenizer.save_pretrained(temporary)
    temporary.replace(run.backbone)


def load_run_tokenizer(run: RunFolder, config: Config) -> Any:
    from sirius_rec.training.backbones import load_tokenizer

    return load_tokenizer(run.backbone if config.backbone.name == "tiny" else config.backbone.name)


def _weights_dtype(config: Config) -> str:
    """bfloat16 for a frozen base under LoRA; weights that are trained stay float32."""
    return config.backbone.dtype if config.backbone.lora is not None else "float32"


def computes_in_bf16(config: Config) -> bool:
    """Whether float32 weights compute in bfloat16: in training, and so in every scoring of the same run."""
    return config.backbone.dtype == "bfloat16" and config.backbone.lora is None


def check_device(config: Config) -> None:
    """ConfigError if the configured device is not there."""
    import torch

    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute.device: cuda was asked for, but torch sees no CUDA device: use auto or cpu")


def initial_model(config: Config, tokenizer: Any, seed: int) -> Any:
    """The backbone before any training of ours."""
    if config.backbone.name == "tiny":
        from sirius_rec.training.tiny import TinyOptions, build_tiny

        model = build_tiny(tokenizer, TinyOptions(**config.backbone.tiny.model_dump()), seed)
    else:
        from sirius_rec.training.backbones import load_backbone

        model = load_backbone(config.backbone.name, dtype=_weights_dtype(config), attention=config.backbone.attention)
    return model


def load_stage_model(config: Config, folder: Path) -> Any:
    """The model saved in a stage's `best` or `last` folder."""
    from sirius_rec.training.backbones import load_trained

    return load_trained(folder, config.backbone.name, dtype=_weights_dtype(config), attention=config.backbone.attention)


def place(model: Any, config: Config) -> Any:
    """The model on the configured device."""
    import torch

    device = config.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device)
