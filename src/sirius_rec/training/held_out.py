"""`held_out/step-N.npz`: the log-probs of every held-out slate at every evaluation, for tests over examples.

Means per epoch cannot say whether a fall of HR@1 is noise, nor how far the policy has moved; these can.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sirius_rec import atomic
from sirius_rec.errors import RunError

ROWS = "rows.json"
_NAME = re.compile(r"step-(\d+)\.npz")


@dataclass(frozen=True)
class Snapshot:
    """One evaluation. logp_R: per row, float32[C], log π(y|x) in nats, the target first, the others in slate order."""

    step: int
    epoch: float
    logp_R: list[npt.NDArray[np.float32]]


class HeldOutLog:
    """Writes one file per evaluation into `folder`, atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, epoch: float, logp_R: Sequence[np.ndarray]) -> None:
        logp = np.concatenate([np.asarray(row, dtype=np.float32) for row in logp_R])
        length = np.array([len(row) for row in logp_R], dtype=np.int32)
        arrays = {"epoch": np.float64(epoch), "logp": logp, "length": length}
        atomic.write_npz(self.folder / f"step-{step}.npz", arrays)

    def rewind(self, step: int) -> None:
        """Remove evaluations of later steps than `step`: what a killed run had gone ahead."""
        for at, path in _files(self.folder):
            if at > step:
                path.unlink()


def remember_rows(folder: Path, rows: Sequence[int]) -> None:
    """Note which rows the evaluations in `folder` will be of; RunError where those that lie there are of others.

    Where some lie there without a note, of an old version, nobody knows: nothing is noted.
    """
    check_rows(folder, rows)
    if not _files(folder):
        atomic.write_json(folder / ROWS, list(rows))


def check_rows(folder: Path, rows: Sequence[int]) -> None:
    """RunError where `folder` notes other rows, as another version of this package would choose; old ones note none."""
    file = folder / ROWS
    if file.is_file() and json.loads(file.read_text()) != list(rows):
        raise RunError(
            f"{folder}: its evaluations are of other validation rows than this version chooses: go on with the version "
            "that made them, or delete the training's folder"
        )


def _files(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    files = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in files)


def read_held_out(folder: Path) -> list[Snapshot]:
    """Every evaluation in `folder` by step; an empty list where there are none. RunError naming a damaged file."""
    out: list[Snapshot] = []
    for step, path in _files(folder):
        try:
            with np.load(path) as stored:
                ends = np.cumsum(stored["length"])
                rows = np.split(stored["logp"], ends[:-1])
                out.append(Snapshot(step, float(stored["epoch"]), rows))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{path}: not a file of held-out log-probs: delete it and diagnose again") from error
        if len(out[-1].logp_R) != len(out[0].logp_R):
            raise RunError(f"{path}: {len(out[-1].logp_R)} rows, but step {out[0].step} has {len(out[0].logp_R)}")
    return out
