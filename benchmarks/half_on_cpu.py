"""What computing in bfloat16 (`backbone.dtype`) saves on a CPU, and by how much scores differ: a run's SFT.

python benchmarks/half_on_cpu.py RUN [--rows N] [--rounds R] [--out FILE]

Rows of the first test slates, one thread, scored in float32 and in bfloat16 by turns; and a training step on the same
rows (forward, backward). CPUs with AMX or AVX-512 BF16 multiply in bfloat16; on others it is emulated, and slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prepare_scale import cpu, load, show

from sirius_rec.recipes.models import load_stage_model
from sirius_rec.recipes.records import slate_records
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.schema import SlateName
from sirius_rec.scoring.packed import tree_logps
from sirius_rec.scoring.scorer import score_rows, tree_batches
from sirius_rec.scoring.tree import build_tree
from sirius_rec.training.records import encode_records

MOST = 2048  # tokens of a batch


def measured(run: Run, rows: int, rounds: int) -> dict[str, Any]:
    """Medians of seconds, and differences of log-probs."""
    name = run.sized_test_slates[0]
    chosen = run.tested_rows(name)[:rows]
    records = slate_records(run.dataset, SlateName.parse(name), run.template, chosen, run.shown)
    encoded = encode_records(records, run.encoder)
    model = load_stage_model(run.config, run.folder.sft(run.config.seeds[0]) / "best")
    trees = [build_tree([encoded[r] for r in batch]) for batch in tree_batches(encoded, MOST)]

    def score(bf16: bool) -> np.ndarray:
        return np.concatenate(score_rows(model, encoded, run.encoder.pad_id, max_tokens=MOST, bf16=bf16))

    def step(bf16: bool) -> None:
        for tree in trees:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = -tree_logps(model, tree).sum()
            loss.backward()
        model.zero_grad()

    exact, half = score(False), score(True)
    ends = np.cumsum([len(row.completions) for row in encoded])[:-1]
    same = [a.argmax() == b.argmax() for a, b in zip(np.split(exact, ends), np.split(half, ends), strict=True)]
    work: dict[str, Callable[[bool], Any]] = {"scoring": score, "step": step}
    seconds: dict[str, dict[bool, list[float]]] = {what: {False: [], True: []} for what in work}
    for _ in range(rounds):
        for what, call in work.items():
            for bf16 in (False, True):
                start = time.perf_counter()
                call(bf16)
                seconds[what][bf16].append(time.perf_counter() - start)
    medians = {what: {kind: float(np.median(seconds[what][kind])) for kind in (False, True)} for what in work}
    return {
        "tokens": sum(tree.n_nodes for tree in trees), "rows": len(encoded), "slates": name, "rounds": rounds,
        **{what: {"float32": of[False], "bfloat16": of[True], "ratio": of[False] / of[True]}
           for what, of in medians.items()},
        "difference_nats": {"mean": float(np.abs(exact - half).mean()), "most": float(np.abs(exact - half).max())},
        "same_first": float(np.mean(same)),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print, or write, one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    run = Run.open(options.run)
    about = {"cpu": cpu(), "capability": torch.backends.cpu.get_cpu_capability(), "load_before": load()}
    about["amx"] = torch.cpu._is_amx_tile_supported() if hasattr(torch.cpu, "_is_amx_tile_supported") else None
    outcome = {"backbone": run.config.backbone.name, "torch": torch.__version__, **about,
               **measured(run, options.rows, options.rounds)}  # fmt: skip
    show(outcome, options.out)


if __name__ == "__main__":
    main()
