"""Warm starts (`sft.from`, `align.from`): another run's checkpoint, on this run's data.

What training begins from is copied into the run folder once, before anything is trained. So a run that is resumed goes
on from what it began with, wherever a link like runs/live points by then, and the old run may be deleted.

RUN/start/s<seed>/
  best/            the checkpoint that training begins from
  reference/       with align.from: what alignment is compared with, and the run's SFT
  trained.parquet  user_id, item_id, until: what the model was trained on, by its run and those that it began from
  start.json       written last: run, method, SHA-256, and which rows of this data it was trained on
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sirius_rec import atomic, cache
from sirius_rec.config import Config
from sirius_rec.config_sections import Start
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes.models import gguf_file_of
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE
from sirius_rec.schema import HISTORY, ITEM, ITEM_ID, TARGET, TIMESTAMP, TITLE, USER_ID

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset

_START, _TRAINED, _BEST, _REFERENCE = "start.json", "trained.parquet", "best", "reference"
_UNTIL = "until"
_SFT = "sft"
# What must be the same for weights to fit, or to mean the same.
_BACKBONE = ("name", "gguf_file", "lora")


def begins_at(config: Config) -> tuple[str, Start] | None:
    """The stage that begins at another run's checkpoint, with its section; None where none does."""
    for stage, start in (("sft", config.sft.start), ("align", config.align.start)):
        if start is not None:
            return stage, start
    return None


def begun_from(run: Run) -> dict[int, dict[str, Any]]:
    """What start.json says, of every seed that has begun."""
    files = sorted(run.folder.path.glob(f"start/s[0-9]*/{_START}"))
    return {int(file.parent.name[1:]): json.loads(file.read_text()) for file in files}


def policy(run: Run, seed: int) -> Path:
    """The folder of the checkpoint that training begins from."""
    return run.folder.start(seed) / _BEST


def reference_folder(run: Run, seed: int) -> Path:
    """The folder of the model that alignment is compared with."""
    return run.folder.start(seed) / _REFERENCE


def take_over(run: Run, log: Callable[[str], None]) -> None:
    """Copy what each seed begins from, where it has not begun, and the tiny backbone's tokenizer.

    ConfigError for an option that does not fit the other run's; RunError where it is none, or has not trained the
    method with a seed.
    """
    begins = begins_at(run.config)
    if begins is None:
        return
    begun = begun_from(run)
    missing = [seed for seed in run.config.seeds if seed not in begun]
    for seed in sorted(set(run.config.seeds) - set(missing)):
        log(f"seed {seed} goes on from {_words(begun[seed])}")
    if not missing:
        return
    stage, start = begins
    # A seed that is added later begins at the twin of those that began before it.
    old = _opened(next(iter(begun.values()))["run"] if begun else start.run, run, stage)
    _check_fit(stage, old, run)
    carry_tokenizer(run, old)
    trained = trained_on(old)
    seen = seen_rows(trained, run.dataset)
    for seed in missing:
        _copy(run, old, stage, start.method or _SFT, seed, trained, seen)
    for line in (*notes(run), *_renamed(old, run)):
        log(line)


def hand_on(old: Run, run: Run, seed: int) -> None:
    """Let a run begin with the very checkpoint that `old` began with, wherever its configuration's link points by now.

    For runs that have no rows to test on, so that none of them can have been seen.
    """
    if begins_at(run.config) != begins_at(old.config) or not (source := old.folder.start(seed)).is_dir():
        return
    if not run.folder.start(seed).exists():
        none = {"rows": 0, "seen": 0, "unknown": 0}
        with atomic.replacing(run.folder.start(seed)) as partial:
            shutil.copytree(source, partial)
            about = json.loads((partial / _START).read_text())
            atomic.write_json(partial / _START, {**about, "trained_on": {"val": none, "test": none}})
    if old.folder.backbone.is_dir() and not run.folder.backbone.exists():
        with atomic.replacing(run.folder.backbone) as partial:
            shutil.copytree(old.folder.backbone, partial)


