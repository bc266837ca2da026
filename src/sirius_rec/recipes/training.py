"""Training one stage: what pretraining, SFT, every arm and every fine-tuned baseline do alike."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import stopping
from sirius_rec.atomic import write_json
from sirius_rec.config import Config
from sirius_rec.diagnostics.curves import HIT
from sirius_rec.errors import TrainingError
from sirius_rec.processes import is_main
from sirius_rec.recipes import trackers
from sirius_rec.recipes.environment import device_name
from sirius_rec.recipes.job import Ticker, log
from sirius_rec.recipes.model_card import write_card
from sirius_rec.recipes.models import initial_model, load_stage_model, select_attention
from sirius_rec.recipes.records import (
    Record,
    ValidationSet,
    continuation_records,
    pretraining_records,
    validation_set,
)
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.run_folder import DONE
from sirius_rec.recipes.streamed import StreamedRecords
from sirius_rec.training.held_out import remember_rows
from sirius_rec.training.options import StageOptions


def pretrains(config: Config) -> bool:
    """Whether the backbone is ours and reads training histories before anything else."""
    return config.backbone.name == "tiny" and config.backbone.pretrain is not None


def pretrain(path: str, seed: int) -> None:
    """Job: language modelling of training histories (tiny backbone)."""
    quiet()
    run = Run.open(path)
    folder, options = run.folder.pretrain(seed), run.config.backbone.pretrain
    assert options is not None
    if (folder / DONE).is_file():
        return
    records = pretraining_records(run.dataset, run.template, piece=options.piece, epochs=options.epochs, seed=seed)
    stage = options.changed(examples_per_epoch=-(-len(records) // options.epochs))
    validation, name = validation_set(run), run.validation_slates
    if validation and name:
        continued = continuation_records(run.dataset, name, run.template, run.validation_rows)
        validation = replace(validation, records=continued)
    train_stage(
        run,
        stage,
        folder,
        name=f"pretrain s{seed}",
        model=initial_model(run.config, run.tokenizer, seed),
        tokenizer=run.tokenizer,
        records=records,
        # Per token, so that long chunks do not drown short ones.
        loss={"loss": "sft", "nll_per_token": True},
        seed=seed,
        validation=validation,
    )


def starting_model(run: Run, tokenizer: Any, seed: int) -> Any:
    """What SFT, and every baseline trained like it, starts from: the backbone (pretrained where ours), with LoRA."""
    if pretrains(run.config):
        model = load_stage_model(run.config, run.folder.pretrain(seed) / "best")
    else:
        model = initial_model(run.config, tokenizer, seed)
    lora = run.config.backbone.lora
    if lora is not None:
        from transformers import set_seed

        from sirius_rec.training.backbones import add_lora

        set_seed(seed)  # an adapter's first weights are random
        model = add_lora(model, **lora.model_dump())
    return model


def train_stage(
    run: Run,
    stage: StageOptions,
    folder: Path,
    *,
    name: str,
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    loss: dict[str, Any],
    seed: int,
    validation: ValidationSet | None = None,
    ref_logps: Sequence[np.ndarray] | None = None,
    eval_ref_logps: Sequence[np.ndarray] | None = None,
    is_reference: bool = False,
    trainer_class: Any = None,
    card: dict[str, str] | None = None,
    **further: Any,
) -> None:
    """Train one stage, resuming where it stopped; leaves best/, last/ and done.json.

    is_reference: whether `eval_ref_logps` are of this very model, which is not scored again then before its first step.
    trainer_class: a `SiriusTrainer` of another kind, which `further` goes to. card: what the model card says of it.
    """
    from sirius_rec.recipes.arguments import training_arguments
    from sirius_rec.recipes.callbacks import Clock, EpochLines, SaveOnStop, StopAfter
    from sirius_rec.training.backbones import name_base
    from sirius_rec.training.trainer import SiriusTrainer

    clock = Clock()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoints"
    if validation and validation.rows is not None and is_main():
        remember_rows(folder / "held_out", validation.rows)
    # Shuffled histories, as the tiny backbone reads them first, have no user and nothing to share.
    share = run.config.training.share if records and "user" in records[0] else "none"
    args = training_arguments(
        run.config, stage, checkpoints, loss, seed, n_records=len(records), share=share,
        best_by=validation.best_by if validation else None,
        stream=isinstance(records, StreamedRecords), run_name=f"{run.config.name} {name}",
    )  # fmt: skip
    if stage.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ends = [] if stage.stop_after is None else [StopAfter(stage.stop_after)]
    tracking = trackers.callbacks(run.config.training.report_to, run.folder.path / "tensorboard" / name)
    further.setdefault("encoder", run.encoder_of(tokenizer))
    trainer = (trainer_class or SiriusTrainer)(
        model,
        args,
        records,
        tokenizer,
        validation.records if validation else None,
        ref_logps=ref_logps,
        eval_ref_logps=eval_ref_logps,
        eval_hook=validation.hook if validation else None,
        metrics_file=folder / "metrics.jsonl",
        callbacks=[EpochLines(name, log, stage.trained_epochs), SaveOnStop(), clock, *ends, *tracking],
        **further,
    )
    trainer.known_logps = eval_ref_logps if is_reference else None
    _watch(run, trainer, name)
    heaviest = trainer.train_dataset.heaviest(trainer.scoring)
    select_attention(run.folder, run.config, model.to(args.device), heaviest, trainer.encoder.pad_id)
    miner = trainer.train_dataset.miner
    if miner is not None and miner.reference is not None:  # a copy from before the kernel was chosen
        select_attention(run.folder, run.config, miner.reference.to(args.device), heaviest, trainer.encoder.pad_id)
    log(f"{name}: {trainer.estimate_memory().line()}")
    try:
        with stopping.after_a_checkpoint():
            if not _ended(trainer, stage, clock):
                trainer.train(resume_from_checkpoint=True)
    finally:  # also after a failure: the next training of this process is not a part of this one's record
        trackers.close(run.config.training.report_to)
    if trainer.is_world_process_zero():
        _keep_weights(trainer, folder)
        for checkpoint in ("best", "last"):
            name_base(folder / checkpoint, run.config.backbone.model)
            if card:
                write_card(folder / checkpoint, run, loss, records, **card)
        _say_done(trainer, folder, clock.seconds)
        shutil.rmtree(checkpoints)
    trainer.accelerator.wait_for_everyone()


def _ended(trainer: Any, stage: StageOptions, clock: Any) -> bool:
    """Whether all that was left of a training that stops before its schedule does is to keep its weights."""
    from transformers import TrainerState

    from sirius_rec.training.checkpoints import list_checkpoints

    checkpoints = list_checkpoints(Path(trainer.args.output_dir))
    if stage.stop_after is None or not checkpoints:
        return False
    state = TrainerState.load_from_json(str(checkpoints[-1] / "trainer_state.json"))
    if (state.epoch or 0.0) + 1e-6 < stage.stop_after:
        return False
    trainer.state = state
    clock.on_train_begin(trainer.args, state, trainer.control)
    return True


def _watch(run: Run, trainer: Any, name: str) -> None:
    """What is said while it trains, beside the lines of epochs."""
    from sirius_rec.recipes.callbacks import Watch

    if trainer.train_dataset.miner is not None:
        trainer.train_dataset.miner.say = lambda line: log(f"{name}  {line}")
    if run.watch is not None:
        trainer.add_callback(Watch(run.watch))
    trainer.progress_of = partial(Ticker, f"{name} validation")


def _keep_weights(trainer: Any, folder: Path) -> None:
    """Of the checkpoints best/ and last/, weights only."""
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


def _say_done(trainer: Any, folder: Path, seconds: float) -> None:
    """The last word of a training, of which nothing is missing then."""
    from sirius_rec.training.metrics_log import read_metrics

    best_step = trainer.state.best_global_step
    evaluated = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "eval"]
    write_json(
        folder / DONE,
        {
            "steps": trainer.state.global_step,
            "best_step": best_step or trainer.state.global_step,
            "best_hr@1": next((line[HIT] for line in evaluated if line["step"] == best_step), None),
            "best_by": trainer.args.metric_for_best_model,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "seconds": round(seconds, 1),
            "device": device_name(trainer.args.device),  # a run may be gone on with elsewhere than it was begun
        },
    )
