"""What a ranker is: histories and slates in, one score per candidate out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Items = npt.NDArray[np.integer[Any]]


class Ranker(Protocol):
    """Scores candidates for histories; a larger score ranks higher.

    histories: dense item numbers, oldest first. candidates: dense item numbers, aligned with histories by row.
    Returns one float array per row, aligned with its candidates. Reordering the candidates reorders the scores of
    rankers that do not show the slate to a model; a language model reads the slate in the order given.
    """

    def score(
        self, histories: Sequence[Items], candidates: Sequence[Items]
    ) -> Sequence[npt.NDArray[np.floating[Any]]]: ...
