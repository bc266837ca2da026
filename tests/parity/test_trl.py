"""The same batch, loss and gradient as TRL's DPOTrainer and CPOTrainer; docs/losses.md says what is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.objectives.losses import compute_loss
from sirius_rec.objectives.presets import build_objective
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


# Our loss and what differs from its preset → TRL's.
DPO_LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({"loss": "dpo"}, {"loss_type": "sigmoid"}),
    "dpo per token": ({"loss": "dpo", "reward": "dpo_ln"}, {"loss_type": "sigmoid_norm"}),
    "slic_hinge": ({"loss": "slic_hinge"}, {"loss_type": "hinge"}),
    "ipo": ({"loss": "ipo"}, {"loss_type": "ipo"}),
    "robust_dpo": ({"loss": "robust_dpo"}, {"loss_type": "robust", "label_smoothing": 0.1}),
    "robust_dpo, ε = 0.3": (
        {"loss": "robust_dpo", "label_smoothing": 0.3},
        {"loss_type": "robust", "label_smoothing": 0.3},
    ),
}


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("name", DPO_LOSSES)
def test_dpo_loss_and_gradient(
    tmp_path: Path,
    tokenizer: Any,
    tiny_llama: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    beta: float,
) -> None:
    from datasets import Dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    our_loss, their_loss = DPO_LOSSES[name]
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
        args=trl.DPOConfig(output_dir=str(tmp_path / "trl"), beta=beta, max_length=None, **their_loss, **common),
        train_dataset=Dataset.from_list(RECORDS),
        processing_class=tokenizer,
    )
    rows = list(theirs.train_dataset)
    their_batch = theirs.data_collator(rows)

    config = SiriusConfig(output_dir=str(tmp_path / "ours"), beta=beta, **our_loss, **common)
    at_reference = SiriusTrainer(reference, args=config, train_dataset=RECORDS, processing_class=tokenizer)
    ref_logps = at_reference.score(at_reference.train_dataset.rows)
    ours = SiriusTrainer(model, args=config, train_dataset=RECORDS, processing_class=tokenizer, ref_logps=ref_logps)
    assert ours.scoring == "packed"
    for their_row, our_row in zip(rows, ours.train_dataset.rows, strict=True):
        assert their_row["prompt_ids"] == our_row.prompt
        assert [their_row["chosen_ids"], their_row["rejected_ids"]] == our_row.completions
    our_batch = ours.collator([ours.train_dataset[i] for i in range(len(RECORDS))])

    model.train()
    their_value = theirs.compute_loss(model, their_batch)
    their_grads = gradients(model, their_value)
    our_value = ours.compute_loss(model, our_batch)
    our_grads = gradients(model, our_value)
    # log-probs agree to some 1e-6 nats; the robust loss is a difference of two terms over 1 − 2ε
    assert our_value.item() == pytest.approx(their_value.item(), rel=1e-5, abs=1e-5)
    # The reference is another model: a trainer that ignored it would be off by whole nats per completion.
    assert all(
        np.abs(ref - policy).min() > 0.01
        for ref, policy in zip(ref_logps, ours.score(ours.train_dataset.rows), strict=True)
    )
    assert set(our_grads) == set(their_grads) == {name for name, _ in model.named_parameters()}
    for name, want in their_grads.items():
        error = float((our_grads[name] - want).norm())
        assert error <= 1e-4 * float(want.norm()), (name, error, float(want.norm()))


def cpo_loss(logp: torch.Tensor, **options: Any) -> torch.Tensor:
    """TRL's CPO family on given log-probs: [B, 2] → [B]."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    fake = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        **{"simpo_gamma": 0.0, "label_smoothing": 0.0, "alpha": 0.0, **options},
    )
    losses: torch.Tensor = cpo.CPOTrainer.cpo_loss(fake, *logp.unbind(1))[0]
    return losses


# Our preset and what differs from it → TRL's CPOTrainer; the NLL of `cpo` is compared below.
CPO_LOSSES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "simpo": ("simpo", {}, {"loss_type": "simpo", "simpo_gamma": 0.6}),
    "cpo without NLL": ("cpo", {"nll_weight": 0.0}, {"loss_type": "sigmoid"}),
    "cdpo without a reference": (
        "cdpo",
        {"reward": "simpo_no_ln"},
        {"loss_type": "sigmoid", "label_smoothing": 0.1},
    ),
    "simpo, smoothed": (
        "simpo",
        {"link": "smoothed", "label_smoothing": 0.2},
        {"loss_type": "simpo", "simpo_gamma": 0.6, "label_smoothing": 0.2},
    ),
    "hinge without a reference": ("slic_hinge", {"reward": "simpo_no_ln"}, {"loss_type": "hinge"}),
    "ipo without a reference": ("ipo", {"reward": "simpo_no_ln"}, {"loss_type": "ipo"}),
}


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
@pytest.mark.parametrize("name", CPO_LOSSES)
def test_reference_free_losses(name: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's SimPO takes length-averaged log-probs and divides its margin by β before multiplying by β."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    preset, ours_differs, theirs_options = CPO_LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    logp = (-20 * torch.rand(6, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    length = torch.randint(1, 9, (6, 2), generator=generator)
    objective = build_objective(preset, beta=beta, **ours_differs)
    theirs = cpo_loss(logp / length if objective.reward == "simpo" else logp, beta=beta, **theirs_options)
    sampled, valid = torch.tensor([[False, True]]).expand(6, 2), torch.ones(6, 2, dtype=torch.bool)
    ours = compute_loss(objective, logp, length, sampled, valid).loss_B
    torch.testing.assert_close(ours, theirs)
    (our_grad,), (their_grad,) = (torch.autograd.grad(loss.sum(), logp) for loss in (ours, theirs))
    torch.testing.assert_close(our_grad, their_grad)


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_cpo_with_its_likelihood_term(
    tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """One record at a time, where TRL's mean over the batch's tokens is that of an example: nll_per_token."""
    from datasets import Dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    cpo = pytest.importorskip("trl.experimental.cpo")
    model, records = tiny_llama(tokenizer, seed=0), [RECORDS[number]]
    common: dict[str, Any] = {"per_device_train_batch_size": 1, "use_cpu": True, "report_to": "none", "bf16": False}
    common |= {"gradient_checkpointing": False, "disable_tqdm": True, "beta": 0.3}
    theirs = cpo.CPOTrainer(
        model=model,
        args=cpo.CPOConfig(output_dir=str(tmp_path / "trl"), loss_type="sigmoid", cpo_alpha=0.7, **common),
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
    )
    config = SiriusConfig(output_dir=str(tmp_path / "ours"), loss="cpo", nll_weight=0.7, nll_per_token=True, **common)
    ours = SiriusTrainer(model, args=config, train_dataset=records, processing_class=tokenizer)
    model.train()
    their_value, _ = theirs.get_batch_loss_metrics(model, theirs.data_collator(list(theirs.train_dataset)))
    our_value = ours.compute_loss(model, ours.collator([ours.train_dataset[0]]))
    assert our_value.item() == pytest.approx(their_value.item(), rel=1e-5)
    their_grads, our_grads = gradients(model, their_value), gradients(model, our_value)
    for name, want in their_grads.items():
        assert float((our_grads[name] - want).norm()) <= 1e-4 * float(want.norm()), name
