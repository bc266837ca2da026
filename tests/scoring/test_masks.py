"""Tree masks by hand, windows counted in positions, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sirius_rec.errors import ScoringError
from sirius_rec.scoring.masks import attention_masks, refusal
from sirius_rec.scoring.rows import PromptCompletions, pack
from sirius_rec.scoring.scorer import resolve_mode

# prompt p0 p1 p2 | candidate 1: a b | candidate 2: c | padding
ROWS = [PromptCompletions([10, 11, 12], [[20, 21, 2], [30, 2]]), PromptCompletions([10, 11, 12, 13, 14, 15, 16], [[2]])]
FULL = """
1......
11.....
111....
1111...
11111..
111..1.
......1
"""
# Window of 3 positions: a token at position q sees q−2 … q. a stands at 3, b at 4, c at 3 (column 5).
WINDOW = """
1......
11.....
111....
.111...
..111..
.11..1.
......1
"""


def config(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"model_type": "llama", "_attn_implementation": "sdpa", **options})


def matrix(text: str) -> Tensor:
    return torch.tensor([[cell == "1" for cell in line] for line in text.split()])


def masks(**options: Any) -> Any:
    batch = pack(ROWS, pad_id=0)
    return attention_masks(config(**options), batch.segment_BT, batch.position_ids_BT, torch.float32)


def test_full_mask_by_hand() -> None:
    mask = masks()
    assert mask.shape == (2, 1, 7, 7)
    assert torch.equal(mask[0, 0], matrix(FULL))
    assert torch.equal(mask[1, 0], torch.ones(7, 7).tril().bool())


@pytest.mark.parametrize("model_type", ["mistral", "phi3"])
def test_window_counts_positions_not_columns(model_type: str) -> None:
    """Column 5 stands three columns behind column 2, but its position 3 is next to position 2."""
    assert torch.equal(masks(model_type=model_type, sliding_window=3)[0, 0], matrix(WINDOW))
    assert torch.equal(masks(model_type=model_type, sliding_window=None)[0, 0], matrix(FULL))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_one_mask_per_layer_type(model_type: str) -> None:
    both = masks(model_type=model_type, sliding_window=3, layer_types=["sliding_attention", "full_attention"])
    assert torch.equal(both["full_attention"][0, 0], matrix(FULL))
    assert torch.equal(both["sliding_attention"][0, 0], matrix(WINDOW))


def test_eager_gets_an_additive_mask_in_the_models_dtype() -> None:
    batch = pack(ROWS, pad_id=0)
    for dtype in (torch.float32, torch.bfloat16):
        bias = attention_masks(config(_attn_implementation="eager"), batch.segment_BT, batch.position_ids_BT, dtype)
        assert bias.dtype == dtype
        assert torch.equal(bias[0, 0] == 0, matrix(FULL))
        assert (bias[0, 0][~matrix(FULL)] == torch.finfo(dtype).min).all()


def test_no_row_is_fully_masked() -> None:
    for mask in (masks(), masks(model_type="mistral", sliding_window=1)):
        assert mask.any(-1).all()
        assert mask.diagonal(dim1=-2, dim2=-1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba' has not been checked (checked: gemma, gemma2, "),
        ({"_attn_implementation": "flash_attention_2"}, "attention 'flash_attention_2' takes no tree mask"),
        ({"use_bidirectional_attention": True}, "the model attends in both directions"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "its rotary positions change"),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "its rotary positions change"),
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


def test_modes_of_a_supported_model() -> None:
    model = torch.nn.Module()
    model.config = config(rope_parameters={"rope_type": "llama3", "factor": 8.0})  # type: ignore[assignment]
    assert resolve_mode(model, "auto") == resolve_mode(model, "packed") == "packed"
    assert resolve_mode(model, "naive") == "naive"
    with pytest.raises(ScoringError, match="unknown scoring 'fast': choose one of auto, packed, naive"):
        resolve_mode(model, "fast")
