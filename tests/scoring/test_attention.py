"""The probe of attention kernels: the fastest right one is chosen, a wrong or missing one never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.integrations import sdpa_attention

from sirius_rec.errors import ScoringError
from sirius_rec.scoring import attention, packed
from sirius_rec.scoring import rows as rows_module
from sirius_rec.scoring.attention import probe_attention
from sirius_rec.scoring.rows import PromptCompletions, pack
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
    took = {"sdpa": 2.0, "eager": 2.0}
    for fastest in ("sdpa", "eager"):
        took["sdpa"], took["eager"] = 2.0, 2.0
        took[fastest] = 1.0
        monkeypatch.setattr(
            attention, "_seconds", lambda run, *rest, took=took: took[model.config._attn_implementation]
        )
        probe = probe_attention(model, ROWS, 0, candidates=("sdpa", "eager"))
        assert probe.chosen == fastest == model.config._attn_implementation
        assert probe.seconds == took
        assert not probe.refused
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_flex_has_no_backward_pass_on_a_cpu(model: Any) -> None:
    """So the probe says why and stays with sdpa; where nothing is trained, flex may be timed."""
    with torch.compiler.set_stance("force_eager"):
        probe = probe_attention(model, ROWS, 0)
        assert probe.chosen in ("sdpa", TREE_ATTENTION)
        assert "backward" in probe.refused["flex_attention"]
        assert model.config._attn_implementation == probe.chosen
        model.requires_grad_(False)
        assert set(probe_attention(model, ROWS, 0, repeats=1).seconds) == set(attention.CANDIDATES)


def test_wrong_log_probs_are_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = packed.attention_masks

    def wrong(config: Any, segment_BT: Any, *rest: Any) -> Any:
        mask = right(config, segment_BT, *rest)
        return mask if config._attn_implementation == "sdpa" else torch.zeros_like(mask)

    monkeypatch.setattr(packed, "attention_masks", wrong)
    probe = probe_attention(model, ROWS, 0, candidates=("eager", "sdpa"))
    assert probe.chosen == "sdpa"
    assert "disagrees with separate forward passes" in probe.refused["eager"]
    with pytest.raises(ScoringError, match=r"no attention kernel .*\(eager: packed scoring disagrees"):
        probe_attention(model, ROWS, 0, candidates=("eager",))


def test_wrong_gradients_are_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = attention._pass

    def wrong(model: Any, *rest: Any) -> list[torch.Tensor]:
        found = original(model, *rest)
        return [2 * g for g in found] if model.config._attn_implementation == "eager" else found

    monkeypatch.setattr(attention, "_pass", wrong)
    probe = probe_attention(model, ROWS, 0, candidates=("sdpa", "eager"))
    assert probe.chosen == "sdpa"
    assert probe.refused == {"eager": "its gradients differ from those of sdpa"}


@pytest.mark.parametrize("width", [2, 96])
def test_the_prompts_columns_take_no_mask_and_the_rest_goes_in_chunks(
    model: Any, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Both rows are prompt in the first two columns; values and gradients are those of one masked call."""
    one = packed.packed_logps(model, pack(ROWS, 0))
    expected = torch.autograd.grad(one.sum(), list(model.parameters()))
    assert attention.use_tree_attention(model) == TREE_ATTENTION
    monkeypatch.setattr(rows_module, "CHUNK", width)
    calls: list[tuple[int, int, bool]] = []
    original = sdpa_attention.sdpa_attention_forward

    def seen(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        calls.append((query.shape[2], key.shape[2], mask is None))
        return original(module, query, key, value, mask, **options)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", seen)
    batch = pack(ROWS, 0)
    chunks = packed.packed_logps(model, batch)
    # Rows of 5 + 3 and 2 + 3 columns: 8 and 5 wide. In two layers.
    rest = [(2, 4, False), (2, 6, False), (2, 8, False)] if width == 2 else [(6, 8, False)]
    assert calls == [(2, 2, True), *rest] * 2
    torch.testing.assert_close(chunks, one, atol=1e-5, rtol=1e-5)
    for mine, their in zip(torch.autograd.grad(chunks.sum(), list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)


def test_a_mask_that_lost_its_pieces_is_taken_whole(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be if a wrapper copied its inputs."""
    monkeypatch.setattr(rows_module, "CHUNK", 2)
    batch = pack(ROWS, 0)
    assert len(batch.chunks) > 1
    attention.use_tree_attention(model)
    with_chunks = packed.packed_logps(model, batch)
    cut = packed.in_chunks
    monkeypatch.setattr(packed, "in_chunks", lambda *args: cut(*args).clone())
    torch.testing.assert_close(packed.packed_logps(model, batch), with_chunks, atol=1e-5, rtol=1e-5)


def test_in_parts_where_every_candidate_is_one_token(model: Any) -> None:
    """No column behind the prompt: nothing is left to mask."""
    rows = [PromptCompletions([5, 6, 7], [[2]]), PromptCompletions([5, 6, 8], [[2]])]
    one = packed.packed_logps(model, pack(rows, 0))
    attention.use_tree_attention(model)
    torch.testing.assert_close(packed.packed_logps(model, pack(rows, 0)), one)


def test_only_sdpa_is_put_on_parts(model: Any) -> None:
    model.set_attn_implementation("eager")
    assert attention.use_tree_attention(model) == "eager"


@pytest.mark.gpu
def test_on_cuda_flex_and_sdpa_agree(model: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    probe = probe_attention(model.cuda(), ROWS, 0)
    assert set(probe.seconds) == set(attention.CANDIDATES), probe.refused


def test_a_kernel_without_memory_is_not_called_wrong(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another may need less; if none is left, the error is the memory's."""
    right = attention._pass

    def passing(model: Any, *rest: Any) -> list[torch.Tensor]:
        if model.config._attn_implementation == "eager":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 124 GiB")
        return right(model, *rest)

    monkeypatch.setattr(attention, "_pass", passing)
    probe = probe_attention(model, ROWS, 0, candidates=("eager", "sdpa"))
    assert (probe.chosen, probe.refused) == ("sdpa", {"eager": "out of memory"})
    with pytest.raises(torch.OutOfMemoryError, match="124 GiB"):
        probe_attention(model, ROWS, 0, candidates=("eager",))
