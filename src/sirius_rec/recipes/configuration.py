"""A configuration that is sound as a whole: read, overridden, and every contradiction in it named at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_rec.config import ArmSection, Config, structure
from sirius_rec.config_yaml import apply_overrides, read_yaml
from sirius_rec.errors import ConfigError
from sirius_rec.option_errors import nearest
from sirius_rec.recipes.methods import METHODS, Method, build_methods, reserved_keys

if TYPE_CHECKING:
    from sirius_rec.training.negatives import NegativeSource

# What score tables allow in the name of a method.
_KEY = re.compile(r"[A-Za-z0-9_.]+")


def load_config(path: Path | str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), and check everything.

    Raises ConfigError with every problem in one line.
    """
    path = Path(path)
    return parse_config(apply_overrides(read_yaml(path), overrides or []), str(path))


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check a raw mapping. Raises ConfigError with every problem in one line; contradictions between options are
    looked for once each option is valid."""
    config = structure(raw, where)
    problems = list(dict.fromkeys(contradictions(config)))
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems)}")
    return config


def contradictions(config: Config) -> Iterator[str]:
    """Problems between options that are each valid."""
    yield from _lists(config)
    yield from _data(config)
    yield from _backbone(config)
    yield from _starts(config)
    yield from _streamed(config)
    yield from _arms(config)
    yield from _methods(config)
    yield from _baseline(config)


def _lists(config: Config) -> Iterator[str]:
    keys = [arm.key for arm in config.arms]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"arms: '{key}' is duplicated: give one of them another name"
    if len(set(config.seeds)) < len(config.seeds):
        yield "seeds: a seed is duplicated"
    if not config.seeds:
        yield "seeds: at least one is needed"
    if not config.evaluation.checkpoints:
        yield "evaluation.checkpoints: at least one of best, last is needed"


def _data(config: Config) -> Iterator[str]:
    from sirius_rec.data.sources import FRAMES, SOURCES

    data = config.data
    if data.source not in SOURCES and not (data.source == FRAMES and data.prepared):
        yield f"data.source: no source is called '{data.source}'{nearest(data.source, SOURCES)}"
    train = sum("train" in slate.splits for slate in data.slates)
    if train != 1:
        have = f"{train} do" if train else "none does"
        yield f"data.slates: exactly one entry must have 'train' among its splits, {have}"
    full = [split for s in data.slates if s.protocol == "full" for split in s.splits if split != "test"]
    if full:
        yield (
            f"data.slates: protocol full covers {', '.join(dict.fromkeys(full))}: language models train and "
            "validate on slates of a size; give it splits: [test]"
        )


def _backbone(config: Config) -> Iterator[str]:
    backbone = config.backbone
    tiny = backbone.tiny
    if backbone.name == "tiny" and tiny.hidden_size % tiny.heads:
        yield f"backbone.tiny: hidden_size {tiny.hidden_size} is not a multiple of heads {tiny.heads}"
    if backbone.name == "tiny" and backbone.lora is not None:
        yield "backbone.lora: the tiny backbone is fully trained: remove lora, or name a pretrained backbone"
    if backbone.gguf_file is not None and backbone.name in ("tiny", "smollm2"):
        yield f"backbone.gguf_file: {backbone.name} has no file of yours: remove it, or name the folder it lies in"
    elif backbone.gguf_file is not None and not backbone.gguf_file.endswith(".gguf"):
        yield f"backbone.gguf_file: '{backbone.gguf_file}' must be the name of a .gguf file"
    elif backbone.gguf_file is None and backbone.name.endswith(".gguf"):
        yield "backbone.name: must be a folder: write the name of the .gguf file in it as gguf_file"
    if backbone.quantization is not None and backbone.lora is None:
        yield "backbone.quantization: 4-bit weights cannot be trained: add lora: {rank: 32, alpha: 8}"
    for name, stage in (("sft", config.sft), ("align", config.align), ("backbone.pretrain", backbone.pretrain)):
        problem = stage.batch_problem() if stage is not None else None
        if problem:
            yield f"{name}: {problem}"


def _streamed(config: Config) -> Iterator[str]:
    if not config.training.stream:
        return
    if config.training.share == "user":
        yield "training.stream: rows come in a random order, whose users are not together: set training.share: none"
    if config.sft.targets == "all":
        yield "training.stream: sft.targets: all cuts whole histories into pieces: set targets: next"
    for number, arm in enumerate(config.arms):
        if arm.negatives_from == "on_policy":
            yield f"arms.{number} ({arm.key}): training.stream: the policy's negatives need all rows at hand: take hard"


def _starts(config: Config) -> Iterator[str]:
    sft, align = config.sft.start, config.align.start
    if sft is not None and align is not None:
        yield (
            "sft.from, align.from: alignment begins at the SFT that is trained, or at another run's: leave one of them "
            "out"
        )
    if sft is None and not config.sft.epochs:
        yield "sft.epochs: 0 measures what sft.from names, and nothing is named: name a run, or train an epoch at least"
    for name, start in (("sft", sft), ("align", align)):
        if start is not None and not config.trains_language_model:
            yield f"{name}.from: with arms: [] and methods nothing begins there: leave it out, or add an arm"
        if start is not None and config.data.hold_out:
            yield f"data.hold_out: the model of {name}.from may have met what is held out: leave one of them out"
    if align is None or align.method in (None, "sft"):
        return
    for number, arm in enumerate(config.arms):
        if arm.negatives_from == "on_policy":
            yield (
                f"arms.{number} ({arm.key}): negatives_from on_policy is compared with where its training begins, and "
                f"align.from {align.method} with that arm's SFT: begin at the SFT, or take other negatives"
            )


def _arms(config: Config) -> Iterator[str]:
    try:
        form = config.prompts.form()
    except ConfigError as error:
        yield f"prompts.template: {error}"
    else:
        if config.sft.targets == "all" and (form.shows_slate or form.answer is not None or config.prompts.chat):
            yield (
                "sft.targets: all reads histories as texts that go on, and so must prompts: set prompts.slate: false, "
                "a template with answer: null, and no chat, or targets: next"
            )
    unread = [key for key, default in (("order", "time"), ("piece", None)) if getattr(config.sft, key) != default]
    if config.sft.targets == "next" and unread:
        yield (
            f"{', '.join(f'sft.{key}' for key in unread)}: are of targets: all, and targets: next reads rows as they "
            "are: leave them out, or set targets: all"
        )
    slate_size = _train_slate_size(config)
    for number, arm in enumerate(config.arms):
        yield from _key_problems(f"arms.{number}.name", arm.key, reserved_keys(), "arm")
        try:
            objective = config.objective(arm)
        except ConfigError as error:
            yield f"arms.{number} ({arm.key}): {error}"
            continue
        except ImportError:  # data-only installation: arms are checked where they are trained
            continue
        if objective.needs_observed:
            yield (
                f"arms.{number} ({arm.key}): rows of a data set carry no observed reward: train it with SiriusTrainer, "
                "on records with a 'reward'"
            )
        for problem in _source(arm).problems(objective):
            yield f"arms.{number} ({arm.key}): {problem}"
        if arm.negatives_from == "on_policy" and config.prompts.slate:
            yield (
                f"arms.{number} ({arm.key}): negatives_from on_policy searches the whole catalogue, which prompts that "
                "list the candidates do not allow: set prompts.slate: false"
            )
        pool = _source(arm).pool
        if slate_size and arm.negatives_from == "hard" and pool > slate_size - 1:
            yield f"arms.{number} ({arm.key}): pool {pool}, but a train slate of {slate_size} has {slate_size - 1}"
        sampled = objective.negatives if isinstance(objective.negatives, int) else 0
        if slate_size and objective.uses_negatives and sampled > slate_size - 1:
            has = f"a train slate of {slate_size} has {slate_size - 1}"
            yield f"arms.{number} ({arm.key}): {sampled} negatives, but {has}"


def _source(arm: ArmSection) -> NegativeSource:
    from sirius_rec.training.negatives import NegativeSource

    return NegativeSource(arm.negatives_from, **{k: v for k, v in arm.source.items() if k != "negatives_from"})


def _train_slate_size(config: Config) -> int | None:
    return next((slate.size for slate in config.data.slates if "train" in slate.splits), None)


def _key_problems(place: str, key: str, taken: tuple[str, ...], kind: str) -> Iterator[str]:
    if not _KEY.fullmatch(key):
        yield f"{place}: '{key}' may hold letters, digits, _ and . only"
    elif key in taken:
        yield f"{place}: '{key}' is taken: give the {kind} another name"


def _methods(config: Config) -> Iterator[str]:
    taken = (*reserved_keys(), *(arm.key for arm in config.arms))
    mistaken = False
    for number, entry in enumerate(config.methods):
        place = f"methods.{number}"
        if entry.method not in METHODS:
            yield f"{place}: no method is called '{entry.method}'{nearest(entry.method, METHODS)}"
            mistaken = True
            continue
        kind = METHODS[entry.method]
        yield from _key_problems(f"{place}.name", entry.key, taken, "method")
        taken = (*taken, entry.key)
        if entry.seeds is not None and not (kind.own_seeds and set(config.seeds) <= set(entry.seeds)):
            with_seeds = ", ".join(name for name, method in METHODS.items() if method.own_seeds)
            yield (
                f"{place}.seeds: only {with_seeds} may have seeds of their own, which must include the run's "
                f"({', '.join(map(str, config.seeds))})"
            )
        try:
            kind(config, entry)
        except ConfigError as error:
            yield f"{place} ({entry.key}): {error}"
            mistaken = True
    if mistaken:
        return
    try:
        methods = build_methods(config)
    except ConfigError as error:
        yield f"methods: {error}"
    else:
        yield from _retrievers(config, methods)


def _retrievers(config: Config, methods: Mapping[str, Method]) -> Iterator[str]:
    able = [key for key, method in methods.items() if method.ranks_catalogue and not method.uses_backbone]
    if len(set(config.evaluation.retrieved)) < len(config.evaluation.retrieved):
        yield "evaluation.retrieved: an entry is duplicated"
    for number, entry in enumerate(config.evaluation.retrieved):
        if entry.retriever not in able:
            yield (
                f"evaluation.retrieved.{number}: '{entry.retriever}' is no method of this run that scores the whole "
                f"catalogue: name one of {', '.join(able)}, or add one to methods"
            )
    if config.evaluation.retrieved and not any(s.protocol == "full" and "test" in s.splits for s in config.data.slates):
        yield (
            "evaluation.retrieved: what users had met is in the slates of the whole catalogue: add "
            "{protocol: full, splits: [test]} to data.slates"
        )


def _baseline(config: Config) -> Iterator[str]:
    try:
        from sirius_rec.objectives.presets import LOSSES
    except ImportError:  # data-only installation
        return
    keys = [*(arm.key for arm in config.arms), *(entry.key for entry in config.methods), *reserved_keys(), *LOSSES]
    baseline = config.evaluation.baseline
    if baseline is not None and baseline not in keys:
        yield f"evaluation.baseline: no method is called '{baseline}'{nearest(baseline, dict.fromkeys(keys))}"
