"""Invariances of scoring: order, batching, padding; the self-check; the fused log-softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sirius_rec.errors import PromptError, ScoringError
from sirius_rec.scoring import packed, scorer
from sirius_rec.scoring.head import _TokenLogp
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import tree_logps, unwrapped
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import padded_batches, require_agreement, score_rows, self_check, tree_batches
from sirius_rec.scoring.tree import CandidateTree, build_tree, count_nodes, padded

VOCAB = 40


class Sized:
    """Stands in for a tokenizer where only its size and ids matter."""

    pad_token_id, eos_token_id = 0, 2

    def __len__(self) -> int:
        return VOCAB


@pytest.fixture
def model(tiny_llama: Callable[..., Any]) -> Any:
    return tiny_llama(Sized()).eval()


def random_rows(shapes: list[tuple[int, tuple[int, ...]]], seed: int = 0) -> list[PromptCompletions]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCAB, (n,), generator=generator).tolist()

    return [PromptCompletions(ids(n), [[*ids(m - 1), 2] for m in lengths]) for n, lengths in shapes]


ROWS = random_rows([(9, (2, 4, 1)), (3, (3,)), (6, (5, 2)), (12, (1, 1, 2, 3))])


def separately(model: Any, row: PromptCompletions) -> list[float]:
    """Token by token: one forward pass per candidate without any padding or mask."""
    out = []
    for ids in row.completions:
        text = torch.tensor([[*row.prompt, *ids]])
        logp = torch.log_softmax(model(input_ids=text).logits[0].double(), -1)
        start = len(row.prompt)
        out.append(sum(float(logp[start + n - 1, token]) for n, token in enumerate(ids)))
    return out


@torch.no_grad()
def test_both_ways_equal_separate_unpadded_passes(model: Any) -> None:
    """The oracle itself is checked: naive and packed against a plain loop."""
    for mode in ("naive", "packed"):
        for ours, row in zip(score_rows(model, ROWS, 0, mode=mode), ROWS, strict=True):
            np.testing.assert_allclose(ours, separately(model, row), atol=2e-5)


@torch.no_grad()
def test_absent_candidates_are_zero(model: Any) -> None:
    for logp_BC in (tree_logps(model, build_tree(ROWS)), naive_logps(model, ROWS, 0, torch.device("cpu"))):
        assert logp_BC.shape == (4, 4)
        assert (logp_BC[1, 1:] == 0).all()
        assert (logp_BC[1, 0] < 0).all()


@torch.no_grad()
def test_permuted_completions_permute_log_probs(model: Any) -> None:
    row = ROWS[3]
    before = tree_logps(model, build_tree([row]))[0]
    for order in ([3, 2, 1, 0], [1, 0, 3, 2]):
        after = tree_logps(model, build_tree([PromptCompletions(row.prompt, [row.completions[c] for c in order])]))[0]
        torch.testing.assert_close(after, before[order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_duplicates_score_alike_and_siblings_do_not_matter(model: Any) -> None:
    row = ROWS[0]
    alone = tree_logps(model, build_tree([PromptCompletions(row.prompt, row.completions[:1])]))
    more = PromptCompletions(row.prompt, [row.completions[0], [7, 8, 9, 2], row.completions[0]])
    twice = tree_logps(model, build_tree([more]))
    torch.testing.assert_close(twice[0, 0], alone[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(twice[0, 2], alone[0, 0], atol=1e-5, rtol=0)


def test_batch_equals_single(model: Any) -> None:
    together = score_rows(model, ROWS, 0, mode="packed", max_tokens=10_000)
    one_by_one = score_rows(model, ROWS, 0, mode="packed", max_tokens=1)
    for ours, alone, row in zip(together, one_by_one, ROWS, strict=True):
        assert len(ours) == len(row.completions)
        np.testing.assert_allclose(ours, alone, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_rows_have_no_influence(tiny_llama: Callable[..., Any], attention: str) -> None:
    """Nor have the nodes that fill a tree up to one of few sizes."""
    model = tiny_llama(Sized(), attn_implementation=attention).eval()
    plain = tree_logps(model, build_tree(ROWS[1:2]))
    together = tree_logps(model, build_tree([ROWS[3], ROWS[1]]))
    torch.testing.assert_close(together[1, :1], plain[0], atol=1e-5, rtol=0)
    model.set_attn_implementation("eager")
    filled = tree_logps(model, padded(build_tree([ROWS[3], ROWS[1]])))
    torch.testing.assert_close(filled, together, atol=1e-5, rtol=0)


def test_self_check_passes_where_masks_are_right(model: Any) -> None:
    model.train()
    assert self_check(model, ROWS, 0) <= 1e-4
    assert model.training


def _dense(tree: CandidateTree) -> Tensor:
    node_T = torch.arange(tree.n_nodes)
    return node_T <= node_T[:, None]


def _plain_2d(config: Any, tree: CandidateTree, dtype: torch.dtype) -> Tensor:
    return torch.ones_like(tree.token_T)[None]


def _siblings_seen(config: Any, tree: CandidateTree, dtype: torch.dtype) -> Tensor:
    return _dense(tree)[None, None]


def _nothing(config: Any, tree: CandidateTree, dtype: torch.dtype) -> None:
    return None


def _blind_to_the_prompt(config: Any, tree: CandidateTree, dtype: torch.dtype) -> Tensor:
    """Each node sees itself and the one before it."""
    return (_dense(tree) & _dense(tree).tril().triu(-1))[None, None]


@pytest.mark.parametrize("wrong", [_plain_2d, _siblings_seen, _nothing, _blind_to_the_prompt])
def test_self_check_catches_a_wrong_mask(model: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    monkeypatch.setattr(packed, "attention_masks", wrong)
    with pytest.raises(ScoringError, match=r"disagrees with separate forward passes by [\d.e+-]+ nats.*scoring: naive"):
        self_check(model, ROWS, 0)


@pytest.mark.parametrize("wrong", [_siblings_seen, _blind_to_the_prompt])
def test_self_check_catches_a_wrong_mask_in_half_precision(
    model: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    model = model.to(torch.bfloat16)
    self_check(model, ROWS, 0)
    monkeypatch.setattr(packed, "attention_masks", wrong)
    with pytest.raises(ScoringError, match="disagrees"):
        self_check(model, ROWS, 0)


def test_self_check_catches_a_window_that_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            sliding_window=4,
        )
    )
    self_check(model, ROWS, 0)
    right = packed.attention_masks

    def without_window(config: Any, *rest: Any) -> Any:
        class Config:
            model_type, sliding_window = "mistral", None
            _attn_implementation = config._attn_implementation

        return right(Config(), *rest)

    monkeypatch.setattr(packed, "attention_masks", without_window)
    with pytest.raises(ScoringError, match="disagrees"):
        self_check(model, ROWS, 0)


def test_self_check_does_not_let_nan_pass(model: Any) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ScoringError, match=r"no numbers, in separate forward passes too: its weights are damaged"):
        self_check(model, ROWS, 0)
    with pytest.raises(ScoringError, match="packed scoring disagrees"):  # where the trees alone are wrong
        require_agreement(model, torch.tensor([float("nan")]), torch.tensor([-1.0]), "packed")


def test_score_rows_keeps_the_order_and_reports_progress(model: Any) -> None:
    done: list[int] = []
    model.train()
    scores = score_rows(model, ROWS, 0, max_tokens=20, progress=done.append)
    assert model.training
    assert sum(done) == len(ROWS)
    assert len(done) > 1
    for ours, row in zip(scores, ROWS, strict=True):
        assert ours.dtype == np.float32
        with torch.no_grad():
            np.testing.assert_allclose(ours, separately(model, row), atol=2e-5)


def test_a_model_is_in_its_own_mode_again_after_an_error(model: Any) -> None:
    """A training goes on with dropout after an evaluation that failed, in an own loop, say."""
    model.train()

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(model, ROWS, 0, progress=stop)
    assert model.training
    model.eval()
    score_rows(model, ROWS, 0)
    assert not model.training


def test_scoring_is_without_dropout_and_gradient(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama(Sized(), attention_dropout=0.5).train()
    first, second = (np.concatenate(score_rows(model, ROWS, 0)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_no_rows_no_scores(model: Any) -> None:
    assert score_rows(model, [], 0) == []


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 100))
def test_padded_batches(lengths: list[int], max_tokens: int) -> None:
    """Every row once; a batch's padded size within the bound unless it is a single row."""
    rows = [PromptCompletions([5] * n, [[2]]) for n in lengths]
    batches = padded_batches(rows, max_tokens)
    assert sorted(r for batch in batches for r in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[r] + 1 for r in batch) * len(batch) <= max_tokens
    if len(rows) > 1 and (max(lengths) + 1) * len(rows) <= max_tokens:
        assert len(batches) == 1


