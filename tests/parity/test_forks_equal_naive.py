"""Scoring in forks of the prompt's cache = one ordinary forward pass per candidate, for models with recurrent layers.

Log-probs agree to 1e-4 absolute in float32 (measured: about 3e-5 of 40 nats).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sirius_rec.errors import ScoringError
from sirius_rec.scoring import forked, scorer
from sirius_rec.scoring.forked import Passes, forked_logps, passes
from sirius_rec.scoring.masks import FORKED, STEP_BY_STEP, SUPPORTED
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import resolve_mode, resolve_scoring, score_rows, self_check

VOCAB = 61
CPU = torch.device("cpu")
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
HEADS = {
    **COMMON, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128,
}  # fmt: skip
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = {
    **HEADS, **MIXED, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED_EXPERT = {**EXPERTS, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1}
CONVOLUTION = {**HEADS, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
MAMBA = {**COMMON, "state_size": 8, "time_step_rank": 4}
MAMBA2 = {
    **HEADS, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
STATE = {"mamba_d_state": 8, "mamba_expand": 2}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3NextConfig", {**DELTA, **SHARED_EXPERT}),
    "qwen3_5_text": ("Qwen3_5TextConfig", DELTA),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", {**DELTA, **SHARED_EXPERT}),
    "olmo_hybrid": ("OlmoHybridConfig", DELTA),
    "kimi_linear": (
        "KimiLinearConfig",
        {
            **HEADS, **MIXED, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8,
            "qk_nope_head_dim": 8, "num_experts_per_tok": 2, "num_local_experts": 4, "moe_intermediate_size": 24,
            "linear_head_dim": 8, "linear_num_heads": 4, "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "lfm2": ("Lfm2Config", CONVOLUTION),
    "lfm2_moe": ("Lfm2MoeConfig", {**CONVOLUTION, **EXPERTS, "num_dense_layers": 1}),
    "lfm3": ("Lfm3Config", CONVOLUTION),
    "mamba": ("MambaConfig", MAMBA),
    "falcon_mamba": ("FalconMambaConfig", MAMBA),
    "mamba2": (
        "Mamba2Config", {**COMMON, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    ),
    "falcon_h1": ("FalconH1Config", {**MAMBA2, "mamba_d_ssm": 64}),
    "bamba": ("BambaConfig", {**MAMBA2, "attn_layer_indices": [1]}),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **MAMBA2, "layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
        },
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {
            **HEADS, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16,
            "ssm_state_size": 8, "n_groups": 2, "conv_kernel": 4, "chunk_size": 8,
        },
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **HEADS, **STATE, "num_key_value_heads": 4, "layers_block_type": ["mamba", "hybrid"], "mamba_ngroups": 1,
            "n_mamba_heads": 4, "chunk_size": 8, "num_mem_blocks": 1, "use_mem_rope": True,
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            **HEADS, **STATE, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_dt_rank": 4,
        },
    ),
    "minimax": ("MiniMaxConfig", {**HEADS, **MIXED, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8}),
}  # fmt: skip


def build(name: str) -> Any:
    config_class, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**options))
    with torch.no_grad():  # so large that a state left out moves log-probs by whole nats
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    return model.eval()


def random_rows(seed: int = 0) -> list[PromptCompletions]:
    """Prompts of one token to dozens; titles that begin others, duplicates, single tokens, single candidates."""
    rng = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(n)]

    titles = [[], *(ids(rng.randrange(1, 6)) for _ in range(4))]
    titles += [[*title, *ids(2)] for title in titles[:3]]
    slates = [[[*title, 2] for title in rng.sample(titles, n)] for n in (4, 1, 6)]
    rows = [PromptCompletions(ids(n), slate) for n, slate in zip((7, 4, 23), slates, strict=True)]
    rows.append(PromptCompletions(ids(1), [[7, 8, 2], [2], [7, 2], [7, 2], [7, 8, 9, 2]]))
    # Nothing to read behind the prompt, or a single token: kernels for generation differ.
    return [*rows, PromptCompletions(ids(5), [[2]]), PromptCompletions(ids(6), [[2], [9, 2], [8, 2]])]


def oracle(model: Any, rows: list[PromptCompletions]) -> list[np.ndarray]:
    with torch.no_grad():
        return [naive_logps(model, [row], 0, CPU)[0].numpy() for row in rows]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


def watched(model: Any, seen: list[tuple[int, int]]) -> Any:
    """Notes (rows, columns) of every forward pass."""
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return model


def test_every_forked_architecture_is_covered() -> None:
    covered = {getattr(transformers, config_class).model_type for config_class, _ in ARCHITECTURES.values()}
    assert covered == FORKED
    assert not FORKED & SUPPORTED


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs(name: str) -> None:
    model, rows = build(name), random_rows()
    theirs = oracle(model, rows)
    assert min(float(logp_C.min()) for logp_C in theirs) < -10
    assert self_check(model, rows, 0, "forked") <= 1e-4
    for max_tokens in (10_000, 60):
        assert_close(score_rows(model, rows, 0, max_tokens=max_tokens), theirs)
    logp_BC = forked_logps(model, rows, 0, CPU)
    for b, row in enumerate(rows):
        assert not logp_BC[b, len(row.completions) :].any()


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "falcon_h1"])
def test_half_precision_stays_close(name: str) -> None:
    """bfloat16 weights, and float32 weights that compute in it."""
    model, rows = build(name), random_rows()
    theirs = oracle(model, rows)
    for bf16 in (True, False):
        model = model if bf16 else model.to(torch.bfloat16)
        for one, other in zip(score_rows(model, rows, 0, bf16=bf16), theirs, strict=True):
            assert one.dtype == np.float32
            assert (np.abs(one - other) <= 0.05 * np.abs(other) + 0.2).all()


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "mamba"])
@pytest.mark.parametrize("max_tokens", [10_000, 60])
def test_every_prompt_is_computed_once(name: str, max_tokens: int) -> None:
    """However many forks its candidates take; and copies hold no more positions than allowed."""
    model, rows, seen = build(name), random_rows(), []
    score_rows(watched(model, seen), rows, 0, max_tokens=max_tokens)
    prompts = [1, *(len(row.prompt) for row in rows)]
    computed = sum(n * width for n, width in seen)
    widths = [max(1 if name == "mamba" else 2, max(len(ids) for ids in row.completions) - 1) for row in rows]
    behind = sum(len(row.completions) * width for row, width in zip(rows, widths, strict=True))
    assert computed == sum(prompts[1:]) + behind
    forks = sum(passes(row, max_tokens).forks for row in rows)
    assert forks == len(rows) if max_tokens == 10_000 else forks > len(rows)
    steps = sum(passes(row, max_tokens).forks * width for row, width in zip(rows, widths, strict=True))
    assert len(seen) == len(rows) + (steps if name == "mamba" else forks)
    assert passes(PromptCompletions([5] * 10, [[7, 7, 2]] * 9), 24) == Passes(5, 2)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", ["lfm2", "mamba"])
def test_all_processes_take_as_many_passes(name: str, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same widths where one column is one pass; and together they have every row."""
    model, rows, seen = build(name), random_rows(), []
    theirs = oracle(model, rows)
    watched(model, seen)
    shares: list[dict[int, Any]] = []
    counts = []
    monkeypatch.setattr(scorer, "from_all", lambda own, n_rows, n: shares.append(own) or theirs)
    for rank in range(processes):
        seen.clear()
        monkeypatch.setattr(scorer, "place_in_group", lambda rank=rank: (rank, processes))
        score_rows(model, rows, 0, max_tokens=24)
        counts.append(len(seen))
    assert len(set(counts)) == 1
    together = {r: logp_C for share in shares for r, logp_C in share.items()}
    assert sum(map(len, shares)) == len(rows)
    assert_close([together[r] for r in range(len(rows))], theirs)


