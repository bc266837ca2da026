"""Peak memory of a training step now and at a revision that packs row by row (before trees), on the same rows.

python benchmarks/step_memory.py OUT.json --against CHECKOUT

Softmax over 3 negatives, histories of 20, the CPU shape with vocabularies of 32,000 and 152,000, 40 and 80 examples.
Bytes beside the weights, by the allocator; each figure in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path


def measure(rows_file: Path, vocabulary: int) -> int:
    """Bytes of this package's step."""
    import torch

    from sirius_rec.bench.shapes import CPU_SHAPE, build_model
    from sirius_rec.scoring.rows import PromptCompletions
    from sirius_rec.training.memory import step_peak

    rows = [PromptCompletions(prompt, completions) for prompt, completions in pickle.loads(rows_file.read_bytes())]
    model = build_model(replace(CPU_SHAPE, vocabulary=vocabulary))
    try:
        from sirius_rec.scoring.packed import use_tree_attention
    except ImportError:  # before trees
        from sirius_rec.scoring.attention import use_tree_attention
    use_tree_attention(model)
    torch.manual_seed(0)
    return step_peak(model, rows, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, required="--child" not in sys.argv)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.out.write_text(str(measure(Path(arguments.child[0]), int(arguments.child[1]))))
        return
    from sirius_rec.bench.shapes import LogShape, log_rows
    from sirius_rec.recipes.environment import processor, versions

    out = []
    with tempfile.TemporaryDirectory() as folder:
        rows_file, result = Path(folder) / "rows", Path(folder) / "bytes"
        for vocabulary in (32_000, 152_000):
            for n in (40, 80):
                rows = log_rows(LogShape(20, 3), n, vocabulary=vocabulary)
                rows_file.write_bytes(pickle.dumps([(row.prompt, row.completions) for row in rows]))
                found = {}
                for name, checkout in (("now", Path(__file__).parents[1]), ("before", arguments.against)):
                    command = [sys.executable, __file__, str(result), "--child", str(rows_file), str(vocabulary)]
                    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve() / "src")}
                    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
                    found[name] = int(result.read_text())
                share = round(found["now"] / found["before"], 3)
                sizes = {f"bytes_{name}": size for name, size in found.items()}
                out.append({"vocabulary": vocabulary, "examples": n, "k": 3, "share": share, **sizes})
                print(out[-1], flush=True)
    content = {"versions": versions(), "processor": processor(), "rows": out}
    arguments.out.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
