"""Packed scoring = one ordinary forward pass per candidate, in value and gradient, for every supported architecture.

Log-probs agree to 1e-4 absolute and gradients to 1e-4 relative in float32 (measured: about 1e-5 and 1e-6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.integrations import sdpa_attention

from sirius_rec.scoring import packed
from sirius_rec.scoring import rows as rows_module
from sirius_rec.scoring.masks import SUPPORTED
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.rows import PromptCompletions, pack
from sirius_rec.scoring.tree_attention import TREE_ATTENTION, register

VOCAB = 61
CPU = torch.device("cpu")

# hidden 32, 2 layers, 4 heads of 8; weights large enough that a wrong mask moves log-probs by whole nats.
LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_HEADS = {**LLAMA_LIKE, "head_dim": 8}
MIXED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

# name → (config class, options); windows of 5 are shorter than every row.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA_LIKE),
    "qwen2": ("Qwen2Config", LLAMA_LIKE),
    "qwen2-window": ("Qwen2Config", {**LLAMA_LIKE, **MIXED, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", SMALL_HEADS),
    "qwen3-window": ("Qwen3Config", {**SMALL_HEADS, **MIXED, "use_sliding_window": True, "max_window_layers": 1}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", LLAMA_LIKE),
    "gemma": ("GemmaConfig", SMALL_HEADS),
    "gemma2-window": ("Gemma2Config", {**SMALL_HEADS, **MIXED, "query_pre_attn_scalar": 8}),
    "gemma3-window": ("Gemma3TextConfig", {**SMALL_HEADS, **MIXED, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", {**LLAMA_LIKE, "sliding_window": None}),
    "phi3-window": ("Phi3Config", {**LLAMA_LIKE, "sliding_window": 5}),
    "mistral": ("MistralConfig", {**LLAMA_LIKE, "sliding_window": None}),
    "mistral-window": ("MistralConfig", {**LLAMA_LIKE, "sliding_window": 5}),
}

# transformers has no sdpa for Gemma-2 (its logits are capped inside the attention).
EAGER_ONLY = {"gemma2-window"}
CASES = [
    (name, a)
    for name in ARCHITECTURES
    for a in ("sdpa", "eager", TREE_ATTENTION)
    if a == "eager" or name not in EAGER_ONLY
]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """Chunks so narrow that these short rows are cut, candidates too; (queries, keys) of sdpa's calls."""
    monkeypatch.setattr(rows_module, "CHUNK", 4)
    seen: set[tuple[int, int]] = set()
    original = sdpa_attention.sdpa_attention_forward

    def noted(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        seen.add((query.shape[2], key.shape[2]))
        return original(module, query, key, value, mask, **options)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", noted)
    return seen


def assert_in_chunks(calls: set[tuple[int, int]]) -> None:
    """Every chunk was a call that left out what lies between the prompts and its own candidates."""
    batch = pack(random_rows(), 0)
    assert any(batch.prompt_end < chunk.back < chunk.first for chunk in batch.chunks)
    for chunk in batch.chunks:
        assert (chunk.end - chunk.first, min(batch.prompt_end, chunk.back) + chunk.end - chunk.back) in calls


def build(name: str, attention: str | None = None, lora: bool = False) -> Any:
    config_class, options = ARCHITECTURES[name]
    attention = attention or ("eager" if name in EAGER_ONLY else "sdpa")
    config = getattr(transformers, config_class)(**options, attn_implementation=attention)
    torch.manual_seed(0)
    register()
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if lora:
        from peft import LoraConfig, get_peft_model

        # init_lora_weights=False draws B as well: a zero B would hide an adapter that is not applied.
        adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
    return model.eval()


def random_rows(seed: int = 0) -> list[PromptCompletions]:
    """Three prompts of different lengths with 4, 2 and 1 candidates of 1 to 6 tokens, the end of sequence last."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCAB, (n,), generator=generator).tolist()

    shapes = [(11, (3, 5, 1, 6)), (4, (2, 4)), (8, (3,))]
    return [PromptCompletions(ids(n), [[*ids(m - 1), 2] for m in lengths]) for n, lengths in shapes]


def gradients(model: Any, score: Callable[[], Tensor], weight_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    logp_BC = score()
    (logp_BC * weight_BC).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return logp_BC.detach(), found


def assert_parity(model: Any, rows: list[PromptCompletions]) -> None:
    batch = pack(rows, pad_id=0)
    weight_BC = torch.randn(batch.valid_BC.shape, generator=torch.Generator().manual_seed(1)) * batch.valid_BC
    ours, our_grads = gradients(model, lambda: packed.packed_logps(model, batch), weight_BC)
    oracle, oracle_grads = gradients(model, lambda: naive_logps(model, rows, 0, CPU), weight_BC)
    assert torch.isfinite(oracle).all()
    assert (oracle[batch.valid_BC] < -1).all()
    assert (ours - oracle).abs().max() <= 1e-4
    assert set(our_grads) == set(oracle_grads)
    assert our_grads
    # A gradient that is zero but for rounding (a key's bias) has no relative error: measure it against the largest.
    largest = max(float(g.norm()) for g in oracle_grads.values())
    for name, want in oracle_grads.items():
        error = float((our_grads[name] - want).norm())
        assert error <= 1e-4 * max(float(want.norm()), 1e-3 * largest), (name, error, float(want.norm()))


def test_every_supported_architecture_is_covered() -> None:
    covered = {getattr(transformers, config_class).model_type for config_class, _ in ARCHITECTURES.values()}
    assert covered == SUPPORTED


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_log_probs_and_gradients(name: str, attention: str, lora: bool, calls: set[tuple[int, int]]) -> None:
    assert_parity(build(name, attention, lora), random_rows())
    if attention == TREE_ATTENTION and name not in ("mistral-window", "phi3-window"):  # which have no full attention
        assert_in_chunks(calls)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n.endswith("-window")])
def test_the_window_is_really_shorter_than_the_rows(name: str) -> None:
    """The same weights without the window score differently: otherwise the windowed cases would prove nothing."""
    model = build(name)
    with torch.no_grad():
        windowed = naive_logps(model, random_rows(), 0, CPU)
        state = model.state_dict()
        config_class, options = ARCHITECTURES[name]
        wide = {**options, "sliding_window": 100}
        attention = model.config._attn_implementation
        config = getattr(transformers, config_class)(**wide, attn_implementation=attention)
        unbounded = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        unbounded.load_state_dict(state)
        assert (windowed - naive_logps(unbounded, random_rows(), 0, CPU)).abs().max() > 0.05


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("attention", ["sdpa", TREE_ATTENTION])
def test_gradient_checkpointing(attention: str, lora: bool, reentrant: bool, calls: set[tuple[int, int]]) -> None:
    """Checkpointing acts in train mode only; these models have no dropout."""
    model = build("llama", attention, lora)
    if lora and reentrant:
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    assert_parity(model, random_rows())
    if attention == TREE_ATTENTION:
        assert_in_chunks(calls)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-window", "mistral-window"])
def test_transformers_without_a_mask_for_kept_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.17 keeps logits by column only."""
    monkeypatch.setattr(packed, "_keeps_by_mask", lambda: False)
    assert_parity(build(name), random_rows())
    assert_parity(build(name, lora=True), random_rows())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-window", "mistral-window"])
def test_columns_instead_of_a_mask_for_kept_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA gets, so that the host need not wait for it."""
    monkeypatch.setattr(packed, "_counting_waits", lambda device: True)
    logits_RV, row_N = packed.kept_logits(build(name), pack(random_rows(), 0))
    assert len(logits_RV) > len(row_N)
    assert_parity(build(name), random_rows())
    assert_parity(build(name, lora=True), random_rows())


def test_models_whose_forward_keeps_all_logits() -> None:
    class AllLogits(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config, self.dtype = inner, inner.config, inner.dtype

        def forward(
            self, input_ids: Tensor, attention_mask: Any, position_ids: Any = None, use_cache: Any = None
        ) -> Any:
            return self.inner(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
            )

    assert_parity(AllLogits(build("llama")), random_rows())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_stays_close(attention: str) -> None:
    """Masks are made in the model's dtype; rounding of bfloat16 is about 1 % of a log-prob."""
    model = build("llama", attention).to(torch.bfloat16)
    rows = random_rows()
    with torch.no_grad():
        ours, oracle = packed.packed_logps(model, pack(rows, 0)), naive_logps(model, rows, 0, CPU)
    assert ours.dtype == torch.float32
    assert (ours - oracle).abs().max() <= 0.02 * oracle.abs().max() + 0.1


# transformers has no flex attention for GPT-2.
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "gpt2"])
def test_flex_attention(name: str) -> None:
    """The same tree as a BlockMask, windows by position included. Forward only: torch has no backward for it on CPU."""
    model, rows = build(name), random_rows()
    batch = pack(rows, pad_id=0)
    with torch.no_grad():
        oracle = naive_logps(model, rows, 0, CPU)
        model.set_attn_implementation("flex_attention")
        with torch.compiler.set_stance("force_eager"):
            ours = packed.packed_logps(model, batch)
    assert (ours - oracle)[batch.valid_BC].abs().max() <= 1e-4


def test_flex_attention_stays_open_about_what_it_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """A BlockMask that forgets the tree must not pass: otherwise the case above would prove nothing."""
    from torch.nn.attention.flex_attention import create_block_mask

    model, rows = build("llama"), random_rows()
    model.set_attn_implementation("flex_attention")

    def causal(config: Any, segment_BT: Tensor, *rest: Any) -> Any:
        n_rows, width = segment_BT.shape
        return create_block_mask(lambda b, h, q, k: q >= k, n_rows, None, width, width, device="cpu")

    monkeypatch.setattr(packed, "attention_masks", causal)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        ours = packed.packed_logps(model, pack(rows, 0))
        oracle = naive_logps(model, rows, 0, CPU)
    assert (ours - oracle).abs().max() > 0.1
