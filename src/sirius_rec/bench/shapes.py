"""The model shapes and batches that are timed. Weights and tokens are random: cost does not depend on either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
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
# of logits, which trees hardly lower, is over-stated rather than under-stated.
CPU_SHAPE = Shape("cpu", hidden=192, intermediate=512, layers=16, heads=6, vocabulary=32000)
LLAMA_2_7B = Shape("llama-2-7b", hidden=4096, intermediate=11008, layers=32, heads=32, vocabulary=32000)
SMOLLM2_135M = Shape("smollm2-135m", hidden=576, intermediate=1536, layers=30, heads=9, vocabulary=49152, context=8192)
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


@dataclass(frozen=True)
class LogShape:
    """Training rows as a log gives them: `history` titles at most, `k` negatives.

    anchored: histories begin at multiples of history / 2 of a user's sequence, so that neighbours share what comes
    before them; else each has the last `history` titles. slate_shown: a slate of 20 stands in the prompt.
    """

    history: int
    k: int
    anchored: bool = True
    slate_shown: bool = False

    def described(self) -> dict[str, Any]:
        window = "anchored" if self.anchored else "sliding"
        return {"history": self.history, "window": window, "k": self.k, "slate_shown": self.slate_shown}


def log_rows(
    shape: LogShape, n_rows: int, *, vocabulary: int, per_user: int = 40, seed: int = 0
) -> list[PromptCompletions]:
    """Whole runs of users' rows: an instruction of 8 tokens, a title per line, 4 tokens before the answer.

    Titles have 2 to 6 tokens (3.9 on average, with the end of line or of sequence one more) over 1,500 words with
    1/rank frequencies, and are drawn from a catalogue of 3,000, so that some begin alike and few equal others.
    """
    rng = np.random.default_rng(seed)
    words = 3 + rng.permutation(vocabulary - 3)[: min(1500, vocabulary - 3)]
    chance = 1 / np.arange(1, len(words) + 1)
    chance /= chance.sum()
    lengths = rng.choice([2, 3, 4, 5, 6], size=3000, p=[0.15, 0.25, 0.25, 0.2, 0.15])
    titles = [rng.choice(words, size=n, p=chance).tolist() for n in lengths]
    instruction, line, before = rng.choice(words, 8).tolist(), [int(words[0])], rng.choice(words, 4).tolist()
    rows: list[PromptCompletions] = []
    while len(rows) < n_rows:
        sequence = rng.integers(0, len(titles), per_user + 1)
        for t in range(1, min(per_user, n_rows - len(rows)) + 1):
            first = max(t - shape.history, 0)
            if shape.anchored:
                first = -(-first // (shape.history // 2)) * (shape.history // 2)
            slate = [int(sequence[t]), *rng.integers(0, len(titles), 19).tolist()]
            shown = [*sequence[first:t], *(rng.permutation(slate) if shape.slate_shown else ())]
            prompt = [*instruction, *(token for item in shown for token in (*titles[item], *line)), *before]
            rows.append(PromptCompletions(prompt, [[*titles[item], EOS] for item in slate[: 1 + shape.k]]))
    return rows
