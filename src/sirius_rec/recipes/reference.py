"""The cache of log π_ref: scored once per seed by the best SFT model, read by every arm."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sirius_rec import atomic
from sirius_rec.errors import RunError
from sirius_rec.processes import is_main
from sirius_rec.recipes.job import Ticker, log
from sirius_rec.recipes.models import (
    ATTENTION,
    computes_in_bf16,
    load_stage_model,
    on_cpu,
    place,
    select_attention,
)
from sirius_rec.recipes.records import ALIGN_STREAM, Record, train_records, training_rows, validation_set
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.streamed import StreamedRecords
from sirius_rec.training.gguf import fingerprint

if TYPE_CHECKING:
    from sirius_rec.scoring.kept import KeptScores
    from sirius_rec.scoring.rows import PromptCompletions
    from sirius_rec.training.logp_shards import LogpShards

_LOOK = 256  # of rows that are not held, those that stand for all


def reference(path: str, seed: int) -> None:
    """Job: log π_ref of every (prompt, candidate) that alignment will meet, by the best SFT model."""
    quiet()
    run = Run.open(path)
    target = run.folder.reference(seed)
    key = _reference_key(run, seed)
    if _is_there(run, seed, key):
        return
    from sirius_rec.scoring.kept import KeptScores
    from sirius_rec.scoring.scorer import score_rows

    started = time.monotonic()
    model = place(load_stage_model(run.config, run.folder.sft(seed) / "best"), run.config)
    encoder = run.encoder
    arrays: dict[str, np.ndarray] = {"key": np.array(key)}
    records = _records(run, seed)
    kept: dict[str, KeptScores] = {}

    def score(rows: Sequence[PromptCompletions], progress: Ticker, kept: KeptScores | None = None) -> list[np.ndarray]:
        return score_rows(
            model,
            rows,
            encoder.pad_id,
            mode=run.config.compute.scoring,
            max_tokens=run.config.evaluation.batch_tokens,
            bf16=computes_in_bf16(run.config),
            progress=progress,
            kept=kept,
        )

    for split, some in records.items():
        rows = _encoded(run, some)
        progress = Ticker(f"reference s{seed} {split}", len(rows))
        select_attention(run.folder, run.config, model, rows[:_LOOK], encoder.pad_id)
        if isinstance(some, StreamedRecords):
            _shards(run, seed, key).fill(rows, partial(score, progress=progress))
        else:
            kept[split] = KeptScores(target.with_name(f".{target.stem}-{split}.coming"), key)
            logps = score(rows, progress, kept[split])
            arrays[f"{split}_logp"] = np.concatenate(logps)
            arrays[f"{split}_length"] = np.array([len(logp_C) for logp_C in logps])
    if not is_main():
        return
    atomic.write_npz(target, arrays)
    for finished in kept.values():
        finished.drop()
    log(f"reference s{seed}: {len(records['train'])} prompts scored in {time.monotonic() - started:.0f} s")


def _records(run: Run, seed: int) -> dict[str, Sequence[Record]]:
    """Those of alignment and of its validation."""
    rows = training_rows(run, run.config.align, seed, ALIGN_STREAM)
    records = {"train": train_records(run, run.template, rows)}
    validation = validation_set(run)
    if validation:
        records["val"] = validation["records"]
    return records


def _encoded(run: Run, records: Sequence[Record]) -> Sequence[PromptCompletions]:
    """Their rows as token ids; of streamed ones made when they are asked for."""
    from sirius_rec.training.records import encode_records
    from sirius_rec.training.streaming import EncodedRows

    return (
        EncodedRows(records, run.encoder)
        if isinstance(records, StreamedRecords)
        else encode_records(records, run.encoder)
    )


def _shards(run: Run, seed: int, key: str) -> LogpShards:
    """The log-probs of streamed train rows."""
    from sirius_rec.training.logp_shards import LogpShards

    n = len(training_rows(run, run.config.align, seed, ALIGN_STREAM))
    return LogpShards(run.folder.reference_shards(seed), n, key)


def _is_there(run: Run, seed: int, key: str) -> bool:
    target = run.folder.reference(seed)
    held = target.is_file() and _stored_key(target) == key
    return held and (not run.config.training.stream or _shards(run, seed, key).complete)


def read_reference(run: Run, seed: int) -> dict[str, Sequence[np.ndarray]]:
    """Cached log π_ref per split, row and completion; RunError if the cache is missing or of another model."""
    target = run.folder.reference(seed)
    key = _reference_key(run, seed)
    if not _is_there(run, seed, key):
        raise RunError(f"{target}: the reference cache is missing or of another model: run `sirius run` to make it")
    with np.load(target) as stored:
        found: dict[str, Sequence[np.ndarray]] = {
            split: np.split(stored[f"{split}_logp"], np.cumsum(stored[f"{split}_length"])[:-1])
            for split in ("train", "val")
            if f"{split}_logp" in stored
        }
    if run.config.training.stream:
        found["train"] = _shards(run, seed, key)
    return found


def _stored_key(target: Path) -> str:
    try:
        with np.load(target) as stored:
            return str(stored["key"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):  # a damaged archive is made again
        return ""


def _reference_key(run: Run, seed: int) -> str:
    """Hash of all that log π_ref depends on: the SFT model's files, how it computes, and the encoded rows.

    Rows count as token ids, so a template whose words change, or a tokenizer, gives another key.
    """
    digest = hashlib.sha256()
    best = run.folder.sft(seed) / "best"
    files = sorted(best.glob("*.safetensors")) + sorted(best.glob("*config.json"))
    for file in files:
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    backbone = run.config.backbone
    device, kernel = "cpu" if on_cpu(run.config) else "cuda", run.folder.path / ATTENTION
    computed = [backbone.name, backbone.dtype, backbone.attention, backbone.quantization, run.config.compute.scoring,
                device, kernel.read_text() if device == "cuda" and kernel.is_file() else None]  # fmt: skip
    if gguf := fingerprint(backbone.model):
        computed.append(gguf)
    digest.update(json.dumps(computed).encode())
    for split, records in _records(run, seed).items():
        digest.update(f"{split} {len(records)}".encode())
        if isinstance(records, StreamedRecords):  # not all: the first rows say how texts are made, the data the rest
            digest.update(f"{run.dataset.fingerprint} {run.train_slates}".encode())
            digest.update(repr(records.rows).encode() if isinstance(records.rows, range) else records.rows.tobytes())
            digest.update("\0".join(run.shown).encode())
        for row in _encoded(run, records)[:_LOOK] if isinstance(records, StreamedRecords) else _encoded(run, records):
            for ids in (row.prompt, *row.completions):
                digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()
