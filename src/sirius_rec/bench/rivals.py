"""What people do today, written as well as it can be: every candidate in a row of its own, prompt included."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import packed_logps
from sirius_rec.scoring.rows import PromptCompletions, pack

Scorer = Callable[[nn.Module, Sequence[PromptCompletions], int], Tensor]


def packed(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> Tensor:
    """Ours: log π(y|x), [B, C] in nats; the layout of the batch is part of the cost."""
    return packed_logps(model, pack(rows, pad_id).to(next(model.parameters()).device))


def completion_logits(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> Tensor:
    """Concatenated rows, logits at the completions' positions only: the best that is done without packing.

    The same as a packed row with one candidate, which is an ordinary causal row.
    """
    separate = [PromptCompletions(row.prompt, [ids]) for row in rows for ids in row.completions]
    device = next(model.parameters()).device
    return causal_logps(model, separate, pad_id, device).view(len(rows), -1)


def causal_logps(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int, device: torch.device) -> Tensor:
    """[R] log π of rows with one candidate each: causal attention without a mask of our own, kept logits."""
    batch = pack(rows, pad_id).to(device)
    seen_RT = (batch.segment_BT >= 0).long()
    logits_NV = model(
        input_ids=batch.input_ids_BT, attention_mask=seen_RT, logits_to_keep=batch.keep_BT, use_cache=False
    ).logits.float()
    token_logp_M = torch.log_softmax(logits_NV, 1)[batch.source_M, batch.target_M]
    return torch.zeros(len(rows), device=device).index_add(0, batch.candidate_M, token_logp_M)


def full_logits(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> Tensor:
    """Concatenated rows with logits at every position, as S-DPO's code has them."""
    return naive_logps(model, rows, pad_id, next(model.parameters()).device, all_logits=True)


SCORERS: dict[str, Scorer] = {
    "packed": packed,
    "completion_logits": completion_logits,
    "full_logits": full_logits,
}


def dpo_loss(logp_BC: Tensor, ref_BC: Tensor, beta: float) -> Tensor:
    """Softmax DPO over all negatives; with one of them it is DPO."""
    reward_BC = beta * (logp_BC - ref_BC)
    return torch.logsumexp(reward_BC[:, 1:] - reward_BC[:, :1], 1).neg().sigmoid().log().neg().mean()


def trl_loss(
    model: Any, rows: Sequence[PromptCompletions], ref_BC: Tensor, beta: float, folder: str
) -> Callable[[], Tensor]:
    """A function of the current weights: the loss that TRL's DPOTrainer computes on rows with one negative each.

    TRL's own collator and loss, with the reference's log-probs given, as after its precomputation. ImportError where
    trl (or datasets) is missing. Give it a model of its own: TRL changes the model's forward.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "</s>": 2, "b": 3}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    args = DPOConfig(
        output_dir=folder, beta=beta, max_length=None, use_cpu=next(model.parameters()).device.type == "cpu",
        report_to="none", bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        per_device_train_batch_size=len(rows), precompute_ref_log_probs=False,
    )  # fmt: skip
    some = Dataset.from_list([{"prompt": "a a", "chosen": "b", "rejected": "a"}])
    trainer = DPOTrainer(
        model=model, ref_model=copy.deepcopy(model), args=args, train_dataset=some, processing_class=tokenizer
    )
    trainer.precompute_ref_logps = True
    examples = [
        {
            "prompt_ids": list(row.prompt),
            "chosen_ids": list(row.completions[0]),
            "rejected_ids": list(row.completions[1]),
            "ref_chosen_logps": float(ref_C[0]),
            "ref_rejected_logps": float(ref_C[1]),
        }
        for row, ref_C in zip(rows, ref_BC, strict=True)
    ]

    def loss() -> Tensor:
        found: Tensor = trainer.compute_loss(model, trainer.data_collator(examples))
        return found

    model.train()
    return loss
