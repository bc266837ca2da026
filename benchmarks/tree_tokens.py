"""Tokens per training example on the real data of a configuration: separate rows, candidates that share, whole trees.

python benchmarks/tree_tokens.py CONFIG OUT.json [--negatives 0,1,3,19] [key=value …]

Steps as training makes them (sft.batch_size, training.share), with any backbone's tokenizer; weights are not loaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.recipes.configuration import load_config
    from sirius_rec.recipes.environment import versions
    from sirius_rec.recipes.models import load_run_tokenizer
    from sirius_rec.recipes.records import slate_records
    from sirius_rec.recipes.run import quiet
    from sirius_rec.recipes.run_folder import RunFolder
    from sirius_rec.recipes.story import prepare_data
    from sirius_rec.schema import SlateName
    from sirius_rec.scoring.tree import count_nodes
    from sirius_rec.training.batching import StepLayout
    from sirius_rec.training.records import PreferenceDataset, encode_records, users_of

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--negatives", type=lambda text: [int(k) for k in text.split(",")], default=[0, 1, 3, 19])
    arguments, overrides = parser.parse_known_args()
    quiet()
    config = load_config(arguments.config, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        run.path.mkdir()
        dataset = prepare_data(config, Path(folder) / "data", lambda line: None)
        tokenizer = load_run_tokenizer(run, config, dataset)
        name = next(n for n in dataset.slate_names if n.startswith("train"))
        records = slate_records(dataset, SlateName.parse(name), config.prompts.form())
        rows = encode_records(records, Encoder(tokenizer, chat=config.prompts.chat))
    users = users_of(records) if config.training.share == "user" else None
    batch = config.sft.batch_size
    out: list[dict[str, Any]] = []
    for k in arguments.negatives:
        drawn = PreferenceDataset(rows, negatives=k, score_unsampled=0, layout=StepLayout(batch), users=users)
        steps = [drawn.order[at : at + batch] for at in range(0, len(rows), batch)]
        some = [steps[s] for s in np.random.default_rng(0).permutation(len(steps))[:60]]
        chosen = [[rows[r].only(drawn.draw(r).columns.tolist()) for r in step.tolist()] for step in some]
        n = sum(map(len, chosen))
        separate = sum(len(row.prompt) + len(y) - 1 for step in chosen for row in step for y in row.completions) / n
        together = sum(count_nodes([row]) for step in chosen for row in step) / n
        whole = sum(map(count_nodes, chosen)) / n
        out.append(
            {
                "k": k, "examples": len(rows), "counted": n, "separate": round(separate, 1),
                "packed_candidates": round(together, 1), "tree": round(whole, 1), "ratio": round(together / whole, 2),
            }
        )  # fmt: skip
        print(out[-1], flush=True)
    content = {
        "config": arguments.config.name,
        "overrides": [text for text in overrides if not text.startswith("data.input=")],
        "data_fingerprints": dataset.info["fingerprints"],
        "versions": versions(),
        "rows": out,
    }
    arguments.out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
