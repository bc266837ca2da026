"""Alignment from the data loader to the optimiser: examples per second, and where the time goes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sirius_rec.bench.shapes import CPU_SHAPE, Shape, build_model

Rows = list[dict[str, Any]]
_BATCH, _MICRO = 64, 16


class Shares(TrainerCallback):
    """Seconds spent in each part of training, measured around the Trainer's own calls.

    forward: model and loss; backward; optimizer: clipping and update; data: drawing and packing batches; else: the rest
    (masks are built inside forward). The first `skip` steps are not counted.
    """

    def __init__(self, skip: int = 1) -> None:
        self.skip, self.steps = skip, 0
        self.seconds = dict.fromkeys(("data", "forward", "backward", "optimizer", "log"), 0.0)
        self.total = 0.0
        self._since = 0.0

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time added to `part`; what CUDA still has to do is waited for."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                result = call(*args, **kwargs)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                return result
            finally:
                if self._since:
                    self.seconds[part] += time.perf_counter() - started

        return measured

    def attach(self, trainer: Any) -> None:
        """Measure this trainer."""
        trainer.compute_loss = self.timed("forward", trainer.compute_loss)
        trainer.accelerator.backward = self.timed("backward", trainer.accelerator.backward)
        trainer.get_batch_samples = self.timed("data", trainer.get_batch_samples)
        trainer.log = self.timed("log", trainer.log)
        trainer._clip_grad_norm = self.timed("optimizer", trainer._clip_grad_norm)
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self._since:
            self.steps += 1
            self.total += now - self._since
        self.skip -= 1
        self._since = now if self.skip <= 0 else 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._update = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._since:
            self.seconds["optimizer"] += time.perf_counter() - self._update

    def shares(self) -> dict[str, float]:
        """Each part's share of the time of the counted steps; `else` is what no part accounts for."""
        found = {part: seconds / self.total for part, seconds in self.seconds.items()}
        return {part: round(share, 4) for part, share in {**found, "else": 1 - sum(found.values())}.items()}


def _records(n: int, n_rejected: int) -> tuple[list[dict[str, Any]], Any]:
    """Records over a made-up catalogue, prompts with a history and a slate, and a tokenizer trained on its titles."""
    import numpy as np

    from sirius_rec.data.sources.title_words import ADJECTIVES, ENDINGS
    from sirius_rec.training.options import TinyOptions
    from sirius_rec.training.tiny import train_tokenizer

    rng = np.random.default_rng(0)
    titles = sorted(
        {
            " ".join([*rng.choice(ADJECTIVES, size=int(rng.integers(1, 3))), str(rng.choice(ENDINGS))])
            for _ in range(1500)
        }
    )
    tokenizer = train_tokenizer(titles, ["Next:"], TinyOptions(vocab_size=1000, title_tokens=0))
    records = []
    for _ in range(n):
        shown = [titles[i] for i in rng.permutation(len(titles))[: 10 + n_rejected + 1]]
        history, slate = shown[:10], shown[10:]
        prompt = "\n".join(["Liked:", *history, "Candidates:", *slate, "Next:", ""])
        records.append({"prompt": prompt, "chosen": slate[0], "rejected": slate[1:]})
    return records, tokenizer


def bench_end_to_end(*, quick: bool, say: Callable[[str], None], shape: Shape = CPU_SHAPE, steps: int = 6) -> Rows:
    """Softmax DPO, 3 of 19 negatives, through `SiriusTrainer`: batch 64 by 16, AdamW, a log line per step."""
    from sirius_rec.scoring.packed import use_tree_attention
    from sirius_rec.training.config import SiriusConfig
    from sirius_rec.training.trainer import SiriusTrainer

    steps = min(steps, 2) if quick else steps
    records, tokenizer = _records(_BATCH * steps, 19)
    with tempfile.TemporaryDirectory() as folder:
        args = SiriusConfig(
            output_dir=folder, loss="softmax_dpo", negatives=3, score_unsampled=0, num_train_epochs=1,
            per_device_train_batch_size=_MICRO, gradient_accumulation_steps=_BATCH // _MICRO,
            logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        model = build_model(shape)
        use_tree_attention(model)
        trainer = SiriusTrainer(model, args, records, tokenizer, metrics_file=Path(folder) / "metrics.jsonl")
        measured = Shares()
        measured.attach(trainer)
        trainer.train()
    shares = measured.shares()
    outside = 1 - shares["forward"] - shares["backward"]
    per_second = measured.steps * _BATCH / measured.total
    say(f"end to end: {per_second:.2f} examples/s, {outside:.1%} of the time outside forward and backward ({shares})")
    return [
        {
            "bench": "end-to-end", "k": 3, "slate": 20, "baseline": None, "examples_per_second": round(per_second, 3),
            "outside_forward_backward": round(outside, 4), "shares": shares, "steps": measured.steps,
            "batch": _BATCH, "micro_batch": _MICRO,
        }
    ]  # fmt: skip
