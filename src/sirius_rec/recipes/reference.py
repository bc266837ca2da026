"""The cache of log π_ref: scored once per seed by the best SFT model, read by every arm."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sirius_rec import atomic
from sirius_rec.config import Config
from sirius_rec.errors import RunError
from sirius_rec.processes import is_main
from sirius_rec.recipes.job import Ticker, open_job, say
from sirius_rec.recipes.models import computes_in_bf16, load_run_tokenizer, load_stage_model, place, settle_attention
from sirius_rec.recipes.records import ALIGN_STREAM, slate_records, stage_rows, train_slates, validation_set
from sirius_rec.recipes.run_folder import RunFolder

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset


def reference(path: str, seed: int) -> None:
    """Job: log π_ref of every (prompt, candidate) that alignment will meet, by the best SFT model."""
    run, config, dataset = open_job(path)
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
    rows = stage_rows(dataset.examples("train").height, config.align, seed, ALIGN_STREAM)
    records = {"train": slate_records(dataset, train_slates(config), config.prompts.form(), rows)}
    validation = validation_set(config, dataset)
    if validation:
        records["val"] = validation["records"]
    arrays: dict[str, np.ndarray] = {"key": np.array(key)}
    for split, part in records.items():
        encoded = encode_records(part, encoder)
        settle_attention(run, config, model, encoded, encoder.pad_id)
        logps = score_rows(
            model,
            encoded,
            encoder.pad_id,
            mode=config.compute.scoring,
            max_tokens=config.evaluation.batch_tokens,
            bf16=computes_in_bf16(config),
            progress=Ticker(f"reference s{seed} {split}", len(encoded)),
        )
        arrays[f"{split}_logp"] = np.concatenate(logps)
        arrays[f"{split}_length"] = np.array([len(logp_C) for logp_C in logps])
    if not is_main():
        return
    atomic.write_npz(target, arrays)
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
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):  # a damaged archive is made again
        return ""


def _reference_key(run: RunFolder, config: Config, dataset: Dataset, seed: int) -> str:
    """Hash of all that log π_ref depends on: weights, tokenizer, template, slates and the rows chosen."""
    digest = hashlib.sha256()
    best = run.stage("sft", seed) / "best"
    for file in (
        sorted(best.glob("*.safetensors")) + sorted(best.glob("tokenizer*")) + sorted(best.glob("adapter_config.json"))
    ):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    parts = [
        config.backbone.name,
        config.backbone.dtype,
        config.backbone.attention,
        config.backbone.quantization,
        config.prompts.model_dump(),
        dataset.fingerprint,
        str(train_slates(config)),
        config.align.epochs,
        config.align.examples_per_epoch,
        config.evaluation.validation_rows,
        config.compute.scoring,
        seed,
    ]
    if config.prompts.chat:
        from sirius_rec.prompts.encoding import Encoder

        # How a template is applied is this version's own.
        encoder = Encoder(load_run_tokenizer(run, config), chat=True)
        parts += [encoder.prompt("a"), encoder.completion("a")]
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
