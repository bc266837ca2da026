"""Stage configuration → `SiriusConfig`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError
from sirius_rec.processes import count
from sirius_rec.recipes import trackers
from sirius_rec.recipes.models import computes_in_bf16, on_cpu
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.options import StageOptions


def accumulation(batch_size: int, micro: int, processes: int) -> int:
    """Micro-batches per optimiser step, so that the effective batch does not depend on the number of processes."""
    if batch_size < processes:
        raise ConfigError(
            f"batch_size {batch_size} is less than one example for each of {processes} processes: raise it, or start "
            "fewer processes"
        )
    if batch_size % (micro * processes):
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of micro_batch_size {micro} × {processes} processes: change one"
        )
    return batch_size // (micro * processes)


def training_arguments(
    config: Config,
    stage: StageOptions,
    folder: Path,
    loss: dict[str, Any],
    seed: int,
    *,
    n_records: int,
    best_by: str | None,
    share: str = "none",
    stream: bool = False,
    run_name: str | None = None,
) -> SiriusConfig:
    """Trainer arguments of one stage; warm-up is a share of its steps.

    best_by: the metric of the evaluation after every epoch that chooses the best one; None without an evaluation.
    share, stream: see `SiriusConfig`. run_name: how trackers call the training.
    """
    processes = count()
    micro = stage.micro_batch_size or stage.batch_size // processes
    steps_per_epoch = math.ceil(min(stage.examples_per_epoch or n_records, n_records) / stage.batch_size)
    return SiriusConfig(
        output_dir=str(folder),
        **loss,
        num_train_epochs=stage.epochs,
        examples_per_epoch=stage.examples_per_epoch,
        share=share,
        stream=stream,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation(stage.batch_size, micro, processes),
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.schedule if stage.schedule != "constant" else "constant_with_warmup",
        warmup_steps=math.ceil(stage.warmup * steps_per_epoch * stage.epochs),
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        neftune_noise_alpha=stage.neftune_alpha,
        bf16=computes_in_bf16(config),
        seed=seed,
        data_seed=seed,
        logging_steps=stage.logging_steps,
        eval_strategy="epoch" if best_by else "no",
        save_strategy="epoch" if stage.save_steps is None else "steps",
        save_steps=stage.save_steps or 500,
        save_total_limit=1,
        metric_for_best_model=best_by,
        greater_is_better=True if best_by else None,
        scoring=config.compute.scoring,
        eval_batch_tokens=config.evaluation.batch_tokens,
        chat=config.prompts.chat,
        use_cpu=on_cpu(config),
        # Every weight takes part in every step; looking for those that do not costs a walk over the graph.
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=trackers.integrations(config.training.report_to) or "none",
        run_name=run_name,
        project=config.name,
        dataloader_pin_memory=False,
    )
