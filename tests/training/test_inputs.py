"""What people hand to the trainer: names, frames, half-precision weights, frozen adapters, tokens without embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from sirius_rec import SiriusConfig, SiriusTrainer
from sirius_rec.errors import ConfigError, DataError, SiriusError

RECORDS = [{"prompt": "Liked: Red. Next: ", "chosen": "Blur", "rejected": ["Air", "Can"]},
           {"prompt": "Liked: Air. Next: ", "chosen": "Low", "rejected": ["Red", "Can"]}]  # fmt: skip


@pytest.fixture
def build(tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Callable[..., SiriusTrainer]:
    def make(model: Any = None, data: Any = RECORDS, **options: Any) -> SiriusTrainer:
        further = {name: options.pop(name) for name in ("eval_dataset", "ref_model") if name in options}
        args = SiriusConfig(output_dir=str(tmp_path), use_cpu=True, save_strategy="no", max_steps=1, **options)
        return SiriusTrainer(tiny_llama(tokenizer) if model is None else model, args, data, tokenizer, **further)

    return make


def refused(kind: type[SiriusError], make: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_trained_in_place(build: Any, tokenizer: Any, tiny_llama: Any, dtype: Any) -> None:
    said = refused(ConfigError, lambda: build(tiny_llama(tokenizer).to(dtype)))
    assert f"trainable weights are {str(dtype)[6:]}" in said and "dtype=torch.float32" in said


def test_a_frozen_base_in_half_precision_under_an_adapter_is_fine(build: Any, tokenizer: Any, tiny_llama: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_llama(tokenizer).to(torch.bfloat16)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    trainer = build(model)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_nothing_to_train_is_known_at_once(build: Any, tokenizer: Any, tiny_llama: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    adapted = get_peft_model(tiny_llama(tokenizer), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    frozen = PeftModel.from_pretrained(tiny_llama(tokenizer), tmp_path / "adapter")
    assert "load the adapter with is_trainable=True" in refused(ConfigError, lambda: build(frozen))


def test_a_name_is_loaded_in_float32(build: Any, tokenizer: Any, tiny_llama: Any, tmp_path: Path) -> None:
    tiny_llama(tokenizer).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    trainer = build(str(tmp_path / "model"))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert "give a causal language model" in refused(ConfigError, lambda: build(3))


def test_containers_of_records(build: Any) -> None:
    from datasets import Dataset, DatasetDict

    rows = build().train_dataset.rows
    data = Dataset.from_list(RECORDS)
    for container in (tuple(RECORDS), data, data.to_pandas(), pl.DataFrame(RECORDS)):
        made = build(data=container).train_dataset.rows
        assert [(row.prompt, row.completions) for row in made] == [(row.prompt, row.completions) for row in rows]
    said = refused(DataError, lambda: build(data=DatasetDict({"train": data})))
    assert said == "train_dataset: got several data sets (train): hand over one of them, train_dataset=data['train']"
    assert "eval_dataset=data['a']" in refused(DataError, lambda: build(eval_dataset={"a": RECORDS}))
    assert "hand over records" in refused(DataError, lambda: build(data="records.jsonl"))


@pytest.mark.parametrize("option", [{"label_smoothing_factor": 0.5}, {"train_sampling_strategy": "sequential"}])
def test_arguments_that_would_change_nothing_are_refused(build: Any, option: dict[str, Any]) -> None:
    assert "has no effect on preference losses: leave it out" in refused(ConfigError, lambda: build(**option))


def test_a_reference_model_is_not_needed(build: Any, tokenizer: Any, tiny_llama: Any) -> None:
    assert refused(ConfigError, lambda: build(ref_model=tiny_llama(tokenizer))).startswith(
        "ref_model: the reference is"
    )
    assert build(ref_model=None)


def test_a_token_without_embedding(build: Any, tokenizer: Any, tiny_llama: Any, tmp_path: Path) -> None:
    """A pad token outside the matrix does no harm and is not written into the checkpoint; any other is named."""
    model = tiny_llama(tokenizer)
    size = model.get_input_embeddings().num_embeddings
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= size
    trainer = build(model)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert type(model).from_pretrained(tmp_path / "saved").config.pad_token_id != tokenizer.pad_token_id
    tokenizer.add_tokens(["Radiohead"])
    data = [{**RECORDS[0], "chosen": "Radiohead"}]
    said = refused(
        ConfigError, lambda: build(data=data, model=tiny_llama(tokenizer, vocab_size=size, pad_token_id=None))
    )
    assert f"('Radiohead') lies outside the model's {size} embeddings: resize them" in said


def test_a_special_token_in_a_record_is_named(build: Any) -> None:
    bad = [RECORDS[0], {**RECORDS[1], "rejected": ["Red</s>", "Can"]}]
    said = refused(DataError, lambda: build(data=bad))
    assert said == "record 1: 'Red</s>' contains a special token of the tokenizer: change the text"
