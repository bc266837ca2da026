"""Backbone and tokenizer of a run, fresh or from a stage's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec import atomic, cache
from sirius_rec.atomic import write_json
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.processes import is_main, log, one_for_all
from sirius_rec.recipes.run_folder import RunFolder

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.scoring.rows import PromptCompletions

ATTENTION = "attention.json"
_GGUF = "gguf.json"
_PROBE_ROWS = 16


def load_run_tokenizer(folder: RunFolder, config: Config, dataset: Dataset) -> Any:
    """The backbone's tokenizer; for the tiny backbone, trained on the catalogue first if need be."""
    from sirius_rec.training.backbones import load_tokenizer

    if config.backbone.name != "tiny":
        hold_fast(folder, config)
        return load_tokenizer(config.backbone.model)
    if not (folder.backbone / "tokenizer.json").is_file():
        _train_tokenizer(folder, config, dataset)
    return load_tokenizer(folder.backbone)


def hold_fast(folder: RunFolder, config: Config) -> None:
    """Write down which GGUF file a run was begun with; RunError if it goes on with another one of the same name."""
    from sirius_rec.training.gguf import fingerprint

    now, before = fingerprint(config.backbone.model), gguf_file_of(folder)
    if now is not None and before is None and is_main():
        write_json(folder.backbone / _GGUF, {"name": config.backbone.model, "sha256": now})
    if before is not None and before != now:
        raise RunError(
            f"{folder.path}: this run was made with another file of backbone '{config.backbone.model}' (SHA-256 saved "
            f"{before[:12]}…, now {(now or 'none')[:12]}…): install the one it was made with, or choose another --out"
        )


def gguf_file_of(folder: RunFolder) -> str | None:
    """SHA-256 of the GGUF file that a run was begun with; None for other backbones."""
    stored = folder.backbone / _GGUF
    return str(json.loads(stored.read_text())["sha256"]) if stored.is_file() else None


def _train_tokenizer(folder: RunFolder, config: Config, dataset: Dataset) -> None:
    from sirius_rec.training.tiny import train_tokenizer

    counts = np.zeros(dataset.n_items, dtype=np.int64)
    for sequence in dataset.train_sequences(limited=True):
        counts[sequence] += 1
    order = np.argsort(-counts, kind="stable")
    template = config.prompts.form()
    lines = [line for line in (template.history, template.candidates, template.answer) if line is not None]
    tokenizer = train_tokenizer([dataset.titles[i] for i in order], lines, config.backbone.tiny)
    with atomic.replacing(folder.backbone) as temporary:
        tokenizer.save_pretrained(temporary)


def _weights_dtype(config: Config) -> str:
    """bfloat16 for a frozen base under LoRA; weights that are trained stay float32."""
    return config.backbone.dtype if config.backbone.lora is not None else "float32"


def _loading(config: Config) -> dict[str, Any]:
    """How weights are loaded; `auto` starts on sdpa, which is right everywhere (`select_attention`)."""
    kernels = {"auto": "sdpa", "flex": "flex_attention"}
    return {
        "dtype": _weights_dtype(config),
        "attention": kernels.get(config.backbone.attention, config.backbone.attention),
        "quantization": config.backbone.quantization,
    }


def select_attention(
    folder: RunFolder, config: Config, model: Any, rows: Sequence[PromptCompletions], pad_id: int
) -> str:
    """With attention: auto, put the model on the fastest kernel: on CPU the one for trees, on CUDA what is measured.

    Measured once per run, because policy and reference must run on the same kernel: another one rounds otherwise, and
    every margin would carry the difference. rows: those of a micro-batch, the first of which are timed; without any,
    what was measured before holds. With rows, layers are compiled where the configuration says so. Gives the kernel's
    name.
    """
    from sirius_rec.scoring.compiled import compile_layers
    from sirius_rec.scoring.packed import unwrapped, use_tree_attention

    base = unwrapped(model)
    if config.backbone.compile and rows:
        compile_layers(model)
    if config.backbone.attention != "auto":
        return str(base.config._attn_implementation)
    if config.backbone.compile or next(model.parameters()).device.type != "cuda":
        return use_tree_attention(model)
    stored = folder.path / ATTENTION
    if not rows and not stored.is_file():  # nothing was trained here, and there is nothing to measure with
        return use_tree_attention(model)
    with one_for_all():
        if is_main() and not stored.is_file():
            with cache.one_at_a_time(stored):  # jobs that begin side by side measure once, and all take that
                if not stored.is_file():
                    log(
                        "timing the attention kernels, once per run: flex attention is compiled for it, which may take "
                        "minutes (backbone.attention: sdpa does without)"
                    )
                    write_json(stored, _probed(model, rows[:_PROBE_ROWS], pad_id, config))
    if json.loads(stored.read_text())["chosen"] == "flex_attention":
        base.set_attn_implementation("flex_attention")
    return use_tree_attention(model)


