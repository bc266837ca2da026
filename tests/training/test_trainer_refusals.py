"""SiriusTrainer where something is wrong: one line that names the cause, before anything is lost or saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from sirius_rec import SiriusTrainer
from sirius_rec.errors import ConfigError, DataError, PromptError, ScoringError, TrainingError
from sirius_rec.training.checkpoints import list_checkpoints, step_of
from sirius_rec.training.metrics_log import read_metrics
from sirius_rec.training.records import encode_records

Build = Callable[..., SiriusTrainer]
World = Callable[..., list[dict[str, Any]]]


class Poison(TrainerCallback):
    """Sets one weight to NaN before step `step` + 1."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)


def test_nan_weights_stop_with_step_and_cause(build: Build, tmp_path: Path) -> None:
    trainer = build(callbacks=[Poison(3)], num_train_epochs=4, save_strategy="steps", save_steps=1, save_total_limit=10)
    message = r"NaN or infinite loss after step 3 \(epoch 1\.00\): the model's log-probs are not finite: .* lower the"
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert [step_of(p) for p in list_checkpoints(tmp_path / "run")] == [1, 2, 3]
    assert all("NaN" not in json.dumps(line) for line in read_metrics(trainer.metrics_log.path))


def test_nan_reference_is_named_as_the_cause(build: Build) -> None:
    bad = [np.full(5, np.nan, np.float32)] * 12
    with pytest.raises(TrainingError, match=r"record \d+: the reference log-probs are not finite"):
        build(ref_logps=bad).train()


def test_an_overflowing_loss_is_named_as_the_cause(build: Build) -> None:
    with pytest.raises(TrainingError, match="the loss overflowed: lower beta or the learning rate"):
        build(loss="simpo_no_ln_sirius", filter=False, beta=1e38).train()


