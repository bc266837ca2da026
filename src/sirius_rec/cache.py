"""What is made once per machine: folders made from a file, in $SIRIUS_CACHE or ~/.cache/sirius-rec.

A folder is named by the content of the file that it was made from, so another file is another folder, and nothing in
the cache goes out of date. It may be deleted at any time; but for `outbox`, with answers on their way (`remote`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from sirius_rec import atomic
from sirius_rec.errors import ConfigError, storage_error

VARIABLE = "SIRIUS_CACHE"

Say = Callable[[str], None]


def root() -> Path:
    """The cache's folder; need not be there yet."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "sirius-rec"


def holds(folder: Path) -> bool:
    """Whether a folder belongs to the cache, so that it may be deleted and is made again."""
    return folder.absolute().parent == root()


def fingerprint(file: Path) -> str:
    """Hex SHA-256 of a file; of one that did not change in between it is computed once per process.

    A file that is written anew, or whose times are set back, has another inode or time of change.
    """
    stat = file.stat()
    return _hashed(str(file.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=64)
def _hashed(file: str, *state: int) -> str:
    with open(file, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def made_from(file: Path, form: str, make: Callable[[Path], None], say: Say = lambda line: None) -> Path:
    """The folder that `make(folder)` fills from a file: made at the first call, found at all others.

    form: says how it is made, so that another way to make it is another folder. say: gets lines of progress. Several
    processes do not clash: one makes it, the others wait; a folder is there whole or not at all. Whatever `make` raises
    goes through; ConfigError where the cache cannot be written.
    """
    folder = root() / f"{file.stem.lower()}-{fingerprint(file)[:12]}-{form}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder, say):
            if not folder.is_dir():
                _make(file, folder, make, say)
    except Exception as error:
        problem = storage_error(error)
        if problem is None:
            raise
        raise ConfigError(
            f"{folder.parent}: cannot write what is made of {file.name} ({problem}): make room there, or name another "
            f"folder in {VARIABLE}"
        ) from error
    return folder


def _make(file: Path, folder: Path, make: Callable[[Path], None], say: Say) -> None:
    for left in folder.parent.glob(f".{folder.name}.*.partial"):  # of processes that were killed
        shutil.rmtree(left, ignore_errors=True)
    say(f"reading {file.name} ({file.stat().st_size / 1e6:,.0f} MB), once: it is kept in {folder}")
    started = time.monotonic()
    with atomic.replacing(folder) as partial:
        partial.mkdir()
        make(partial)
    say(f"{file.name} is ready after {time.monotonic() - started:.0f} s")


@contextmanager
def one_at_a_time(folder: Path, say: Say = lambda line: None) -> Iterator[None]:
    """A lock that ends with its process; where the system has none, the last process to finish wins."""
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        if not atomic.lock(file):
            say(f"waiting for another process, which makes {folder}")
            atomic.lock(file, wait=True)
        yield
