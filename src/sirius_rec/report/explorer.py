"""Examples to look at: prompt, slate and scores before and after alignment, a bounded and balanced sample of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.store import Dataset
from sirius_rec.evaluation.metrics import per_example, target_positions
from sirius_rec.evaluation.results import TRIVIAL, Facts
from sirius_rec.evaluation.tables import SCORES, ScoreTable
from sirius_rec.prompts.templates import Template
from sirius_rec.schema import CANDIDATES, HISTORY, RETRIEVED, ROW_ID, TARGET, SlateName

ROWS: Final = 300
CELLS: Final = 150_000  # scores embedded at most, about 1 MB of page

Explorer = dict[str, Any]
Ranks = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Chosen:
    """The tables that are compared: same slates, checkpoint and seed."""

    start: ScoreTable
    methods: list[ScoreTable]


def sample_examples(
    tables: Sequence[ScoreTable],
    dataset: Dataset,
    template: Template,
    methods: Facts,
    *,
    rows: int = ROWS,
    seed: int = 0,
) -> Explorer | None:
    """Rows of the smallest test slates with the scores of SFT and of every method, first common seed, for the page.

    Rows are drawn by `seed`, in turn from every method's improved, worsened and unchanged ones (the target's rank
    against SFT), so shares in the sample are not shares in the data; `counts` are. None where SFT was not scored, or
    nothing else was.
    """
    chosen = _choose(tables, methods)
    if chosen is None:
        return None
    slates = chosen.start.slates
    split = SlateName.parse(slates).split
    frame = chosen.start.frame.select(ROW_ID, CANDIDATES).sort(ROW_ID)
    frame = frame.join(dataset.examples(split).select(ROW_ID, HISTORY, TARGET), on=ROW_ID, maintain_order="left")
    ids = frame[ROW_ID].to_list()
    positions = target_positions(frame[CANDIDATES], frame[TARGET].to_numpy(), ids)
    scores = [table.frame.sort(ROW_ID)[SCORES] for table in (chosen.start, *chosen.methods)]
    ranks = [per_example(one, positions, ids)["rank"].to_numpy() for one in scores]
    width = int(frame[CANDIDATES].list.len().max())  # type: ignore[arg-type]
    rows = min(rows, len(ids), max(30, CELLS // (width * len(scores))))
    picked = _balanced(ranks[0], ranks[1:], rows, seed)
    numbers = {item: n for n, item in enumerate(_items(frame[picked]))}
    return {
        "slates": slates,
        "checkpoint": chosen.start.checkpoint,
        "seed": chosen.start.seed,
        "of": len(ids),
        "start": chosen.start.label,
        "titles": [dataset.titles[item] for item in numbers],
        "prompt": {
            "history": template.history,
            "candidates": template.candidates if template.shows_slate else None,
            "answer": template.answer,
        },
        "methods": [
            {"key": table.method, "label": table.label, "counts": _counts(ranks[0], after)}
            for table, after in zip(chosen.methods, ranks[1:], strict=True)
        ],
        "rows": [
            {
                "id": ids[row],
                "history": [numbers[item] for item in frame[HISTORY][row]],
                "slate": [numbers[item] for item in frame[CANDIDATES][row]],
                "target": int(positions[row]),
                "scores": [[round(float(value), 3) for value in one[row]] for one in scores],
                "ranks": [float(one[row]) for one in ranks],
            }
            for row in picked
        ],
    }


def _sampled(slates: SlateName) -> bool:
    """Whether every candidate has a score of its own, and the target is among them."""
    return slates.split == "test" and slates.protocol != "full" and not slates.protocol.startswith(RETRIEVED)


def _choose(tables: Sequence[ScoreTable], methods: Facts) -> _Chosen | None:
    roles = {key: facts["role"] for key, facts in methods.items()}
    starts = [t for t in tables if roles[t.method] == "sft" and _sampled(SlateName.parse(t.slates))]

    def order(table: ScoreTable) -> tuple[int, str, bool, int]:
        return SlateName.parse(table.slates).size, table.slates, table.checkpoint != "best", table.seed

    for start in sorted(starts, key=order):
        others = [
            t for t in tables
            if t.key[1:] == start.key[1:] and t.method != start.method and roles[t.method] != TRIVIAL
            and t.frame[ROW_ID].sort().equals(start.frame[ROW_ID].sort())
        ]  # fmt: skip
        if others:
            return _Chosen(start, sorted(others, key=lambda t: t.label))
    return None


def _balanced(before: Ranks, after: Sequence[Ranks], rows: int, seed: int) -> list[int]:
    """Row numbers in order: round the methods' improved, worsened and unchanged rows, each in random order."""
    rng = np.random.default_rng([seed, 4])
    queues = [
        rng.permutation(np.flatnonzero(found)).tolist()
        for ranks in after
        for found in (ranks < before, ranks > before, ranks == before)
    ]
    picked: dict[int, None] = {}
    while len(picked) < rows:
        for queue in queues:
            while queue and queue[-1] in picked:
                queue.pop()
            if queue and len(picked) < rows:
                picked[queue.pop()] = None
    return sorted(picked)


def _items(frame: pl.DataFrame) -> list[int]:
    return sorted({item for column in (HISTORY, CANDIDATES) for row in frame[column] for item in row})


def _counts(before: Ranks, after: Ranks) -> Mapping[str, int]:
    """Over all rows: fixed and broken are about rank 1, improved and worsened about any change of rank."""
    first, then = before == 1, after == 1
    return {
        "fixed": int((~first & then).sum()),
        "broken": int((first & ~then).sum()),
        "improved": int((after < before).sum()),
        "worsened": int((after > before).sum()),
        "unchanged": int((after == before).sum()),
    }
