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
from typing import Any

import numpy as np
import numpy.typing as npt

from sirius_rec import atomic
from sirius_rec.errors import RunError

ROWS = "rows.json"
CONTEXT = "context.npz"  # what a monitor was given: the reference, and users
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
        atomic.write_npz(self.folder / f"step-{step}.npz", {"epoch": np.float64(epoch), **_packed(logp_R)})

    def note(self, reference_R: Sequence[np.ndarray] | None, users_R: Sequence[Any] | None) -> None:
        """What evaluations are measured by: log π_ref of the rows (None: the first evaluation); whose rows they are."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        if reference_R is not None:
            arrays |= _packed(reference_R)
        if users_R is not None:
            arrays["user"] = np.unique(np.asarray(users_R), return_inverse=True)[1].reshape(-1).astype(np.int64)
        atomic.write_npz(self.folder / CONTEXT, arrays)

    def rewind(self, step: int) -> None:
        """Remove evaluations of later steps than `step`: what a killed run had gone ahead."""
        for at, path in _files(self.folder):
            if at > step:
                path.unlink()


def _packed(logp_R: Sequence[np.ndarray]) -> dict[str, npt.NDArray[Any]]:
    logp = np.concatenate([np.asarray(row, dtype=np.float32) for row in logp_R])
    return {"logp": logp, "length": np.array([len(row) for row in logp_R], dtype=np.int32)}


def _rows(stored: Any) -> list[npt.NDArray[np.float32]]:
    return np.split(stored["logp"], np.cumsum(stored["length"])[:-1])


def read_context(folder: Path) -> tuple[list[npt.NDArray[np.float32]] | None, npt.NDArray[np.int64] | None]:
    """(log π_ref of each row, user of each row) as `HeldOutLog.note` left them; None where it had none."""
    file = folder / CONTEXT
    if not file.is_file():
        return None, None
    try:
        with np.load(file) as stored:
            return _rows(stored) if "logp" in stored else None, stored.get("user")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{file}: not what a monitor writes: delete it, and users and reference are unknown") from error


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
                out.append(Snapshot(step, float(stored["epoch"]), _rows(stored)))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{path}: not a file of held-out log-probs: delete it and diagnose again") from error
        if len(out[-1].logp_R) != len(out[0].logp_R):
            raise RunError(f"{path}: {len(out[-1].logp_R)} rows, but step {out[0].step} has {len(out[0].logp_R)}")
    return out