def test_nan_gradients_of_a_finite_loss_are_never_saved(build: Build, tmp_path: Path) -> None:
    trainer = build(num_train_epochs=4, save_strategy="steps", save_steps=1)
    calls = []

    def poison(grad: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return grad * math.nan if len(calls) == 3 else grad

    trainer.model.lm_head.weight.register_hook(poison)
    with pytest.raises(TrainingError, match="weights are not finite after step 3"):
        trainer.train()
    assert [step_of(p) for p in list_checkpoints(tmp_path / "run")] == [1, 2]


def test_other_records_are_ranked_alone_where_the_loss_needs_a_reference(build: Build, world: World) -> None:
    """log π_ref of records that come later is gone; HR@K needs none. The hook is of the trainer's own records."""
    calls: list[int] = []

    def hook(logps: list[np.ndarray]) -> dict[str, float]:
        calls.append(len(logps))
        return {}

    trainer = build(eval_dataset=world(4, seed=1), eval_hook=hook)
    own, other = trainer.evaluate(), trainer.evaluate(world(3), metric_key_prefix="test")
    assert calls == [4] and "eval_reward_margin" in own
    logps = trainer.score(encode_records(world(3), trainer.encoder))
    assert other["test_hr@1"] == np.mean([row[0] > row[1:].max() for row in logps])
    assert not any("reward" in name or "loss" in name for name in other)
    assert [line["kind"] for line in read_metrics(trainer.metrics_log.path)] == ["eval", "other"]
    assert "test_reward_margin" in build(loss="simpo").evaluate(world(3), metric_key_prefix="test")
    with pytest.raises(TrainingError, match="the trainer has no eval_dataset: hand over records"):
        build().evaluate()
    with pytest.raises(TrainingError, match=r"predict: call evaluate\(records\) for metrics, and score"):
        trainer.predict(world(3))


def test_references_of_both_sets_or_of_none_and_of_the_records_shape(
    build: Build, world: World, tmp_path: Path
) -> None:
    """Trained against one reference and evaluated against another, the margins of the two have nothing in common."""
    train, held_out = [np.zeros(5)] * 12, [np.zeros(5)] * 3
    with pytest.raises(ConfigError, match=r"ref_logps without eval_ref_logps: .* give both or none"):
        build(ref_logps=train, eval_dataset=world(3))
    with pytest.raises(ConfigError, match="eval_ref_logps without ref_logps"):
        build(eval_ref_logps=held_out, eval_dataset=world(3))
    with pytest.raises(DataError, match=r"^ref_logps: 13 entries for 12 records: give one per record"):
        build(ref_logps=[*train, np.zeros(5)])
    with pytest.raises(DataError, match=r"^ref_logps: record 11 has \[4\] log-probs for 5 completions"):
        build(ref_logps=[*train[:11], np.zeros(4)])
    with pytest.raises(DataError, match="eval_ref_logps: 2 entries for 3 records"):
        build(ref_logps=train, eval_dataset=world(3), eval_ref_logps=held_out[:2])
    with pytest.raises(DataError, match=r"^ref_logps: 11 entries for 12 records"):
        build(ref_logps=train[:11], stream=True)
    with pytest.raises(DataError, match=r"record \d+: 3 log-probs of the reference are too few"):  # read with its step
        build(ref_logps=[np.zeros(3)] * 12, stream=True, output_dir=str(tmp_path / "streamed")).train()
    build(ref_logps=train, eval_dataset=world(3), eval_ref_logps=held_out)


def test_arguments_that_would_be_ignored_are_refused(
    build: Build, world: World, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = build()
    for name, instead in (
        ("ref_model", "or give log-probs as ref_logps"),
        ("compute_metrics", "give an eval_hook"),
        ("preprocess_logits_for_metrics", "leave it out"),
        ("compute_loss_func", "register one of your own in objectives.parts"),
        ("data_collator", "leave it out"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: .*{instead}"):
            SiriusTrainer(trainer.model, trainer.args, world(3), tokenizer, **{name: print})
    plain = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigError, match="args: got a TrainingArguments: give a SiriusConfig"):
        SiriusTrainer(trainer.model, plain, world(3), tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize("reward", [None, "4", True, math.nan, math.inf])
def test_losses_that_weigh_by_observed_rewards_need_them(build: Build, world: World, reward: Any) -> None:
    good = [{**record, "reward": 4} for record in world(3)]
    bad = [good[0], {**good[1], "reward": reward}]
    message = "record 1: this loss weights records by an observed 'reward', a finite number, got "
    with pytest.raises(DataError, match=message):
        build(loss="reward_weighted_sft", train_dataset=bad)
    with pytest.raises(DataError, match=message):
        build(loss="reward_weighted_sft", train_dataset=good, eval_dataset=bad)
    build(train_dataset=bad)
    trainer = build(loss="reward_weighted_sft", train_dataset=good, eval_dataset=good)
    assert trainer.evaluate(good)["eval_loss"] == trainer.evaluate()["eval_loss"]
    with pytest.raises(DataError, match=message):
        trainer.evaluate(bad)


def test_impossible_requests_are_refused_before_training(build: Build) -> None:
    with pytest.raises(ConfigError, match="unknown loss 'dppo', did you mean 'dpo'"):
        build(loss="dppo")
    with pytest.raises(ConfigError, match="9 negatives were asked for, but record 0 has only 4"):
        build(negatives=9)
    with pytest.raises(PromptError, match="12 of 12 prompts with their longest completion exceed"):
        build(max_length=5)
    with pytest.raises(PromptError, match="2 of 2 prompts"):
        build(train_dataset=[{"prompt": "Air " * 300, "chosen": "Red", "rejected": "Low"}] * 2)
    with pytest.raises(ScoringError, match="unknown scoring 'quick'"):
        build(scoring="quick")


def test_a_wrong_mask_stops_the_run_before_the_first_step(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from sirius_rec.scoring import packed

    monkeypatch.setattr(packed, "attention_masks", lambda *_: None)  # plain causal attention
    trainer = build()
    with pytest.raises(ScoringError, match="disagrees with separate forward passes"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataloader_num_workers": 1, "dataloader_persistent_workers": True}, "dataloader_persistent_workers=False$"),
        ({"auto_find_batch_size": True}, "set per_device_train_batch_size and gradient_accumulation_steps$"),
        ({"fp16": True}, "^fp16: .* use bf16 or float32$"),
    ],
)
def test_options_that_would_train_something_else_are_refused(
    build: Build, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


def test_rows_beyond_the_first_range_of_longrope_are_refused_before_training(build: Build, tokenizer: Any) -> None:
    """In a tree a long row's factors would be everybody's; one that long in step 40 must not end the run there."""
    from transformers import Phi3Config, Phi3ForCausalLM

    def model(limit: int) -> Any:
        config = Phi3Config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=limit, pad_token_id=0,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            },
        )  # fmt: skip
        return Phi3ForCausalLM(config)

    with pytest.raises(PromptError, match="exceed the model's context of 4 tokens"):
        build(model=model(4))
    build(model=model(4), scoring="naive")
    build(model=model(200))
