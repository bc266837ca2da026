"""Log-probs of more rows than are held, in files of some thousand; a killed scoring keeps those that are finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import atomic
from sirius_rec.processes import is_main, wait

_ROWS = 8192  # of a file; their token ids are held while they are scored
_KEY = "key.txt"


def key_in(folder: Path) -> str:
    """The key of the files that lie there; empty where there are none."""
    named = folder / _KEY
    return named.read_text(encoding="utf-8") if named.is_file() else ""


class LogpShards(Sequence[np.ndarray]):
    """log π(y|x) of completions of n rows, float32 in nats; NaN for those not scored, and behind a row's own.

    key: of all that the log-probs depend on. Files under another one are not these.
    """

    def __init__(self, folder: Path, n: int, key: str) -> None:
        self.folder, self.n, self.key = folder, n, key

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: Any) -> Any:
        # Opened for each row: a map that is kept holds a file descriptor, of which there are a thousand.
        return np.array(np.load(self.file(row // _ROWS), mmap_mode="r")[row % _ROWS])

    def file(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npy"

    @property
    def _missing(self) -> list[int]:
        return [shard for shard in range(-(-self.n // _ROWS)) if not self.file(shard).is_file()]

    @property
    def _has_key(self) -> bool:
        return key_in(self.folder) == self.key

    @property
    def complete(self) -> bool:
        """Whether all rows are scored, under this key."""
        return self._has_key and not self._missing

    def fill(self, score: Callable[[range], list[np.ndarray]]) -> LogpShards:
        """Score the rows whose files are missing; files under another key are removed first. Of several processes all
        must call it; they see one folder.

        score: numbers of rows → their log-probs.
        """
        if is_main() and not self._has_key:
            shutil.rmtree(self.folder, ignore_errors=True)
            atomic.write_text(self.folder / _KEY, self.key)
        wait()
        for shard in self._missing:
            logps = score(range(shard * _ROWS, min((shard + 1) * _ROWS, self.n)))
            if is_main():
                table = np.full((len(logps), max(map(len, logps))), np.nan, dtype=np.float32)
                for at, logp_C in enumerate(logps):
                    table[at, : len(logp_C)] = logp_C
                with atomic.replacing(self.file(shard)) as partial, partial.open("wb") as file:
                    np.save(file, table)
        wait()
        return self
