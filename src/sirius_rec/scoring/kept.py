"""Scores of a long scoring that is under way, kept in files, so that after a kill it goes on with the rest."""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sirius_rec import atomic
from sirius_rec.processes import is_main, wait

_EVERY = 30.0  # seconds between files


class KeptScores:
    """One array of scores for each of the numbered rows that are done.

    folder: of this scoring alone. of: text that names all that its scores depend on; those of another are not taken. In
    a group of processes all see one folder and go through `begin` together, and each keeps what it scored.
    """

    def __init__(self, folder: Path, of: str) -> None:
        self.folder, self.of, self._key = folder, of, ""
        self._new: dict[int, np.ndarray] = {}
        self._written = time.monotonic()

    def begin(self, how: str) -> dict[int, np.ndarray]:
        """The scores that are there. how: what else they depend on, as rows are numbered and computed."""
        self._key, known = f"{self.of}\n{how}", dict[int, np.ndarray]()
        for file in sorted(self.folder.glob("*.npz")):
            known |= _read(file, self._key)
        wait()  # nobody writes before all have read
        self._new, self._written = {}, time.monotonic()
        return known

    def add(self, found: Mapping[int, np.ndarray]) -> None:
        """The rows of a batch; a file holds whole ones, so that none of them has a row that is there."""
        self._new |= found
        if time.monotonic() - self._written >= _EVERY:
            arrays = {
                "key": np.array(self._key),
                "number": np.array(list(self._new)),
                "length": np.array([len(one) for one in self._new.values()]),
                "score": np.concatenate(list(self._new.values())),
            }
            atomic.write_npz(self.folder / f"{min(self._new):09d}.npz", arrays)  # no row is scored twice, so no name is
            self._new, self._written = {}, time.monotonic()

    def drop(self) -> None:
        """Remove the files, once what they were kept for is written."""
        if is_main():
            shutil.rmtree(self.folder, ignore_errors=True)


def scored_in_parts(
    n: int,
    size: int,
    score: Callable[[slice], Sequence[np.ndarray]],
    kept: KeptScores | None,
    how: str,
    progress: Callable[[int], None] | None,
) -> list[np.ndarray]:
    """The scores of n rows, `size` rows at a time, where every process of a group computes all of them.

    progress: gets the numbers of rows that were there; `score` says its own.
    """
    known = {} if kept is None else kept.begin(how)
    for start in range(0, n, size):
        rows = range(start, min(start + size, n))
        if all(r in known for r in rows):
            if progress:
                progress(len(rows))
            continue
        found = {r: np.asarray(one) for r, one in zip(rows, score(slice(start, rows.stop)), strict=True)}
        known |= found
        if kept is not None and is_main():
            kept.add(found)
    return [known[r] for r in range(n)]


def _read(file: Path, key: str) -> dict[int, np.ndarray]:
    """The rows of a file of this key; none of another, nor of a damaged one: they are scored again."""
    try:
        with np.load(file) as stored:
            if str(stored["key"]) != key:
                return {}
            arrays = np.split(stored["score"], np.cumsum(stored["length"])[:-1])
            return dict(zip(stored["number"].tolist(), arrays, strict=True))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return {}
