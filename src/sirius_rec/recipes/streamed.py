"""Train rows as records that are made when they are asked for, with `training.stream`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sirius_rec.data.mapped import MappedRows, mapped_rows
from sirius_rec.recipes.run import Run
from sirius_rec.training.permutation import Permutation

if TYPE_CHECKING:
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import Template

Record = dict[str, Any]
LONGEST = 4096  # records that stand for all where lengths matter
Rows = np.ndarray | range


def streamed_rows(n_rows: int, wanted: int, seed: int, stream: int) -> Rows:
    """As `records.stage_rows`, without a number in memory for each of `n_rows`: another choice of the same kind."""
    if wanted == n_rows:
        return range(n_rows)
    return np.sort(Permutation(n_rows, [seed, stream])(np.arange(wanted)))


def item_tokens(run: Run, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
    """Of each item its tokens in a prompt, and as an answer."""

    def tokens(texts: Sequence[str]) -> np.ndarray:
        return np.array([len(ids) for ids in encoder.completions(texts)])

    return tokens(run.shown), tokens(run.dataset.titles)


def longest_rows(
    history_R: pl.Series, slate_R: pl.Series, tokens_I: np.ndarray, longest_I: np.ndarray, shows_slate: bool
) -> np.ndarray:
    """Numbers of the `LONGEST` rows whose prompts take most tokens with their longest candidate, but for merges across
    the borders of titles.

    history_R, slate_R: lists of items. tokens_I, longest_I: see `item_tokens`.
    """

    def over(lists: pl.Series, of_I: np.ndarray) -> np.ndarray:
        end_R = lists.list.len().to_numpy().cumsum()
        before = np.r_[0, of_I[lists.explode().drop_nulls().to_numpy()].cumsum()]
        return np.diff(before[np.r_[0, end_R]])

    length_R = over(history_R, tokens_I) + longest_I[slate_R.list.to_array(slate_R.list.len()[0]).to_numpy()].max(
        axis=1
    )
    if shows_slate:
        length_R += over(slate_R, tokens_I)
    return np.argsort(-length_R, kind="stable")[:LONGEST]


class StreamedRecords(Sequence[Record]):
    """What `records.slate_records` makes of train rows, one by one; without whose they are.

    rows: numbers of the rows, ascending.
    """

    def __init__(self, run: Run, template: Template, rows: Rows) -> None:
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

    def __getstate__(self) -> dict[str, Any]:
        """What a worker of a data loader needs: not the run and the tables that it holds."""
        return {**self.__dict__, "run": None, "mapped": self.mapped}

    def longest(self, n: int) -> list[int]:
        """Numbers of the n records that take most tokens, but for merges across the borders of titles; n ≤ 4,096."""
        return self._longest[:n]

    @cached_property
    def _longest(self) -> list[int]:
        rows = self.rows
        tokens_I, longest_I = item_tokens(self.run, self.run.encoder)
        best, best_lengths = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        for start, lengths in self.mapped.lengths(tokens_I, longest_I, shows_slate=self.template.shows_slate):
            stop = start + len(lengths)
            if isinstance(rows, range):
                numbers = np.arange(start, stop)
            else:
                numbers = np.arange(*np.searchsorted(rows, [start, stop]))
                lengths = lengths[rows[numbers] - start]
            best, best_lengths = np.append(best, numbers), np.append(best_lengths, lengths)
            kept = np.argsort(-best_lengths, kind="stable")[:LONGEST]
            best, best_lengths = best[kept], best_lengths[kept]
        return best.tolist()

    def longest_rows(self, n: int) -> tuple[list[list[int]], list[list[int]]]:
        """Histories and slates of these records."""
        rows = [int(self.rows[number]) for number in self.longest(n)]
        return [self.mapped.history(row).tolist() for row in rows], self.mapped.candidates_RC[rows].tolist()
