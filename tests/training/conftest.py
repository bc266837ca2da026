"""Worlds and trainers of the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec import SiriusConfig, SiriusTrainer


@pytest.fixture
def world(catalogue: tuple[str, ...]) -> Callable[..., list[dict[str, Any]]]:
    """world(rows, n_rejected=4, seed=0): prompts of one to three titles; all candidates are drawn from the rest."""

    def make(n_rows: int, n_rejected: int = 4, seed: int = 0) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        records = []
        for row in range(n_rows):
            order = [catalogue[i] for i in rng.permutation(len(catalogue))]
            history, slate = order[: 1 + row % 3], order[3 : 4 + n_rejected]
            prompt = "\n".join([*history, f"Next artist {row}:", ""])
            records.append({"prompt": prompt, "chosen": slate[0], "rejected": slate[1:]})
        return records

    return make


@pytest.fixture
def build(
    tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any], world: Callable[..., Any]
) -> Callable[..., SiriusTrainer]:
    """build(**options of SiriusConfig and SiriusTrainer) → a trainer on 12 records with a fresh, seeded model."""

    def make(**options: Any) -> SiriusTrainer:
        own = ("model", "train_dataset", "eval_dataset", "peft_config", "ref_logps", "eval_ref_logps", "eval_hook",
               "callbacks", "catalogue")  # fmt: skip
        given = {name: options.pop(name) for name in own if name in options}
        config = {
            "output_dir": str(tmp_path / "run"),
            "loss": "dpo",
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        }
        given.setdefault("model", tiny_llama(tokenizer))
        given.setdefault("train_dataset", world(12))
        return SiriusTrainer(args=SiriusConfig(**config), processing_class=tokenizer, **given)

    return make
