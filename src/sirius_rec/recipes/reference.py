"""The cache of log π_ref: scored once per seed by the best SFT model, read by every arm."""

from __future__ import annotations

import hashlib
import json
import re
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sirius_rec import atomic, cache
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
    from sirius_rec.scoring.rows import PromptCompletions

_LOOK = 256  # of rows that are not held, those that stand for all
# Options of an arm that do not change which candidates of a row are drawn, whatever `tune` makes of them.
_NUMBERS: Final = frozenset({
    "learning_rate", "beta", "gamma", "nll_weight", "anchor_constant", "anchor_margin", "label_smoothing",
    "dpop_lambda", "beta_spread", "beta_margin", "reward_temperature",
})  # fmt: skip


def score_reference(path: str, seed: int) -> None:
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
    """log π_ref of a run's alignment and validation rows, for one seed: where it lies, and how it is made."""

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
            records["val"] = validation.records
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

    @property
    def key(self) -> str:
        """Hash of all that log π_ref depends on: the SFT model's files, how it computes, and the encoded rows.

        Rows count as token ids, so a template whose words change, or a tokenizer, gives another key. Hashed at every
        call, because the attention kernel may have been chosen since the last one.
        """
        digest, config, folder = hashlib.sha256(), self.run.config, self.run.folder
        best = folder.sft(self.seed) / "best"
        files = sorted(best.glob("*.safetensors")) + sorted(best.glob("*config.json"))
        for file in files:
            digest.update(file.name.encode() + bytes.fromhex(cache.fingerprint(file)))
        backbone = config.backbone
        device, kernel = "cpu" if on_cpu(config) else "cuda", folder.path / ATTENTION
        computed = [backbone.name, backbone.dtype, backbone.attention, backbone.quantization, config.compute.scoring,
                    device, kernel.read_text() if device == "cuda" and kernel.is_file() else None]  # fmt: skip
        if gguf := fingerprint(backbone.model):
            computed.append(gguf)
        if backbone.compile:
            computed.append("compiled")
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

    @cached_property
    def _stored(self) -> _Held | _Streamed:
        return self._storage()

    @property
    def complete(self) -> bool:
        """Whether all that is wanted is there, under this key."""
        return self._stored.complete

    def read(self) -> dict[str, Sequence[np.ndarray]]:
        """What is there, by split, row and completion, in nats; NaN for what was not scored."""
        return self._stored.read()

    def fill(self) -> None:
        """Score what is missing, computed as the run says."""
        from sirius_rec.scoring.scorer import score_rows

        run, started, said = self.run, time.monotonic(), f"reference s{self.seed}"
        config, pad_id = run.config, run.encoder.pad_id
        model = place(load_stage_model(config, run.folder.sft(self.seed) / "best"), config)
        for rows in self.rows.values():
            select_attention(run.folder, config, model, rows[:_LOOK], pad_id)
        self._stored = self._storage()  # anew: its key names the kernel, which may have been chosen just now
        score = partial(
            score_rows,
            model,
            pad_id=pad_id,
            mode=config.compute.scoring,
            max_tokens=config.evaluation.batch_tokens,
            bf16=computes_in_bf16(config),
        )
        self._stored.fill(score, said)
        if is_main():
            log(f"{said}: {len(self.rows['train']):,} prompts scored in {time.monotonic() - started:.0f} s")

    def _storage(self) -> _Held | _Streamed:
        """Where the scores lie, under the key as it is now."""
        run, key, rows = self.run, self.key, self.rows
        validation = {split: _all_of(some) for split, some in rows.items() if split != "train"}
        if not run.config.training.stream:
            return _Held(self.file, key, rows, {"train": self._wanted, **validation})
        wanted = _ShardKey(key, self._most or 0, run.config.align.epochs)
        held = _Held(self.file, key, rows, validation)
        return _Streamed(run.folder.reference_shards(self.seed), wanted, rows["train"], self._draws, held)

    @cached_property
    def _most(self) -> int | str | None:
        """See `drawn_at_most`. One record of streamed rows stands for all."""
        rows = self.rows["train"][:1] if self.run.config.training.stream else self.rows["train"]
        return drawn_at_most(self.run.config, min(len(row.completions) for row in rows) - 1)

    @property
    def _draws(self) -> dict[str, Any]:
        """Options of a data set that draws what arms do, but for how many."""
        return {"negatives": 0, "seed": self.seed, "examples_per_epoch": self.run.config.align.examples_per_epoch}

    @cached_property
    def _wanted(self) -> list[np.ndarray]:
        """Of each train row that is held the candidates whose log π_ref is read."""
        from sirius_rec.training.records import PreferenceDataset, users_of

        rows, most, config = self.rows["train"], self._most, self.run.config
        if most == "all":  # of every row: alignment's rows are those that some epoch meets
            return _all_of(rows)
        users = users_of(self.records["train"]) if config.training.share == "user" else None
        data = PreferenceDataset(rows, users=users, score_unsampled=most or 0, **self._draws)
        return data.columns_drawn(0 if most is None else config.align.epochs)


