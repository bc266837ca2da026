"""The work folder beside the dataset: it belongs to one recipe and input, and is gone on with after a kill."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sirius_rec import atomic
from sirius_rec.errors import ConfigError, DataError, RunError, storage_error

_IDENTITY = "work.json"


def work_folder(out: Path) -> Path:
    """`NAME.preparing`, beside `out`, so that the dataset gets its name in one step."""
    return out.absolute().with_name(f"{out.absolute().name}.preparing")


@contextmanager
def token(out: Path) -> Iterator[Path]:
    """A file on the disk of the work folder, by which others tell that they see it."""
    there = next(folder for folder in work_folder(out).parents if folder.is_dir())
    file = there / f".sirius-{os.urandom(8).hex()}"
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def opened(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """The work folder of `out`, locked. It is removed at the end, and where the log or an option is not in order, since
    with others it could not be gone on with; any other error leaves it.

    Raises:
        RunError: it was begun with something else, another process is at work in it, or the storage is full.
    """
    folder = work_folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _check(folder, json.loads(json.dumps(identity, default=str)))
            for left in (*folder.glob(".*.partial"), *folder.glob("*/.*.partial")):  # of processes that were killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            for left in folder.glob("plan-*"):
                left.unlink()
            try:
                yield folder
            except (ConfigError, DataError):
                shutil.rmtree(folder)
                raise
            shutil.rmtree(folder)
    except Exception as error:
        problem = storage_error(error)
        if problem is None or isinstance(error, RunError):
            raise
        used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        raise RunError(
            f"{folder}: cannot be written ({problem}): it holds {used / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are "
            "free; make room and start the same command again: what is finished is kept"
        ) from error


def clear(out: Path) -> None:
    """Remove the work folder of a dataset that is finished, where a kill in the last moment left it."""
    folder = work_folder(out)
    if (folder / _IDENTITY).is_file():
        with suppress(RunError), _locked(folder):
            shutil.rmtree(folder)


def _check(folder: Path, identity: dict[str, Any]) -> None:
    file = folder / _IDENTITY
    if not file.is_file():
        if any(path.name != ".lock" and not path.name.endswith(".partial") for path in folder.iterdir()):
            raise RunError(f"{folder}: is in the way of the work folder; move it, or choose another folder to write")
        atomic.write_json(file, identity)
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    if differing := sorted(key for key in identity.keys() | begun.keys() if identity.get(key) != begun.get(key)):
        raise RunError(
            f"{folder}: was begun with other settings or input (differs in: {', '.join(differing)}); start it with "
            "those to go on, or remove the folder to begin anew"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock that ends with its process; where the system has none, nothing is locked."""
    if sys.platform == "win32":  # it would not let the folder go while a file in it is open
        yield
        return
    with (folder / ".lock").open("w") as file:
        if not atomic.lock(file):
            raise RunError(f"{folder}: another process is at work there; wait for it, or end it")
        yield
