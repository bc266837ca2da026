"""Training from text to hybrid prompts: how many are hybrid when, and exact resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sirius_rec.errors import ConfigError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.hybrid import HybridEncoder, marked_titles
from sirius_rec.prompts.templates import TEMPLATES
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.batching import StepLayout
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.curriculum import CurriculumDataset, CurriculumTrainer
from sirius_rec.training.hybrid import FILE, install, installed

ITEMS = torch.arange(40.0).view(10, 4).sin()


def test_the_share_of_hybrid_prompts_rises_linearly() -> None:
    made = [PromptCompletions([1], [[2], [3]]) for _ in range(500)]
    data = CurriculumDataset(made, epochs=4, share=0.5, negatives=0, score_unsampled=0, seed=3, layout=StepLayout(10))
    shares = []
    for epoch in range(4):
        data.set_epoch(epoch)
        draws = [data[n] for n in range(len(data))]
        assert sorted(d.row % 500 for d in draws) == list(range(500))
        shares += [np.mean([d.row < 500 for d in part]) for part in (draws[:250], draws[250:])]
        again = [data[n].row for n in range(len(data))]
        assert again == [d.row for d in draws]
        assert epoch or not any(d.row < 500 for d in draws[:10])  # the first step is text alone
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1], atol=0.08)


def trainer(
    tokenizer: Any, model: Any, catalogue: tuple[str, ...], folder: Path, epochs: int = 2, **options: Any
) -> CurriculumTrainer:
    hybrid = install(model, ITEMS, seed=1)
    shown = marked_titles(catalogue, np.ones(10, dtype=bool))
    rng = np.random.default_rng(0)
    records = []
    for _ in range(24):
        history, target = rng.integers(0, 10, 3), int(rng.integers(10))
        prompt = TEMPLATES["music"].render([shown[i] for i in history], [])
        records.append({"prompt": prompt, "chosen": catalogue[target], "rejected": []})
    args = SiriusConfig(
        output_dir=str(folder), loss="sft", score_unsampled=0, num_train_epochs=epochs, per_device_train_batch_size=4,
        learning_rate=1e-2, save_strategy="steps", save_steps=3, use_cpu=True, disable_tqdm=True, seed=5, **options,
    )  # fmt: skip
    encoder = HybridEncoder(tokenizer, hybrid.first_virtual)
    return CurriculumTrainer(model, args, records, tokenizer, curriculum=1.0, encoder=encoder)


def test_resumed_is_uninterrupted(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    whole = trainer(tokenizer, tiny_llama(tokenizer, tie_word_embeddings=True), catalogue, tmp_path / "a")
    start = installed(whole.model).projector[0].weight.detach().clone()
    whole.train()
    assert not torch.equal(installed(whole.model).projector[0].weight, start)
    # killed in the second epoch: what was saved at step 9 goes on in a new process' model
    import shutil

    shutil.copytree(tmp_path / "a" / "checkpoint-9", tmp_path / "b" / "checkpoint-9")
    resumed = trainer(tokenizer, tiny_llama(tokenizer, 9, tie_word_embeddings=True), catalogue, tmp_path / "b")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 12
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    first, last = (load_file(tmp_path / "a" / f"checkpoint-{step}" / FILE) for step in (3, 12))
    assert torch.equal(first["items_ID"], last["items_ID"])  # frozen
    assert not torch.equal(first["projector.2.weight"], last["projector.2.weight"])


def test_lora_trains_the_projector_and_resumes(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    from sirius_rec.training.backbones import add_lora

    base = tiny_llama(tokenizer)
    frozen = base.get_input_embeddings().weight.detach().clone()
    whole = trainer(tokenizer, add_lora(base, rank=2), catalogue, tmp_path / "a")
    whole.train()
    assert torch.equal(installed(whole.model).tokens.weight, frozen)
    names = [name for name, p in whole.model.named_parameters() if p.requires_grad]
    assert any("projector.2.weight" in n for n in names) and not any("projector" in n and "lora" in n for n in names)
    import shutil

    shutil.copytree(tmp_path / "a" / "checkpoint-9", tmp_path / "b" / "checkpoint-9")
    resumed = trainer(tokenizer, add_lora(tiny_llama(tokenizer), rank=2), catalogue, tmp_path / "b")
    resumed.train(resume_from_checkpoint=True)
    ours = {name: p for name, p in resumed.model.named_parameters() if p.requires_grad}
    for name in names:
        torch.testing.assert_close(ours[name], whole.model.get_parameter(name), rtol=0, atol=1e-6)


def test_text_rows_are_the_plain_prompts(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    made = trainer(tokenizer, tiny_llama(tokenizer), catalogue, tmp_path)
    first, n = installed(made.model).first_virtual, len(made.train_dataset.rows)
    for hybrid, text in zip(made.collator.rows[:n], made.collator.rows[n:], strict=True):
        assert [i for i in hybrid.prompt if i < first] == list(text.prompt) and len(hybrid.prompt) == len(
            text.prompt
        ) + 3
    assert isinstance(made.encoder, Encoder)
    with pytest.raises(IndexError):
        made.collator.rows[2 * n]


def test_a_model_in_parts_is_refused(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="no FSDP, no DeepSpeed"):
        trainer(tokenizer, tiny_llama(tokenizer), catalogue, tmp_path)
