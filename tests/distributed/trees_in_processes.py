"""Trees in two processes: trainings of whole users, and gradients of random trees, for test_two_processes.py.

    torchrun --nproc_per_node 2 trees_in_processes.py FOLDER ddp|fsdp2

FOLDER holds model/ (with its tokenizer) and records.json; each training leaves losses and weights as CASE-KIND.npz
(with ddp also those on a policy's negatives).
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
# case → (whether the head goes in chunks, whether layers are computed again in the backward pass)
CASES = {"plain": (False, False), "chunks": (True, False), "checkpointing": (True, True)}

WAYS = ("search", "exhaustive")  # to a policy's negatives


def train(
    folder: Path, micro: int, *, checkpointing: bool = False, mined: str | None = None, **options: Any
) -> dict[str, Any]:
    """Losses and whole weights, by name, of a training on users' rows, 8 a step whatever the number of processes.

    mined: search or exhaustive, where negatives are the policy's.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sirius_rec import SiriusConfig, SiriusTrainer

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    records = json.loads((folder / "records.json").read_text())
    options = {"share": "user", "score_unsampled": "all", **options}
    if mined is not None:
        options |= {"negatives_from": "on_policy", "pool": 4, "refresh": 2, "share": "none"}
    arguments = SiriusConfig(
        output_dir=str(folder / "run"), loss="dpo", negatives=2, per_device_train_batch_size=micro, num_train_epochs=2,
        learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", use_cpu=True,
        disable_tqdm=True, report_to=[], **options,
    )  # fmt: skip
    catalogue = None if mined is None else titles_of(records, tokenizer, mined)
    trainer = SiriusTrainer(model, arguments, records, tokenizer, catalogue=catalogue)
    assert trainer.scoring == "packed"
    trainer.train()
    whole = {n: getattr(p, "full_tensor", lambda p=p: p)().detach() for n, p in trainer.model.named_parameters()}
    kinds = {type(p).__name__ for p in trainer.model.parameters()}
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"losses": losses, "kinds": sorted(kinds), **{n: p.numpy().copy() for n, p in whole.items()}}


def titles_of(records: list[dict[str, Any]], tokenizer: Any, way: str) -> Any:
    """The catalogue of these records' titles, whose exact top is found by `way`."""
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.rankers.catalogue import top
    from sirius_rec.rankers.catalogue.trie import build_trie
    from sirius_rec.training.mining import Catalogue

    top.expected_cost = lambda trie, k, width=1: (2.0, 1.0) if way == "exhaustive" else (1.0, 1e9)
    titles = sorted({title for record in records for title in [record["chosen"], *record["rejected"]]})
    return Catalogue(
        build_trie(Encoder(tokenizer), titles), [np.array([titles.index(record["chosen"])]) for record in records]
    )


def shared_searches(folder: Path) -> None:
    """The best of a catalogue for each of some histories: searched for by turns, they are those of one process."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import get_template
    from sirius_rec.rankers import llm
    from sirius_rec.rankers.catalogue.trie import build_trie

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    encoder, titles = Encoder(AutoTokenizer.from_pretrained(folder / "model")), [f"Artist {i}" for i in range(30)]
    histories = [np.array([3, 4]), np.array([5]), np.array([0, 8, 9]), np.array([7, 1]), np.array([2])]
    candidates = [np.setdiff1d(np.arange(30), history) for history in histories]
    ranker = llm.LLMRanker(model, encoder, get_template("music", shows_slate=False), titles)
    together = ranker.score_best(build_trie(encoder, titles), histories, candidates, 4)
    llm.place_in_group = lambda: (0, 1)
    alone = ranker.score_best(build_trie(encoder, titles), histories, candidates, 4)
    for one, other in zip(together, alone, strict=True):
        assert np.isfinite(one).sum() == 4
        np.testing.assert_allclose(one, other, atol=1e-5)
    os.write(1, b"searches: right\n")


def in_chunks(on: bool) -> None:
    """Five positions (of 300 logits each) at a time, computed again in the backward pass; or all at once."""
    from sirius_rec.scoring import head

    head.KEPT, head.CHUNK = (1, 5 * 300) if on else (2**25, 2**23)


def random_trees(seed: int, *, checkpointing: bool) -> None:
    """Each process scores other rows: values are those of separate passes, gradients the processes' mean of them."""
    from torch.nn.parallel import DistributedDataParallel

    from sirius_rec.scoring import chunks
    from sirius_rec.scoring.naive import naive_logps
    from sirius_rec.scoring.packed import tree_logps
    from sirius_rec.scoring.tree import build_tree

    sys.path.insert(0, str(HERE.parent / "parity"))
    from test_trees_equal_naive import CPU, build, gradients, random_rows

    chunks.CHUNK = 4  # so that these small trees are cut
    model = build("llama").train()
    alone = copy.deepcopy(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    together: Any = DistributedDataParallel(model)
    rows = [random_rows(2 * seed + rank) for rank in range(2)]
    trees = [build_tree(part) for part in rows]
    weights = [
        torch.randn(tree.valid_BC.shape, generator=torch.Generator().manual_seed(rank)) * tree.valid_BC
        for rank, tree in enumerate(trees)
    ]
    rank = torch.distributed.get_rank()
    ours_BC, ours = gradients(together, lambda: tree_logps(together, trees[rank]), weights[rank])
    (first_BC, first), (second_BC, second) = (
        gradients(alone, lambda part=part: naive_logps(alone, part, 0, CPU), weight)
        for part, weight in zip(rows, weights, strict=True)
    )
    assert (ours_BC - (first_BC, second_BC)[rank]).abs().max() <= 1e-4
    assert {name.removeprefix("module.") for name in ours} == set(first) == set(second)
    for name, grad in ours.items():
        want = (first[name.removeprefix("module.")] + second[name.removeprefix("module.")]) / 2
        assert (grad - want).norm() <= 1e-4 * want.norm(), name
    os.write(1, b"random trees: right\n")  # in one piece: the other process writes to the same pipe


def main(folder: Path, kind: str) -> None:
    if kind == "fsdp2":
        sys.path.insert(0, str(HERE))
        from fsdp2_on_cpu import SETTINGS, allow_cpu

        os.environ |= SETTINGS
        allow_cpu()
    for seed, (case, (chunked, checkpointing)) in enumerate(CASES.items()):
        in_chunks(chunked)
        found = train(folder, 4, checkpointing=checkpointing)
        if torch.distributed.get_rank() == 0:
            np.savez(folder / f"{case}-{kind}.npz", **found)
        if kind == "ddp":
            random_trees(seed, checkpointing=checkpointing)
    in_chunks(False)
    if kind == "ddp":
        shared_searches(folder)
    for way in WAYS if kind == "ddp" else ():
        found = train(folder, 4, mined=way)
        if torch.distributed.get_rank() == 0:
            np.savez(folder / f"{way}-{kind}.npz", **found)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