def test_what_is_forked() -> None:
    """Scoring under auto; neither training nor what was demanded."""
    model = build("lfm2")
    assert [resolve_scoring(model, mode) for mode in ("auto", "naive")] == ["forked", "naive"]
    assert resolve_mode(model, "auto") == "naive"
    for resolve in (resolve_mode, resolve_scoring):
        with pytest.raises(ScoringError, match=r"'lfm2' hands a state from token to token, past every mask.*naive"):
            resolve(model, "packed")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert resolve_scoring(model, "auto") == "naive"
    model.config.model_type = "something_else"
    assert resolve_scoring(model, "auto") == "naive"


@pytest.mark.parametrize("name", sorted(STEP_BY_STEP))
def test_the_self_check_sees_a_state_that_was_forgotten(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these do with more than one token at a time."""
    monkeypatch.setattr(forked, "STEP_BY_STEP", frozenset())
    with pytest.raises(ScoringError, match="forked scoring disagrees with separate forward passes by"):
        scorer.check_once(build(name), random_rows(), 0, "auto")


@pytest.mark.parametrize("name", ["zamba2", "nemotron_h"])
def test_single_columns_would_take_a_kernel_that_differs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why all columns go on together, and are never one."""
    model, rows = build(name), random_rows()
    monkeypatch.setattr(forked, "STEP_BY_STEP", frozenset({name}))
    with pytest.raises(AssertionError):
        assert_close(score_rows(model, rows, 0), oracle(model, rows))


def test_models_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, modes = build("lfm2"), list[str]()
    monkeypatch.setattr(scorer, "self_check", lambda model, rows, pad_id, mode: modes.append(mode))
    for mode in ("auto", "naive", "auto"):
        scorer.check_once(model, random_rows(), 0, mode)
    assert modes == ["forked"]


def test_adapters_are_scored_and_wrappers_seen_through() -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["q_proj", "in_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model, rows = get_peft_model(build("lfm2"), lora).eval(), random_rows()
    assert_close(score_rows(torch.nn.DataParallel(model), rows, 0), oracle(model, rows))
    with model.disable_adapter():
        assert np.abs(np.concatenate(oracle(model, rows)) - np.concatenate(score_rows(model, rows, 0))).max() < 1e-4


def test_training_says_once_that_it_is_naive(tokenizer: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """And what it compares with, the reference, was scored in forks."""
    from sirius_rec.training.config import SiriusConfig
    from sirius_rec.training.trainer import SiriusTrainer

    scorer._say.cache_clear()
    records = [{"prompt": f"a b {n}", "chosen": "c d", "rejected": ["e", "f g"]} for n in "hijk"]
    config = transformers.Lfm2Config(**{**CONVOLUTION, "vocab_size": len(tokenizer)})
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    arguments = SiriusConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, logging_steps=1, report_to=[],
        use_cpu=True, score_unsampled=0, save_strategy="no",
    )  # fmt: skip
    for _ in range(2):
        trainer = SiriusTrainer(model, arguments, records, tokenizer)
    assert trainer.scoring == "naive"
    assert capsys.readouterr().err.count("'lfm2' has recurrent layers") == 1
    checked: list[str] = []
    original = scorer.self_check
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "sirius_rec.training.trainer.self_check", lambda *args: checked.append(args[3]) or original(*args)
        )
        trainer.train()
    assert checked == ["forked"]
    first = next(line for line in trainer.state.log_history if "loss" in line)
    # Policy and reference are the same model before the first step: log 2, whoever computed which.
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)
