"""The bench `catalogue`: the exact top K by search, against scoring every title and against constrained beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from sirius_rec.bench.measures import require_equal
from sirius_rec.bench.shapes import CPU_SHAPE, EOS, PAD, Shape, build_model
from sirius_rec.bench.timing import interleaved, ratio
from sirius_rec.rankers.catalogue.generation import constrained_generate, recall
from sirius_rec.rankers.catalogue.search import Found
from sirius_rec.rankers.catalogue.top import top_k
from sirius_rec.rankers.catalogue.trie import Trie, trie_of

KS, BEAMS = (1, 10, 50), (10, 20, 50)


@dataclass(frozen=True)
class CatalogueTask:
    """A model, its catalogue, and the prompts of users. name: what it is, for the rows."""

    name: str
    model: Any
    trie: Trie
    prompts: Sequence[Sequence[int]]
    pad_id: int


def made_up_task(
    shape: Shape, *, titles: int = 4600, users: int = 8, prompt: int = 120, seed: int = 0
) -> CatalogueTask:
    """Titles of 1 to 6 tokens over words with 1/rank frequencies, and a random model.

    How much a search opens depends on how sure the model is. The output layer of this one is scaled until it is about
    as sure as language models are; figures that count come from a trained run (`--model`).
    """
    rng = np.random.default_rng(seed)
    words = 3 + rng.permutation(shape.vocabulary - 3)[: min(3000, shape.vocabulary - 3)]
    chance = 1 / np.arange(1, len(words) + 1)
    found: set[tuple[int, ...]] = set()
    while len(found) < titles:
        found.add(tuple(rng.choice(words, size=rng.integers(1, 7), p=chance / chance.sum()).tolist()))
    rows = [[*ids, EOS] for ids in sorted(found)]
    flat = np.array([token for ids in rows for token in ids], dtype=np.int32)
    names = [str(n) for n in range(len(rows))]
    trie = trie_of(flat, np.array(list(map(len, rows))), names, special={EOS}, key="made up")
    model = build_model(shape).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10.0)
    prompts = [rng.choice(words, size=prompt).tolist() for _ in range(users)]
    return CatalogueTask(shape.name, model, trie, prompts, PAD)


def bench_catalogue(
    *,
    quick: bool,
    say: Callable[[str], None],
    task: CatalogueTask | None = None,
    ks: Sequence[int] = KS,
    beams: Sequence[int] = BEAMS,
) -> list[dict[str, Any]]:
    """Rows of k and baseline: `exhaustive` scores every title in one tree of the first user, `beamN` writes titles.

    ratio: seconds per user of the baseline over those of the search. opened_share: prefixes that the search opened, of
    those that scoring every title reads. beam_recall: of the exact top K, in what the beams found.
    """
    task = task or made_up_task(CPU_SHAPE, users=2 if quick else 8)
    every = partial(top_k, task.model, task.trie, task.prompts[:1], pad_id=task.pad_id, way="exhaustive")
    searched = partial(top_k, task.model, task.trie, task.prompts, pad_id=task.pad_id, way="search")
    written = {f"beam{n}": partial(_beams, task, n) for n in beams}
    given = {name: run() for name, run in written.items()}
    (largest,) = every(k=max(ks))
    rows: list[dict[str, Any]] = []
    for k in ks:
        exact = searched(k=k)
        require_equal("exhaustive", torch.from_numpy(largest.scores[:k]), torch.from_numpy(exact[0].scores), 1e-3)
        runs = {"search": partial(searched, k=k), "exhaustive": partial(every, k=k), **written}
        timed = interleaved(runs, rounds=1 if quick else 5, warm_up=False)
        per_user = {name: t / (1 if name == "exhaustive" else len(task.prompts)) for name, t in timed.items()}
        recalls = {
            name: round(float(np.mean([recall(e, g) for e, g in zip(exact, lists, strict=True)])), 4)
            for name, lists in given.items()
        }
        rows += [_row(task, k, name, per_user, exact, recalls.get(name)) for name in runs if name != "search"]
        for row in rows[-len(runs) + 1 :]:
            found = "" if row["beam_recall"] is None else f", recall {row['beam_recall']:.3f}"
            say(f"catalogue, K={k}: {row['ratio']:.2f}× {row['baseline']}{found}; opened {row['opened']:.0f} prefixes")
    return rows


def _row(
    task: CatalogueTask, k: int, name: str, per_user: dict[str, np.ndarray], exact: list[Found], found: float | None
) -> dict[str, Any]:
    opened = float(np.mean([result.opened for result in exact]))
    return {
        "bench": "catalogue",
        "model": task.name,
        "titles": task.trie.n_titles,
        "users": len(task.prompts),
        "k": k,
        "baseline": name,
        "seconds_search": round(float(np.median(per_user["search"])), 5),
        "seconds_baseline": round(float(np.median(per_user[name])), 5),
        "rounds": len(per_user[name]),
        **ratio(per_user[name], per_user["search"]),
        "opened": round(opened, 1),
        "opened_share": round(opened / (task.trie.n_inner - 1), 5),
        "beam_recall": found,
    }


def _beams(task: CatalogueTask, beams: int) -> list[Found]:
    return constrained_generate(task.model, task.trie, task.prompts, pad_id=task.pad_id, beams=beams)
