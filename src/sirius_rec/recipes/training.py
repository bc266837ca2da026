"""Stages that train: pretrain (tiny only), SFT, the reference cache, alignment. One function per job."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec.config import ArmSection, Config, StageSection
from sirius_rec.errors import RunError, TrainingError
from sirius_rec.recipes.run_folder import RunFolder, write_json
from sirius_rec.schema import CANDIDATES, HISTORY, ROW_ID, TARGET, UTILITY, SlateName

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset

Record = dict[str, Any]
DONE = "done.json"
# Seeds of independent draws, so that stages do not share their random streams.
_PRETRAIN, _SFT, _ALIGN = 1, 2, 3


def say(text: str) -> None:
    """Progress of a job: one flushed line."""
    print(text, flush=True)


# records


def slate_records(dataset: Dataset, name: SlateName, template: str, rows: np.ndarray | None = None) -> list[Record]:
    """TRL-style records of frozen slates: prompt, chosen (the target's title), rejected (the others, in slate order).

    rows: numbers of the rows to take, in that order; None for all.
    """
    from sirius_rec.prompts.templates import get_template

    form = get_template(template)
    titles = dataset.titles
    examples = dataset.examples(name.split)
    slates = dataset.slates(name)
    histories, targets = examples[HISTORY].to_list(), examples[TARGET].to_list()
    candidates = slates[CANDIDATES].to_list()
    out = []
    for r in range(len(targets)) if rows is None else rows.tolist():
        shown = [titles[i] for i in candidates[r]]
        chosen = titles[targets[r]]
        out.append(
            {
                "prompt": form.render([titles[i] for i in histories[r]], shown),
                "chosen": chosen,
                "rejected": [title for title in shown if title != chosen],
            }
        )
    return out


def pretraining_records(dataset: Dataset, template: str, *, piece: int, epochs: int, seed: int) -> list[Record]:
    """Training histories as plain text, `epochs` times, each time in another random order and cut.

    prompt = the template's first line, chosen = the titles. The shuffling teaches what goes together, which small data
    can teach without being learnt by heart; the order of events is left to SFT.
    """
    from sirius_rec.prompts.templates import get_template

    header = get_template(template).history + "\n"
    titles = dataset.titles
    rng = np.random.default_rng([seed, _PRETRAIN])
    sequences = dataset.train_sequences()
    out: list[Record] = []
    for _ in range(epochs):
        for sequence in sequences:
            sequence = rng.permutation(sequence)
            offset = int(rng.integers(1, piece + 1))
            bounds = [0, *range(offset, len(sequence), piece), len(sequence)]
            for start, end in pairwise(bounds):
                text = "\n".join(titles[i] for i in sequence[start:end])
                out.append({"prompt": header, "chosen": text, "rejected": []})
    return out


def continuation_records(dataset: Dataset, name: SlateName, template: str, rows: np.ndarray) -> list[Record]:
    """Slates as a text continued: prompt = the history without the slate, candidates = its possible next lines."""
    from sirius_rec.prompts.templates import get_template

    header = get_template(template).history
    titles = dataset.titles
    histories = dataset.examples(name.split)[HISTORY].to_list()
    out = slate_records(dataset, name, template, rows)
    for record, r in zip(out, rows.tolist(), strict=True):
        record["prompt"] = "\n".join([header, *(titles[i] for i in histories[r])])
    return out


def train_slates(config: Config) -> SlateName:
    """The slates that training uses."""
    slate = next(s for s in config.data.slates if "train" in s.splits)
    return SlateName("train", slate.protocol, slate.size, slate.seed)


def stage_rows(n_rows: int, stage: StageSection, seed: int, tag: int) -> np.ndarray:
    """The training rows that a stage will see at all: those of its epochs, a seeded choice without replacement."""
    wanted = n_rows if stage.examples_per_epoch is None else min(n_rows, stage.epochs * stage.examples_per_epoch)
    return np.sort(np.random.default_rng([seed, tag]).permutation(n_rows)[:wanted])


def validation_rows(config: Config, n_rows: int) -> np.ndarray:
    """The validation rows ranked after each epoch; the same for every seed and arm."""
    wanted = min(n_rows, config.evaluation.validation_rows or n_rows)
    return np.sort(np.random.default_rng(0).permutation(n_rows)[:wanted])


# backbone


def prepare_backbone(run: RunFolder, config: Config, dataset: Dataset) -> None:
    """Train the tiny backbone's tokenizer on the catalogue, once per run."""
    if config.backbone.name != "tiny" or (run.backbone / "tokenizer.json").is_file():
        return
    from sirius_rec.prompts.templates import get_template
    from sirius_rec.training.tiny import TinyOptions, train_tokenizer

    counts = np.zeros(dataset.n_items, dtype=np.int64)
    for sequence in dataset.train_sequences():
        counts[sequence] += 1
    order = np.argsort(-counts, kind="stable")
    form = get_template(config.prompts.template)
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


def _initial_model(config: Config, tokenizer: Any, seed: int) -> Any:
    """The backbone before any training of ours."""
    if config.backbone.name == "tiny":
        from sirius_rec.training.tiny import TinyOptions, build_tiny

        model = build_tiny(tokenizer, TinyOptions(**config.backbone.tiny.model_dump()), seed)
    else:
        from sirius_rec.training.backbones import load_backbone

        half = config.backbone.dtype == "bfloat16" and config.backbone.lora is not None
        model = load_backbone(
            config.backbone.name,
            dtype="bfloat16" if half else "float32",
            attention=config.backbone.attention,
        )
    return model


def load_stage_model(config: Config, folder: Path) -> Any:
    """The model saved in a stage's `best` or `last` folder."""
    from sirius_rec.training.backbones import load_trained

    half = config.backbone.dtype == "bfloat16" and config.backbone.lora is not None
    return load_trained(
        folder,
        config.backbone.name,
        dtype="bfloat16" if half else "float32",
        attention=config.backbone.attention,
    )


# jobs


def quiet() -> None:
    """Silence what transformers prints per step; our own lines say what a job does."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def pretrain(path: str, seed: int) -> None:
    """Job: language modelling of training histories (tiny backbone)."""
    run, config, dataset = _open(path)
    folder = run.stage("pretrain", seed)
    stage = config.backbone.pretrain
    assert stage is not None
    if (folder / DONE).is_file():
        return
    records = pretraining_records(dataset, config.prompts.template, piece=stage.piece, epochs=stage.epochs, seed=seed)
    stage = stage.model_copy(update={"examples_per_epoch": -(-len(records) // stage.epochs)})
    validation = _validation(config, dataset)
    if validation:
        name = train_slates(config)
        rows = validation_rows(config, dataset.examples("val").height)
        name = SlateName("val", name.protocol, name.size, name.seed)
        validation["records"] = continuation_records(dataset, name, config.prompts.template, rows)
    tokenizer = load_run_tokenizer(run, config)
    _train(
        config,
        stage,
        folder,
        name=f"pretrain s{seed}",
        model=_initial_model(config, tokenizer, seed),
        tokenizer=tokenizer,
        records=records,
        # Per token, so that long pieces do not drown short ones.
        loss={"loss": "sft", "nll_per_token": True},
        seed=seed,
        validation=validation,
    )


def sft(path: str, seed: int) -> None:
    """Job: supervised fine-tuning on (prompt, next title), Eq. 1."""
    run, config, dataset = _open(path)
    folder = run.stage("sft", seed)
    if (folder / DONE).is_file():
        return
    tokenizer = load_run_tokenizer(run, config)
    if config.backbone.name == "tiny" and config.backbone.pretrain is not None:
        model = load_stage_model(config, run.stage("pretrain", seed) / "best")
    else:
        model = _initial_model(config, tokenizer, seed)
    if config.backbone.lora is not None:
        from sirius_rec.training.backbones import add_lora

        model = add_lora(model, **config.backbone.lora.model_dump())
    name = train_slates(config)
    rows = stage_rows(dataset.examples("train").height, config.sft, seed, _SFT)
    _train(
        config,
        config.sft,
        folder,
        name=f"sft s{seed}",
        model=model,
        tokenizer=tokenizer,
        records=slate_records(dataset, name, config.prompts.template, rows),
        loss={"loss": "sft", "score_unsampled": 0},
        seed=seed,
        validation=_validation(config, dataset),
    )


def align(path: str, arm_key: str, seed: int) -> None:
    """Job: one arm's preference alignment from the best SFT epoch."""
    run, config, dataset = _open(path)
    folder = run.stage(arm_key, seed)
    if (folder / DONE).is_file():
        return
    arm = next(arm for arm in config.arms if arm.key == arm_key)
    stage = config.align
    if arm.learning_rate is not None:
        stage = stage.model_copy(update={"learning_rate": arm.learning_rate})
    rows = stage_rows(dataset.examples("train").height, stage, seed, _ALIGN)
    ref = read_reference(run, config, seed) if config.objective(arm).needs_reference else {}
    _train(
        config,
        stage,
        folder,
        name=f"{arm_key} s{seed}",
        model=load_stage_model(config, run.stage("sft", seed) / "best"),
        tokenizer=load_run_tokenizer(run, config),
        records=slate_records(dataset, train_slates(config), config.prompts.template, rows),
        loss=_loss_options(config, arm),
        seed=seed,
        validation=_validation(config, dataset),
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
    }


def _open(path: str) -> tuple[RunFolder, Config, Dataset]:
    from sirius_rec.data.store import open_dataset

    quiet()
    run = RunFolder(Path(path))
    return run, run.config(), open_dataset(run.data)


def _validation(config: Config, dataset: Dataset) -> dict[str, Any] | None:
    """Validation records and, in a simulated world, the hook that measures true reward on them."""
    name = train_slates(config)
    name = SlateName("val", name.protocol, name.size, name.seed)
    if str(name) not in dataset.slate_names or not dataset.examples("val").height:
        return None
    rows = validation_rows(config, dataset.examples("val").height)
    records = slate_records(dataset, name, config.prompts.template, rows)
    return {"records": records, "hook": true_reward_hook(dataset, name, rows)}


def true_reward_hook(dataset: Dataset, name: SlateName, rows: np.ndarray) -> Callable[..., dict[str, float]] | None:
    """Metric of a simulated world: mean true reward of the model's choice, 1 the best possible, 0 a random one."""
    truth = dataset.truth(name)
    if truth is None:
        return None
    from sirius_rec.evaluation.metrics import true_reward

    joined = dataset.slates(name).join(truth, on=ROW_ID, how="left", maintain_order="left")
    candidates, utilities = joined[CANDIDATES].to_list(), joined[UTILITY].to_list()
    targets = dataset.examples(name.split)[TARGET].to_list()
    ordered = []
    for r in rows.tolist():
        at = candidates[r].index(targets[r])
        ordered.append(np.array([utilities[r][at], *utilities[r][:at], *utilities[r][at + 1 :]]))

    def hook(logps: list[np.ndarray]) -> dict[str, float]:
        return {"true_reward": float(true_reward(logps, ordered).mean())}

    return hook


def _train(
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
) -> None:
    """Train one stage, resuming where it stopped; leaves best/, last/ and done.json."""
    from sirius_rec.recipes.arguments import training_arguments
    from sirius_rec.recipes.callbacks import EpochLines
    from sirius_rec.training.trainer import SiriusTrainer

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    args = training_arguments(
        config, stage, folder / "checkpoints", loss, seed, n_records=len(records), validates=validation is not None
    )
    if stage.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer = SiriusTrainer(
        model,
        args,
        records,
        tokenizer,
        validation["records"] if validation else None,
        ref_logps=ref_logps,
        eval_ref_logps=eval_ref_logps,
        eval_hook=validation["hook"] if validation else None,
        metrics_file=folder / "metrics.jsonl",
        callbacks=[EpochLines(name, say)],
    )
    trainer.train(resume_from_checkpoint=True)
    if trainer.is_world_process_zero():
        _finish(trainer, folder, time.monotonic() - started)
    trainer.accelerator.wait_for_everyone()


def _finish(trainer: Any, folder: Path, seconds: float) -> None:
    """Turn checkpoints into best/ and last/ (weights only), then say done."""
    from sirius_rec.training.checkpoints import PREFIX, list_checkpoints

    checkpoints = list_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise TrainingError(f"{folder}: training ended without a checkpoint: delete the folder and start again")
    last = checkpoints[-1]
    best_step = trainer.state.best_global_step
    best = folder / "checkpoints" / f"{PREFIX}{best_step}" if best_step else last
    for source, target in ((best, folder / "best"), (last, folder / "last")):
        if target.exists():
            shutil.rmtree(target)
        ignored = shutil.ignore_patterns("optimizer*", "scheduler*", "rng_state*", "complete.json", "training_args*")
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


# the reference cache


def reference(path: str, seed: int) -> None:
    """Job: log π_ref of every (prompt, candidate) that alignment will meet, by the best SFT model."""
    run, config, dataset = _open(path)
    target = run.reference(seed)
    key = _reference_key(run, config, dataset, seed)
    if target.is_file() and _stored_key(target) == key:
        return
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.scoring.scorer import score_rows
    from sirius_rec.training.records import encode_records

    started = time.monotonic()
    model = place(load_stage_model(config, run.stage("sft", seed) / "best"), config)
    encoder = Encoder(load_run_tokenizer(run, config), chat=config.prompts.chat)
    rows = stage_rows(dataset.examples("train").height, config.align, seed, _ALIGN)
    records = {"train": slate_records(dataset, train_slates(config), config.prompts.template, rows)}
    validation = _validation(config, dataset)
    if validation:
        records["val"] = validation["records"]
    arrays: dict[str, np.ndarray] = {"key": np.array(key)}
    for split, part in records.items():
        encoded = encode_records(part, encoder)
        logps = score_rows(
            model,
            encoded,
            encoder.pad_id,
            mode=config.compute.scoring,
            max_tokens=config.evaluation.batch_tokens,
            progress=Ticker(f"reference s{seed} {split}", len(encoded)),
        )
        arrays[f"{split}_logp"] = np.concatenate(logps)
        arrays[f"{split}_length"] = np.array([len(logp_C) for logp_C in logps])
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(target)
    say(f"reference s{seed}: {len(rows)} prompts scored in {time.monotonic() - started:.0f} s")


def read_reference(run: RunFolder, config: Config, seed: int) -> dict[str, list[np.ndarray]]:
    """Cached log π_ref per split, row and completion; RunError if the cache is missing or of another model."""
    from sirius_rec.data.store import open_dataset

    target = run.reference(seed)
    key = _reference_key(run, config, open_dataset(run.data), seed)
    if not target.is_file() or _stored_key(target) != key:
        raise RunError(f"{target}: the reference cache is missing or of another model: run `sirius run` to make it")
    with np.load(target) as stored:
        return {
            split: np.split(stored[f"{split}_logp"], np.cumsum(stored[f"{split}_length"])[:-1])
            for split in ("train", "val")
            if f"{split}_logp" in stored
        }


def _stored_key(target: Path) -> str:
    try:
        with np.load(target) as stored:
            return str(stored["key"])
    except Exception:  # numpy raises many kinds for a damaged archive; it is made again
        return ""


def _reference_key(run: RunFolder, config: Config, dataset: Dataset, seed: int) -> str:
    """Hash of all that log π_ref depends on: weights, tokenizer, template, slates and the rows chosen."""
    digest = hashlib.sha256()
    best = run.stage("sft", seed) / "best"
    for file in sorted(best.glob("*.safetensors")) + sorted(best.glob("tokenizer*")):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    parts = [
        config.backbone.name,
        config.backbone.dtype,
        config.prompts.model_dump(),
        dataset.fingerprint,
        str(train_slates(config)),
        config.align.epochs,
        config.align.examples_per_epoch,
        config.evaluation.validation_rows,
        config.compute.scoring,
        seed,
    ]
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()


def place(model: Any, config: Config) -> Any:
    """The model on the configured device."""
    import torch

    device = config.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device)


class Ticker:
    """Counts rows and says how far a long scoring is, about every ten seconds."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done, self.said = name, total, 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            say(f"{self.name}: {self.done}/{self.total} rows")
