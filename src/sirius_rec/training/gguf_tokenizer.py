"""The tokenizer that a GGUF file describes: vocabulary, merges, special tokens, chat template.

Byte-level tokenizers are built here, not by transformers: its reader leaves SmolLM2 with GPT-2's splits (two line
breaks before a digit become two tokens instead of one), and 5.17 takes the beginning of a sequence for its end. How
text is split before merges is not in the file, only a name for it (`tokenizer.ggml.pre`); a name that is not known
here is refused, since tokens would be wrong and nothing would show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirius_rec.errors import ConfigError

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens, as llama.cpp numbers them
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Splitting:
    """How a family of byte-level tokenizers prepares text.

    split: a pattern; None for GPT-2's own. digits: every digit alone, before all else. whole: a word that is in the
    vocabulary is not merged up to it. nfc: text is brought into Unicode's composed form. bos: texts begin with the
    beginning-of-sequence token, where the file does not say.
    """

    split: str | None = None
    digits: bool = False
    whole: bool = False
    nfc: bool = False
    bos: bool = False


_GPT2 = Splitting()
_DIGITS = Splitting(digits=True)
_LLAMA3 = Splitting(split=_LLAMA3_SPLIT, whole=True, bos=True)
_QWEN2 = Splitting(split=_QWEN2_SPLIT, nfc=True)
SPLITTINGS: dict[str, Splitting] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
}


def build_tokenizer(file: Path, fields: Mapping[str, Any]) -> Any:
    """A tokenizer of a GGUF file's fields. ConfigError for a kind of tokenizer that is not known to come out right."""
    kind = fields["tokenizer.ggml.model"]
    if kind == "gpt2":
        tokenizer = _byte_level(file, fields)
    elif kind == "llama":  # SentencePiece
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    else:
        raise ConfigError(f"{file}: has a tokenizer of kind '{kind}', which is not read here: {_INSTEAD}")
    for role, number in _special(fields).items():
        setattr(tokenizer, f"{role}_token", fields["tokenizer.ggml.tokens"][number])
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    context = fields.get(f"{fields['general.architecture']}.context_length")
    if context:
        tokenizer.model_max_length = int(context)
    return tokenizer


_INSTEAD = "name the model's own folder or Hugging Face id instead of its GGUF file"
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _special(fields: Mapping[str, Any]) -> dict[str, int]:
    numbers = {role: fields.get(f"tokenizer.ggml.{word}_token_id") for role, word in _ROLES.items()}
    return {role: int(number) for role, number in numbers.items() if number is not None}


def _byte_level(file: Path, fields: Mapping[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    name = fields.get("tokenizer.ggml.pre")
    splitting = SPLITTINGS.get(str(name))
    if splitting is None:
        raise ConfigError(
            f"{file}: its tokenizer splits text in the way called '{name}', which is not read here (read are "
            f"{', '.join(SPLITTINGS)}): {_INSTEAD}"
        )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type") or ()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=splitting.whole))
    if splitting.nfc:
        bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = _pre_tokenizer(splitting)
    bpe.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [token for token, of in zip(tokens, kinds, strict=False) if of == kind]
        make = bpe.add_special_tokens if special else bpe.add_tokens
        make([AddedToken(token, normalized=False, special=special) for token in added])
    _put_around(bpe, fields, splitting)
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=bpe)


def _pre_tokenizer(splitting: Splitting) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if splitting.split is not None:
        cut = Split(Regex(splitting.split), behavior="isolated")
        return Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
    return Sequence([Digits(individual_digits=True), gpt2]) if splitting.digits else gpt2


def _put_around(bpe: Any, fields: Mapping[str, Any], splitting: Splitting) -> None:
    """The beginning and the end of a sequence around every text, where the file wants them."""
    from tokenizers import processors

    tokens, special = fields["tokenizer.ggml.tokens"], _special(fields)
    wanted = {
        "bos": fields.get("tokenizer.ggml.add_bos_token", splitting.bos),
        "eos": fields.get("tokenizer.ggml.add_eos_token", False),
    }
    named = {role: tokens[special[role]] for role, wants in wanted.items() if wants and role in special}
    if named:
        form = [named.get("bos", ""), "$A", named.get("eos", "")]
        bpe.post_processor = processors.TemplateProcessing(
            single=" ".join(part for part in form if part),
            special_tokens=[(token, special[role]) for role, token in named.items()],
        )
