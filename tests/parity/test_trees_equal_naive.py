"""Scoring in trees = one ordinary forward pass per candidate, in value and gradient, for every supported architecture.

Log-probs agree to 1e-4 absolute and gradients to 1e-4 relative in float32 (measured: about 4e-6 and 2e-6).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from sirius_rec.errors import ScoringError
from sirius_rec.rankers.catalogue.prefixes import CachedPrefixes, SeparatePrefixes
from sirius_rec.scoring import chunks, packed
from sirius_rec.scoring import head as head_module
from sirius_rec.scoring.masks import SUPPORTED
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import tree_logps, unwrapped
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import CandidateTree, build_tree, count_nodes
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
CAPPED = {"final_logit_softcapping": 3.0}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
}

# name → (config class, options); windows of 5 are shorter than every row.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA_LIKE),
    "tied": ("LlamaConfig", {**LLAMA_LIKE, "tie_word_embeddings": True}),
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
    "gemma2-window": (
        "Gemma2Config",
        {**SMALL_HEADS, **MIXED, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, **CAPPED},
    ),
    "gemma3-window": ("Gemma3TextConfig", {**SMALL_HEADS, **MIXED, "query_pre_attn_scalar": 8, **CAPPED}),
    "gemma4-window": (
        "Gemma4TextConfig",
        {
            **SMALL_HEADS,
            **MIXED,
            **CAPPED,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB,
            "num_kv_shared_layers": 0,
            "global_head_dim": 8,
        },
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**SMALL_HEADS, **EXPERTS}),
    "qwen3_moe-window": ("Qwen3MoeConfig", {**SMALL_HEADS, **EXPERTS, "sliding_window": 5, "use_sliding_window": True}),
    "gpt_oss-window": ("GptOssConfig", {**SMALL_HEADS, **MIXED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2Config", LLAMA_LIKE),
    "olmo3-window": ("Olmo3Config", {**LLAMA_LIKE, **MIXED}),
    "smollm3": ("SmolLM3Config", {**LLAMA_LIKE, "no_rope_layers": [1, 0]}),
    "smollm3-window": ("SmolLM3Config", {**LLAMA_LIKE, **MIXED, "use_sliding_window": True, "no_rope_layers": [1, 0]}),
    "granite": (
        "GraniteConfig",
        {
            **LLAMA_LIKE,
            "logits_scaling": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
        },
    ),
    "ministral3-window": ("Ministral3Config", {**SMALL_HEADS, "sliding_window": 5}),
    "cohere2-window": ("Cohere2Config", {**LLAMA_LIKE, **MIXED, "logit_scale": 0.3}),
    "phi3-longrope": (
        "Phi3Config",
        {**LLAMA_LIKE, "sliding_window": None, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "phi3": ("Phi3Config", {**LLAMA_LIKE, "sliding_window": None}),
    "phi3-window": ("Phi3Config", {**LLAMA_LIKE, "sliding_window": 5}),
    "mistral": ("MistralConfig", {**LLAMA_LIKE, "sliding_window": None}),
    "mistral-window": ("MistralConfig", {**LLAMA_LIKE, "sliding_window": 5}),
}

# transformers has no sdpa for these: scores are capped inside the attention, or heads have sinks.
EAGER_ONLY = {"gemma2-window", "gpt_oss-window"}
CASES = [(n, a) for n in ARCHITECTURES for a in (TREE_ATTENTION, "eager") if a != "eager" or n not in EAGER_ONLY]


@pytest.fixture(autouse=True)
def narrow_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these small trees are cut, titles too."""
    monkeypatch.setattr(chunks, "CHUNK", 4)


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
        # The head among them, which has its own place in scoring.
        targets = r".*(lm_head|embed_out|q_proj|o_proj|c_attn|query_key_value|qkv_proj)"
        adapter = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter)
    return model.eval()


