"""Seconds of one alignment epoch and one full evaluation on the real data of a configuration, and their metrics.

python benchmarks/epoch_seconds.py CONFIG OUT.json [--against CHECKOUT] [--rounds 3] [key=value …]

The backbone is the tiny one with random weights from the seed: cost does not depend on them, and two revisions must
come to the same metrics. With --against the same is done by another checkout's package, in turn, each in a process of
its own, and OUT.json holds both and the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def measure(config_path: Path, overrides: list[str], data: Path) -> dict[str, Any]:
    """Seconds and metrics of this package."""
    from sirius_rec.evaluation.metrics import METRICS, per_example
    from sirius_rec.recipes.arguments import training_arguments
    from sirius_rec.recipes.configuration import load_config
    from sirius_rec.recipes.models import initial_model, load_run_tokenizer, select_attention
    from sirius_rec.recipes.records import ALIGN_STREAM, slate_records, stage_rows
    from sirius_rec.recipes.run import quiet
    from sirius_rec.recipes.run_folder import RunFolder
    from sirius_rec.recipes.story import prepare_data
    from sirius_rec.schema import SlateName
    from sirius_rec.training.records import encode_records
    from sirius_rec.training.trainer import SiriusTrainer

    quiet()
    config = load_config(config_path, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        run.path.mkdir()
        dataset = prepare_data(config, data, lambda line: None)
        form, tokenizer = config.prompts.form(), load_run_tokenizer(run, config, dataset)
        examples, further = dataset.examples("train"), {}
        if getattr(getattr(config, "training", None), "share", "none") == "user":
            further = {"users": examples["user_id"].to_numpy()}
        rows = stage_rows(examples.height, config.align, 0, ALIGN_STREAM, **further)
        stage = config.align.changed(epochs=1)
        args = training_arguments(
            config,
            stage,
            Path(folder) / "out",
            {"loss": "softmax_dpo"},
            0,
            n_records=len(rows),
            best_by=None,
            **({"share": "user"} if further else {}),
        )
        args.save_strategy = "no"
        records = slate_records(dataset, SlateName.parse("train-uniform-20-s0"), form, rows)
        trainer = SiriusTrainer(initial_model(config, tokenizer, 0), args, records, tokenizer)
        select_attention(run, config, trainer.model, trainer.train_dataset.rows, trainer.encoder.pad_id)
        trainer._ensure_reference(afresh=True)
        started = time.perf_counter()
        trainer.train()
        found: dict[str, Any] = {"align_seconds": time.perf_counter() - started}
        for name in ("test-uniform-20-s0", "test-uniform-100-s0"):
            tested = encode_records(slate_records(dataset, SlateName.parse(name), form), trainer.encoder)
            started = time.perf_counter()
            scores = trainer.score(tested)
            found[f"{name}_seconds"] = time.perf_counter() - started
            ranks = per_example(scores, np.zeros(len(scores), dtype=np.int64)).select(METRICS).mean().to_dicts()[0]
            found[name] = {metric: round(value, 6) for metric, value in ranks.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.child:
        arguments.out.write_text(json.dumps(measure(arguments.config, overrides, arguments.child)))
        return
    checkouts = {"now": Path(__file__).parents[1], **({"before": arguments.against} if arguments.against else {})}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for name, checkout in checkouts.items():
                result = Path(folder) / "result.json"
                command = [sys.executable, __file__, arguments.config, result, "--child", Path(folder) / f"data-{name}"]
                environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "src")}
                known = overrides if name == "now" else [o for o in overrides if not o.startswith("training.")]
                subprocess.run([*map(str, command), *known], env=environment, check=True)
                rounds[name].append(json.loads(result.read_text()))
                print(f"round {number + 1}, {name}: {rounds[name][-1]}", flush=True)
    from sirius_rec.bench.run import environment as described
    from sirius_rec.recipes.environment import processor, versions

    seconds = [key for key in rounds["now"][0] if key.endswith("_seconds")]
    medians = {n: {key: float(np.median([r[key] for r in found])) for key in seconds} for n, found in rounds.items()}
    content: dict[str, Any] = {"environment": described(processor(), versions()), "config": arguments.config.name}
    content |= {
        "overrides": [text for text in overrides if not text.startswith("data.input=")],
        "rounds": rounds,
        "medians": medians,
    }
    if arguments.against:
        content["ratio"] = {key: round(medians["before"][key] / medians["now"][key], 3) for key in seconds}
    arguments.out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(medians, content.get("ratio"))


if __name__ == "__main__":
    main()
