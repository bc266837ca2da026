"""`SiriusTrainer`: preference alignment of any causal language model on slates, on transformers' Trainer.

One forward pass scores the positives and all their candidates (`scoring.packed`); the objective is composed in
`objectives`; every step logs what reward hacking looks like from inside (`objectives.evidence`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback

from sirius_rec.errors import TrainingError
from sirius_rec.objectives.evidence import evidence
from sirius_rec.objectives.losses import LossOutput, compute_loss, rounding_of
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.scoring.masks import first_range
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import context_of, tree_logps, unwrapped
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import resolve_scoring, score_rows, self_check, training_mode
from sirius_rec.scoring.tree import CandidateTree
from sirius_rec.training.averages import Averages
from sirius_rec.training.checkpoints import (
    PREFIX,
    list_checkpoints,
    mark_complete,
    prune,
    resume_point,
    step_of,
    writing,
)
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.drawn import epochs_of, score_drawn
from sirius_rec.training.dropout import check_no_noise, disable_dropout
from sirius_rec.training.finite import check_weights, stop_on_nan
from sirius_rec.training.held_out import HeldOutLog
from sirius_rec.training.held_out_evidence import held_out_evidence, rank_metrics
from sirius_rec.training.inputs import (
    check_arguments,
    check_reference,
    check_rows,
    check_trainable,
    policy_of,
    records_of,
)
from sirius_rec.training.memory import MemoryEstimate, estimate
from sirius_rec.training.metrics_log import MetricsLog
from sirius_rec.training.mining import Catalogue, Miner
from sirius_rec.training.negatives import HARD, ON_POLICY, strongest
from sirius_rec.training.records import TreeCollator, encode_records, observed_rewards
from sirius_rec.training.streaming import training_data

EvalHook = Callable[[list[np.ndarray]], dict[str, float]]
_SELF_CHECK_ROWS = 2


class SiriusTrainer(Trainer):
    """Trains a causal LM on preference records (`prompt`, `chosen`, `rejected`: a text or a list of texts; `reward`, a
    number, where the loss weights records by what was observed).

    model: any `AutoModelForCausalLM` in float32, a PEFT model, or a hub id or folder. args: `SiriusConfig`.
    processing_class: its tokenizer.
    train_dataset, eval_dataset: records: lists, Hugging Face data sets, pandas or polars frames.
    peft_config: wrap the model in a new adapter first.
    ref_logps, eval_ref_logps: log π_ref per record and completion (nats, summed over tokens, the chosen first), where
        they are cached already, of both sets or of none; otherwise the model as it is before the first step is the
        reference, and its log-probs are computed once.
    eval_hook: gets the log-probs of every record of `eval_dataset` (completion 0 the chosen one), returns more metrics.
    encoder: how texts become ids, where that is not `processing_class` as it is.
    catalogue: what negatives are taken from with `negatives_from: on_policy`; evaluation stays on the records' own.

    Evaluation ranks the chosen text among the rejected ones by log π(y|x): HR@K, NDCG@K, MRR and the evidence of
    `objectives.evidence`. Everything logged also goes to `metrics_file` (default: metrics.jsonl in the output folder),
    and the log-probs behind every evaluation to held_out/ beside it.

    Raises ConfigError or DataError for options and records that would train something else than they say.
    """

    def __init__(
        self,
        model: Any,
        args: SiriusConfig,
        train_dataset: Any,
        processing_class: Any,
        eval_dataset: Any = None,
        *,
        peft_config: Any = None,
        ref_logps: Sequence[np.ndarray] | None = None,
        eval_ref_logps: Sequence[np.ndarray] | None = None,
        eval_hook: EvalHook | None = None,
        encoder: Encoder | None = None,
        catalogue: Catalogue | None = None,
        metrics_file: Path | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(args, kwargs)
        self.objective = args.objective()
        model = policy_of(model)
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        check_trainable(model)
        self.source = args.negative_source()
        self._own_pad_id = getattr(unwrapped(model).config, "pad_token_id", None)
        self._no_dropout = self.objective.uses_negatives if args.disable_dropout is None else args.disable_dropout
        if self._no_dropout:
            disable_dropout(model)
        self.encoder = encoder or Encoder(processing_class, chat=args.chat)
        self.scoring = training_mode(model, args.scoring)
        dataset = self._read(model, args, train_dataset, eval_dataset)
        if self.source.kind != ON_POLICY:  # which scores what it finds itself
            check_reference(ref_logps, eval_ref_logps, dataset.rows, self.eval_rows)
        self.collator.ref_logps, self.eval_ref_logps = ref_logps, eval_ref_logps
        # The next evaluation's log-probs, where they are known already: the policy's before its first step are those of
        # the reference that it is.
        self.known_logps: Sequence[np.ndarray] | None = None
        self._scored_epochs: int | None = None  # for which the reference was scored here
        if self.source.kind == ON_POLICY:
            dataset.miner = self.collator.miner = Miner(model, catalogue, dataset.rows, args, self.encoder.pad_id)
        self.eval_hook = eval_hook
        # Number of rows → what gets the numbers of those just done, where somebody wants to see an evaluation move.
        self.progress_of: Callable[[int], Callable[[int], None]] | None = None
        self.metrics_log = MetricsLog(metrics_file or Path(args.output_dir) / "metrics.jsonl")
        self.held_out_log = HeldOutLog(self.metrics_log.path.parent / "held_out")
        self._averages = Averages()
        self._tokens = torch.zeros((), dtype=torch.long)
        self._since = time.perf_counter()
        # The Trainer's own rotation removes the old checkpoint before the new one is marked complete.
        # A copy, because the caller's arguments may serve another trainer.
        args = copy.copy(args)
        self._keep_checkpoints, args.save_total_limit = args.save_total_limit, None
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            eval_dataset=self.eval_rows or None,
            processing_class=processing_class,
            data_collator=self.collator,
            callbacks=callbacks,
            **kwargs,
        )
        self.pop_callback(PrinterCallback)
        # Our loss is a mean over examples already; the Trainer must not divide by tokens.
        self.model_accepts_loss_kwargs = False

    # before the first step

    def _read(self, model: Any, args: SiriusConfig, train_dataset: Any, eval_dataset: Any) -> Any:
        """Encode and check all records; what is trained on. Sets the collator and the rows of evaluation."""
        context = args.max_length or context_of(model)
        if self.scoring == "packed":
            context = min((n for n in (context, first_range(unwrapped(model).config)) if n), default=None)
        self._check_rows = partial(check_rows, model=model, context=context, tokenizer=self.encoder.tokenizer)
        self.eval_rows: list[PromptCompletions] = []
        self.eval_observed: list[float] | None = None
        if eval_dataset is not None:
            self.eval_rows, self.eval_observed = self._evaluated(eval_dataset)
        records = records_of(train_dataset, "train_dataset")
        dataset, observed = training_data(records, args, self.encoder, self._check_rows)
        self.collator = TreeCollator(dataset.rows, with_rows=self.scoring == "naive")
        self.collator.observed = observed
        return dataset

    def _evaluated(self, eval_dataset: Any) -> tuple[list[PromptCompletions], list[float] | None]:
        """Rows of records, and the observed reward of each where the loss needs it."""
        records = list(records_of(eval_dataset, "eval_dataset"))
        rows = encode_records(records, self.encoder)
        self._check_rows(rows)
        return rows, observed_rewards(records) if self.objective.needs_observed else None

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` goes on from the newest whole checkpoint, or starts afresh."""
        rows, pad_id = self.train_dataset.rows[:_SELF_CHECK_ROWS], self.encoder.pad_id
        scoring = resolve_scoring(self.model, self.args.scoring)
        if scoring != "naive":
            self_check(self.model.to(self.args.device), rows, pad_id, scoring)
        if self._no_dropout:
            check_no_noise(self.model.to(self.args.device), rows, pad_id, self.scoring)
        if resume_from_checkpoint is True:
            with self.args.main_process_first(local=False):  # it also removes what a kill left behind
                checkpoint = resume_point(Path(self.args.output_dir))
            resume_from_checkpoint = str(checkpoint) if checkpoint else None
        at = -1
        if resume_from_checkpoint:
            at = step_of(Path(resume_from_checkpoint))
        miner = self.train_dataset.miner
        if self.objective.needs_reference:
            if miner is None:  # one scores what it finds itself: nobody knows it yet
                self._ensure_reference(afresh=at < 0)
            self._ensure_eval_reference()
        if at < 0 and miner is not None:
            miner.restart()
        if self.is_world_process_zero():
            self.metrics_log.rewind(at)
            self.held_out_log.rewind(at)
        self._since = time.perf_counter()
        if at < 0 and self.eval_rows and self.args.eval_strategy != "no":
            self.evaluate()
        self.known_logps = None
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        check_weights(self.model, self.state.global_step)
        return result

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The Trainer writes the tokenizer's pad token into the configuration; without an embedding it cannot be loaded.
        unwrapped(self.model).config.pad_token_id = self._own_pad_id
        super()._save(output_dir, state_dict)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """In order: the data set shuffles itself by (seed, epoch), which also makes resuming exact."""
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def estimate_memory(self) -> MemoryEstimate:
        """What a step will need at most, in bytes per process; measured on a few rows, before training."""
        args = self.args
        self.model.to(args.device)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return estimate(
            self.model,
            self.train_dataset.heaviest(self.scoring),
            self.encoder.pad_id,
            scoring=self.scoring,
            shards=args.world_size if sharded else 1,
            bf16=bool(args.bf16),
        )

    def _ensure_reference(self, *, afresh: bool) -> None:
        """Score what the epochs will draw, unless cached log-probs were given; `afresh` as `score_drawn` has it."""
        data = self.train_dataset
        epochs = epochs_of(self.args, len(data), data.layout)
        if self.collator.ref_logps is None:
            self._scored_epochs = epochs
            self.collator.ref_logps = score_drawn(data, epochs, self.args, self.score, afresh=afresh)
        elif self._scored_epochs is not None and epochs > self._scored_epochs:
            raise TrainingError(
                f"the reference, the model before its first step, was scored for {self._scored_epochs} epochs: for "
                "more of them make a new trainer, or give ref_logps"
            )

    def _ensure_eval_reference(self) -> None:
        if self.eval_ref_logps is None and self.eval_rows:
            self.eval_ref_logps = self.known_logps = self.score(self.eval_rows)

    def score(self, rows: Sequence[Any], progress: Callable[[int], None] | None = None) -> list[np.ndarray]:
        """log π(y|x) of every completion of every row with the current model, in nats."""
        model = self.model.to(self.args.device)
        tokens = self.args.eval_batch_tokens
        with self.compute_loss_context_manager():
            return score_rows(
                model,
                rows,
                self.encoder.pad_id,
                mode=self.args.scoring,
                max_tokens=tokens,
                bf16=bool(self.args.bf16),
                progress=progress,
            )

    # a step

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss, so weighted that a step's is the mean over its examples; the evidence is added up."""
        tree: CandidateTree = inputs["tree"].to(self.args.device)
        if self.scoring == "naive":
            logp_BC = naive_logps(model, inputs["rows"], self.encoder.pad_id, self.args.device)
        else:
            logp_BC = tree_logps(model, tree)
        if self.source.kind == HARD:
            inputs["sampled_BC"] = strongest(logp_BC, inputs["sampled_BC"], int(self.objective.negatives))
        out = compute_loss(
            self.objective,
            logp_BC,
            tree.length_BC,
            inputs["sampled_BC"],
            tree.valid_BC,
            inputs.get("ref_logp_BC"),
            inputs.get("observed_B"),
        )
        loss = (out.loss_B * inputs["weight_B"]).sum()
        self._record(out, logp_BC, inputs, tree)
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            self._stop_on_nan()
        return (loss, {"logp_BC": logp_BC}) if return_outputs else loss

    def _record(self, out: LossOutput, logp_BC: Tensor, inputs: dict[str, Any], tree: CandidateTree) -> None:
        real = slice(inputs["n_real"])
        sampled_BC, valid_BC = inputs["sampled_BC"][real], tree.valid_BC[real]
        rounding = rounding_of(self.objective.shown_reward, self.objective.beta)
        parts = evidence(out.reward_BC[real], logp_BC[real], sampled_BC, valid_BC, self.args.epsilons, rounding)
        one = torch.ones((), device=logp_BC.device)
        if self.objective.filter:
            dropped = (sampled_BC & ~out.kept_BC[real]).sum().float()
            parts["dropped"] = (dropped, sampled_BC.sum().float())
        for name, tensor in (("log-probs", logp_BC), ("loss", out.loss_B)):
            parts[f"nonfinite {name}"] = ((~torch.isfinite(tensor.detach())).sum().float(), one)
        self._averages.add(parts)
        separate = (row.length("naive") for row in inputs["rows"]) if self.scoring == "naive" else [tree.n_nodes]
        self._tokens = self._tokens.to(logp_BC.device) + sum(separate)

    def _stop_on_nan(self) -> None:
        stop_on_nan(self._averages.means(), self.state, observed=self.objective.needs_observed)

    # logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the evidence to training lines and copy every line to metrics.jsonl."""
        if "loss" in logs:
            if not np.isfinite(logs["loss"]):
                self._stop_on_nan()
            means = self._averages.means(self._over_processes)
            logs |= {k: v for k, v in means.items() if not k.startswith("nonfinite ")}
            now = time.perf_counter()
            logs["tokens_per_second"] = float(self._over_processes(self._tokens)) / max(now - self._since, 1e-9)
            self._tokens = torch.zeros_like(self._tokens)
            self._since = now
            self._write("train", logs)
        super().log(logs, start_time)

    def _over_processes(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, all of which must ask for it."""
        return self.accelerator.reduce(tensor, "sum") if self.args.world_size > 1 else tensor

    def _write(self, kind: str, values: dict[str, float]) -> None:
        if self.is_world_process_zero():
            line = {"kind": kind, "step": self.state.global_step, "epoch": round(self.state.epoch or 0.0, 6)}
            self.metrics_log.write({**line, **values})

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Rank every evaluation record's chosen text among its candidates; metrics by name with the prefix.

        eval_dataset: other records than those of the trainer. With a loss that needs a reference they are ranked alone
        (HR@K, NDCG@K, MRR): their log π_ref would be of the model before its first step, which is gone.
        """
        started = time.perf_counter()
        check_weights(self.model, self.state.global_step)
        own = eval_dataset is None
        rows, observed = (self.eval_rows, self.eval_observed) if own else self._evaluated(eval_dataset)
        if not rows:
            raise TrainingError("evaluate: the trainer has no eval_dataset: hand over records")
        if self.objective.needs_reference and own:
            self._ensure_eval_reference()
        known, self.known_logps = self.known_logps if own else None, None
        logps = list(known) if known is not None else self.score(rows, self._evaluation_progress(len(rows)))
        metrics: dict[str, float] = rank_metrics(logps)
        if own or not self.objective.needs_reference:
            metrics |= held_out_evidence(
                self.objective,
                rows,
                logps,
                ref_logps=self.eval_ref_logps if own else None,
                observed=observed,
                epsilons=self.args.epsilons,
                seed=self.args.seed,
            )
        if self.eval_hook is not None and own:
            metrics |= self.eval_hook(logps)
        self._write("eval" if own else "other", metrics)
        if own and self.is_world_process_zero():
            self.held_out_log.write(self.state.global_step, self.state.epoch or 0.0, logps)
        # Evaluation is not training time.
        self._since += time.perf_counter() - started
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(dict(prefixed))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, prefixed)
        return prefixed

    def _evaluation_progress(self, rows: int) -> Callable[[int], None] | None:
        return self.progress_of(rows) if self.progress_of else None

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> Any:
        """Refused: there are no logits of tokens to hand out."""
        raise TrainingError(
            "predict: call evaluate(records) for metrics, and score(encode_records(records, trainer.encoder)) of "
            "training.records for log-probs"
        )

    # checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark complete, and only then remove what is no longer needed (the best is kept)."""
        check_weights(self.model, self.state.global_step)
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"{PREFIX}{self.state.global_step}"
        with writing(checkpoint):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every process writes its random state
            if self.args.should_save:
                mark_complete(checkpoint)
        if self.args.should_save and self._keep_checkpoints is not None:
            steps = [step_of(p) for p in list_checkpoints(folder)]
            keep = set(steps[-self._keep_checkpoints :])
            if self.state.best_global_step:
                keep.add(self.state.best_global_step)
            prune(folder, keep)