def random_rows(seed: int = 0, users: int = 3) -> list[PromptCompletions]:
    """One instruction; users whose histories grow; titles that begin others, duplicates, single tokens."""
    rng = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(3, VOCAB) for _ in range(n)]

    instruction, titles = ids(4), [ids(rng.randrange(5)) for _ in range(8)]
    titles += [[*title, *ids(2)] for title in titles[:4]]
    rows = []
    for _ in range(users):
        history = [*instruction, *ids(1)]
        for _ in range(rng.randrange(1, 5)):
            history = [*history, *rng.choice(titles)]
            slate = [[*title, 2] for title in rng.sample(titles, rng.randrange(1, 5))]
            rows.append(PromptCompletions(history, slate + slate[:1] * rng.randrange(2)))
    return rows


def gradients(model: Any, score: Callable[[], Tensor], weight_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    logp_BC = score()
    (logp_BC * weight_BC).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return logp_BC.detach(), found


def assert_parity(model: Any, rows: list[PromptCompletions]) -> None:
    tree = build_tree(rows)
    weight_BC = torch.randn(tree.valid_BC.shape, generator=torch.Generator().manual_seed(1)) * tree.valid_BC
    ours, our_grads = gradients(model, lambda: tree_logps(model, tree), weight_BC)
    oracle, oracle_grads = gradients(model, lambda: naive_logps(model, rows, 0, CPU), weight_BC)
    assert torch.isfinite(oracle).all()
    assert (oracle[tree.valid_BC] < -0.5).all()
    assert (ours - oracle).abs().max() <= 1e-4
    assert set(our_grads) == set(oracle_grads)
    assert our_grads
    # A gradient that is zero but for rounding (a key's bias) has no relative error: measure it against the largest.
    largest = max(float(g.norm()) for g in oracle_grads.values())
    for name, want in oracle_grads.items():
        error = float((our_grads[name] - want).norm())
        assert error <= 1e-4 * max(float(want.norm()), 1e-3 * largest), (name, error, float(want.norm()))


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_prefixes_on_a_cache_equal_separate_texts(name: str, attention: str) -> None:
    """The catalogue's prefixes, opened step by step behind prompts of several lengths; one user leaves in between.

    Left padding, windows by distance, keys of siblings in the cache: each would be wrong silently.
    """
    model, rng = build(name, attention), np.random.default_rng(0)
    prompts = [rng.integers(3, VOCAB, n).tolist() for n in (9, 2, 14)]
    ways = [CachedPrefixes(model, prompts, 0), SeparatePrefixes(model, prompts)]
    user_n, target_M = np.arange(3), rng.integers(3, VOCAB, 12)
    at_start = [way.begin(np.repeat(user_n, 4), target_M) for way in ways]
    np.testing.assert_allclose(at_start[0], at_start[1], atol=1e-4)
    place_n = [np.full(3, -1)] * 2
    for step in range(4):
        if step == 2:
            for way in ways:
                way.keep([0, 2])
            left = user_n != 1
            place_n = [places[left] for places in place_n]
            user_n = np.where(user_n[left] == 2, 1, 0)
        # Two or three children of each prefix: a user's steps have different widths.
        parents = np.repeat(np.arange(len(user_n)), rng.integers(2, 4, len(user_n)))
        user_n, token_n = user_n[parents], rng.integers(3, VOCAB, len(parents))
        target_M, source_M = rng.integers(3, VOCAB, 2 * len(parents)), np.repeat(np.arange(len(parents)), 2)
        opened = [
            way.open(user_n, places[parents], token_n, source_M, target_M)
            for way, places in zip(ways, place_n, strict=True)
        ]
        place_n = [places for places, _ in opened]
        np.testing.assert_allclose(opened[0][1], opened[1][1], atol=1e-4)
        assert (opened[0][1] < 0).all()


def test_every_supported_architecture_is_covered() -> None:
    covered = {getattr(transformers, config_class).model_type for config_class, _ in ARCHITECTURES.values()}
    assert covered == SUPPORTED


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_log_probs_and_gradients(name: str, attention: str, lora: bool) -> None:
    model, rows = build(name, attention, lora), random_rows()
    assert count_nodes(rows) < 0.7 * sum(count_nodes([row]) for row in rows)  # there is something to share
    assert_parity(model, rows)
    assert unwrapped(model).config._attn_implementation == attention


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window", "gpt_oss-window"])
def test_groups_as_a_gpu_gets_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks in few groups, filled up: the same log-probs and gradients."""
    counts, original = [], build_tree

    def built(rows: list[PromptCompletions]) -> CandidateTree:
        tree = original(rows)
        few = chunks.for_device(tree.groups, "cuda")
        counts.append((len(tree.groups), len(few)))
        return replace(tree, groups=few)

    monkeypatch.setitem(globals(), "build_tree", built)
    assert_parity(build(name), random_rows(3))
    ((many, few),) = counts
    assert few < many


@pytest.mark.parametrize("seed", range(1, 9))
def test_random_trees(seed: int) -> None:
    """One row to dozens of them."""
    rows = random_rows(seed, users=(1, 2, 5, 16)[seed % 4])
    assert_parity(build("llama", TREE_ATTENTION), rows[: 1 if seed == 4 else None])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "gemma2-window", "granite", "cohere2-window"])
def test_a_head_in_chunks(name: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three positions at a time, computed again in the backward pass; capped, scaled, tied to the embedding."""
    monkeypatch.setattr(head_module, "KEPT", 1)
    monkeypatch.setattr(head_module, "CHUNK", 3 * VOCAB + 1)
    model, tree = build(name, TREE_ATTENTION, lora), build_tree(random_rows())
    sizes: list[int] = []
    head = unwrapped(model).get_output_embeddings()
    original = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: sizes.append(hidden.shape[0]) or original(hidden))
    tree_logps(model, tree).sum().backward()
    chunk = [3] * (len(tree.keep_N) // 3) + [len(tree.keep_N) % 3]
    assert sorted(sizes) == sorted([n for n in chunk if n] * 2)  # forward, and again
    sizes.clear()
    with torch.no_grad():
        tree_logps(model, tree)
    assert sorted(sizes) == sorted(n for n in chunk if n)
    assert_parity(model, random_rows())


def test_the_head_is_left_as_it_was() -> None:
    for name in ("granite", "cohere2-window", "gemma3-window"):
        model, rows = build(name), random_rows()
        ids = torch.tensor([rows[0].prompt])
        before = model(input_ids=ids).logits
        tree_logps(model, build_tree(rows))
        torch.testing.assert_close(model(input_ids=ids).logits, before)
        assert "forward" not in vars(model.get_output_embeddings())
    with pytest.raises(RuntimeError, match="in the middle"), torch.no_grad():
        model.model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("in the middle")))
        tree_logps(model, build_tree(rows))
    assert "forward" not in vars(model.get_output_embeddings())
    assert model.config.final_logit_softcapping == 3.0


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
@pytest.mark.parametrize("name", ["llama", "gpt_oss-window"])
def test_gradient_checkpointing(name: str, lora: bool, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpointing acts in train mode only; these models have no dropout."""
    monkeypatch.setattr(head_module, "KEPT", 1)
    model = build(name, TREE_ATTENTION, lora)
    if lora and reentrant:
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    assert_parity(model, random_rows())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_stays_close(attention: str) -> None:
    """Masks are made in the model's dtype; rounding of bfloat16 is about 1 % of a log-prob."""
    model = build("llama", attention).to(torch.bfloat16)
    rows = random_rows()
    with torch.no_grad():
        ours, oracle = tree_logps(model, build_tree(rows)), naive_logps(model, rows, 0, CPU)
    assert ours.dtype == torch.float32
    assert (ours - oracle).abs().max() <= 0.02 * oracle.abs().max() + 0.1


# transformers has no flex attention for GPT-2, and none for gpt-oss on a CPU.
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in ("gpt2", "gpt_oss-window")])
def test_flex_attention(name: str) -> None:
    """The same tree as a BlockMask, windows by position included. Forward only: torch has no backward for it on CPU."""
    model, rows = build(name), random_rows()
    with torch.no_grad():
        oracle = naive_logps(model, rows, 0, CPU)
        model.set_attn_implementation("flex_attention")
        with torch.compiler.set_stance("force_eager"):
            ours = tree_logps(model, build_tree(rows))
    assert (ours - oracle).abs().max() <= 1e-4


