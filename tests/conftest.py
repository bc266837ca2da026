"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# Hypothesis fails what takes longer than 200 ms: on a busy machine that is anything.
settings.register_profile("without a time limit", deadline=None)
settings.load_profile("without a time limit")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from threads, and one thread keeps sums in one order. Set before anybody imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray lets its workers give way to all other work on the machine.
os.environ.setdefault("RAY_worker_niceness", "0")

# Files and folders whose tests share what takes seconds to make: one worker makes it, runs them all. The longest come
# first, so that the short tests, which go to whichever worker is free, fill up the end.
TOGETHER = (
    "tests/recipes/test_end_to_end.py",
    "tests/distributed/test_two_processes.py",
    "tests/commands/",
    "tests/recipes/test_language_baselines.py",
    "tests/recipes/test_tuning.py",
    "tests/recipes/test_whole_catalogue.py",
    "tests/rankers/test_sequential.py",
    "tests/recipes/test_comparison.py",
    "tests/docs/test_tutorials.py",
    "tests/training/test_smollm2.py",
    "tests/serving/test_server.py",
    "tests/serving/test_serving_a_run.py",
    "tests/rankers/test_encoders.py",
    "tests/rankers/test_morec.py",
    "tests/data/test_prepare.py",
    "tests/audit/test_audit_command.py",
    "tests/recipes/test_starting.py",
    "tests/recipes/test_streamed.py",
    "tests/recipes/test_held_out_runs.py",
    "tests/recipes/test_merging.py",
    "tests/report/",
    "tests/docs/test_site.py",
)


def _together(nodeid: str) -> str | None:
    """The entry of TOGETHER that a test belongs to."""
    return next((entry for entry in TOGETHER if nodeid.startswith(entry)), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a worker of xdist
        place = {entry: n for n, entry in enumerate((*TOGETHER, None))}
        items.sort(key=lambda item: place[_together(item.nodeid)])


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported is no garbage: every training ends with a full collection, which takes half a second to say so.

    So before many tests, what they will import is imported, and taken out of what is looked through.
    """
    if len(session.items) > 50:
        for name in ("transformers.trainer", "peft", "matplotlib.pyplot"):
            if importlib.util.find_spec(name.partition(".")[0]) is not None:
                importlib.import_module(name)
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where time is short (.ci/run): what would start after $SIRIUS_TESTS_UNTIL, seconds since 1970, is skipped."""
    if time.time() > float(os.environ.get("SIRIUS_TESTS_UNTIL", "inf")):
        pytest.skip("no time left for it")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2`: the entries of TOGETHER as wholes, then test by test."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid) or nodeid

    config.option.loadscopereorder = False  # by number of tests
    return ByFile(config, log)


def _shared_folder() -> Path | None:
    """The folder of real data beside the checkout, or $SIRIUS_SHARED; None where there is none."""
    named = os.environ.get("SIRIUS_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`shared/data` with the real data sets; the test is skipped, saying so, where it is absent."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip("real data not found: put it in ../shared/data or set SIRIUS_SHARED")
    return folder / "data"


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """`shared/models` with real tokenizers; the test is skipped, saying so, where it is absent."""
    folder = _shared_folder()
    if folder is None or not (folder / "models").is_dir():
        pytest.skip("real tokenizers not found: put them in ../shared/models or set SIRIUS_SHARED")
    return folder / "models"


@pytest.fixture(scope="session")
def models_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for all workers of this call: converting SmolLM2 takes half a minute on a slow machine."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "models-cache"


TITLES = ("Red", "Red House Painters", "Blur", "Air", "Can", "Low", "Suede", "Pulp", "Massive Attack", "Portishead")


@pytest.fixture(scope="session")
def catalogue() -> tuple[str, ...]:
    """Ten titles; one is the beginning of another."""
    return TITLES


@pytest.fixture
def tokenizer() -> Any:
    """A byte-level BPE trained on the catalogue: merges inside titles, eos and pad, no bos; a fresh copy each time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    bpe.train_from_iterator(
        TITLES * 4,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def tiny_llama() -> Callable[..., Any]:
    """build(tokenizer, seed=0) → a seeded random Llama of two layers, float32, weights large enough to matter."""

    def build(tokenizer: Any, seed: int = 0, **options: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 256,
                "initializer_range": 0.15,
                "pad_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": tokenizer.eos_token_id,
                "attn_implementation": "sdpa",
                **options,
            }
        )
        return LlamaForCausalLM(config)

    return build


@pytest.fixture
def write_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """write(path, model, tokenizer, types={name: "Q4_1"}, **fields) → the path: a Llama as llama.cpp has it.

    types: how tensors whose name ends so are stored, F32 unless given. fields: `pre`, `bos`, `add_bos`, `chat_template`
    of the tokenizer; `rope_scaling`; `tensors`, sizes of further ones, None for one that is left out; `keys`, further
    ones of the architecture. The cache is empty, and stays in the test's folder. Skips without the package gguf.
    """
    gguf = pytest.importorskip("gguf", reason="reading GGUF needs the package gguf")
    monkeypatch.setenv("SIRIUS_CACHE", str(tmp_path / "cache"))

    def write(path: Path, model: Any, tokenizer: Any, types: Any = None, **fields: Any) -> Path:
        writer, config = gguf.GGUFWriter(path, "llama"), model.config
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        if "rope_scaling" in fields:
            writer.add_rope_scaling_type(gguf.RopeScalingType(fields["rope_scaling"]))
        for name, value in fields.get("keys", {}).items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](f"llama.{name}", value)
        _write_vocabulary(writer, tokenizer, fields)
        tensors = _llama_cpp_tensors(model)
        for name, size in fields.get("tensors", {}).items():
            tensors[name] = None if size is None else np.ones(size, dtype=np.float32)
        for name, stored in tensors.items():
            if stored is None:
                continue
            kind = next((kind for end, kind in (types or {}).items() if name.endswith(end)), "F32")
            code = getattr(gguf.GGMLQuantizationType, kind)
            packed = stored if kind == "F32" else gguf.quants.quantize(stored, code)
            writer.add_tensor(name, packed, raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def at_work() -> Callable[[Any], AbstractContextManager[str]]:
    """with at_work(app) as address: the application as uvicorn serves it, in a thread of this process."""
    return _at_work


@contextmanager
def _at_work(app: Any) -> Iterator[str]:
    """The address of an application that uvicorn serves in a thread of this process."""
    import threading

    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="on", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def _write_vocabulary(writer: Any, tokenizer: Any, fields: dict[str, Any]) -> None:
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields.get("pre", "gpt-2"))
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_bos_token_id(fields.get("bos", 1))
    if "add_bos" in fields:
        writer.add_add_bos_token(fields["add_bos"])
    if "chat_template" in fields:
        writer.add_chat_template(fields["chat_template"])


_LLAMA_CPP = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _llama_cpp_tensors(model: Any) -> dict[str, Any]:
    """Weights by llama.cpp's names; in each head of queries and keys its pairs of rotary dimensions stand together."""
    heads = {"attn_q.weight": model.config.num_attention_heads, "attn_k.weight": model.config.num_key_value_heads}
    out = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in _LLAMA_CPP.items():
            name = name.replace(ours, theirs)
        values = weight.detach().numpy()
        for end, count in heads.items():
            if name.endswith(end):  # a head's row d of the first half goes before row d of the second
                halves = values.reshape(count, 2, -1, values.shape[-1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        out[name] = values.copy()
    if model.config.tie_word_embeddings:
        out.pop("output.weight", None)
    return out