def _renamed(old: Run, run: Run) -> Iterator[str]:
    """Equal titles are numbered in the order of the catalogue, so that a new twin may take an older item's name."""
    theirs, ours = (one.dataset.items.select(pl.col(ITEM_ID).cast(pl.String), TITLE) for one in (old, run))
    renamed = theirs.join(ours, on=ITEM_ID, suffix=" now").filter(pl.col(TITLE) != pl.col(f"{TITLE} now"))
    if renamed.height:
        item, before, now = renamed.row(0)
        yield (
            f"warning: {renamed.height:,} items are called otherwise than where it began, such as {item}: {before!r}, "
            f"now {now!r}; the model takes them for others (equal titles are numbered in the order of the catalogue)"
        )


def _opened(path: str, run: Run, stage: str) -> Run:
    folder = Path(path).resolve()
    if folder == run.folder.path.resolve():
        raise ConfigError(f"{stage}.from: {path} is this run itself: name an earlier one, or choose another --out")
    try:
        return Run.open(folder)
    except RunError as error:
        raise RunError(f"{stage}.from: {error}") from None


def _check_fit(stage: str, old: Run, run: Run) -> None:
    """ConfigError naming the first option in which another value would make other weights, or other words, of it."""
    sections = [("backbone", key) for key in (*_BACKBONE, *(("tiny",) if run.config.backbone.name == "tiny" else ()))]
    if stage == "align" or not run.config.sft.epochs:  # SFT would learn other prompts; here nobody does
        sections += [("prompts", key) for key in type(run.config.prompts).model_fields]
    for section, key in sections:
        theirs, ours = (getattr(getattr(config, section), key) for config in (old.config, run.config))
        if theirs != ours:
            raise ConfigError(
                f"{stage}.from: {old.folder.path} was made with {section}.{key}: {_plain(theirs)}, this run has "
                f"{_plain(ours)}: set the same"
            )
    from sirius_rec.training.gguf import fingerprint

    before, now = gguf_file_of(old.folder), fingerprint(run.config.backbone.model)
    if before != now:
        raise RunError(
            f"{stage}.from: {old.folder.path} was made with another file of backbone '{run.config.backbone.model}': "
            "install the one it was made with"
        )


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def carry_tokenizer(run: Run, old: Run | None = None) -> None:
    """The tiny backbone's tokenizer is made of a catalogue: a model goes on with its own, which spells new titles in
    pieces."""
    begins = begins_at(run.config)
    if begins is None or run.config.backbone.name != "tiny" or (run.folder.backbone / "tokenizer.json").is_file():
        return
    old = old or _opened(begins[1].run, run, begins[0])
    with atomic.replacing(run.folder.backbone) as partial:
        shutil.copytree(old.folder.backbone, partial)


def _copy(run: Run, old: Run, stage: str, key: str, seed: int, trained: pl.DataFrame, seen: dict[str, Any]) -> None:
    """One seed's checkpoints and what is known of them."""
    keys = (_SFT, *(arm.key for arm in old.config.arms))
    source = _trained(old, key, seed)
    if key not in keys or not (source / DONE).is_file():
        done = [f"{k} (seed {s})" for k in keys for s in old.config.seeds if (_trained(old, k, s) / DONE).is_file()]
        raise RunError(
            f"{stage}.from: {old.folder.path} has no {key} of seed {seed}, with which this run's begins; trained are "
            f"{', '.join(done) or 'none'}"
        )
    folder = run.folder.start(seed)
    if folder.exists():  # a kill left it without its last file
        shutil.rmtree(folder)
    with atomic.replacing(folder) as partial:
        shutil.copytree(source / _BEST, partial / _BEST)
        if stage == "align":
            shutil.copytree(_trained(old, _SFT, seed) / _BEST, partial / _REFERENCE)
        trained.write_parquet(partial / _TRAINED)
        about = {"stage": stage, "run": str(old.folder.path), "method": key, "sha256": _sha256(source / _BEST),
                 "data": old.dataset.fingerprint, "trained_on": seen}  # fmt: skip
        atomic.write_json(partial / _START, about)


