"""What people hand to `SiriusTrainer`: a model or its name, records in any usual container; refused in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sirius_rec.errors import ConfigError, DataError
from sirius_rec.scoring.packed import unwrapped
from sirius_rec.scoring.rows import PromptCompletions, check_context
from sirius_rec.training.config import SiriusConfig

# Options of Trainer that would be taken and then ignored, and what is to be done instead.
_IGNORED = {
    "ref_model": "the reference is the model as it is before its first step, scored once: leave it out, or give "
    "log-probs as ref_logps",
    "compute_metrics": "an evaluation has no logits of tokens: give an eval_hook, which gets log-probs of candidates",
    "preprocess_logits_for_metrics": "an evaluation has no logits of tokens: leave it out",
    "compute_loss_func": "the loss is composed of SiriusConfig's parts: register one of your own in objectives.parts",
    "data_collator": "records become trees of candidates here: leave it out",
}


def check_arguments(args: Any, further: dict[str, Any]) -> None:
    """ConfigError for arguments that are no `SiriusConfig`, for options that would train something else than they say,
    and for further ones of Trainer that nothing would read (those that are None are taken out)."""
    if not isinstance(args, SiriusConfig):
        raise ConfigError(f"args: got a {type(args).__name__}: give a SiriusConfig, which has its options and the loss")
    args.check()
    for name, instead in _IGNORED.items():
        if further.pop(name, None) is not None:
            raise ConfigError(f"{name}: {instead}")


def policy_of(model: Any) -> nn.Module:
    """The model itself, or the one of a hub id or folder, in float32."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str):
        from sirius_rec.training.backbones import load_backbone

        loaded: nn.Module = load_backbone(model)
        return loaded
    raise ConfigError(f"model: got a {type(model).__name__}: give a causal language model, its hub id or its folder")


def records_of(data: Any, argument: str) -> Any:
    """Records as a sequence of mappings, from lists, Hugging Face data sets and data frames."""
    if isinstance(data, Mapping):
        first = next(iter(data), "train")
        what = f"several data sets ({', '.join(map(str, data))})" if data else "an empty dict"
        raise DataError(f"{argument}: got {what}: hand over one of them, {argument}=data[{first!r}]")
    if hasattr(data, "to_dicts"):  # polars
        return data.to_dicts()
    if hasattr(data, "iterrows"):  # pandas
        return data.to_dict("records")
    if isinstance(data, str) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise DataError(f"{argument}: got {data!r}: hand over records, a list of {{'prompt', 'chosen', 'rejected'}}")
    return data


def check_logps(argument: str, logps: Sequence[np.ndarray], rows: Sequence[PromptCompletions]) -> None:
    """DataError unless there is one log-prob for each completion of each row. (Of streamed rows and kept tables, which
    are read when their steps come, their number alone is looked at.)"""
    if len(logps) != len(rows):
        raise DataError(f"{argument}: {len(logps)} entries for {len(rows)} records: give one per record")
    if not (isinstance(logps, list | tuple | np.ndarray) and isinstance(rows, list)):
        return
    for number, (logp_C, row) in enumerate(zip(logps, rows, strict=True)):
        if np.shape(logp_C) != (len(row.completions),):
            raise DataError(
                f"{argument}: record {number} has {list(np.shape(logp_C))} log-probs for {len(row.completions)} "
                "completions: give log π of the chosen text and then of each rejected one"
            )


def check_reference(
    ref_logps: Sequence[np.ndarray] | None,
    eval_ref_logps: Sequence[np.ndarray] | None,
    rows: Sequence[PromptCompletions],
    eval_rows: Sequence[PromptCompletions],
) -> None:
    """ConfigError where only one of the sets would be measured by the reference that is given; DataError where it does
    not fit its records."""
    if eval_rows and (ref_logps is None) != (eval_ref_logps is None):
        given, missing = ("eval_ref_logps", "ref_logps") if ref_logps is None else ("ref_logps", "eval_ref_logps")
        raise ConfigError(
            f"{given} without {missing}: the other records would be measured by another reference, the "
            "model before its first step: give both or none"
        )
    for name, logps, its in (("ref_logps", ref_logps, rows), ("eval_ref_logps", eval_ref_logps, eval_rows)):
        if logps is not None:
            check_logps(name, logps, its)


def check_trainable(model: nn.Module) -> None:
    """ConfigError where no weight would be trained, or weights in half precision would be."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError(
            "no weight of the model is trainable: load the adapter with is_trainable=True, or give peft_config"
        )
    half = {p.dtype for p in trainable} & {torch.float16, torch.bfloat16}
    if half:
        name = str(half.pop()).removeprefix("torch.")
        raise ConfigError(
            f"the model's trainable weights are {name}, which loses steps of 1e-5 or blows them up: load it with "
            "dtype=torch.float32 (bf16=True still computes in bfloat16), or train an adapter"
        )


def embedding_count(model: nn.Module) -> int:
    """How many ids the model has an embedding for."""
    embeddings = unwrapped(model).get_input_embeddings()
    return int(getattr(embeddings, "num_embeddings", 0) or embeddings.weight.shape[0])


def check_rows(rows: Sequence[PromptCompletions], *, model: nn.Module, context: int | None, tokenizer: Any) -> None:
    """PromptError or ConfigError where the model cannot read some of the rows."""
    check_context(rows, context)
    check_vocabulary(model, rows, tokenizer)


def check_vocabulary(model: nn.Module, rows: Sequence[PromptCompletions], tokenizer: Any) -> None:
    """ConfigError naming the first token of the rows that the model has no embedding for."""
    size = embedding_count(model)
    highest = max((i for row in rows for ids in (row.prompt, *row.completions) for i in ids), default=0)
    if highest >= size:
        raise ConfigError(
            f"the tokenizer's id {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}) lies outside the model's "
            f"{size} embeddings: resize them, or take the token out of the tokenizer"
        )