def _probed(model: Any, rows: Sequence[PromptCompletions], pad_id: int, config: Config) -> dict[str, Any]:
    """What the probe finds; where no kernel has the memory for it, the one for trees, which needs the least."""
    import torch

    from sirius_rec.scoring.attention import probe_attention
    from sirius_rec.scoring.tree_attention import TREE_ATTENTION

    try:
        return asdict(probe_attention(model, rows, pad_id, bf16=computes_in_bf16(config)))
    except torch.OutOfMemoryError:
        return {"chosen": TREE_ATTENTION, "seconds": {}, "refused": {"every kernel": "out of memory in the probe"}}


def computes_in_bf16(config: Config) -> bool:
    """Whether float32 weights compute in bfloat16: in training, and so in every scoring of the same run."""
    return config.backbone.dtype == "bfloat16" and config.backbone.lora is None


def check_device(config: Config) -> None:
    """ConfigError if the configured device, or what the backbone needs on it, is not there."""
    import torch

    if config.backbone.attention == "flex" and on_cpu(config):
        raise ConfigError("backbone.attention: flex trains on CUDA only: use auto or sdpa")
    if config.backbone.quantization is not None:
        from sirius_rec.training.backbones import quantization_problem

        problem = quantization_problem(config.backbone.model)
        if problem:
            raise ConfigError(problem)

    if config.backbone.compile and (reason := _not_compiled(config)) is not None:
        raise ConfigError(f"backbone.compile: {reason}: remove one of them")
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("compute.device: cuda was asked for, but torch sees no CUDA device: use auto or cpu")


def _not_compiled(config: Config) -> str | None:
    """Why compiled layers would not be what trains and what the reference is scored with, or gain nothing."""
    stages = {"sft": config.sft, "align": config.align}
    if checkpointing := [name for name, stage in stages.items() if stage.gradient_checkpointing]:
        return f"layers that are computed again (gradient_checkpointing of {', '.join(checkpointing)}) are not compiled"
    if any(arm.negatives_from == "on_policy" for arm in config.arms):
        return "the reference of negatives_from: on_policy is a copy that is not compiled"
    if config.backbone.attention in ("flex", "eager"):
        return f"goes with attention over chunks of a tree, not with attention: {config.backbone.attention}"
    return "is for a GPU, and this run computes on CPUs" if on_cpu(config) else None


def on_cpu(config: Config) -> bool:
    """Whether the run computes on CPUs: asked for, or all there is."""
    import torch

    return config.compute.device == "cpu" or not torch.cuda.is_available()


def initial_model(config: Config, tokenizer: Any, seed: int) -> Any:
    """The backbone before any training of ours."""
    if config.backbone.name == "tiny":
        from sirius_rec.training.tiny import build_tiny

        model = build_tiny(tokenizer, config.backbone.tiny, seed)
    else:
        from sirius_rec.training.backbones import load_backbone

        model = load_backbone(config.backbone.model, **_loading(config))
    return model


def load_stage_model(config: Config, folder: Path) -> Any:
    """The model saved in a stage's `best` or `last` folder."""
    from sirius_rec.training.backbones import load_trained

    return load_trained(folder, config.backbone.model, **_loading(config))


def place(model: Any, config: Config) -> Any:
    """The model on the configured device, or this process's share of them. Quantised weights are there already."""
    if config.backbone.quantization is not None:
        return model
    return model.to("cpu" if on_cpu(config) else f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


def configured_context(config: Config) -> int | None:
    """The backbone's context in tokens; None where its configuration names none."""
    if config.backbone.name == "tiny":
        return config.backbone.tiny.context
    from sirius_rec.training import backbones

    return backbones.backbone_context(config.backbone.model)