def _all_of(rows: Sequence[PromptCompletions]) -> list[np.ndarray]:
    return [np.arange(len(row.completions)) for row in rows]


@dataclass(frozen=True)
class _Held:
    """Log-probs of rows that are held: an archive of all their splits.

    wanted: of each row, by split, the candidates that are to be scored. rows: of these splits, and maybe of others.
    """

    file: Path
    key: str
    rows: Mapping[str, Sequence[PromptCompletions]]
    wanted: Mapping[str, list[np.ndarray]]

    @property
    def complete(self) -> bool:
        scored = _read(self.file, self.key)
        return self.file.is_file() and all(
            split in scored and not any(map(len, self._missing(split, scored[split]))) for split in self.wanted
        )

    def read(self) -> dict[str, Sequence[np.ndarray]]:
        return {split: some.logp_R for split, some in _read(self.file, self.key).items()}

    def fill(self, score: Callable[..., list[np.ndarray]], said: str) -> None:
        """score: `score_rows` of a model. said: what the progress is called."""
        from sirius_rec.scoring.kept import KeptScores
        from sirius_rec.training.drawn import score_columns

        scored, kept = _read(self.file, self.key), list[KeptScores]()
        for split in self.wanted:
            missing_R = self._missing(split, scored.get(split))
            digest = hashlib.sha256(b"".join(np.append(columns, -1).tobytes() for columns in missing_R)).hexdigest()
            kept.append(KeptScores(self.file.with_name(f".{self.file.stem}-{split}.coming"), f"{self.key} {digest}"))
            progress = Ticker(f"{said} {split}", sum(len(columns) > 0 for columns in missing_R))
            found_R = score_columns(self.rows[split], missing_R, partial(score, progress=progress, kept=kept[-1]))
            scored[split] = _with(scored.get(split), found_R, missing_R)
        if is_main():
            atomic.write_npz(self.file, {"key": np.array(self.key), **_arrays(scored)})
            for finished in kept:
                finished.drop()

    def _missing(self, split: str, scored: _Scored | None) -> list[np.ndarray]:
        """Of each row the candidates that are wanted and not scored."""
        if scored is None:
            return self.wanted[split]
        pairs = zip(self.wanted[split], scored.there_R, strict=True)
        return [np.setdiff1d(wanted, np.flatnonzero(there_C)) for wanted, there_C in pairs]


@dataclass(frozen=True)
class _ShardKey:
    """What files of streamed rows hold: under the key of the cache, candidates drawn in so many epochs, of a row at
    most so many rejected ones in each, or all."""

    cache: str
    most: int | str
    epochs: int

    @classmethod
    def parse(cls, text: str) -> _ShardKey | None:
        """None of what was written for something else, or not at all."""
        if found := re.fullmatch(r"(\S+) (all|\d+) (\d+)", text):
            cache, most, epochs = found.groups()
            return cls(cache, most if most == "all" else int(most), int(epochs))
        return None

    def __str__(self) -> str:
        return f"{self.cache} {self.most} {self.epochs}"

    def covers(self, wanted: _ShardKey) -> bool:
        """Whether files of this key hold all that is wanted."""
        if self.cache != wanted.cache:
            return False
        if "all" in (self.most, wanted.most):  # those of all do not depend on epochs
            return self.most == "all"
        return int(self.most) >= int(wanted.most) and self.epochs >= wanted.epochs


class _Streamed:
    """Log-probs of streamed train rows, in files of a folder, beside validation's, which are held."""

    def __init__(self, folder: Path, wanted: _ShardKey, rows: Any, draws: Mapping[str, Any], validation: _Held) -> None:
        """rows: `EncodedRows`. draws: options of the data set that draws `wanted`, but for how many."""
        there = _ShardKey.parse(key_in(folder))
        # Files that hold more are taken, or finished as they were begun.
        self.key = there if there is not None and there.covers(wanted) else wanted
        self.shards = LogpShards(folder, len(rows), str(self.key))
        self.rows, self.draws, self.validation = rows, draws, validation

    @property
    def complete(self) -> bool:
        return self.validation.complete and self.shards.complete

    def read(self) -> dict[str, Sequence[np.ndarray]]:
        return {**self.validation.read(), "train": self.shards}

    def fill(self, score: Callable[..., list[np.ndarray]], said: str) -> None:
        from sirius_rec.training.batching import StepLayout
        from sirius_rec.training.drawn import score_streamed
        from sirius_rec.training.streaming import StreamedDataset

        key = self.key
        data = StreamedDataset(self.rows, required=False, layout=StepLayout(), score_unsampled=key.most, **self.draws)
        progress = Ticker(f"{said} train", len(self.rows))
        score_streamed(data, key.epochs, self.shards, partial(score, progress=progress))
        self.validation.fill(score, said)


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