def test_flex_attention_stays_open_about_what_it_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """A BlockMask that forgets the tree must not pass: otherwise the case above would prove nothing."""
    from torch.nn.attention.flex_attention import create_block_mask

    model, rows = build("llama"), random_rows()
    model.set_attn_implementation("flex_attention")

    def causal(config: Any, tree: CandidateTree, *rest: Any) -> Any:
        return create_block_mask(lambda b, h, q, k: q >= k, 1, None, tree.n_nodes, tree.n_nodes, device="cpu")

    monkeypatch.setattr(packed, "attention_masks", causal)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        ours = tree_logps(model, build_tree(rows))
        oracle = naive_logps(model, rows, 0, CPU)
    assert (ours - oracle).abs().max() > 0.1


def test_longrope_beyond_its_first_range_is_refused() -> None:
    model = build("phi3-longrope")
    with pytest.raises(ScoringError, match=r"a row of 65 tokens leaves the first range"):
        tree_logps(model, build_tree([PromptCompletions([5] * 65, [[2]])]))


@torch.no_grad()
def test_longrope_scores_do_not_depend_on_the_batch() -> None:
    """Separately, as long rows must be; short ones keep the short factors beside them."""
    model, rows = build("phi3-longrope"), [PromptCompletions([5] * n, [[7, 8, 2], [9, 2]]) for n in (20, 80)]
    together = naive_logps(model, rows, 0, CPU)
    alone = torch.cat([naive_logps(model, [row], 0, CPU) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(tree_logps(model, build_tree(rows[:1])), alone[:1], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", [*sorted(EAGER_ONLY), "llama", "mistral-window", "gemma3-window"])
def test_generation_on_the_kernel_is_that_without_it(name: str) -> None:
    """Padding on the left, a cache, one query at a time: what is not a tree runs as it did before."""
    model = build(name)
    ids = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 7, 8], [5, 6, 7, 8, 9, 10, 11, 12, 13]])
    seen = (ids != 0).long()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    before = model.generate(
        input_ids=ids, attention_mask=seen, output_scores=True, return_dict_in_generate=True, **options
    )
    assert packed.use_tree_attention(model) == TREE_ATTENTION
    after = model.generate(
        input_ids=ids, attention_mask=seen, output_scores=True, return_dict_in_generate=True, **options
    )
    torch.testing.assert_close(torch.stack(after.scores), torch.stack(before.scores), atol=1e-4, rtol=0)
    assert torch.equal(after.sequences, before.sequences)


def test_threads_that_score_with_one_model_take_turns() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, tree = build("gemma3-window"), build_tree(random_rows())
    with torch.no_grad():
        alone = tree_logps(model, tree)
        ids = torch.tensor([[5, 6, 7]])
        plain = model(input_ids=ids).logits

    def score(_: int) -> Tensor:
        with torch.no_grad():
            return tree_logps(model, tree)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(score, range(24)):
            torch.testing.assert_close(found, alone)
    assert "forward" not in vars(model.get_output_embeddings())
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss-window"])
def test_router_logits_are_not_asked_for(name: str) -> None:
    """Their loss reads the mask as one of two dimensions, and is not ours."""
    model = build(name)
    model.config.output_router_logits = True
    assert_parity(model, random_rows())
