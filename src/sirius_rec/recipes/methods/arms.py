"""Arms: preference alignment of the best SFT epoch by one objective, Eq. 5, 7 and 11."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sirius_rec import atomic, processes
from sirius_rec.config import ArmSection, Config, MethodSection
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.rankers.catalogue.trie import catalogue_trie
from sirius_rec.recipes import starting
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods.base import Prerequisite, Role, alone
from sirius_rec.recipes.methods.finetuned import Finetuned
from sirius_rec.recipes.methods.sft import Sft
from sirius_rec.recipes.models import load_stage_model
from sirius_rec.recipes.records import ALIGN_STREAM, interacted_by, train_records, training_rows, validation_set
from sirius_rec.recipes.reference import read_reference, score_reference
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.streamed import Rows
from sirius_rec.recipes.training import train_stage

if TYPE_CHECKING:
    from sirius_rec.objectives.losses import Objective

OBJECTIVE = "objective.json"  # what it is trained with, written before it is


class Arm(Finetuned):
    role: ClassVar[Role] = "arm"
    studied = True
    stage = "align"

    def __init__(self, config: Config, arm: ArmSection) -> None:
        super().__init__(config, MethodSection(method=arm.loss, name=arm.name))
        self.arm = arm
        rate = arm.learning_rate
        self.training = config.align if rate is None else config.align.changed(learning_rate=rate)

    @property
    def objective(self) -> Objective:
        """The composed objective; ConfigError where its parts do not fit together."""
        return self.config.objective(self.arm)

    @property
    def label(self) -> str:
        return self.arm.name or _label(self.config, self.arm)

    @property
    def base(self) -> str | None:
        """The arm with the same objective but for the anchor, and the same training; none for what has no anchor."""
        own, rate, general = self.objective, self.training.learning_rate, self.config.align.learning_rate
        others = (
            other
            for other in self.config.arms
            if (other.learning_rate or general) == rate and other.source == self.arm.source
        )
        return next((other.key for other in others if self.config.objective(other).is_base_of(own)), None)

    def facts(self, run: Run) -> dict[str, Any]:
        """With the parts of the objective that it was trained with, whatever its name stands for now."""
        saved = next((one for seed in self.seeds if (one := self._trained_with(run, seed))), {})
        parts = self.objective.parts()
        return {**super().facts(run), **{part: saved.get(part, now) for part, now in parts.items()}}

    def prerequisites(self) -> tuple[Prerequisite, ...]:
        if not self.objective.needs_reference:
            return ()
        return (Prerequisite("reference", "align", score_reference, after=(Sft.name,)),)

    def builds_on(self) -> tuple[str, ...]:
        return (Sft.name, *super().builds_on())

    def made_in(self, run: Run, seed: int) -> list[Any]:
        return [*Sft(self.config).made_in(run, seed), self.folder(run, seed)]

    def check(self, run: Run) -> None:
        """Its prompts are SFT's, which are checked.

        RunError where a seed was begun with another objective. ConfigError for negatives from a policy whose weights
        are split over processes, or which could be items that a user had in rows that training is denied.
        """
        for seed in self.seeds:
            if changed := self.other_objective(run, seed):
                raise RunError(changed)
        if self.arm.negatives_from != "on_policy":
            return
        if processes.split_weights():
            raise ConfigError(f"arms: {self.key} searches a whole model in each process: no FSDP, no DeepSpeed")
        if lost := run.dataset.info.get("hold_out", {}).get("pairs_lost", 0):
            raise ConfigError(
                f"arms ({self.key}): negatives_from on_policy: data.hold_out dropped rows that alone told of {lost:,} "
                "items that users had, and they would be negatives: lower data.window.min_history, or take hard"
            )

    def folder(self, run: Run, seed: int) -> Path:
        return run.folder.arm(self.key, seed)

    def _trained_with(self, run: Run, seed: int) -> dict[str, Any] | None:
        """The identity of the objective that a seed has trained with; None before its first checkpoint."""
        folder = self.folder(run, seed)
        begun = self.is_done(run, seed) or any((folder / "checkpoints").glob("*"))
        file = folder / OBJECTIVE
        return dict(json.loads(file.read_text())) if begun and file.is_file() else None

    def other_objective(self, run: Run, seed: int) -> str | None:
        """In words, where a seed was begun with another objective than the name stands for now: a preset's numbers, and
        the code of parts of one's own, are in no configuration."""
        from sirius_rec.objectives.identity import difference

        saved = self._trained_with(run, seed)
        changed = difference(saved, self.objective) if saved else None
        return changed and (
            f"{self.folder(run, seed)}: was begun with another objective ({changed}): delete "
            f"{self.folder(run, seed).parent} and {run.folder.scores / self.key}-s[0-9]* to train it anew, or give the "
            "new one a name of its own"
        )

    def fit(self, run: Run, seed: int) -> None:
        from sirius_rec.objectives.identity import identity

        changed = self.other_objective(run, seed)
        if self.is_done(run, seed):
            if changed:
                log(f"warning: {changed}; its results are of the old one")
            return
        if changed:
            raise RunError(changed)
        if processes.is_main():
            atomic.write_json(self.folder(run, seed) / OBJECTIVE, identity(self.objective))
        rows = training_rows(run, self.training, seed, ALIGN_STREAM)
        ref = read_reference(run, seed) if self.objective.needs_reference else {}
        train_stage(
            run,
            self.training,
            self.folder(run, seed),
            name=f"{self.key} s{seed}",
            model=load_stage_model(run.config, self._begins_at(run, seed)),
            tokenizer=run.tokenizer,
            records=train_records(run, run.template, rows),
            loss=self.loss_options(),
            seed=seed,
            card=self.card(seed),
            validation=validation_set(run),
            ref_logps=ref.get("train"),
            eval_ref_logps=ref.get("val"),
            is_reference=self.config.align.start is None,
            **self._catalogue(run, rows),
        )

    def settled(self, run: Run, seed: int) -> Config:
        """RunError where it would be fitted with another objective than it was measured with."""
        if changed := self.other_objective(run, seed):
            raise RunError(changed)
        align = self.config.align.changed(stop_after=self._stop(run, seed))
        return alone(run.config, arms=(self.arm,), align=align, **Sft(self.config).stopped(run, seed))

    def _begins_at(self, run: Run, seed: int) -> Path:
        return run.folder.sft(seed) / "best" if self.config.align.start is None else starting.policy(run, seed)

    def _catalogue(self, run: Run, rows: Rows) -> dict[str, Any]:
        """What negatives from the policy are taken from."""
        if self.arm.negatives_from != "on_policy":
            return {}
        from sirius_rec.training.mining import Catalogue

        return {"catalogue": Catalogue(catalogue_trie(run.encoder, run.dataset.titles), interacted_by(run, rows))}

    def loss_options(self) -> dict[str, Any]:
        """What the trainer is told of the loss, as options of `SiriusConfig`."""
        return {
            "loss": self.arm.loss,
            **self.config.arm_options(self.arm),
            **self.arm.source,
            "score_unsampled": self.config.align.score_unsampled,
            "epsilons": list(self.config.align.epsilons),
            # In every arm, SFT as a control too: arms must differ in their loss alone.
            "disable_dropout": True,
        }


def _label(config: Config, arm: ArmSection) -> str:
    """`S-DPO (softmax), negatives=5`: what the arm overrides of its preset is not named as if it held."""
    from sirius_rec.objectives.presets import LOSSES

    preset = asdict(config.objective(ArmSection(loss=arm.loss)))
    own = {key: value for key, value in asdict(config.objective(arm)).items() if value != preset[key]}
    if arm.learning_rate not in (None, config.align.learning_rate):
        own["learning_rate"] = arm.learning_rate
    if arm.negatives_from != "slate":
        own |= {"from": arm.negatives_from, **{k: v for k, v in arm.source.items() if k != "negatives_from"}}
    label = LOSSES[arm.loss].label
    words = {
        "negatives": "whole slate" if preset["negatives"] == "all" else str(preset["negatives"]),
        "anchor": f"{preset['anchor']} anchor",
    }
    for word in (words[key] for key in own if key in words):
        label = label.replace(f" ({word})", "").replace(f", {word})", ")")
    if own.get("anchor") == "none":
        label = label.replace(" + SIRIUS", "")
    if own.get("nll_weight") == 0:
        label = label.replace(" + NLL", "")
    return ", ".join([label, *(f"{key}={_in_yaml(value)}" for key, value in own.items())])


def _in_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
