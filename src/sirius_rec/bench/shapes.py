"""The model shapes and batches that are timed. Weights and tokens are random: cost does not depend on either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sirius_rec.scoring.rows import PromptCompletions

PAD, EOS = 0, 2


@dataclass(frozen=True)
class Shape:
    """A Llama. head_share: multiplications of the output layer per token, as a share of all layers'."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    context: int = 4096

    @property
    def layer_weights(self) -> int:
        """Weights of the layers' matrices: each takes part in one multiplication and one addition per token."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

    def described(self) -> dict[str, Any]:
        return {**asdict(self), "head_share": round(self.head_weights / self.layer_weights, 3)}


# Deep for its width, but still with an output layer of 0.87 of the layers (Qwen-0.5B: 0.4, a 7B model: 0.02): the cost
# of logits, which packing does not lower, is over-stated rather than under-stated.
CPU_SHAPE = Shape("cpu", hidden=192, intermediate=512, layers=16, heads=6, vocabulary=32000)
LLAMA_2_7B = Shape("llama-2-7b", hidden=4096, intermediate=11008, layers=32, heads=32, vocabulary=32000)
TINY_SHAPE = Shape("tiny", hidden=32, intermediate=48, layers=2, heads=4, vocabulary=200)


def build_model(shape: Shape, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Any:
    """A Llama with random weights, made on the device that it will run on."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        attn_implementation="sdpa",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def random_rows(
    n_rows: int,
    n_candidates: int,
    *,
    vocabulary: int,
    prompt: int = 300,
    titles: Sequence[int] = range(3, 10),
    seed: int = 0,
) -> list[PromptCompletions]:
    """Prompts of about `prompt` tokens (± 2 %, as batches grouped by length have) with candidates of 3 to 9 tokens.

    The end of sequence is the last token of each candidate. Tokens are drawn from 3 to vocabulary − 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, vocabulary, (n,), generator=generator).tolist()

    def around(n: int) -> int:
        spread = max(n // 50, 1)
        return n + int(torch.randint(-spread, spread + 1, (1,), generator=generator))

    lengths = [
        [titles[int(torch.randint(len(titles), (1,), generator=generator))] for _ in range(n_candidates)]
        for _ in range(n_rows)
    ]
    return [PromptCompletions(ids(around(prompt)), [[*ids(n - 1), EOS] for n in row]) for row in lengths]
