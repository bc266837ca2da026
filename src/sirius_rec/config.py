"""Strict YAML → frozen configuration: its structure. What options must have to do with each other is checked by
`recipes.configuration`, which knows methods, losses and sources."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError, field_validator

from sirius_rec.config_sections import (
    AlignSection,
    ArmSection,
    BackboneSection,
    ComputeSection,
    DataSection,
    EvaluationSection,
    MethodSection,
    PromptSection,
    SftSection,
    TrainingSection,
    TuneSection,
)
from sirius_rec.config_yaml import read_yaml
from sirius_rec.errors import ConfigError
from sirius_rec.option_errors import in_one_line
from sirius_rec.options import Options, Seed

__all__ = ["ArmSection", "Config", "MethodSection", "read_config", "structure"]


class Config(Options):
    """One run: data, backbone, SFT, arms, evaluation. `name` names the default run folder, runs/<name>.

    plugins: Python modules that are imported first, in every process: they enter losses, sources and methods of your
    own into `LOSSES`, `SOURCES` and `METHODS` (docs/tutorials/extend.md).
    methods: other recommenders on the same slates, some on the same backbone. With methods and `arms: []` there is no
    SFT but with `sft.always`, and a backbone only if a method asks for it.
    """

    HOW: ClassVar[frozenset[str]] = frozenset({"tune", "plugins"})

    plugins: tuple[str, ...] = ()
    name: str = "run"
    seeds: tuple[Seed, ...] = (0,)
    data: DataSection = DataSection()
    prompts: PromptSection = PromptSection()
    backbone: BackboneSection = BackboneSection()
    training: TrainingSection = TrainingSection()
    sft: SftSection = SftSection()
    align: AlignSection = AlignSection()
    arms: tuple[ArmSection, ...] = (ArmSection(loss="dpo"), ArmSection(loss="dpo_sirius"))
    methods: tuple[MethodSection, ...] = ()
    evaluation: EvaluationSection = EvaluationSection()
    compute: ComputeSection = ComputeSection()
    tune: TuneSection = TuneSection()

    @field_validator("plugins")
    @classmethod
    def _imported(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for module in value:
            try:
                importlib.import_module(module)
            except Exception as error:
                raise ValueError(
                    f"module '{module}' cannot be imported ({type(error).__name__}: {error}): install it, or name its "
                    "folder in PYTHONPATH"
                ) from error
        return value

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
        return bool(self.arms) or not self.methods or self.sft.always

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        if value.strip() in ("", ".", "..") or re.search(r"[/\\\0]", value):
            raise ValueError(f"must be the name of one folder (it names runs/<name>), got '{value}'")
        return value

    def objective(self, arm: ArmSection) -> Any:
        """The arm's `Objective`: its own options over align's β and γ over the preset's."""
        from sirius_rec.objectives.presets import build_objective

        return build_objective(arm.loss, **self.arm_options(arm))

    def arm_options(self, arm: ArmSection) -> dict[str, Any]:
        """The loss options of an arm; align.gamma reaches the SimPO family only (γ = 0 for the DPO family)."""
        from sirius_rec.objectives.presets import LOSSES

        others = ("loss", "name", "learning_rate", "negatives_from", "pool", "skip", "refresh")
        options = {k: v for k, v in arm.model_dump().items() if k not in others}
        if options["beta"] is None:
            options["beta"] = self.align.beta
        preset = LOSSES.get(arm.loss)
        if options["gamma"] is None and preset is not None and preset.options.get("gamma"):
            options["gamma"] = self.align.gamma
        return options

    def to_yaml(self) -> str:
        """The resolved configuration, as it is written into the run folder."""
        return str(yaml.safe_dump(json.loads(self.model_dump_json()), sort_keys=False, allow_unicode=True))


def structure(raw: dict[str, Any], where: str) -> Config:
    """A raw mapping as a configuration. Raises ConfigError with the first unknown keys and values of another type."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {in_one_line(error, Config)}") from None


def read_config(path: Path) -> Config:
    """The configuration in a file that was checked when it was written."""
    return structure(read_yaml(path), str(path))
