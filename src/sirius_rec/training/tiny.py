"""`backbone: tiny`: a small Llama from scratch, with a tokenizer trained on the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from sirius_rec.training.options import TinyOptions

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def train_tokenizer(titles_by_frequency: Sequence[str], template_lines: Sequence[str], options: TinyOptions) -> Any:
    """A byte-level BPE over the catalogue's titles, in which the first `title_tokens` titles are single tokens.

    A title token absorbs the white space before it, so that in a list of titles it costs exactly one token. Lines of
    the template are single tokens for the same reason. Every string can be encoded: bytes are the alphabet.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(titles_by_frequency, trainer)
    single = [line for line in template_lines if line.strip()] + list(titles_by_frequency[: options.title_tokens])
    tokenizer.add_tokens(_whole(single))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def _whole(texts: Sequence[str]) -> list[AddedToken]:
    return [AddedToken(text, lstrip=True, single_word=True, normalized=False) for text in texts]


def with_lines(tokenizer: Any, lines: Sequence[str]) -> Any:
    """The tokenizer with these lines as single tokens too: spelled in bytes, a question of a dozen words stands between
    what a small model has to compare, and it does not learn to."""
    tokenizer.add_tokens(_whole(lines))
    return tokenizer


def with_embeddings(model: Any, tokenizer: Any, seed: int) -> Any:
    """The model with (seeded, random) embeddings for tokens that the tokenizer was given later."""
    set_seed(seed)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def build_tiny(tokenizer: Any, options: TinyOptions, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama (seeded, float32) for that tokenizer, embeddings tied."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)