ids = st.lists(st.integers(3, 5), min_size=1, max_size=8)


@given(st.lists(st.builds(PromptCompletions, ids, st.just([[3, 2], [4, 4, 2]])), max_size=20), st.integers(1, 60))
def test_tree_batches(rows: list[PromptCompletions], max_tokens: int) -> None:
    """Every row once; a batch's tree within the bound unless it is a single row."""
    batches = tree_batches(rows, max_tokens)
    assert sorted(r for batch in batches for r in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or count_nodes([rows[r] for r in batch]) <= max_tokens


def test_a_batch_ends_between_two_users() -> None:
    """Two users of three rows each, whose histories grow; five rows would fit into 30 nodes, three go together."""
    users = [[PromptCompletions([5, u, *range(10, 10 + n)], [[2]]) for n in (4, 6, 8)] for u in (6, 7)]
    rows = [row for pair in zip(*users, strict=True) for row in pair]
    assert [sorted(batch) for batch in tree_batches(rows, 18)] == [[0, 2, 4], [1, 3, 5]]
    assert count_nodes([rows[r] for r in (0, 2, 4, 1, 3)]) <= 18
    assert [sorted(batch) for batch in tree_batches(rows, 100)] == [[0, 1, 2, 3, 4, 5]]


def test_fused_log_softmax_equals_autograd() -> None:
    """With one row used three times, one row unused and one (row, token) pair used twice."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    row, token = torch.tensor([0, 0, 2, 3, 0, 4, 4]), torch.tensor([1, 5, 0, 6, 1, 2, 3])
    weight = torch.randn(7, generator=generator, dtype=torch.float64)
    ours = _TokenLogp.apply(logits, row, token)
    plain = torch.log_softmax(logits, -1)[row, token]
    torch.testing.assert_close(ours, plain)
    (our_grad,) = torch.autograd.grad((ours * weight).sum(), logits)
    (plain_grad,) = torch.autograd.grad((plain * weight).sum(), logits)
    torch.testing.assert_close(our_grad, plain_grad)
    assert not our_grad[1].any()
    assert torch.autograd.gradcheck(lambda x: _TokenLogp.apply(x, row, token), (logits,))


def test_fused_log_softmax_far_out() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    out = _TokenLogp.apply(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    out.sum().backward()
    assert out.tolist() == [0.0, -2e4]
    assert logits.grad is not None
    # d/dlogits of (log p_0 + log p_1) = one_hot(0) + one_hot(1) − 2 p = (−1, 1, 0)
    assert logits.grad.tolist() == [[-1.0, 1.0, 0.0]]


def test_unwrapping(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = torch.nn.DataParallel(model)
    assert unwrapped(wrapped) is model
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert unwrapped(adapter) is adapter.get_base_model()


def test_modes_are_resolved_before_anything_is_computed(model: Any) -> None:
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ScoringError, match="takes no tree mask"):
        scorer.score_rows(model, ROWS, 0, mode="packed")


def _watched(model: Any, seen: list[tuple[int, int]]) -> Any:
    """Notes (rows, columns) of every forward pass."""
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return model


@pytest.mark.parametrize("max_tokens", [1, 20, 40, 100])
def test_naive_passes_stay_within_the_bound(model: Any, max_tokens: int) -> None:
    """Separate rows are what it bounds, of one slate too; scores do not depend on it."""
    rows = [*ROWS, *random_rows([(8, (3,) * 11), (5, (2, 6))], seed=1)]
    whole = score_rows(model, rows, 0, mode="naive", max_tokens=10_000)
    seen: list[tuple[int, int]] = []
    done: list[int] = []
    parts = score_rows(_watched(model, seen), rows, 0, mode="naive", max_tokens=max_tokens, progress=done.append)
    assert sum(n for n, _ in seen) == sum(len(row.completions) for row in rows)
    assert all(n * width <= max_tokens or n == 1 for n, width in seen)
    assert sum(done) == len(rows)
    for one, other, row in zip(parts, whole, rows, strict=True):
        assert one.shape == (len(row.completions),)
        np.testing.assert_allclose(one, other, atol=1e-5)


@torch.no_grad()
def test_naive_computes_logits_from_the_end_of_the_shortest_prompt(model: Any) -> None:
    """9 + 4 and 6 + 5 columns: of 13, the last prompt token of the shorter and the 7 behind it. Or all, if asked."""
    shapes: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    cpu = torch.device("cpu")
    rows = [ROWS[0], ROWS[2]]
    some, every = naive_logps(model, rows, 0, cpu), naive_logps(model, rows, 0, cpu, all_logits=True)
    assert shapes == [(5, 8, VOCAB), (5, 13, VOCAB)]
    torch.testing.assert_close(some, every, atol=1e-5, rtol=0)


def test_self_check_compares_few_candidates_of_a_slate(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Separate rows of 20 candidates of a long prompt do not fit; first and last are among those compared."""
    compared: list[list[PromptCompletions]] = []
    naive = scorer.naive_logps
    monkeypatch.setattr(scorer, "naive_logps", lambda m, rows, *rest: compared.append(rows) or naive(m, rows, *rest))
    (row,) = random_rows([(9, tuple(range(1, 21)))])
    self_check(model, [row], 0)
    ((few,),) = compared
    assert few.prompt == row.prompt
    assert [len(ids) - 1 for ids in few.completions] == [0, 6, 12, 19]


def test_rounding_of_a_forward_pass_in_autocast_is_allowed_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate wraps the model of a training with bf16: float32 weights, products of 16 bits, here 0.05 nats off."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    right = scorer.tree_logps
    monkeypatch.setattr(scorer, "tree_logps", lambda *args: right(*args) + 0.05)
    with pytest.raises(ScoringError, match="disagrees"):
        self_check(model, ROWS, 0)
    AcceleratorState._reset_state(True)
    try:
        prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
        assert self_check(prepared, ROWS, 0) == pytest.approx(0.05, abs=0.02)
    finally:
        AcceleratorState._reset_state(True)


def test_rounding_of_quantized_models_is_allowed_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """QLoRA: what is not quantized is float32, but products are bfloat16, here 0.05 nats off."""
    from peft import LoraConfig, get_peft_model

    right = scorer.tree_logps
    monkeypatch.setattr(scorer, "tree_logps", lambda *args: right(*args) + 0.05)
    with pytest.raises(ScoringError, match="disagrees"):
        self_check(model, ROWS, 0)
    model.is_quantized = True
    assert self_check(model, ROWS, 0) == pytest.approx(0.05, abs=1e-3)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert self_check(adapter, ROWS, 0) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("processes", [2, 4])
def test_every_row_is_scored_by_one_process(
    tokenizer: Any, tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """In turns, as in a group: who has no batch left scores one for nobody; together they have every row once."""
    model, rows = tiny_llama(tokenizer), [PromptCompletions([5 + r], [[7, 2], [8, 9, 2]]) for r in range(5)]
    alone = scorer.score_rows(model, rows, 0, max_tokens=5)
    shares: list[dict[int, Any]] = []
    with monkeypatch.context() as patched:
        patched.setattr(scorer, "from_all", lambda own, n_rows, n: shares.append(own) or alone)
        for rank in range(processes):
            patched.setattr(scorer, "place_in_group", lambda rank=rank: (rank, processes))
            scorer.score_rows(model, rows, 0, max_tokens=5)
    assert sorted(r for share in shares for r in share) == list(range(5))
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda into, own: into.__setitem__(slice(None), shares))
    together = scorer.from_all(shares[0], 5, processes)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(ScoringError, match=f"{processes} processes scored {5 - len(shares[-1])} rows instead of 5"):
        shares[-1] = {}
        scorer.from_all(shares[0], 5, processes)


def test_a_model_is_checked_once_for_each_kernel(
    tokenizer: Any, tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first row, and not on a slate of hundreds."""
    model, rows = tiny_llama(tokenizer), [PromptCompletions([n], [[7, 2], [8, 2], [9, 2], [10, 2]]) for n in (5, 6)]
    checked: list[Any] = []
    monkeypatch.setattr(scorer, "self_check", lambda model, some, pad_id, mode: checked.append(some))
    for _ in range(2):
        scorer.check_once(model, rows, 0, "auto")
    assert checked == [[PromptCompletions([5], [[7, 2], [8, 2], [9, 2]])]]
    model.set_attn_implementation("eager")
    scorer.check_once(model, rows, 0, "auto")
    scorer.check_once(model, rows, 0, "naive")
    assert len(checked) == 2


@torch.no_grad()
def test_padding_beyond_a_window_does_not_make_nan() -> None:
    """Eager attention: a padding row whose window holds nothing but padding sees nothing at all."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.2, sliding_window=4, attn_implementation="eager",
    )  # fmt: skip
    model: Any = Gemma2ForCausalLM(config).eval()
    rows = random_rows([(3, (2,)), (20, (4,))])
    for ours, row in zip(score_rows(model, rows, 0, mode="naive"), rows, strict=True):
        np.testing.assert_allclose(ours, separately(model, row), atol=2e-5)


def test_rows_beyond_the_context_and_modes_that_are_none_are_refused(tiny_llama: Callable[..., Any]) -> None:
    """Positions beyond those that a model was trained on have scores, too, that mean nothing."""
    short = tiny_llama(Sized(), max_position_embeddings=12).eval()
    fits, too_long = random_rows([(9, (2, 4))]), random_rows([(9, (2, 5))])
    assert len(score_rows(short, fits, 0)) == 1
    with pytest.raises(PromptError, match=r"1 of 2 prompts .* context of 12 tokens \(longest: 13\)"):
        score_rows(short, [*fits, *too_long], 0)
    with pytest.raises(ScoringError, match="scoring 'pakced': log-probs are computed packed, naive or forked"):
        scorer.logps(short, fits, 0, "pakced")


def test_ids_may_be_arrays(model: Any) -> None:
    arrays = [PromptCompletions(np.array(r.prompt), [np.array(ids) for ids in r.completions]) for r in ROWS]
    for ours, theirs in zip(score_rows(model, arrays, 0), score_rows(model, ROWS, 0), strict=True):
        assert ours.tolist() == theirs.tolist()
