"""Padding of training and evaluation batches on the real prompts of a configuration, with any tokenizer.

python benchmarks/padding.py CONFIG TOKENIZER OUT.json [key=value …]

Prompts with and without the slate; a batch of 128 in micro-batches of 128, 32 and 8, with 0 and 6 candidates scored
beyond 3 sampled negatives; evaluation in batches of 8,192 tokens. Padding is the share of padded tokens in all tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from sirius_rec.bench.run import environment
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.records import ALIGN_STREAM, slate_records, stage_rows, train_slates
from sirius_rec.recipes.run_folder import processor, versions
from sirius_rec.recipes.story import prepare_data
from sirius_rec.schema import SlateName
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import token_batches
from sirius_rec.training.backbones import load_tokenizer
from sirius_rec.training.batching import StepLayout
from sirius_rec.training.records import PackingCollator, PreferenceDataset, encode_records

BATCH = 128


def training(rows: list[PromptCompletions], pad_id: int, per_epoch: int | None) -> list[dict[str, Any]]:
    """One row per micro-batch size and number of further candidates."""
    out = []
    for micro in (128, 32, 8):
        for others in (0, 6):
            dataset = PreferenceDataset(
                rows, negatives=3, score_unsampled=others, examples_per_epoch=per_epoch,
                layout=StepLayout(micro, BATCH // micro),
            )  # fmt: skip
            collator = PackingCollator(rows, pad_id)
            real = total = 0
            for at in range(0, len(dataset), micro):
                batch = collator([dataset[i] for i in range(at, min(at + micro, len(dataset)))])
                real, total = real + int((batch["segment_BT"] >= 0).sum()), total + batch["segment_BT"].numel()
            mean = round(real / len(dataset), 1)
            out.append({"micro": micro, "others": others, "mean_tokens": mean, "padding": round(1 - real / total, 5)})
    return out


def evaluating(rows: list[PromptCompletions], max_tokens: int = 8192) -> float:
    lengths = [row.packed_length for row in rows]
    total = sum(len(b) * max(lengths[r] for r in b) for b in token_batches(rows, max_tokens))
    return round(1 - sum(lengths) / total, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "tokenizer", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    encoder = Encoder(load_tokenizer(arguments.tokenizer))
    out: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for shown in (True, False):
            config = load_config(arguments.config, [f"prompts.slate={str(shown).lower()}", *arguments.overrides])
            dataset, form = prepare_data(config, None, lambda line: None, Path(folder) / "data"), config.prompts.form()
            picked = stage_rows(dataset.examples("train").height, config.align, 0, ALIGN_STREAM)
            rows = encode_records(slate_records(dataset, train_slates(config), form, picked), encoder)
            for row in training(rows, encoder.pad_id, config.align.examples_per_epoch):
                out.append({"slate_in_prompt": shown, "split": "train", **row})
            for name in (n for n in dataset.slate_names if n.startswith("test")):
                tested = encode_records(slate_records(dataset, SlateName.parse(name), form), encoder)
                out.append({"slate_in_prompt": shown, "split": name, "padding": evaluating(tested)})
    said = environment(processor(), versions())
    content = {"environment": {k: v for k, v in said.items() if k not in ("shapes", "batch")}, "rows": out}
    content |= {"config": arguments.config.name, "tokenizer": arguments.tokenizer.name}
    arguments.out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    for row in out:
        print(row)


if __name__ == "__main__":
    main()
