"""SiriusTrainer on tiny worlds: resume, accumulation, evaluation, reference, LoRA, naive = packed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from sirius_rec import SiriusConfig, SiriusTrainer
from sirius_rec.errors import ConfigError
from sirius_rec.objectives.presets import LOSSES
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.training.checkpoints import MARKER, list_checkpoints, resume_point, step_of
from sirius_rec.training.held_out import read_held_out
from sirius_rec.training.metrics_log import read_metrics

Build = Callable[..., SiriusTrainer]
World = Callable[..., list[dict[str, Any]]]


def weights(trainer: SiriusTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def assert_close(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float) -> None:
    assert set(ours) == set(other)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, other[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def lines_of(trainer: SiriusTrainer) -> list[dict[str, Any]]:
    lines = read_metrics(trainer.metrics_log.path)
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


class Killed(BaseException):
    """What no `except Exception` catches, like a signal."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("examples_per_epoch", [8, None])
def test_resumed_from_the_middle_of_an_epoch_equals_uninterrupted(
    build: Build, tmp_path: Path, world: World, examples_per_epoch: int | None
) -> None:
    """Saved at step 5 and killed before step 8: weights bit-equal, the log equal but for the speed."""
    options: dict[str, Any] = {
        "loss": "softmax_dpo_sirius",
        "examples_per_epoch": examples_per_epoch,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 3,
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "eval_dataset": world(5, seed=1),
    }
    whole = build(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    broken = build(output_dir=str(tmp_path / "broken"), callbacks=[KillAt(7)], **options)
    with pytest.raises(Killed):
        broken.train()
    assert max(line["step"] for line in lines_of(broken)) == 7
    assert resume_point(tmp_path / "broken") == tmp_path / "broken" / "checkpoint-5"
    resumed = build(output_dir=str(tmp_path / "broken"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 3 * (examples_per_epoch or 12) // 2
    assert_close(weights(resumed), weights(whole), atol=0)
    assert lines_of(resumed) == lines_of(whole)


def test_resumed_with_smaller_micro_batches_is_the_same_training(build: Build, tmp_path: Path, world: World) -> None:
    """After an out-of-memory in mid-stage: the same steps over the same examples, by rounding equal."""
    options: dict[str, Any] = {
        "loss": "softmax_dpo_sirius", "num_train_epochs": 3, "lr_scheduler_type": "cosine", "save_strategy": "steps",
        "save_steps": 2, "logging_steps": 1,
    }  # fmt: skip
    whole = build(output_dir=str(tmp_path / "whole"), per_device_train_batch_size=4, **options)
    whole.train()
    broken = build(output_dir=str(tmp_path / "b"), per_device_train_batch_size=4, callbacks=[KillAt(5)], **options)
    with pytest.raises(Killed):
        broken.train()
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    resumed = build(output_dir=str(tmp_path / "b"), **small, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 9
    assert_close(weights(resumed), weights(whole), atol=1e-5)
    losses = ([line["loss"] for line in lines_of(one) if line["kind"] == "train"] for one in (resumed, whole))
    np.testing.assert_allclose(*losses, atol=1e-5)


def test_resume_without_a_checkpoint_starts_afresh(build: Build, tmp_path: Path) -> None:
    torn = tmp_path / "run" / "checkpoint-2"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    plain = build(output_dir=str(tmp_path / "plain"))
    plain.train()
    trainer = build()
    trainer.train(resume_from_checkpoint=True)
    assert not torn.exists()
    assert_close(weights(trainer), weights(plain), atol=0)


@pytest.mark.parametrize("n_rows", [16, 13])
def test_accumulation_one_by_eight_is_eight_by_one(build: Build, tmp_path: Path, world: World, n_rows: int) -> None:
    """The same examples in each step, and the mean over all of them. SGD: Adam would hide the loss's scale.

    13 rows leave 5 for the last step: 3 micro-batches of 2 hold 2, 2 and 1 of them, and each must count a fifth.
    """
    results = []
    for size in (1, 2, 8):
        trainer = build(
            output_dir=str(tmp_path / str(size)),
            train_dataset=world(n_rows),
            loss="softmax_dpo_sirius",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            num_train_epochs=2,
            optim="sgd",
            learning_rate=1e-2,
        )
        before = weights(trainer)
        trainer.train()
        assert trainer.state.global_step == 4
        results.append((weights(trainer), [line["loss"] for line in lines_of(trainer)]))
        assert max(float((before[n] - w).abs().max()) for n, w in results[-1][0].items()) > 1e-3
    for other, losses in results[1:]:
        assert_close(results[0][0], other, atol=1e-6)
        assert losses == pytest.approx(results[0][1], abs=1e-5)


def test_same_seed_same_run_and_another_seed_another(build: Build, tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer = build(output_dir=str(tmp_path / name), seed=seed)
        trainer.train()
        runs.append(weights(trainer))
    assert_close(runs[0], runs[1], atol=0)
    with pytest.raises(AssertionError):
        assert_close(runs[0], runs[2], atol=1e-7)


def test_observed_rewards_weigh_records_in_training_and_evaluation(build: Build, world: World) -> None:
    """mean of exp(r/λ) · (−log π), λ = 2; rewards keep to their records although an epoch is shuffled."""
    records = [{**record, "reward": r} for record, r in zip(world(4), (1.0, 5.0, 3.0, -2.0), strict=True)]
    trainer = build(
        loss="reward_weighted_sft",
        reward_temperature=2.0,
        train_dataset=records,
        eval_dataset=records,
        learning_rate=0.0,
    )
    with torch.no_grad():
        logps = naive_logps(trainer.model.eval(), trainer.eval_rows, trainer.encoder.pad_id, torch.device("cpu"))
    losses = [math.exp(r["reward"] / 2) * -float(row[0]) for r, row in zip(records, logps, strict=True)]
    assert len(set(trainer.train_dataset.order.tolist())) == 4 and trainer.train_dataset.order.tolist() != [0, 1, 2, 3]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    trainer.train()
    trained = [line["loss"] for line in lines_of(trainer) if line["kind"] == "train"]
    assert trained == [pytest.approx(np.mean(losses), rel=1e-4)]
    for slot in range(4):
        drawn = trainer.train_dataset[slot]
        assert trainer.collator([drawn])["observed_B"].tolist() == [records[drawn.row]["reward"]]
    assert "observed_B" not in build(train_dataset=records).collator([drawn]), (
        "no loss that has no use for them sees them"
    )


def test_evaluation_equals_a_ranking_by_hand(build: Build, world: World) -> None:
    trainer = build(loss="simpo", eval_dataset=world(9, n_rejected=6, seed=2))
    metrics = trainer.evaluate()
    with torch.no_grad():
        logps = naive_logps(trainer.model.eval(), trainer.eval_rows, trainer.encoder.pad_id, torch.device("cpu"))
    ranks = [1 + sum(float(other) > float(row[0]) for other in row[1:]) for row in logps]
    assert len(set(ranks)) > 2
    assert max(ranks) > 5
    for k in (1, 5, 10):
        assert metrics[f"eval_hr@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    for k in (5, 10):
        gains = [1 / math.log2(1 + rank) if rank <= k else 0.0 for rank in ranks]
        assert metrics[f"eval_ndcg@{k}"] == pytest.approx(np.mean(gains))
    assert metrics["eval_mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert metrics["eval_misranked"] == pytest.approx(sum(rank - 1 for rank in ranks) / (9 * 6))
    assert metrics["eval_logp_positive"] == pytest.approx(float(logps[:, 0].mean()), rel=1e-5)


def test_the_reference_is_the_model_at_the_start(build: Build, world: World) -> None:
    """Margins exactly 0 and loss exactly ln 2 at the first evaluation, not afterwards."""
    trainer = build(eval_strategy="epoch", eval_dataset=world(6, seed=3))
    trainer.train()
    first, last = (line for line in lines_of(trainer) if line["kind"] == "eval")
    assert first["step"] == 0
    for name in ("reward_margin", "reward_positive", "reward_sampled", "reward_margin_unsampled"):
        assert first[name] == 0.0
    assert first["loss"] == pytest.approx(math.log(2))
    assert last["step"] == 3
    assert last["reward_margin"] != 0.0
    trained = next(line for line in lines_of(trainer) if line["kind"] == "train")
    assert trained["reward_margin"] == pytest.approx(0.0, abs=1e-4)
    assert trained["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_the_first_evaluation_is_that_of_the_reference_and_is_not_scored_twice(
    build: Build, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first step the policy is the reference: what is known of it is taken once, and never later."""
    trainer = build(eval_strategy="epoch", eval_dataset=world(6, seed=3))
    fresh, scored = trainer.score(trainer.eval_rows), list[int]()
    score = SiriusTrainer.score
    monkeypatch.setattr(
        SiriusTrainer, "score", lambda self, rows, *a: scored.append(len(rows)) or score(self, rows, *a)
    )
    trainer.train()
    assert scored.count(6) == 2  # as the reference and at once as the first evaluation, and after the epoch
    first, last = read_held_out(trainer.held_out_log.folder)
    assert all(np.array_equal(a, b) for a, b in zip(first.logp_R, fresh, strict=True))
    assert not any(np.allclose(a, b) for a, b in zip(last.logp_R, fresh, strict=True))
    trainer.model.get_output_embeddings().weight.data.mul_(2)
    hits = trainer.evaluate()["eval_logp_positive"]
    assert scored.count(6) == 3 and hits != pytest.approx(float(np.mean([row[0] for row in last.logp_R])))


def test_given_reference_log_probs_are_used(build: Build) -> None:
    """β (log π − ref): with a reference 2 nats above the model on the positive only, every first margin is −2."""
    plain = build()
    ref = [logp + np.eye(1, 5, dtype=np.float32)[0] * 2 for logp in plain.score(plain.train_dataset.rows)]
    trainer = build(ref_logps=ref, max_steps=1)
    trainer.train()
    (line,) = lines_of(trainer)
    assert line["reward_margin"] == pytest.approx(-2.0, abs=1e-4)
    assert line["loss"] == pytest.approx(math.log1p(math.exp(2)), abs=1e-4)


def test_sft_needs_no_rejected_texts(build: Build) -> None:
    records = [
        {"prompt": "Air\n", "chosen": "Red", "rejected": ["Low", "Can"]},
        {"prompt": "Can\n", "chosen": "Blur"},
        {"prompt": "Low\n", "chosen": "Pulp", "rejected": "Air"},
    ]
    trainer = build(loss="sft", train_dataset=records, eval_dataset=records, eval_strategy="epoch")
    trainer.train()
    assert [line["kind"] for line in lines_of(trainer)] == ["eval", "train", "eval"]
    with pytest.raises(ConfigError, match="1 negatives were asked for, but record 1 has only 0"):
        build(loss="dpo", train_dataset=records)


def test_evaluating_before_training_takes_the_model_as_its_reference(build: Build, world: World) -> None:
    trainer = build(eval_dataset=world(4, seed=5))
    assert trainer.evaluate()["eval_reward_margin"] == 0.0
    trainer.train()
    assert trainer.evaluate()["eval_reward_margin"] != 0.0


def test_lora_trains_the_adapter_alone(build: Build, tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build(peft_config=adapter, save_strategy="epoch", loss="softmax_dpo_sirius")
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert {name for name in before if "lora_B" in name} <= changed
    saved = tmp_path / "run" / "checkpoint-3"
    assert (saved / "adapter_model.safetensors").is_file()
    assert not (saved / "model.safetensors").exists()
    assert (saved / MARKER).is_file()


@pytest.mark.parametrize("loss", ["softmax_dpo_sirius", "simpo_sirius"])
def test_naive_scoring_trains_the_same(build: Build, tmp_path: Path, loss: str) -> None:
    results = []
    for scoring in ("packed", "naive"):
        trainer = build(output_dir=str(tmp_path / scoring), scoring=scoring, loss=loss, optim="sgd", learning_rate=1e-2)
        trainer.train()
        results.append((weights(trainer), lines_of(trainer)))
    assert_close(results[0][0], results[1][0], atol=1e-5)
    for ours, other in zip(results[0][1], results[1][1], strict=True):
        assert ours["loss"] == pytest.approx(other["loss"], abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_preset_trains_two_steps(build: Build, world: World, loss: str) -> None:
    records = [{**record, "reward": 0.1 * n} for n, record in enumerate(world(12))]
    few = {"negatives": 3} if loss == "dynamicpo" else {}  # a record has four rejected ones, not 15
    trainer = build(loss=loss, max_steps=2, train_dataset=records, **few)
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(trainer).items())
    first, second = lines_of(trainer)
    assert [first["step"], second["step"]] == [1, 2]
    for line in (first, second):
        assert math.isfinite(line["loss"])
        assert math.isfinite(line["logp_positive"])
        assert 0 <= line["misranked"] <= 1
    assert ("dropped" in first) == trainer.objective.filter
    assert math.isfinite(first["reward_margin"])
    assert ("insensitive@0.1" in first) == (trainer.objective.negatives != "all")
    assert (trainer.collator.ref_logps is not None) == trainer.objective.needs_reference


@pytest.mark.parametrize("loss", ["sft", "softmax_ref_free"])
def test_a_planted_answer_is_found(build: Build, catalogue: tuple[str, ...], loss: str) -> None:
    """Ten prompts, each with its own answer among all ten titles: memorised, the answer ranks first everywhere."""
    records = [
        {"prompt": f"Question {n}\n", "chosen": title, "rejected": [t for t in catalogue if t != title]}
        for n, title in enumerate(catalogue)
    ]
    trainer = build(
        loss=loss,
        train_dataset=records,
        eval_dataset=records,
        per_device_train_batch_size=10,
        num_train_epochs=40,
        learning_rate=5e-3,
    )
    before = trainer.evaluate()
    trainer.train()
    losses = [line["loss"] for line in lines_of(trainer) if line["kind"] == "train"]
    assert losses[-1] < 0.2 * losses[0]
    assert before["eval_hr@1"] < 0.6
    assert trainer.evaluate()["eval_hr@1"] == 1.0


def test_ten_lines(tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> None:
    """The README's example: TRL's record format, in a Hugging Face data set, defaults everywhere."""
    from datasets import Dataset

    dataset = Dataset.from_dict(
        {
            "prompt": ["Air\nNext artist:\n", "Blur\nNext artist:\n"],
            "chosen": ["Red", "Pulp"],
            "rejected": [["Low", "Can"], ["Air", "Suede"]],
        }
    )
    trainer = SiriusTrainer(
        tiny_llama(tokenizer),
        args=SiriusConfig(output_dir=str(tmp_path), use_cpu=True),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    result = trainer.train()
    assert math.isfinite(result.training_loss)
    trainer.save_model()
    assert (tmp_path / "model.safetensors").is_file()


def test_rejected_as_a_single_text_in_a_data_set(build: Build) -> None:
    from datasets import Dataset

    dataset = Dataset.from_list([{"prompt": "Air\n", "chosen": "Red", "rejected": "Low"}] * 2)
    trainer = build(train_dataset=dataset)
    trainer.train()
    assert trainer.state.global_step == 1


def test_old_checkpoints_are_pruned_but_the_best_is_kept(build: Build, tmp_path: Path, world: World) -> None:
    """The hook's score is best at step 1; two newest are asked for; all that stand are marked complete."""
    scores = iter([0.0, 9.0, 1.0, 2.0, 3.0, 4.0])  # before the first step, then after steps 1 … 5
    trainer = build(
        max_steps=5,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        eval_dataset=world(3, seed=4),
        eval_hook=lambda logps: {"score": next(scores)},
    )
    trainer.train()
    assert sorted(step_of(p) for p in (tmp_path / "run").glob("checkpoint-*")) == [1, 4, 5]
    assert len(list_checkpoints(tmp_path / "run")) == 3


def test_the_hook_gets_every_candidate_of_every_record(build: Build, world: World) -> None:
    seen: list[list[np.ndarray]] = []

    def hook(logps: list[np.ndarray]) -> dict[str, float]:
        seen.append(logps)
        return {"rows": float(len(logps))}

    trainer = build(eval_dataset=world(3, n_rejected=5), eval_hook=hook)
    assert trainer.evaluate()["eval_rows"] == 3.0
    assert [len(logp_C) for logp_C in seen[0]] == [6, 6, 6]


def test_an_architecture_without_packed_scoring_is_estimated_and_trained(build: Build, tokenizer: Any) -> None:
    from transformers import StableLmConfig, StableLmForCausalLM

    torch.manual_seed(0)
    model = StableLmForCausalLM(
        StableLmConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    trainer = build(model=model, max_steps=1)
    assert trainer.scoring == "naive"
    heaviest = trainer.train_dataset.heaviest("naive")
    assert trainer.estimate_memory().tokens == sum(row.length("naive") for row in heaviest)
    trainer.train()
    assert trainer.state.global_step == 1


def test_two_trainers_on_the_same_arguments_both_prune(
    tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any], world: World
) -> None:
    args = SiriusConfig(
        output_dir=str(tmp_path), loss="sft", save_strategy="steps", save_steps=1, save_total_limit=1, max_steps=3,
        per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    for _ in range(2):
        trainer = SiriusTrainer(tiny_llama(tokenizer), args, world(12), tokenizer)
        assert args.save_total_limit == 1
        trainer.train()
        assert [step_of(path) for path in list_checkpoints(tmp_path)] == [3]
