"""The same batch, loss and gradient as TRL's DPOTrainer, and the same loss as its SimPO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.objectives.losses import Objective, compute_loss
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.trainer import SiriusTrainer

trl = pytest.importorskip("trl")

# Each prompt ends with a line break, where TRL's joint tokenisation of prompt + completion merges nothing.
RECORDS = [
    {"prompt": "Red\nAir\nNext artist:\n", "chosen": "Red House Painters", "rejected": "Blur"},
    {"prompt": "Low\nNext artist:\n", "chosen": "Pulp", "rejected": "Massive Attack"},
    {"prompt": "Can\nSuede\nPortishead\nNext artist:\n", "chosen": "Red", "rejected": "Red House Painters"},
]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_loss_and_gradient(
    tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, beta: float
) -> None:
    from datasets import Dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    model, reference = tiny_llama(tokenizer, seed=0), tiny_llama(tokenizer, seed=1)
    common: dict[str, Any] = {
        "per_device_train_batch_size": len(RECORDS),
        "use_cpu": True,
        "report_to": "none",
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    theirs = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(output_dir=str(tmp_path / "trl"), beta=beta, loss_type="sigmoid", max_length=None, **common),
        train_dataset=Dataset.from_list(RECORDS),
        processing_class=tokenizer,
    )
    rows = list(theirs.train_dataset)
    their_batch = theirs.data_collator(rows)

    config = SiriusConfig(output_dir=str(tmp_path / "ours"), loss="dpo", beta=beta, **common)
    at_reference = SiriusTrainer(reference, args=config, train_dataset=RECORDS, processing_class=tokenizer)
    ref_logps = at_reference.score(at_reference.train_dataset.rows)
    ours = SiriusTrainer(model, args=config, train_dataset=RECORDS, processing_class=tokenizer, ref_logps=ref_logps)
    assert ours.scoring == "packed"
    for their_row, our_row in zip(rows, ours.train_dataset.rows, strict=True):
        assert their_row["prompt_ids"] == our_row.prompt
        assert [their_row["chosen_ids"], their_row["rejected_ids"]] == our_row.completions
    our_batch = ours.collator([ours.train_dataset[i] for i in range(len(RECORDS))])

    model.train()
    their_loss = theirs.compute_loss(model, their_batch)
    their_grads = gradients(model, their_loss)
    our_loss = ours.compute_loss(model, our_batch)
    our_grads = gradients(model, our_loss)
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    # The reference is another model: a trainer that ignored it would be off by whole nats per completion.
    assert all(
        np.abs(ref - policy).min() > 0.01
        for ref, policy in zip(ref_logps, ours.score(ours.train_dataset.rows), strict=True)
    )
    assert set(our_grads) == set(their_grads) == {name for name, _ in model.named_parameters()}
    for name, want in their_grads.items():
        error = float((our_grads[name] - want).norm())
        assert error <= 1e-4 * float(want.norm()), (name, error, float(want.norm()))


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_simpo_loss(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL takes length-averaged log-probs and divides its margin by β before multiplying by β."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    cpo = pytest.importorskip("trl.experimental.cpo")
    generator = torch.Generator().manual_seed(0)
    logp = -20 * torch.rand(6, 2, generator=generator, dtype=torch.float64)
    length = torch.randint(1, 9, (6, 2), generator=generator)
    fake = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        loss_type="simpo",
        simpo_gamma=0.6,
        beta=beta,
        label_smoothing=0.0,
        alpha=0.0,
    )
    theirs, *_ = cpo.CPOTrainer.cpo_loss(fake, *(logp / length).unbind(1))
    sampled, valid = torch.tensor([[False, True]]).expand(6, 2), torch.ones(6, 2, dtype=torch.bool)
    ours = compute_loss(Objective(reward="simpo", beta=beta, gamma=0.6), logp, length, sampled, valid)
    torch.testing.assert_close(ours.loss_B, theirs)
