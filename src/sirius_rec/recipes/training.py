"""Stages that train: pretrain (tiny only), SFT, alignment. One function per job."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import stopping
from sirius_rec.config import ArmSection, Config, StageSection
from sirius_rec.errors import TrainingError
from sirius_rec.recipes.job import open_job, say
from sirius_rec.recipes.models import initial_model, load_run_tokenizer, load_stage_model, settle_attention
from sirius_rec.recipes.records import (
    ALIGN_STREAM,
    SFT_STREAM,
    Record,
    continuation_records,
    pretraining_records,
    slate_records,
    stage_rows,
    train_slates,
    validation_rows,
    validation_set,
    validation_slates,
)
from sirius_rec.recipes.reference import read_reference
from sirius_rec.recipes.run_folder import RunFolder, write_json

DONE = "done.json"


def pretrains(config: Config) -> bool:
    """Whether the backbone is ours and reads training histories before anything else."""
    return config.backbone.name == "tiny" and config.backbone.pretrain is not None


def pretrain(path: str, seed: int) -> None:
    """Job: language modelling of training histories (tiny backbone)."""
    run, config, dataset = open_job(path)
    folder = run.stage("pretrain", seed)
    stage = config.backbone.pretrain
    assert stage is not None
    if (folder / DONE).is_file():
        return
    records = pretraining_records(dataset, config.prompts.form(), piece=stage.piece, epochs=stage.epochs, seed=seed)
    stage = stage.model_copy(update={"examples_per_epoch": -(-len(records) // stage.epochs)})
    validation, name = validation_set(config, dataset), validation_slates(config, dataset)
    if validation and name:
        rows = validation_rows(config, dataset.examples("val").height)
        validation["records"] = continuation_records(dataset, name, config.prompts.form(), rows)
    tokenizer = load_run_tokenizer(run, config)
    train_stage(
        run,
        config,
        stage,
        folder,
        name=f"pretrain s{seed}",
        model=initial_model(config, tokenizer, seed),
        tokenizer=tokenizer,
        records=records,
        # Per token, so that long pieces do not drown short ones.
        loss={"loss": "sft", "nll_per_token": True},
        seed=seed,
        validation=validation,
    )


def starting_model(run: RunFolder, config: Config, tokenizer: Any, seed: int) -> Any:
    """What SFT, and every baseline trained like it, starts from: the backbone (pretrained where ours), with LoRA."""
    if pretrains(config):
        model = load_stage_model(config, run.stage("pretrain", seed) / "best")
    else:
        model = initial_model(config, tokenizer, seed)
    if config.backbone.lora is not None:
        from transformers import set_seed

        from sirius_rec.training.backbones import add_lora

        set_seed(seed)  # an adapter's first weights are random
        model = add_lora(model, **config.backbone.lora.model_dump())
    return model


def sft(path: str, seed: int) -> None:
    """Job: supervised fine-tuning on (prompt, next title), Eq. 1."""
    run, config, dataset = open_job(path)
    folder = run.stage("sft", seed)
    if (folder / DONE).is_file():
        return
    tokenizer = load_run_tokenizer(run, config)
    name = train_slates(config)
    rows = stage_rows(dataset.examples("train").height, config.sft, seed, SFT_STREAM)
    train_stage(
        run,
        config,
        config.sft,
        folder,
        name=f"sft s{seed}",
        model=starting_model(run, config, tokenizer, seed),
        tokenizer=tokenizer,
        records=slate_records(dataset, name, config.prompts.form(), rows),
        loss={"loss": "sft", "score_unsampled": 0},
        seed=seed,
        validation=validation_set(config, dataset),
    )


def align(path: str, arm_key: str, seed: int) -> None:
    """Job: one arm's preference alignment from the best SFT epoch."""
    run, config, dataset = open_job(path)
    folder = run.stage(arm_key, seed)
    if (folder / DONE).is_file():
        return
    arm = next(arm for arm in config.arms if arm.key == arm_key)
    stage = config.align
    if arm.learning_rate is not None:
        stage = stage.model_copy(update={"learning_rate": arm.learning_rate})
    rows = stage_rows(dataset.examples("train").height, stage, seed, ALIGN_STREAM)
    ref = read_reference(run, config, seed) if config.objective(arm).needs_reference else {}
    train_stage(
        run,
        config,
        stage,
        folder,
        name=f"{arm_key} s{seed}",
        model=load_stage_model(config, run.stage("sft", seed) / "best"),
        tokenizer=load_run_tokenizer(run, config),
        records=slate_records(dataset, train_slates(config), config.prompts.form(), rows),
        loss=_loss_options(config, arm),
        seed=seed,
        validation=validation_set(config, dataset),
        ref_logps=ref.get("train"),
        eval_ref_logps=ref.get("val"),
    )


