"""Dropout, wherever an architecture keeps it, is off where policy and reference are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from sirius_rec.errors import TrainingError
from sirius_rec.training.metrics_log import read_metrics

P = 0.3
LLAMA_LIKE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
}  # fmt: skip
SMALL_HEADS = {**LLAMA_LIKE, "head_dim": 8}
FAIRSEQ = {
    "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 256,
    "init_std": 0.15, "dropout": P, "attention_dropout": P, "activation_dropout": P, "layerdrop": P,
}  # fmt: skip
BLOOM_LIKE = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": P, "attention_dropout": P}

# Name of the configuration's class → options with a dropout in every place that the architecture has.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaConfig": {**LLAMA_LIKE, "attention_dropout": P},
    "MistralConfig": {**LLAMA_LIKE, "attention_dropout": P},
    "Qwen2Config": {**LLAMA_LIKE, "attention_dropout": P},
    "Qwen3Config": {**SMALL_HEADS, "attention_dropout": P},
    "GemmaConfig": {**SMALL_HEADS, "attention_dropout": P},
    "Gemma3TextConfig": {**SMALL_HEADS, "attention_dropout": P, "query_pre_attn_scalar": 8},
    "Phi3Config": {**LLAMA_LIKE, "attention_dropout": P, "resid_pdrop": P, "embd_pdrop": P},
    "PhiConfig": {**LLAMA_LIKE, "attention_dropout": P, "resid_pdrop": P, "embd_pdrop": P},
    "Starcoder2Config": {**LLAMA_LIKE, "attention_dropout": P, "residual_dropout": P, "embedding_dropout": P},
    "GPTNeoXConfig": {**LLAMA_LIKE, "attention_dropout": P, "hidden_dropout": P},
    "GPT2Config": {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": P, "resid_pdrop": P, "embd_pdrop": P},
    "GPTNeoConfig": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 256, "attention_dropout": P, "resid_dropout": P, "embed_dropout": P,
    },
    "GPTJConfig": {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "attn_pdrop": P, "resid_pdrop": P, "embd_pdrop": P,
    },
    "BloomConfig": BLOOM_LIKE,
    "FalconConfig": {**BLOOM_LIKE, "num_hidden_layers": 2, "num_attention_heads": 4, "parallel_attn": False},
    "OPTConfig": {
        "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 256, "init_std": 0.15, "dropout": P, "attention_dropout": P, "layerdrop": P,
    },
    "XGLMConfig": FAIRSEQ,
    "BioGptConfig": {
        **LLAMA_LIKE, "hidden_dropout_prob": P, "attention_probs_dropout_prob": P, "activation_dropout": P,
        "layerdrop": P,
    },
}  # fmt: skip


def model_of(name: str, tokenizer: Any) -> Any:
    torch.manual_seed(0)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos")}
    config = getattr(transformers, name)(vocab_size=len(tokenizer), bos_token_id=1, **ids, **ARCHITECTURES[name])
    return transformers.AutoModelForCausalLM.from_config(config)


def first_step(build: Callable[..., Any], tmp_path: Path, **options: Any) -> dict[str, Any]:
    build(max_steps=1, **options).train()
    return next(line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_step_of_dpo_compares_the_model_with_itself(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path, name: str
) -> None:
    """Policy = reference: loss ln 2, margin 0. The dropouts are there: left on, they make both wrong."""
    line = first_step(build, tmp_path, model=model_of(name, tokenizer))
    assert line["loss"] == pytest.approx(0.693147, abs=2e-5)
    assert line["reward_margin"] == pytest.approx(0.0, abs=2e-5)


@pytest.mark.parametrize("name", ["OPTConfig", "FalconConfig", "LlamaConfig"])
def test_dropout_left_on_is_noise_in_the_margin(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path, name: str
) -> None:
    line = first_step(build, tmp_path, model=model_of(name, tokenizer), disable_dropout=False)
    assert abs(line["reward_margin"]) > 1e-3


class Noisy(nn.Module):
    """An MLP that adds noise in training, under no name that says so."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out + 0.1 * torch.randn_like(out) if self.training else out


def test_noise_of_another_kind_is_refused_before_the_first_step(
    build: Callable[..., Any], tiny_llama: Callable[..., Any], tokenizer: Any
) -> None:
    model = tiny_llama(tokenizer)
    model.model.layers[0].mlp = Noisy(model.model.layers[0].mlp)
    with pytest.raises(TrainingError, match=r"two forward passes of LlamaForCausalLM in training mode differ by"):
        build(model=model).train()
    build(model=model, disable_dropout=False).train()


def test_the_check_leaves_the_random_state_and_the_mode(tiny_llama: Callable[..., Any], tokenizer: Any) -> None:
    """XGLM draws a number per layer even with layerdrop 0."""
    from sirius_rec.scoring.rows import PromptCompletions
    from sirius_rec.training.dropout import check_no_noise, disable_dropout

    model = model_of("XGLMConfig", tokenizer).eval()
    disable_dropout(model)
    before = torch.random.get_rng_state()
    check_no_noise(model, [PromptCompletions([5, 6], [[7, 2], [8, 2]])], 0, "naive")
    assert torch.equal(torch.random.get_rng_state(), before) and not model.training
