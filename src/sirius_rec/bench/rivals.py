"""What people do today, written as well as it can be: every candidate in a row of its own, prompt included."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sirius_rec.scoring.naive import naive_logps
from sirius_rec.scoring.packed import tree_logps, unwrapped
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import build_tree

Scorer = Callable[[nn.Module, Sequence[PromptCompletions], int], Tensor]


def trees(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> Tensor:
    """Ours: log π(y|x), [B, C] in nats; the layout of the batch is part of the cost."""
    return tree_logps(model, build_tree(rows).to(next(model.parameters()).device))


def packed_candidates(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> Tensor:
    """Candidates share their prompt, rows share nothing: each prompt and each of its titles' beginnings once per row.

    Ids are made distinct from row to row while the tree is laid out.
    """
    vocabulary = int(unwrapped(model).config.vocab_size)

    def moved(ids: Sequence[int], b: int) -> list[int]:
        return [token + b * vocabulary for token in ids]

    apart = [
        PromptCompletions(moved(row.prompt, b), [moved(ids, b) for ids in row.completions])
        for b, row in enumerate(rows)
    ]
    tree = build_tree(apart)
    tree = replace(tree, token_T=tree.token_T % vocabulary, target_M=tree.target_M % vocabulary)
    return tree_logps(model, tree.to(next(model.parameters()).device))


def completion_logits(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> Tensor:
    """Concatenated rows, logits at the completions' positions only: the best that is done without sharing.

    About `AT_A_TIME` texts of similar length at a time, as a careful user would take them.
    """
    texts = [(list(row.prompt), list(ids)) for row in rows for ids in row.completions]
    order = sorted(range(len(texts)), key=lambda r: sum(map(len, texts[r])))
    device = next(model.parameters()).device
    parts = [
        _causal_logps(model, [texts[r] for r in order[at : at + AT_A_TIME]], pad_id, device)
        for at in range(0, len(order), AT_A_TIME)
    ]
    logp_R = torch.cat(parts)[torch.tensor(np.argsort(order), device=device)]
    return torch.stack(logp_R.split([len(row.completions) for row in rows]))


# Separate rows that are computed together.
AT_A_TIME = 20


def _causal_logps(
    model: Any, texts: Sequence[tuple[list[int], list[int]]], pad_id: int, device: torch.device
) -> Tensor:
    """[R] log π of texts (prompt, completion): causal attention without a mask of our own."""
    width = max(len(prompt) + len(ids) for prompt, ids in texts)
    ids_RT = torch.full((len(texts), width), pad_id)
    scored_RT, seen_RT = torch.zeros((2, len(texts), width), dtype=torch.bool)
    for r, (prompt, ids) in enumerate(texts):
        n = len(prompt) + len(ids)
        ids_RT[r, :n] = torch.tensor(prompt + ids)
        seen_RT[r, :n] = True
        scored_RT[r, len(prompt) : n] = True
    ids_RT, scored_RT, seen_RT = (t.to(device) for t in (ids_RT, scored_RT, seen_RT))
    base = unwrapped(model)
    hidden_RTH = base.model(input_ids=ids_RT, attention_mask=seen_RT, use_cache=False).last_hidden_state
    logits_NV = base.lm_head(hidden_RTH[:, :-1][scored_RT[:, 1:]]).float()
    token_logp_N = torch.log_softmax(logits_NV, 1).gather(1, ids_RT[scored_RT][:, None])[:, 0]
    row_N = scored_RT.nonzero()[:, 0]
    return torch.zeros(len(texts), device=device).index_add(0, row_N, token_logp_N)


def full_logits(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int) -> Tensor:
    """Concatenated rows with logits at every position, as S-DPO's code has them."""
    return naive_logps(model, rows, pad_id, next(model.parameters()).device, all_logits=True)


SCORERS: dict[str, Scorer] = {
    "trees": trees,
    "packed_candidates": packed_candidates,
    "completion_logits": completion_logits,
    "full_logits": full_logits,
}


def sft_loss(logp_BC: Tensor) -> Tensor:
    """−log π of the target: what a step without negatives computes."""
    return -logp_BC[:, 0].mean()


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