def _loss_options(config: Config, arm: ArmSection) -> dict[str, Any]:
    renamed = {"negatives": "num_negatives", "filter": "filter_negatives"}
    options = {renamed.get(k, k): v for k, v in config.arm_options(arm).items()}
    return {
        "loss": arm.loss,
        **options,
        "score_unsampled": config.align.score_unsampled,
        "epsilons": list(config.align.epsilons),
        # In every arm, SFT as a control too: arms must differ in their loss alone.
        "disable_dropout": True,
    }


def train_stage(
    run: RunFolder,
    config: Config,
    stage: StageSection,
    folder: Path,
    *,
    name: str,
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    loss: dict[str, Any],
    seed: int,
    validation: dict[str, Any] | None = None,
    ref_logps: list[np.ndarray] | None = None,
    eval_ref_logps: list[np.ndarray] | None = None,
    trainer_class: Any = None,
    **further: Any,
) -> None:
    """Train one stage, resuming where it stopped; leaves best/, last/ and done.json.

    trainer_class: a `SiriusTrainer` of another kind, which `further` goes to.
    """
    from sirius_rec.recipes.arguments import training_arguments
    from sirius_rec.recipes.callbacks import Clock, EpochLines, SaveOnStop
    from sirius_rec.training.trainer import SiriusTrainer

    clock = Clock()
    folder.mkdir(parents=True, exist_ok=True)
    args = training_arguments(
        config, stage, folder / "checkpoints", loss, seed, n_records=len(records), validates=validation is not None
    )
    if stage.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer = (trainer_class or SiriusTrainer)(
        model,
        args,
        records,
        tokenizer,
        validation["records"] if validation else None,
        ref_logps=ref_logps,
        eval_ref_logps=eval_ref_logps,
        eval_hook=validation["hook"] if validation else None,
        metrics_file=folder / "metrics.jsonl",
        callbacks=[EpochLines(name, say), SaveOnStop(), clock],
        **further,
    )
    settle_attention(run, config, model.to(args.device), trainer.train_dataset.rows, trainer.encoder.pad_id)
    say(f"{name}: {trainer.estimate_memory().line()}")
    with stopping.after_a_checkpoint():
        trainer.train(resume_from_checkpoint=True)
    if trainer.is_world_process_zero():
        _finish(trainer, folder, clock.seconds)
    trainer.accelerator.wait_for_everyone()


def _finish(trainer: Any, folder: Path, seconds: float) -> None:
    """Turn checkpoints into best/ and last/ (weights only), then say done."""
    from sirius_rec.training.checkpoints import PREFIX, list_checkpoints, writing

    checkpoints = list_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise TrainingError(f"{folder}: training ended without a checkpoint: delete the folder and start again")
    last = checkpoints[-1]
    best_step = trainer.state.best_global_step
    best = folder / "checkpoints" / f"{PREFIX}{best_step}" if best_step else last
    for source, target in ((best, folder / "best"), (last, folder / "last")):
        if target.exists():
            shutil.rmtree(target)
        ignored = shutil.ignore_patterns(
            "optimizer*", "scheduler*", "rng_state*", "complete.json", "training_args*", "pytorch_model_fsdp*"
        )
        with writing(target):
            shutil.copytree(source, target, ignore=ignored)
    write_json(
        folder / DONE,
        {
            "steps": trainer.state.global_step,
            "best_step": best_step or trainer.state.global_step,
            "best_hr@1": trainer.state.best_metric,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "seconds": round(seconds, 1),
        },
    )
    shutil.rmtree(folder / "checkpoints")
