"""Files and folders that appear whole or not at all: written beside their place, then renamed in one step.

After an error the old file is as it was and nothing is left over; a kill leaves at most a hidden `.partial`. And a lock
for what one process at a time may write.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, for a file or a folder: it takes the place of `path` at the end, and goes after an error.

    The parent folder is made where it is absent. A link stays a link. What is no file (`/dev/stdout`, a pipe) is
    written directly. An OSError names `path`, not the path beside it.
    """
    if _is_stream(path):
        yield path
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        os.replace(partial, target)
    except OSError as error:
        if error.errno is not None and error.filename in (None, partial, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            partial.unlink() if not partial.is_dir() else shutil.rmtree(partial)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Sorted keys, one entry a line."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    import numpy as np

    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Hold an open file until it is closed or the process ends; False where another process holds it. wait: until that
    one lets go. Where the system has no such locks (Windows) everybody is told True."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_stream(path: Path) -> bool:
    """A rename would not reach who reads these. /dev/stdout may also lead to a file that the shell holds open."""
    is_standard = str(path.absolute()).startswith(("/dev/std", "/dev/fd/"))
    return is_standard or (path.exists() and not path.is_file() and not path.is_dir())
