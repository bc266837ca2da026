"""Where the time of one alignment epoch goes, on the real data of a configuration.

python benchmarks/profile_alignment.py CONFIG OUT.json [key=value …]

Prepares the data, takes the backbone as it is before training (cost does not depend on the weights), aligns it with
softmax DPO against itself for one epoch, and writes the share of every part of the time, the padding of
the batches, and what collating and masks cost. For the shares of operators it runs torch's profiler over one more
step.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sirius_rec.bench.end_to_end import Shares
from sirius_rec.bench.run import environment
from sirius_rec.data.store import open_dataset
from sirius_rec.recipes.arguments import training_arguments
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.job import quiet
from sirius_rec.recipes.models import initial_model, load_run_tokenizer, prepare_backbone
from sirius_rec.recipes.records import ALIGN_STREAM, slate_records, stage_rows, train_slates
from sirius_rec.recipes.run_folder import open_run, processor, versions
from sirius_rec.recipes.story import prepare_data
from sirius_rec.scoring.masks import attention_masks
from sirius_rec.training.trainer import SiriusTrainer

_SHOWN = 12  # operators named


def trainer_of(folder: Path, config: Any) -> SiriusTrainer:
    """The trainer of the first alignment job, as the recipe builds it, without validation."""
    run = open_run(folder / "run", config)
    dataset = prepare_data(config, run, lambda line: None)
    prepare_backbone(run, config, open_dataset(run.data))
    tokenizer = load_run_tokenizer(run, config)
    rows = stage_rows(dataset.examples("train").height, config.align, 0, ALIGN_STREAM)
    records = slate_records(dataset, train_slates(config), config.prompts.form(), rows)
    loss = {"loss": "softmax_dpo", "score_unsampled": config.align.score_unsampled}
    args = training_arguments(
        config, config.align, folder / "checkpoints", loss, 0, n_records=len(records), validates=False
    )
    args.save_strategy = "no"
    return SiriusTrainer(initial_model(config, tokenizer, 0), args, records, tokenizer)


def by_operator(trainer: SiriusTrainer, batch: dict[str, Any]) -> dict[str, float]:
    """The largest operators' shares of one step's own operator time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        trainer.compute_loss(trainer.model, batch).backward()
        trainer.optimizer.step()
    seconds = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    largest = sorted(seconds.items(), key=lambda item: -item[1])[:_SHOWN]
    return {name: round(part / sum(seconds.values()), 4) for name, part in largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    quiet()
    config = load_config(arguments.config, ["align.epochs=1", *arguments.overrides])
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(Path(folder), config)
        measured = Shares()
        measured.attach(trainer)
        trainer.train()
    dataset, layout = trainer.train_dataset, trainer.train_dataset.layout
    whole = trainer.collator([dataset[i] for i in range(layout.micro)])
    real = padded = 0
    collate = masks = 0.0
    for at in range(0, len(dataset), layout.micro):
        started = time.perf_counter()
        batch = trainer.collator([dataset[i] for i in range(at, min(at + layout.micro, len(dataset)))])
        collate += time.perf_counter() - started
        started = time.perf_counter()
        attention_masks(trainer.model.config, batch["segment_BT"], batch["position_ids_BT"], torch.float32)
        masks += time.perf_counter() - started
        real, padded = real + int((batch["segment_BT"] >= 0).sum()), padded + batch["segment_BT"].numel()
    per_step = measured.total / measured.steps * (len(dataset) / layout.batch)
    content = {
        "environment": environment(processor(), versions()),
        "config": arguments.config.name,
        "overrides": [text for text in arguments.overrides if "/" not in text],
        "batch": layout.batch,
        "micro_batch": layout.micro,
        "examples": len(dataset),
        "examples_per_second": round(measured.steps * layout.batch / measured.total, 1),
        "tokens_per_second": round(real / per_step),
        "shares": measured.shares(),
        "operators": by_operator(trainer, whole),
        "padding": round(1 - real / padded, 5),
        "mean_tokens": round(real / len(dataset), 1),
        "collate_share": round(collate / per_step, 4),
        "mask_share": round(masks / per_step, 4),
    }
    content["environment"].pop("shapes")
    content["environment"].pop("batch")
    arguments.out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
