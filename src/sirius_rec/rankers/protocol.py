"""What a ranker is: histories and slates in, one score per candidate out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import DataError, ScoringError

Items = npt.NDArray[np.integer[Any]]
# A network's score of an item that training never saw, whose embedding means nothing: below every real score.
UNSEEN = -1e4


class Ranker(Protocol):
    """Scores candidates for histories; a larger score ranks higher.

    histories: dense item numbers, oldest first. candidates: dense item numbers, aligned with histories by row.

    Returns one float array per row, aligned with its candidates. Reordering the candidates reorders the scores of
    rankers that do not show the slate to a model; a language model reads the slate in the order given.
    """

    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> Sequence[npt.NDArray[np.floating[Any]]]:
        """One array per row, aligned with its candidates."""
        ...


@dataclass(frozen=True)
class Answer:
    """text: what a model wrote. valid: it equals exactly one candidate's title, normalised. hit: that is the target."""

    text: str
    valid: bool
    hit: bool


def check_rows(histories: Sequence[Items], candidates: Sequence[Items], n_items: int) -> None:
    """ScoringError where there is not one history per slate, DataError for an item outside 0 … n_items − 1."""
    if len(histories) != len(candidates):
        raise ScoringError(f"{len(histories)} histories for {len(candidates)} slates; give one history per slate")
    for what, rows in (("histories", histories), ("candidates", candidates)):
        for r, row in enumerate(rows):
            items = np.asarray(row, dtype=np.int64)
            outside = items[(items < 0) | (items >= n_items)]
            if outside.size:
                raise DataError(
                    f"{what}: row {r} holds item {outside[0]}, the catalogue has {n_items} items (0 … {n_items - 1})"
                )
