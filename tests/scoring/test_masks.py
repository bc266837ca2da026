"""Masks by hand, windows counted in depth, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sirius_rec.errors import ScoringError
from sirius_rec.scoring import masks as masks_module
from sirius_rec.scoring.masks import attention_masks, refusal
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import resolve_mode
from sirius_rec.scoring.tree import build_tree, padded

# prompt p0 p1 p2 | a b | c: in order of ids
ROWS = [PromptCompletions([10, 11, 12], [[20, 21, 2], [30, 2]])]
FULL = """
1.....
11....
111...
1111..
11111.
111..1
"""
# Window of 3 positions: a token at position q sees q−2 … q. a stands at 3, b at 4, c at 3 (node 5).
WINDOW = """
1.....
11....
111...
.111..
..111.
.11..1
"""


def config(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"model_type": "llama", "_attn_implementation": "eager", **options})


def matrix(text: str) -> Tensor:
    return torch.tensor([[cell == "1" for cell in line] for line in text.split()])


def masks(**options: Any) -> Any:
    return attention_masks(config(**options), build_tree(ROWS), torch.float32)


def test_full_mask_by_hand() -> None:
    mask = masks()
    assert mask.shape == (1, 1, 6, 6)
    assert torch.equal(mask[0, 0] == 0, matrix(FULL))


@pytest.mark.parametrize("model_type", ["mistral", "phi3", "qwen3_moe", "ministral3"])
def test_window_counts_positions_not_places(model_type: str) -> None:
    """Node 5 stands three places behind node 2, but its position 3 is next to position 2."""
    assert torch.equal(masks(model_type=model_type, sliding_window=3)[0, 0] == 0, matrix(WINDOW))
    assert torch.equal(masks(model_type=model_type, sliding_window=None)[0, 0] == 0, matrix(FULL))


@pytest.mark.parametrize("model_type", sorted(masks_module._MASK_PER_LAYER_TYPE))
def test_one_mask_per_layer_type(model_type: str) -> None:
    both = masks(model_type=model_type, sliding_window=3, layer_types=["sliding_attention", "full_attention"])
    assert torch.equal(both["full_attention"][0, 0] == 0, matrix(FULL))
    assert torch.equal(both["sliding_attention"][0, 0] == 0, matrix(WINDOW))


def test_eager_gets_an_additive_mask_in_the_models_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        bias = attention_masks(config(), build_tree(ROWS), dtype)
        assert bias.dtype == dtype
        assert (bias[0, 0][~matrix(FULL)] == torch.finfo(dtype).min).all()


token = st.integers(3, 5)
row = st.builds(PromptCompletions, st.lists(token, min_size=1, max_size=40), st.just([[4, 4, 5, 2], [4, 3, 2], [2]]))


@given(st.lists(row, min_size=1, max_size=5), st.sampled_from([None, 3]))
@settings(max_examples=30, deadline=None)
def test_blocks_for_flex_attention(rows: list[PromptCompletions], window: int | None) -> None:
    """From intervals alone the same blocks as from all T² entries, or more where windows end."""
    from torch.nn.attention.flex_attention import create_block_mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "BLOCK", 16)
        tree = padded(build_tree(rows))
        ours = masks_module._block_mask(tree, window, torch.float32)
    node_T = torch.arange(tree.n_nodes)
    q, k = node_T[:, None].expand(-1, tree.n_nodes), node_T.expand(tree.n_nodes, -1)
    expected = masks_module._dense(tree, window)
    assert torch.equal(ours.mask_mod(0, 0, q, k), expected)
    slow = create_block_mask(
        lambda b, h, q, k: expected[q, k], 1, 1, tree.n_nodes, tree.n_nodes, device="cpu", BLOCK_SIZE=16
    )
    given_blocks, needed = ours.to_dense().bool(), slow.to_dense().bool()
    assert (given_blocks | ~needed).all()
    if window is None:
        assert torch.equal(given_blocks, needed)
        assert torch.equal(ours.full_kv_num_blocks, slow.full_kv_num_blocks)
    else:
        assert not ours.full_kv_num_blocks.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "rwkv"}, "architecture 'rwkv' has not been checked (checked: cohere2, gemma, gemma2, "),
        ({"model_type": "mamba"}, "architecture 'mamba' hands a state from token to token, past every mask"),
        ({"_attn_implementation": "flash_attention_2"}, "attention 'flash_attention_2' takes no tree mask"),
        ({"use_bidirectional_attention": True}, "the model attends in both directions"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "its rotary positions change"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "its rotary positions change"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    model = torch.nn.Module()
    model.config = config(**options)  # type: ignore[assignment]
    reason = refusal(model.config)
    assert reason is not None
    assert message in reason
    with pytest.raises(ScoringError) as caught:
        resolve_mode(model, "packed")
    assert str(caught.value).startswith("packed scoring refused: ")
    assert str(caught.value).endswith("set scoring: naive")
    assert "\n" not in str(caught.value)
    with pytest.raises(ScoringError, match="packed scoring refused"):
        masks(**options)
    # Unless demanded, what is not known to be right is scored the slow way.
    assert resolve_mode(model, "auto") == "naive"
    assert resolve_mode(model, "naive") == "naive"


def test_longrope_up_to_the_end_of_its_first_range() -> None:
    """ROWS take five positions; beyond the first range the factors of all rows would follow the longest."""
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 5}
    masks(model_type="phi3", sliding_window=None, rope_parameters=rope)
    rope["original_max_position_embeddings"] = 4
    with pytest.raises(ScoringError, match=r"a row of 5 tokens leaves the first range .* \(4 tokens\)"):
        masks(model_type="phi3", sliding_window=None, rope_parameters=rope)


def test_modes_of_a_supported_model() -> None:
    model = torch.nn.Module()
    model.config = config(rope_parameters={"rope_type": "llama3", "factor": 8.0})  # type: ignore[assignment]
    assert resolve_mode(model, "auto") == resolve_mode(model, "packed") == "packed"
    assert resolve_mode(model, "naive") == "naive"
    with pytest.raises(ScoringError, match="unknown scoring 'fast': choose one of auto, packed, naive"):
        resolve_mode(model, "fast")
