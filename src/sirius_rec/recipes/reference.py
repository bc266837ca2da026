"""The cache of log π_ref: scored once per seed by the best SFT model, read by every arm."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sirius_rec import atomic
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
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
from sirius_rec.training.logp_shards import LogpShards, key_in

if TYPE_CHECKING:
    from sirius_rec.scoring.kept import KeptScores
    from sirius_rec.scoring.rows import PromptCompletions
    from sirius_rec.training.drawn import Score

_LOOK = 256  # of rows that are not held, those that stand for all
# Options of an arm that do not change which candidates of a row are drawn, whatever `tune` makes of them.
_NUMBERS: Final = frozenset({
    "learning_rate", "beta", "gamma", "nll_weight", "anchor_constant", "anchor_margin", "label_smoothing",
    "dpop_lambda", "beta_spread", "beta_margin", "reward_temperature",
})  # fmt: skip


def reference(path: str, seed: int) -> None:
    """Job: log π_ref, by the best SFT model, of the candidates that some arm's epochs will draw, and of validation's.

    A cache that lacks some of them, because arms were added since, gets those alone; of streamed rows it is made anew.
    """
    quiet()
    cache = ReferenceCache(Run.open(path), seed)
    if not cache.complete:
        cache.fill()


def read_reference(run: Run, seed: int) -> dict[str, Sequence[np.ndarray]]:
    """Cached log π_ref per split, row and completion, NaN for those that no arm draws; RunError if the cache is
    missing, of another model, or lacks what an arm draws."""
    cache = ReferenceCache(run, seed)
    if not cache.complete:
        raise RunError(
            f"{cache.file}: the reference cache is missing, of another model, or lacks what an arm draws: run "
            "`sirius run` to make it"
        )
    return cache.read()


class ReferenceCache:
    """log π_ref of a run's alignment and validation rows, for one seed."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.seed, self.file = run, seed, run.folder.reference(seed)

    @cached_property
    def records(self) -> dict[str, Sequence[Record]]:
        """Those of alignment and of its validation."""
        run = self.run
        numbers = training_rows(run, run.config.align, self.seed, ALIGN_STREAM)
        records = {"train": train_records(run, run.template, numbers)}
        validation = validation_set(run)
        if validation:
            records["val"] = validation["records"]
        return records

    @cached_property
    def rows(self) -> dict[str, Sequence[PromptCompletions]]:
        """The same as token ids; streamed ones are made when they are asked for."""
        from sirius_rec.training.records import encode_records
        from sirius_rec.training.streaming import EncodedRows

        encoder = self.run.encoder
        return {
            split: EncodedRows(some, encoder) if isinstance(some, StreamedRecords) else encode_records(some, encoder)
            for split, some in self.records.items()
        }

    @cached_property
    def key(self) -> str:
        """Hash of all that log π_ref depends on: the SFT model's files, how it computes, and the encoded rows.

        Rows count as token ids, so a template whose words change, or a tokenizer, gives another key.
        """
        digest, config, folder = hashlib.sha256(), self.run.config, self.run.folder
        best = folder.sft(self.seed) / "best"
        files = sorted(best.glob("*.safetensors")) + sorted(best.glob("*config.json"))
        for file in files:
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        backbone = config.backbone
        device, kernel = "cpu" if on_cpu(config) else "cuda", folder.path / ATTENTION
        computed = [backbone.name, backbone.dtype, backbone.attention, backbone.quantization, config.compute.scoring,
                    device, kernel.read_text() if device == "cuda" and kernel.is_file() else None]  # fmt: skip
        if gguf := fingerprint(backbone.model):
            computed.append(gguf)
        digest.update(json.dumps(computed).encode())
        for split, rows in self.rows.items():
            records = self.records[split]
            digest.update(f"{split} {len(records)}".encode())
            if isinstance(records, StreamedRecords):  # the first rows say how texts are made, the data the rest
                digest.update(f"{self.run.dataset.fingerprint} {self.run.train_slates}".encode())
                numbers = records.rows
                digest.update(repr(numbers).encode() if isinstance(numbers, range) else numbers.tobytes())
                digest.update("\0".join(self.run.shown).encode())
            for row in rows[:_LOOK] if isinstance(records, StreamedRecords) else rows:
                for ids in (row.prompt, *row.completions):
                    digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
        return digest.hexdigest()

    @property
    def complete(self) -> bool:
        """Whether all that is wanted is there, under this key."""
        scored = _read(self.file, self.key)
        for split in self.rows:
            if self._is_streamed(split):
                if not (self.file.is_file() and self._shards.complete):
                    return False
            elif split not in scored or any(map(len, self._missing(split, scored[split]))):
                return False
        return True

    def read(self) -> dict[str, Sequence[np.ndarray]]:
        """What is there, by split, row and completion, in nats; NaN for what was not scored."""
        found: dict[str, Sequence[np.ndarray]] = {
            split: some.logp_R for split, some in _read(self.file, self.key).items()
        }
        if self._is_streamed("train"):
            found["train"] = self._shards
        return found

    def fill(self) -> None:
        """Score what is missing."""
        from sirius_rec.scoring.kept import KeptScores
        from sirius_rec.training.drawn import score_columns

        run, started, said = self.run, time.monotonic(), f"reference s{self.seed}"
        model = place(load_stage_model(run.config, run.folder.sft(self.seed) / "best"), run.config)
        for rows in self.rows.values():
            select_attention(run.folder, run.config, model, rows[:_LOOK], run.encoder.pad_id)
        for of_kernel in ("key", "_in_files"):  # which may have been chosen just now
            self.__dict__.pop(of_kernel, None)
        scored, kept = _read(self.file, self.key), list[KeptScores]()
        for split, rows in self.rows.items():
            if self._is_streamed(split):
                self._fill_files(self._scorer(model, Ticker(f"{said} {split}", len(rows))))
                continue
            missing_R = self._missing(split, scored.get(split))
            digest = hashlib.sha256(b"".join(np.append(columns, -1).tobytes() for columns in missing_R)).hexdigest()
            kept.append(KeptScores(self.file.with_name(f".{self.file.stem}-{split}.coming"), f"{self.key} {digest}"))
            progress = Ticker(f"{said} {split}", sum(len(columns) > 0 for columns in missing_R))
            found = score_columns(rows, missing_R, self._scorer(model, progress, kept[-1]))
            scored[split] = _with(scored.get(split), found, missing_R)
        if not is_main():
            return
        atomic.write_npz(self.file, {"key": np.array(self.key), **_arrays(scored)})
        for finished in kept:
            finished.drop()
        log(f"{said}: {len(self.rows['train']):,} prompts scored in {time.monotonic() - started:.0f} s")

    def _scorer(self, model: Any, progress: Ticker, kept: KeptScores | None = None) -> Score:
        """Rows → their log-probs, computed as the run says."""
        from sirius_rec.scoring.scorer import score_rows

        config = self.run.config
        return partial(
            score_rows,
            model,
            pad_id=self.run.encoder.pad_id,
            mode=config.compute.scoring,
            max_tokens=config.evaluation.batch_tokens,
            bf16=computes_in_bf16(config),
            progress=progress,
            kept=kept,
        )

    def _is_streamed(self, split: str) -> bool:
        return split == "train" and self.run.config.training.stream

    @cached_property
    def _most(self) -> int | str | None:
        """See `drawn_at_most`. One record of streamed rows stands for all."""
        rows = self.rows["train"][:1] if self._is_streamed("train") else self.rows["train"]
        return drawn_at_most(self.run.config, min(len(row.completions) for row in rows) - 1)

    def _draws(self, most: int | str) -> dict[str, Any]:
        """Options of a data set that draws what arms do that draw that many."""
        per_epoch = self.run.config.align.examples_per_epoch
        return {"negatives": 0, "score_unsampled": most, "seed": self.seed, "examples_per_epoch": per_epoch}

    @cached_property
    def _wanted(self) -> list[np.ndarray]:
        """Of each train row that is held the candidates whose log π_ref is read."""
        from sirius_rec.training.records import PreferenceDataset, users_of

        rows, most, config = self.rows["train"], self._most, self.run.config
        if most == "all":  # of every row: alignment's rows are those that some epoch meets
            return [np.arange(len(row.completions)) for row in rows]
        users = users_of(self.records["train"]) if config.training.share == "user" else None
        epochs = 0 if most is None else config.align.epochs
        return PreferenceDataset(rows, users=users, **self._draws(most or 0)).columns_drawn(epochs)

    def _missing(self, split: str, scored: _Scored | None) -> list[np.ndarray]:
        """Of each row the candidates that are wanted, of validation all, and not scored."""
        wanted_R = self._wanted if split == "train" else [np.arange(len(row.completions)) for row in self.rows[split]]
        if scored is None:
            return wanted_R
        there_R = scored.there_R
        return [
            np.setdiff1d(wanted, np.flatnonzero(there_C)) for wanted, there_C in zip(wanted_R, there_R, strict=True)
        ]

    @cached_property
    def _in_files(self) -> tuple[str, int | str, int]:
        """Of streamed rows the key of their files, and what these hold: candidates drawn in an epoch, and epochs. Those
        of the files which are there, if they are what is wanted or more."""
        most, epochs = self._most or 0, self.run.config.align.epochs
        there = key_in(self.run.folder.reference_shards(self.seed))
        if there.startswith(f"{self.key} "):
            held, n = there.split()[-2:]
            if held == "all" or (most != "all" and int(held) >= int(most) and int(n) >= epochs):
                return there, held if held == "all" else int(held), int(n)
        return f"{self.key} {most} {epochs}", most, epochs

    @property
    def _shards(self) -> LogpShards:
        return LogpShards(self.run.folder.reference_shards(self.seed), len(self.rows["train"]), self._in_files[0])

    def _fill_files(self, score: Score) -> None:
        from sirius_rec.training.batching import StepLayout
        from sirius_rec.training.drawn import score_streamed
        from sirius_rec.training.streaming import StreamedDataset

        _, most, epochs = self._in_files
        rows: Any = self.rows["train"]
        data = StreamedDataset(rows, required=False, layout=StepLayout(), **self._draws(most))
        score_streamed(data, epochs, self._shards, score)


