"""Log-probs of more rows than are held, in files of some thousand; a killed scoring keeps those that are finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import atomic
from sirius_rec.processes import is_main, wait
from sirius_rec.scoring.rows import PromptCompletions

_ROWS = 8192  # of a file; their token ids are held while they are scored
_OPEN = 4096  # files that are kept mapped


class LogpShards(Sequence[np.ndarray]):
    """log π(y|x) of every completion of n rows, float32 in nats; behind a row's own completions stand NaN."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.n = folder, n
        self._shard = lru_cache(_OPEN)(self._mapped)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: Any) -> Any:
        return np.asarray(self._shard(row // _ROWS)[row % _ROWS])

    def file(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npy"

    def _mapped(self, shard: int) -> np.ndarray:
        array: np.ndarray = np.load(self.file(shard), mmap_mode="r")
        return array

    def fill(
        self, rows: Sequence[PromptCompletions], score: Callable[[Sequence[PromptCompletions]], list[np.ndarray]]
    ) -> LogpShards:
        """Score the rows whose files are missing. Of several processes all must call it; they see one folder."""
        shards = range(-(-self.n // _ROWS))
        for shard in [shard for shard in shards if not self.file(shard).is_file()]:
            logps = score(rows[shard * _ROWS : min((shard + 1) * _ROWS, self.n)])
            if is_main():
                table = np.full((len(logps), max(map(len, logps))), np.nan, dtype=np.float32)
                for at, logp_C in enumerate(logps):
                    table[at, : len(logp_C)] = logp_C
                with atomic.replacing(self.file(shard)) as partial, partial.open("wb") as file:
                    np.save(file, table)
        wait()
        return self
