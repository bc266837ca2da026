"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Hypothesis fails what takes longer than 200 ms: on a busy machine that is anything.
settings.register_profile("without a time limit", deadline=None)
settings.load_profile("without a time limit")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from threads, and one thread keeps sums in one order. Set before anybody imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files whose tests share what takes seconds to make: one worker makes it and runs them all. The longest come first, so
# that the short tests, which go to whichever worker is free, fill up the end.
TOGETHER = (
    "tests/recipes/test_end_to_end.py",
    "tests/distributed/test_two_processes.py",
    "tests/test_cli.py",
    "tests/recipes/test_language_baselines.py",
    "tests/rankers/test_sequential.py",
    "tests/recipes/test_comparison.py",
    "tests/report/test_page_in_chromium.py",
    "tests/rankers/test_morec.py",
    "tests/data/test_prepare.py",
    "tests/audit/test_audit_command.py",
)


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a worker of xdist
        place = {file: n for n, file in enumerate(TOGETHER)}
        items.sort(key=lambda item: place.get(_file(item.nodeid), len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2`: the files of TOGETHER as wholes, then test by test."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _file(nodeid) if _file(nodeid) in TOGETHER else nodeid

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