def drawn_at_most(config: Config, n_rejected: int) -> int | str | None:
    """Of a row's rejected candidates, how many an arm that has a reference draws in an epoch: the most, or `all`.

    All arms draw from one order, so that what one draws is among what another with more of them draws. None where no
    arm draws any: those with the policy's negatives score what they find.
    """
    from sirius_rec.training.negatives import ON_POLICY, NegativeSource
    from sirius_rec.training.records import draw_counts

    counts = list[int]()
    for arm in config.arms:
        tuned = {option for name in (arm.key, arm.loss) for option in config.tune.spaces.get(name, {})}
        if tuned - _NUMBERS:
            return "all"
        objective = config.objective(arm)
        if not objective.needs_reference or arm.negatives_from == ON_POLICY:
            continue
        source = {"kind" if k == "negatives_from" else k: value for k, value in arm.source.items()}
        try:
            drawn = draw_counts(objective, NegativeSource(**source), config.align.score_unsampled, n_rejected)
        except ConfigError as error:
            raise ConfigError(f"arms: {arm.key}: {error}") from None
        if "all" in drawn:
            return "all"
        counts.append(sum(int(n) for n in drawn))
    return max(counts, default=None)


@dataclass(frozen=True)
class _Scored:
    """Log-probs (nats) of every candidate of a split's rows, and which of them were scored; the others are NaN."""

    logp_R: list[np.ndarray]
    there_R: list[np.ndarray]