def _trained(run: Run, key: str, seed: int) -> Path:
    return run.folder.sft(seed) if key == _SFT else run.folder.arm(key, seed)


def _sha256(folder: Path) -> str:
    """Of the weights' files, by name."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.name.encode() + bytes.fromhex(cache.fingerprint(file)))
    return digest.hexdigest()


def trained_on(old: Run) -> pl.DataFrame:
    """user_id, item_id, until: what each user of the run's train rows had, targets and histories, and the time of the
    last row that shows it; with what the runs had that it began from itself."""
    data, parts = old.dataset, []
    names = data.items.select(pl.col(ITEM).alias(TARGET), ITEM_ID)
    rows = data.examples("train").filter(pl.col(USER_ID).is_not_null())
    pairs = rows.select(USER_ID, TIMESTAMP, pl.concat_list(HISTORY, TARGET).alias(TARGET)).explode(TARGET)
    named = pairs.join(names, on=TARGET, how="inner")
    parts.append(named.select(USER_ID, ITEM_ID, pl.col(TIMESTAMP).alias(_UNTIL)))
    parts += [pl.read_parquet(file) for file in old.folder.path.glob(f"start/s[0-9]*/{_TRAINED}")]
    return pl.concat(parts).group_by(USER_ID, ITEM_ID).agg(pl.col(_UNTIL).max()).sort(USER_ID, ITEM_ID)


def seen_rows(trained: pl.DataFrame, data: Dataset) -> dict[str, Any]:
    """Of validation and test rows: how many there are; of how many the model was trained on the target, for the same
    user, in a row of that time or later; and how many do not say whose they are, so that nobody knows."""
    names = data.items.select(pl.col(ITEM).alias(TARGET), ITEM_ID)
    out = {}
    for split in ("val", "test"):
        rows = data.examples(split)
        met = rows.join(names, on=TARGET, how="inner").join(trained, on=[USER_ID, ITEM_ID], how="inner")
        after = pl.col(TIMESTAMP) > pl.col(_UNTIL)  # the same user and item again: no row of the old run
        out[split] = {
            "rows": rows.height,
            "seen": met.filter(~after.fill_null(False)).height,
            "unknown": rows[USER_ID].null_count(),
        }
    return out


def notes(run: Run, seeds: Collection[int] | None = None) -> list[str]:
    """What a reader of the results must know: where training began, and which rows it had been trained on.

    seeds: None for all."""
    lines = []
    for seed, about in begun_from(run).items():
        if seeds is not None and seed not in seeds:
            continue
        what = "SFT begins at" if about["stage"] == "sft" else "alignment begins at"
        lines.append(f"Seed {seed}: {what} {_words(about)}.")
        for split, words in (("val", "validation"), ("test", "test")):
            rows = about["trained_on"][split]
            if rows["seen"]:
                lines.append(
                    f"LEAK: of {rows['rows']:,} {words} rows, {rows['seen']:,} have a target that seed {seed}'s "
                    "starting model was trained on for the same user: its numbers, and those of all that begins there, "
                    "are too good."
                )
            if rows["unknown"]:
                lines.append(f"Whether seed {seed}'s starting model was trained on {words} rows cannot be told: "
                             f"{rows['unknown']:,} of {rows['rows']:,} do not say whose they are.")  # fmt: skip
    return list(dict.fromkeys(lines))


def _words(about: dict[str, Any]) -> str:
    model = "SFT" if about["method"] == _SFT else about["method"]
    sha256, data = (about[key][:12] for key in ("sha256", "data"))
    return f"{model} of {Path(about['run']).name} (SHA-256 {sha256}…, data {data}…)"
