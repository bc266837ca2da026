"""`SiriusConfig`: transformers' TrainingArguments plus the objective and how candidates are scored."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from sirius_rec import processes
from sirius_rec.errors import ConfigError
from sirius_rec.objectives.losses import Objective
from sirius_rec.objectives.presets import build_objective
from sirius_rec.scoring.rows import BATCH_TOKENS
from sirius_rec.training.negatives import ON_POLICY, POOL, REFRESH, SLATE, NegativeSource

SHARE_MODES = ("none", "user")


@dataclass
class SiriusConfig(TrainingArguments):
    """Options of `SiriusTrainer`; everything of TrainingArguments applies.

    loss: a name in `objectives.presets.LOSSES`. The next options override its parts; None keeps the preset's value.
    beta (> 0; 1.0 in every preset, 0.1 in TRL), gamma (≥ 0; 0 for the DPO family), negatives (a number or "all"),
    reward, link, comparison, anchor, anchor_constant, anchor_margin (≥ 0), nll_weight (λ ≥ 0), nll_per_token, filter,
    label_smoothing (0 ≤ ε < 0.5), dpop_lambda (λ ≥ 0), boundary, beta_spread, beta_margin, reward_temperature (λ > 0):
    see `objectives.losses.Objective`.
    negatives_from: "slate" (a record's rejected completions), "hard" or "on_policy"; pool, skip, refresh: see
        `training.negatives.NegativeSource`. on_policy needs the trainer's `catalogue`.
    scoring: "packed" (as a tree, each prefix once), "naive", or "auto" (packed where it is known to be right; models
        with recurrent layers train naive, and are evaluated from copies of the prompt's cache).
    score_unsampled: how many candidates beyond the sampled negatives are scored in each step for the logs, or "all".
    epsilons: the ε of the logged insensitive shares.
    max_length: context in tokens; None takes the model's.
    share: "user" for steps of whole runs of a user's rows, which share their histories; records then have a `user`.
        "none" for steps of rows at random.
    stream: read and tokenise records as their steps come, and hold none (`training.streaming`): for more than fit into
        memory. They are read by number, in a random order: a Hugging Face Dataset, or whatever gives a record for one.
    examples_per_epoch: an epoch is that many records, walking through all of them; None: all in each epoch.
    eval_batch_tokens: tokens per batch in evaluation and reference scoring.
    disable_dropout: train without dropout. None: in preference losses, where policy and reference are compared (SFT
        keeps the model's).
    chat: wrap text prompts in the tokenizer's chat template.
    """

    loss: str = "dpo"
    beta: float | None = None
    gamma: float | None = None
    negatives: int | str | None = None
    anchor: str | None = None
    anchor_constant: float | None = None
    anchor_margin: float | None = None
    nll_weight: float | None = None
    nll_per_token: bool | None = None
    filter: bool | None = None
    reward: str | None = None
    link: str | None = None
    comparison: str | None = None
    label_smoothing: float | None = None
    dpop_lambda: float | None = None
    boundary: bool | None = None
    beta_spread: float | None = None
    beta_margin: float | None = None
    reward_temperature: float | None = None
    negatives_from: str = SLATE
    pool: int = POOL
    skip: int = 0
    refresh: int = REFRESH
    scoring: str = "auto"
    score_unsampled: int | str = "all"
    epsilons: list[float] = field(default_factory=lambda: [0.1, 0.5])
    max_length: int | None = None
    share: str = "none"
    stream: bool = False
    examples_per_epoch: int | None = None
    eval_batch_tokens: int = BATCH_TOKENS
    disable_dropout: bool | None = None
    chat: bool = False

    learning_rate: float = 1e-5
    logging_steps: float = 10
    report_to: Any = "none"
    remove_unused_columns: bool | None = False
    # A NaN must stop the run, not be averaged away.
    logging_nan_inf_filter: bool = False

    def objective(self) -> Objective:
        """The composed objective; ConfigError where the parts do not fit together."""
        return build_objective(self.loss, **{f.name: getattr(self, f.name) for f in fields(Objective)})

    def negative_source(self) -> NegativeSource:
        """Where negatives come from."""
        return NegativeSource(self.negatives_from, self.pool, self.skip, self.refresh)

    @property
    def splits_weights(self) -> bool:
        """Whether FSDP or DeepSpeed is asked for, here or of `accelerate launch`."""
        return bool(self.fsdp or self.deepspeed) or processes.split_weights()

    def check(self) -> None:
        """ConfigError for options of TrainingArguments that would train something else than they say, silently."""
        for problem in self.negative_source().problems(self.objective()):
            raise ConfigError(problem)
        if self.share not in SHARE_MODES:
            raise ConfigError(f"share: choose one of {', '.join(SHARE_MODES)}, got {self.share!r}")
        if self.stream and self.share == "user":
            raise ConfigError("stream: rows are read in a random order, whose users are not together: set share none")
        if self.stream and self.negatives_from == ON_POLICY:
            raise ConfigError("stream: negatives from the policy need all rows at hand: set stream off, or hard")
        if self.splits_weights and self.negatives_from == ON_POLICY:
            raise ConfigError("negatives_from on_policy: searches a whole model in each process: no FSDP, no DeepSpeed")
        if self.n_gpu > 1:
            raise ConfigError(
                f"{self.n_gpu} GPUs in one process: start with torchrun or accelerate launch, or show it one GPU "
                "(CUDA_VISIBLE_DEVICES=0)"
            )
        if self.fp16:
            # Scoring outside of a step, the reference's among it, knows bfloat16 and float32 only.
            raise ConfigError("fp16: policy and reference would be scored in different precisions: use bf16 or float32")
        if self.dataloader_num_workers and self.negatives_from == ON_POLICY:
            raise ConfigError("negatives_from on_policy: workers would ask their own copy of the policy: set "
                              "dataloader_num_workers=0")  # fmt: skip
        if self.dataloader_num_workers and self.dataloader_persistent_workers:
            # The workers' copy of the data set would stay in its first epoch: same order, same negatives.
            raise ConfigError(
                "dataloader_persistent_workers: every epoch would repeat the first: set "
                "dataloader_persistent_workers=False"
            )
        for name, neutral in (("label_smoothing_factor", 0.0), ("train_sampling_strategy", "random")):
            value = getattr(self, name, neutral)
            if value != neutral:  # the Trainer would take it and nothing would change
                raise ConfigError(f"{name}={value!r} has no effect on preference losses: leave it out")
        if self.auto_find_batch_size:
            # Examples are weighted for the batch size that was configured.
            raise ConfigError(
                "auto_find_batch_size: a step would no longer be the mean over its examples: set "
                "per_device_train_batch_size and gradient_accumulation_steps"
            )