def _with(scored: _Scored | None, found_R: list[np.ndarray], columns_R: list[np.ndarray]) -> _Scored:
    """What was scored, and what was found of these columns now."""
    there_R = [np.zeros(len(logp_C), dtype=bool) for logp_C in found_R]
    for there_C, columns in zip(there_R, columns_R, strict=True):
        there_C[columns] = True
    if scored is not None:
        pairs = zip(scored.there_R, scored.logp_R, found_R, strict=True)
        found_R = [np.where(before, logp_C, new) for before, logp_C, new in pairs]
        there_R = [before | new for before, new in zip(scored.there_R, there_R, strict=True)]
    return _Scored(found_R, there_R)


def _arrays(scored: dict[str, _Scored]) -> dict[str, np.ndarray]:
    arrays = {}
    for split, some in scored.items():
        arrays[f"{split}_logp"] = np.concatenate(some.logp_R)
        arrays[f"{split}_scored"] = np.concatenate(some.there_R)
        arrays[f"{split}_length"] = np.array([len(logp_C) for logp_C in some.logp_R])
    return arrays


def _read(target: Path, key: str) -> dict[str, _Scored]:
    """Of each split what the cache holds; nothing of another model's, of other rows', or of a damaged one."""
    found = {}
    try:
        with np.load(target) as stored:
            arrays = dict(stored) if str(stored["key"]) == key else {}
        for split in ("train", "val"):
            if f"{split}_logp" in arrays:
                ends = np.cumsum(arrays[f"{split}_length"])[:-1]
                logp_R, there_R = (np.split(arrays[f"{split}_{name}"], ends) for name in ("logp", "scored"))
                found[split] = _Scored(logp_R, there_R)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):  # a damaged archive is made again
        return {}
    return found
