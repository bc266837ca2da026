"""Policy and reference are compared under the same arithmetic: same precision, no dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sirius_rec.errors import RunError, TrainingError
from sirius_rec.training.checkpoints import step_of
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.metrics_log import read_metrics
from sirius_rec.training.trainer import SiriusTrainer


def records(titles: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Liked: {title}. Next:\n", "chosen": title, "rejected": [t for t in titles if t != title][:4]}
        for title in titles
    ]


def train(model: Any, tokenizer: Any, titles: tuple[str, ...], out: Path, **options: Any) -> SiriusTrainer:
    args = SiriusConfig(
        output_dir=str(out), loss="dpo", num_train_epochs=2, per_device_train_batch_size=5, logging_steps=1,
        eval_strategy="epoch", use_cpu=True, disable_tqdm=True, **{"learning_rate": 0.0, **options},
    )  # fmt: skip
    trainer = SiriusTrainer(model, args, records(titles), tokenizer, records(titles))
    trainer.train()
    return trainer


@pytest.mark.parametrize("bf16", [False, True])
def test_without_learning_every_margin_stays_exactly_zero(
    tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], bf16: bool
) -> None:
    """At learning rate 0 policy and reference are the same model; a reference scored in another precision is not."""
    train(tiny_llama(tokenizer), tokenizer, catalogue, tmp_path, bf16=bf16)
    evaluations = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "eval"]
    assert len(evaluations) == 3
    assert all(line["reward_margin"] == 0.0 and line["misordered"] == 0.0 for line in evaluations)


@pytest.mark.parametrize("disable", [True, False])
def test_dropout_is_off_where_policy_and_reference_are_compared(
    tmp_path: Path, tokenizer: Any, catalogue: tuple[str, ...], disable: bool
) -> None:
    """The first step's policy is the reference: margin 0 and loss ln 2, unless dropout makes them differ."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=256, resid_pdrop=0.3, attn_pdrop=0.3
    )
    train(GPT2LMHeadModel(config), tokenizer, catalogue, tmp_path, disable_dropout=disable)
    first = next(line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train")
    if disable:
        assert first["reward_margin"] == pytest.approx(0.0, abs=1e-5)
        assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    else:
        assert abs(first["reward_margin"]) > 1e-3


def test_broken_weights_are_named_before_they_are_evaluated(
    tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...]
) -> None:
    """A NaN at an epoch's last step meets the evaluation first: it must say so, not that a score is NaN."""
    trainer = train(tiny_llama(tokenizer), tokenizer, catalogue, tmp_path)
    with torch.no_grad():
        next(trainer.model.parameters())[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="the weights are not finite after step 4"):
        trainer.evaluate()


def test_resuming_from_a_folder_that_is_no_checkpoint() -> None:
    assert step_of(Path("a/checkpoint-12")) == 12
    with pytest.raises(RunError, match="final: not a checkpoint folder"):
        step_of(Path("a/final"))


@pytest.mark.parametrize(
    ("loss", "asked", "off"), [("sft", None, False), ("sft", True, True), ("dpo", None, True), ("dpo", False, False)]
)
def test_which_losses_train_without_dropout(
    tmp_path: Path, tokenizer: Any, catalogue: tuple[str, ...], loss: str, asked: bool | None, off: bool
) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.3))
    args = SiriusConfig(output_dir=str(tmp_path), loss=loss, disable_dropout=asked, use_cpu=True)
    SiriusTrainer(model, args, records(catalogue), tokenizer)
    assert all((module.p == 0.0) == off for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_every_arm_of_alignment_trains_without_dropout() -> None:
    """The likelihood control too, or it differs from the others in more than its loss."""
    from sirius_rec.recipes.configuration import load_config
    from sirius_rec.recipes.methods.arms import Arm

    mini = Path(__file__).resolve().parents[1] / "mini.yaml"
    config = load_config(mini, ["arms=[dpo_sirius, {loss: sft, name: control}]"])
    assert [Arm(config, arm).loss_options()["disable_dropout"] for arm in config.arms] == [True, True]
