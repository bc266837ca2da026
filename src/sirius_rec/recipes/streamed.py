"""Train rows as records that are made when they are asked for, with `training.stream`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec.data.mapped import MappedRows, mapped_rows
from sirius_rec.recipes.run import Run

if TYPE_CHECKING:
    from sirius_rec.prompts.templates import Template

Record = dict[str, Any]


class StreamedRecords(Sequence[Record]):
    """What `records.slate_records` makes of train rows, one by one; without whose they are.

    rows: numbers of the rows, in that order.
    """

    def __init__(self, run: Run, template: Template, rows: np.ndarray) -> None:
        self.run, self.template, self.rows = run, template, rows
        self.titles, self.shown = run.dataset.titles, run.shown

    @cached_property
    def mapped(self) -> MappedRows:
        name = self.run.train_slates
        return mapped_rows(self.run.dataset, name, self.run.folder.rows(str(name)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        row = int(self.rows[number])
        titles, shown, mapped = self.titles, self.shown, self.mapped
        history, slate = mapped.history(row).tolist(), mapped.candidates_RC[row].tolist()
        target = int(mapped.target_R[row])
        return {
            "prompt": self.template.render([shown[i] for i in history], [shown[i] for i in slate]),
            "chosen": titles[target],
            "rejected": [titles[i] for i in slate if i != target],
        }

    def longest(self, n: int) -> list[int]:
        """Numbers of the n records that take most tokens, but for merges across the borders of titles."""
        n = min(n, len(self))
        return np.argpartition(-self._lengths, n - 1)[:n].tolist()

    def longest_rows(self, n: int) -> tuple[list[list[int]], list[list[int]]]:
        """Histories and slates of these records."""
        rows = self.rows[self.longest(n)].tolist()
        return [self.mapped.history(row).tolist() for row in rows], self.mapped.candidates_RC[rows].tolist()

    @cached_property
    def _lengths(self) -> np.ndarray:
        encoder = self.run.encoder
        tokens_I = np.array([len(ids) for ids in encoder.completions(self.shown)])
        longest_I = np.array([len(ids) for ids in encoder.completions(self.titles)])
        return self.mapped.lengths(tokens_I, longest_I, shows_slate=self.template.shows_slate)[self.rows]
