"""Checkpoints that are either whole or not there: a marker with every file's size is written last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sirius_rec import atomic
from sirius_rec.errors import RunError, storage_error

MARKER = "complete.json"
PREFIX = "checkpoint-"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """RunError in one line if what is written inside fails for the storage: disk full, read-only, quota."""
    try:
        yield
    except Exception as error:
        reason = storage_error(error)
        if reason is None:
            raise
        raise RunError(
            f"{folder}: cannot be written ({reason}): fix that and start the same command again; finished "
            "checkpoints are kept"
        ) from error


def mark_complete(checkpoint: Path) -> None:
    """Write the marker of a finished checkpoint: sizes in bytes by relative path. Atomic."""
    sizes = {str(p.relative_to(checkpoint)): p.stat().st_size for p in sorted(checkpoint.rglob("*")) if p.is_file()}
    sizes.pop(MARKER, None)
    atomic.write_text(checkpoint / MARKER, json.dumps(sizes, indent=1))


def check_complete(checkpoint: Path) -> None:
    """RunError naming the file if a marked checkpoint was truncated or lost files."""
    for name, size in json.loads((checkpoint / MARKER).read_text()).items():
        path = checkpoint / name
        if not path.is_file():
            raise RunError(f"{checkpoint}: checkpoint is damaged, {name} is missing: delete this folder to go on")
        if path.stat().st_size != size:
            raise RunError(
                f"{checkpoint}: checkpoint is damaged, {name} has {path.stat().st_size} bytes instead of {size}: "
                "delete this folder to resume from the one before"
            )


def step_of(checkpoint: Path) -> int:
    """The step in `checkpoint-<step>`; RunError for a folder of another name."""
    step = checkpoint.name.removeprefix(PREFIX)
    if not step.isdigit():
        raise RunError(f"{checkpoint}: not a checkpoint folder (they are called {PREFIX}<step>)")
    return int(step)


def list_checkpoints(folder: Path) -> list[Path]:
    """Marked checkpoints in `folder`, oldest first."""
    checkpoints = [p for p in folder.glob(f"{PREFIX}*") if (p / MARKER).is_file()]
    return sorted(checkpoints, key=step_of)


def resume_point(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. Unmarked ones are what a kill left behind: they are removed.

    Raises RunError if the newest marked one is damaged.
    """
    for leftover in folder.glob(f"{PREFIX}*"):
        if not (leftover / MARKER).is_file():
            shutil.rmtree(leftover)
    marked = list_checkpoints(folder)
    if not marked:
        return None
    check_complete(marked[-1])
    return marked[-1]


def prune(folder: Path, keep: set[int]) -> None:
    """Remove marked checkpoints except the newest and those of the steps in `keep`."""
    for checkpoint in list_checkpoints(folder)[:-1]:
        if step_of(checkpoint) not in keep:
            shutil.rmtree(checkpoint)
