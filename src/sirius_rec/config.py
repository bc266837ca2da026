"""Strict YAML → frozen configuration. Unknown keys are named with the nearest valid one; all errors come at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator, model_validator

from sirius_rec.config_problems import Contradiction, Contradictions, describe, further_problems, nearest
from sirius_rec.config_sections import (
    AlignSection,
    ArmSection,
    BackboneSection,
    ComputeSection,
    DataSection,
    EvaluationSection,
    MethodSection,
    PromptSection,
    Section,
    Seed,
    SlateSection,
    StageSection,
    TinySection,
)
from sirius_rec.config_yaml import apply_overrides, read_yaml
from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.floors import FLOORS

__all__ = ["ArmSection", "Config", "MethodSection", "StageSection", "TinySection", "load_config", "parse_config"]

# What score tables allow in the name of a method.
_ARM_NAME = re.compile(r"[A-Za-z0-9_.]+")
_RESERVED = ("sft", "pretrain", *FLOORS)


class Config(Section):
    """One run: data, backbone, SFT, arms, evaluation. `name` names the default run folder, runs/<name>.

    methods: other recommenders on the same slates, some on the same backbone. With methods and `arms: []` there is no
    SFT, and a backbone only if a method asks for it.
    """

    name: str = "run"
    seeds: tuple[Seed, ...] = (0,)
    data: DataSection = DataSection()
    prompts: PromptSection = PromptSection()
    backbone: BackboneSection = BackboneSection()
    sft: StageSection = StageSection()
    align: AlignSection = AlignSection()
    arms: tuple[ArmSection, ...] = (ArmSection(loss="dpo"), ArmSection(loss="dpo_sirius"))
    methods: tuple[MethodSection, ...] = ()
    evaluation: EvaluationSection = EvaluationSection()
    compute: ComputeSection = ComputeSection()

    @field_validator("arms", mode="before")
    @classmethod
    def _names_are_arms(cls, value: Any) -> Any:
        """A bare name stands for the preset of that name."""
        if isinstance(value, list | tuple):
            return [{"loss": arm} if isinstance(arm, str) else arm for arm in value]
        return value

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_methods(cls, value: Any) -> Any:
        """A bare name stands for the method of that name, tuned."""
        if isinstance(value, list | tuple):
            return [{"method": method} if isinstance(method, str) else method for method in value]
        return value

    @property
    def trains_language_model(self) -> bool:
        """Whether the run has SFT (and arms)."""
        return bool(self.arms) or not self.methods

    @property
    def language_methods(self) -> tuple[MethodSection, ...]:
        """The methods on the run's backbone."""
        from sirius_rec.rankers.methods import METHODS

        return tuple(m for m in self.methods if METHODS[m.method].kind == "language")

    @property
    def needs_backbone(self) -> bool:
        return self.trains_language_model or bool(self.language_methods)

    def method_stage(self, method: MethodSection) -> StageSection:
        """How a method that is trained as SFT is trained: the `sft` section with the method's own options in it.

        ConfigError naming the option that is unknown or out of range.
        """
        from sirius_rec.rankers.methods import METHODS, PAPER_STAGE, split_options, unknown_option

        _, changes = split_options(method.method, method.options)
        known = (*METHODS[method.method].options, *StageSection.model_fields)
        for key in changes:
            if key not in known:
                raise unknown_option(key, method.method, known)
        paper = PAPER_STAGE if method.preset == "paper" else {}
        try:
            stage = StageSection.model_validate({**self.sft.model_dump(), **paper, **changes})
        except ValidationError as error:
            raise ConfigError("; ".join(describe(error, StageSection))) from None
        if stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
            raise ConfigError(
                f"batch_size {stage.batch_size} is not a multiple of micro_batch_size {stage.micro_batch_size}"
            )
        return stage

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        if value.strip() in ("", ".", "..") or re.search(r"[/\\\0]", value):
            raise ValueError(f"must be the name of one folder (it names runs/<name>), got '{value}'")
        return value

    @model_validator(mode="after")
    def _check(self) -> Config:
        found = [
            *self._list_problems(), *self._data_problems(), *self._backbone_problems(), *self._name_problems(),
            *self._arm_problems(), *self._method_problems(),
        ]  # fmt: skip
        if found:
            raise Contradictions(found)
        return self

    def _list_problems(self) -> Iterator[Contradiction]:
        keys = [arm.key for arm in self.arms]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            places = (place for number, other in enumerate(keys) if other == key for place in self._named_by(number))
            yield Contradiction(f"arms: '{key}' stands twice: give one of them another name", *places)
        if len(set(self.seeds)) < len(self.seeds):
            yield Contradiction("seeds: a seed stands twice", "seeds")
        if not self.seeds:
            yield Contradiction("seeds: at least one is needed", "seeds")
        if not self.evaluation.checkpoints:
            place = "evaluation.checkpoints"
            yield Contradiction(f"{place}: at least one of best, last is needed", place)

    @staticmethod
    def _named_by(number: int) -> tuple[str, str]:
        """The places that name an arm."""
        return f"arms.{number}.name", f"arms.{number}.loss"

    def _train_slates(self) -> list[SlateSection]:
        return [slate for slate in self.data.slates if "train" in slate.splits]

    def _data_problems(self) -> Iterator[Contradiction]:
        from sirius_rec.data.sources import SOURCES

        source = self.data.source
        if source not in SOURCES:
            yield Contradiction(f"data.source: no source is called '{source}'{nearest(source, SOURCES)}", "data.source")
        train = len(self._train_slates())
        if train != 1:
            found = f"{train} do" if train else "none does"
            message = f"data.slates: exactly one entry must have 'train' among its splits, {found}"
            yield Contradiction(message, "data.slates")
        full = [split for s in self.data.slates if s.protocol == "full" for split in s.splits if split != "test"]
        if full:
            message = (
                f"data.slates: protocol full covers {', '.join(dict.fromkeys(full))}: language models train and "
                "validate on slates of a size; give it splits: [test]"
            )
            yield Contradiction(message, "data.slates")
        low, high = self.data.window.min_history, self.data.window.max_history
        if low > high:
            message = f"data.window: min_history {low} is above max_history {high}: lower it"
            yield Contradiction(message, "data.window.min_history", "data.window.max_history")

    def _backbone_problems(self) -> Iterator[Contradiction]:
        tiny = self.backbone.tiny
        if self.backbone.name == "tiny" and tiny.hidden_size % tiny.heads:
            message = f"backbone.tiny: hidden_size {tiny.hidden_size} is not a multiple of heads {tiny.heads}"
            yield Contradiction(message, "backbone.name", "backbone.tiny.hidden_size", "backbone.tiny.heads")
        if self.backbone.name == "tiny" and self.backbone.lora is not None:
            message = "backbone.lora: the tiny backbone is fully trained: remove lora, or name a pretrained backbone"
            yield Contradiction(message, "backbone.name")
        if self.backbone.quantization is not None and self.backbone.lora is None:
            message = "backbone.quantization: 4-bit weights cannot be trained: add lora: {rank: 32, alpha: 8}"
            yield Contradiction(message, "backbone.quantization")
        stages = {"sft": self.sft, "align": self.align, "backbone.pretrain": self.backbone.pretrain}
        for name, stage in stages.items():
            if stage is not None and stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
                micro = stage.micro_batch_size
                message = f"{name}: batch_size {stage.batch_size} is not a multiple of micro_batch_size {micro}"
                yield Contradiction(message, f"{name}.batch_size", f"{name}.micro_batch_size")

    def _name_problems(self) -> Iterator[Contradiction]:
        for number, arm in enumerate(self.arms):
            places = self._named_by(number)
            if not _ARM_NAME.fullmatch(arm.key):
                yield Contradiction(f"{places[0]}: '{arm.key}' may hold letters, digits, _ and . only", *places)
            elif arm.key in _RESERVED:
                yield Contradiction(f"{places[0]}: '{arm.key}' is taken: give the arm another name", *places)
        try:
            from sirius_rec.objectives.losses import LOSSES
        except ImportError:  # data-only installation
            return
        known = list(
            dict.fromkeys(["sft", *(arm.key for arm in self.arms), *(m.key for m in self.methods), *FLOORS, *LOSSES])
        )
        if self.evaluation.baseline not in known:
            baseline = self.evaluation.baseline
            message = f"evaluation.baseline: no arm is called '{baseline}'{nearest(baseline, known)}"
            names = (place for number in range(len(self.arms)) for place in self._named_by(number))
            yield Contradiction(message, "evaluation.baseline", *names)

    def _arm_problems(self) -> Iterator[Contradiction]:
        try:
            self.prompts.form()
        except ConfigError as error:
            yield Contradiction(f"prompts.template: {error}", "prompts.template")
        slate_size = next((slate.size for slate in self._train_slates()), None)
        for number, arm in enumerate(self.arms):
            place = f"arms.{number}"
            try:
                objective = self.objective(arm)
            except ConfigError as error:
                yield Contradiction(f"{place} ({arm.key}): {error}", f"{place}.loss")
                continue
            except ImportError:  # data-only installation: arms are checked where they are trained
                continue
            sampled = objective.negatives if isinstance(objective.negatives, int) else 0
            if slate_size and objective.uses_negatives and sampled > slate_size - 1:
                has = f"a train slate of {slate_size} has {slate_size - 1}"
                message = f"{place} ({arm.key}): {sampled} negatives, but {has}"
                yield Contradiction(message, f"{place}.loss", f"{place}.negatives", "data.slates")

    def _method_problems(self) -> Iterator[Contradiction]:
        from sirius_rec.rankers.methods import METHODS, check_options

        taken = [*_RESERVED, *(arm.key for arm in self.arms)]
        for number, method in enumerate(self.methods):
            place, named = f"methods.{number}", (f"methods.{number}.name", f"methods.{number}.method")
            if method.method not in METHODS:
                message = f"{place}: no method is called '{method.method}'{nearest(method.method, METHODS)}"
                yield Contradiction(message, *named)
                continue
            if not _ARM_NAME.fullmatch(method.key):
                yield Contradiction(f"{named[0]}: '{method.key}' may hold letters, digits, _ and . only", *named)
            elif method.key in taken:
                yield Contradiction(f"{named[0]}: '{method.key}' is taken: give the method another name", *named)
            taken.append(method.key)
            if method.seeds is not None and (
                METHODS[method.method].kind != "sequential" or not set(self.seeds) <= set(method.seeds)
            ):
                message = (
                    f"{place}.seeds: only gru4rec, caser, sasrec and morec may have seeds of their own, which must "
                    f"include the run's ({', '.join(map(str, self.seeds))})"
                )
                yield Contradiction(message, f"{place}.seeds")
            try:
                check_options(method.method, method.preset, method.options, lambda _, m=method: self.method_stage(m))
                self._check_against_data(method)
            except ConfigError as error:
                yield Contradiction(f"{place} ({method.key}): {error}", f"{place}.options", f"{place}.preset")
            except ImportError:  # data-only installation
                continue

    def _check_against_data(self, method: MethodSection) -> None:
        """ConfigError for negatives that a train slate does not have."""
        size = next((slate.size for slate in self._train_slates()), None)
        if method.method == "tallrec" and size and (asked := method.options.get("negatives", 1)) > size - 1:
            raise ConfigError(f"{asked} negatives, but a train slate of {size} has {size - 1}")

    def objective(self, arm: ArmSection) -> Any:
        """The arm's `Objective`: its own options over align's β and γ over the preset's."""
        from sirius_rec.objectives.losses import build_objective

        return build_objective(arm.loss, **self.arm_options(arm))

    def arm_options(self, arm: ArmSection) -> dict[str, Any]:
        """The loss options of an arm; align.gamma reaches the SimPO family only (γ = 0 for the DPO family)."""
        from sirius_rec.objectives.losses import LOSSES

        options = {k: v for k, v in arm.model_dump().items() if k not in ("loss", "name", "learning_rate")}
        if options["beta"] is None:
            options["beta"] = self.align.beta
        preset = LOSSES.get(arm.loss)
        if options["gamma"] is None and preset is not None and preset.options.get("gamma"):
            options["gamma"] = self.align.gamma
        return options

    def to_yaml(self) -> str:
        """The resolved configuration, as it is written into the run folder."""
        return str(yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False, allow_unicode=True))


def load_config(path: Path | str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), and check everything.

    Raises ConfigError with every problem in one line.
    """
    path = Path(path)
    return parse_config(apply_overrides(read_yaml(path), overrides or []), str(path))


# Stands for an arm that cannot be read while the others are checked.
_STAND_INS: dict[str, Callable[[int], Any]] = {"arms": lambda number: {"loss": "sft", "name": f"unreadable.{number}"}}


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check a raw mapping. Raises ConfigError with every problem in one line."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = describe(error, Config) + further_problems(error, raw, Config, _STAND_INS)
        raise ConfigError(f"{where}: {'; '.join(dict.fromkeys(problems))}") from None
