"""The probe of attention kernels: the fastest right one is chosen, a wrong or missing one never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.integrations import sdpa_attention

from sirius_rec.errors import ScoringError
from sirius_rec.scoring import attention, chunks, packed
from sirius_rec.scoring.attention import probe_attention
from sirius_rec.scoring.packed import tree_logps, use_tree_attention
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import build_tree
from sirius_rec.scoring.tree_attention import TREE_ATTENTION

ROWS = [PromptCompletions([5, 6, 7, 8, 9], [[11, 12, 2], [13, 2]]), PromptCompletions([5, 6], [[11, 2], [14, 15, 2]])]


class Sized:
    pad_token_id, eos_token_id = 0, 2

    def __len__(self) -> int:
        return 40


@pytest.fixture
def model(tiny_llama: Callable[..., Any]) -> Any:
    return tiny_llama(Sized()).train()


def test_the_fastest_right_kernel_is_left_on_the_model(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    took = {TREE_ATTENTION: 2.0, "eager": 2.0}
    for fastest in (TREE_ATTENTION, "eager"):
        took[TREE_ATTENTION], took["eager"] = 2.0, 2.0
        took[fastest] = 1.0
        monkeypatch.setattr(
            attention, "_seconds", lambda run, *rest, took=took: took[model.config._attn_implementation]
        )
        probe = probe_attention(model, ROWS, 0, candidates=(TREE_ATTENTION, "eager"))
        assert probe.chosen == fastest == model.config._attn_implementation
        assert probe.seconds == {name: 2 * seconds for name, seconds in took.items()}  # trees of one and two rows
        assert not probe.refused
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_flex_has_no_backward_pass_on_a_cpu(model: Any) -> None:
    """So the probe says why and stays with sdpa; where nothing is trained, flex may be timed."""
    with torch.compiler.set_stance("force_eager"):
        probe = probe_attention(model, ROWS, 0)
        assert probe.chosen == TREE_ATTENTION
        assert "backward" in probe.refused["flex_attention"]
        assert model.config._attn_implementation == probe.chosen
        model.requires_grad_(False)
        assert set(probe_attention(model, ROWS, 0, repeats=1).seconds) == set(attention.CANDIDATES)


def test_wrong_log_probs_are_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed.attention_masks

    def wrong(config: Any, *rest: Any) -> Any:
        mask = right(config, *rest)
        return mask if config._attn_implementation == TREE_ATTENTION else torch.zeros_like(mask)

    monkeypatch.setattr(packed, "attention_masks", wrong)
    probe = probe_attention(model, ROWS, 0, candidates=("eager", TREE_ATTENTION))
    assert probe.chosen == TREE_ATTENTION
    assert "disagrees with separate forward passes" in probe.refused["eager"]
    with pytest.raises(ScoringError, match=r"no attention kernel .*\(eager: packed scoring disagrees"):
        probe_attention(model, ROWS, 0, candidates=("eager",))


def test_wrong_gradients_are_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = attention._pass

    def wrong(model: Any, *rest: Any) -> list[torch.Tensor]:
        found = original(model, *rest)
        return [2 * g for g in found] if model.config._attn_implementation == "eager" else found

    monkeypatch.setattr(attention, "_pass", wrong)
    probe = probe_attention(model, ROWS, 0, candidates=(TREE_ATTENTION, "eager"))
    assert probe.chosen == TREE_ATTENTION
    assert probe.refused == {"eager": f"its gradients differ from those of {TREE_ATTENTION}"}


@pytest.mark.parametrize("width", [2, 96])
def test_chunks_are_given_their_paths_and_no_more(model: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Values and gradients are those of one masked call; in two layers each."""
    model.set_attn_implementation("eager")
    one = tree_logps(model, build_tree(ROWS))
    expected = torch.autograd.grad(one.sum(), list(model.parameters()))
    model.set_attn_implementation("sdpa")
    assert use_tree_attention(model) == TREE_ATTENTION
    monkeypatch.setattr(chunks, "CHUNK", width)
    calls: list[tuple[int, ...]] = []
    original = sdpa_attention.sdpa_attention_forward

    def seen(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        calls.append((query.shape[0], query.shape[2], key.shape[2]))
        return original(module, query, key, value, mask, **options)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", seen)
    # 5 6 ─┬─ 7 8 9 ─┬─ 11 12
    #      │         └─ 13
    #      ├─ 11
    #      └─ 14 15          in twos: 5 6 | 7 8 | 9 11 | 12 13 | 11 14 | 15, which begin at depths 0, 2, 4, 6, 2, 3.
    in_chunks = tree_logps(model, build_tree(ROWS))
    two = [(1, 2, 8), (1, 2, 6), (1, 2, 5), (2, 2, 4), (1, 2, 2)]
    assert calls == 2 * (two if width == 2 else [(1, 11, 11)])
    torch.testing.assert_close(in_chunks, one, atol=1e-5, rtol=1e-5)
    for mine, their in zip(torch.autograd.grad(in_chunks.sum(), list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)


def test_a_mask_that_lost_its_chunks_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be if a wrapper copied its inputs."""
    right = packed.attention_masks
    monkeypatch.setattr(packed, "attention_masks", lambda *args: right(*args).clone())
    with pytest.raises(ScoringError, match="a wrapper around the model copied its attention mask: set scoring: naive"):
        tree_logps(model, build_tree(ROWS))


def test_without_a_tree_it_is_sdpa(model: Any) -> None:
    """Ordinary batches, padded, as generation and naive scoring have them."""
    ids, seen = torch.tensor([[5, 6, 7, 8], [5, 9, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    plain = model(input_ids=ids, attention_mask=seen).logits
    assert use_tree_attention(model) == TREE_ATTENTION
    torch.testing.assert_close(model(input_ids=ids, attention_mask=seen).logits, plain)
    torch.testing.assert_close(model(input_ids=ids[:1]).logits, plain[:1], atol=1e-5, rtol=1e-5)


def test_what_has_sdpa_is_put_on_trees(model: Any) -> None:
    """Eager attention stays where it was chosen over sdpa; a model that has no other is put on trees, too."""
    model.set_attn_implementation("eager")
    assert use_tree_attention(model) == "eager"
    model._supports_sdpa = False
    assert use_tree_attention(model) == TREE_ATTENTION


@pytest.mark.gpu
def test_on_cuda_flex_and_sdpa_agree(tiny_llama: Callable[..., Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = tiny_llama(Sized(), hidden_size=64).train().cuda()  # flex takes heads of 16 and more
    probe = probe_attention(model, ROWS, 0)
    assert set(probe.seconds) == set(attention.CANDIDATES), probe.refused


def test_a_kernel_without_memory_is_not_called_wrong(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another may need less; if none is left, the error is the memory's."""
    right = attention._pass

    def passing(model: Any, *rest: Any) -> list[torch.Tensor]:
        if model.config._attn_implementation == "eager":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 124 GiB")
        return right(model, *rest)

    monkeypatch.setattr(attention, "_pass", passing)
    probe = probe_attention(model, ROWS, 0, candidates=("eager", TREE_ATTENTION))
    assert (probe.chosen, probe.refused) == (TREE_ATTENTION, {"eager": "out of memory"})
    with pytest.raises(torch.OutOfMemoryError, match="124 GiB"):
        probe_attention(model, ROWS, 0, candidates=("eager",))


def test_a_model_put_on_the_kernel_elsewhere(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickled in another process, it names a kernel that transformers has not heard of there."""
    asked: list[bool] = []
    use_tree_attention(model)
    monkeypatch.setattr(packed, "register", lambda: asked.append(True))
    use_tree_attention(model)
    assert asked


def test_eager_attention_takes_few_nodes_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory grows with the square of the tree; log-probs do not depend on it."""
    from sirius_rec.scoring import scorer

    expected = scorer.score_rows(model, ROWS, 0)
    model.set_attn_implementation("eager")
    monkeypatch.setattr(scorer, "_EAGER", 8)
    sizes: list[int] = []
    logps = scorer.logps
    monkeypatch.setattr(scorer, "logps", lambda m, rows, *rest: sizes.append(len(rows)) or logps(m, rows, *rest))
    for ours, theirs in zip(scorer.score_rows(model, ROWS, 0), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert sizes == [1, 1]
