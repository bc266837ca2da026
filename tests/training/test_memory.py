"""The estimate of training memory against what a step really allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.backbones import add_lora
from sirius_rec.training.memory import allocated_peak, estimate, step_peak

# Prompts of 100 tokens that share their first 10; four titles of 5 tokens, which begin alike in twos.
ROWS = [
    PromptCompletions([*range(5, 15), *range(20 + r, 110 + r)], [[7, 8 + c // 2, 9, 10 + c, 2] for c in range(4)])
    for r in range(12)
]


def build(adapter: bool, checkpointing: bool, vocabulary: int = 1000) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=172, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    if adapter:
        model = add_lora(model, rank=4)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_within_a_fifth_of_what_is_allocated(adapter: bool, checkpointing: bool) -> None:
    model = build(adapter, checkpointing)
    found = estimate(model, ROWS, 0)
    weights = sum(p.numel() * 4 for p in model.parameters())
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert (found.weights, found.gradients, found.optimizer) == (weights, trained, 2 * trained)
    assert all(p.grad is None for p in model.parameters())
    assert (found.rows, found.tokens) == (12, 10 + 12 * (90 + 1 + 2 + 2 + 4))
    real = weights + 2 * trained + step_peak(model, ROWS, 0)
    assert 0.8 <= found.total / real <= 1.2


def test_gradients_do_not_hide_the_activations_of_a_few_rows() -> None:
    """Histories read title by title, under weights that take far more than a few such rows: what a backward pass frees
    of these while gradients come is no measure of a whole step."""
    rows = [
        PromptCompletions([u, *range(300, 310 + 5 * n)], [list(range(310 + 5 * n, 315 + 5 * n))])
        for u in range(100)
        for n in range(6)
    ]
    model = build(False, False, vocabulary=10_000)
    found, few = estimate(model, rows, 0), step_peak(model, rows[:4], 0)
    assert found.gradients > 0.9 * few, "or these rows would not show it"
    real = found.weights + found.optimizer + step_peak(model, rows, 0)
    assert 0.8 <= found.total / real <= 1.2


def test_logits_count_once() -> None:
    """With a large vocabulary they are a large part of a step: parts add up to what is measured."""
    model, rows = build(True, False, vocabulary=20_000), ROWS[:3]
    found = estimate(model, rows, 0)
    assert found.logits == 3 * (1 + 1 + 2 + 2 + 4) * 20_000 * 4 * 2
    peak = step_peak(model, rows, 0)
    assert found.logits > 0.3 * peak
    assert found.gradients + found.activations + found.logits == pytest.approx(peak, rel=0.02)


def test_checkpointing_needs_less_and_shards_share() -> None:
    plain, checkpointed = (estimate(build(False, on), ROWS, 0) for on in (False, True))
    assert checkpointed.activations < 0.6 * plain.activations
    halved = estimate(build(False, False), ROWS, 0, shards=2)
    assert (halved.weights, halved.gradients, halved.optimizer) == (
        plain.weights // 2, plain.gradients // 2, plain.optimizer // 2,
    )  # fmt: skip
    assert "12 rows with 1198 tokens at once" in plain.line()


def test_the_peak_of_known_tensors() -> None:
    """Two megabytes at once, then one after the other: 8 MB of float32 and 4 MB."""
    cpu = torch.device("cpu")

    def together() -> None:
        first, second = torch.ones(2**20), torch.ones(2**20)
        assert len(first) == len(second)

    def in_turn() -> None:
        for _ in range(2):
            torch.ones(2**20)

    assert allocated_peak(together, cpu) == pytest.approx(2 * 2**22, rel=0.01)
    assert allocated_peak(in_turn, cpu) == pytest.approx(2**22, rel=0.01)


def test_naive_scoring_is_measured_as_such() -> None:
    """An architecture without packed scoring; four separate rows of 105 columns each, logits at the last six."""
    from transformers import StableLmConfig, StableLmForCausalLM

    torch.manual_seed(0)
    config = StableLmConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=172, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    model: Any = StableLmForCausalLM(config)
    found = estimate(model, ROWS[:6], 0, scoring="naive")
    assert (found.rows, found.tokens, found.logits) == (6, 6 * 4 * 105, 6 * 4 * 6 * 1000 * 4 * 2)
    real = found.weights + found.optimizer + step_peak(model, ROWS[:6], 0, scoring="naive")
    assert 0.8 <= found.total / real <= 1.2
    llama = build(False, False)
    naive, packed = (estimate(llama, ROWS[:6], 0, scoring=scoring) for scoring in ("naive", "packed"))
    assert naive.activations > 2 * packed.activations


def test_rows_that_share_everything_are_estimated() -> None:
    """Six equal rows are one; no difference between few and fewer of them to continue."""
    model = build(True, False)
    found = estimate(model, ROWS[:1] * 6, 0)
    assert found.tokens == estimate(model, ROWS[:1], 0).tokens
    assert found.total == pytest.approx(estimate(model, ROWS[:1], 0).total, rel=0.02)


def test_eager_attention_is_estimated_by_its_square() -> None:
    model = build(True, False)
    model.set_attn_implementation("eager")
    found = estimate(model, ROWS, 0)
    weights, optimizer = found.weights, found.optimizer
    assert found.total == pytest.approx(weights + optimizer + step_peak(model, ROWS, 0), rel=0.1)
    assert found.activations > 2 * estimate(build(True, False), ROWS, 0).activations
