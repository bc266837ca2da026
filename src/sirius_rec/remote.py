"""Files by address (s3://, gs://, hdfs://, https://): fetched before they are read, sent when they are whole.

What an address means is fsspec's matter: s3:// needs s3fs, gs:// gcsfs, hdfs:// pyarrow, and credentials are found
where those look for them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sirius_rec import atomic, cache
from sirius_rec.errors import ConfigError, DataError, RunError, SiriusError
from sirius_rec.extras import require
from sirius_rec.progress import Advance

# A path on this machine, or an address.
Place = str | Path

_MARKS = "marks.json"
# What storages say of a file that changes when the file does.
_CHANGING = (
    "ETag", "etag", "md5Hash", "generation", "mtime", "created", "LastModified", "last_modified", "Last-Modified",
)  # fmt: skip
# Storages in which a file appears whole or not at all; elsewhere it is sent under another name, and renamed.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def located(text: Place) -> Place:
    """An address as it is, anything else as a path (`~`: the home directory).

    ConfigError for an address that was made a path of, whose second slash is lost.
    """
    if isinstance(text, Path) and re.match(r"\w{2,}:/", str(text)):
        raise ConfigError(f"{text}: an address is given as text, not as a path")
    return text if is_address(text) else Path(text).expanduser()


def is_address(text: Place | None) -> bool:
    return isinstance(text, str) and "://" in text


def fetched(
    source: Place, say: cache.Say = lambda line: None, advance: Advance = lambda name, done, total: None
) -> Path:
    """A path as it is; of an address, a copy in the cache of the file or folder that is there now.

    A copy never changes: what is at the address later is another copy, with links to the files that are the same.
    What a killed call has fetched is not fetched again.

    Raises:
        DataError: nothing is there, or it cannot be read. ConfigError: nothing is known of such addresses, a package
        for them is not installed, or the cache cannot be written.
    """
    if isinstance(source, Path) or not is_address(source):
        return Path(source)
    with _one_line(source, "read"):
        system, path = _system(source)
        there, alone = _files(system, path)
        marks = _marks(there)
        # Of what says nothing of changes each call makes a copy.
        version = json.dumps(marks, sort_keys=True) if None not in marks.values() else str(time.time_ns())
        folder = cache.root() / f"remote-{_short(source)}-{_short(version)}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with cache.one_at_a_time(folder, say):
            if not folder.is_dir():
                say(f"fetching {source}; kept in {folder}")
                coming = folder.with_name(f".{folder.name}.coming")
                _bring(system, there, coming, _older_copies(source), advance)
                if _marks(_files(system, path)[0]) != marks:
                    shutil.rmtree(coming)
                    raise DataError(f"{source}: changed while it was fetched: start the same command again")
                coming.rename(folder)
    return folder / "files" / (next(iter(there)) if alone else "")


@dataclass(frozen=True)
class Outbox:
    """Where to write what belongs at `target`: `path`, which for an address is a file on this machine."""

    target: Place
    path: Path

    @property
    def send(self) -> Callable[[Path], None] | None:
        """What brings a whole file to the address; None where `path` is the target itself."""
        return partial(_send, self.target) if isinstance(self.target, str) else None


def outbox(target: Place) -> Outbox:
    """Of an address, the place in $SIRIUS_CACHE/outbox where a call that was killed or could not send left its file."""
    if isinstance(target, Path):
        return Outbox(target, target)
    folder = cache.root() / "outbox" / _short(target)
    with _one_line(target, "kept"):
        folder.mkdir(parents=True, exist_ok=True)
    return Outbox(target, folder / (PurePosixPath(target).name or "answers"))


def check_free(address: str) -> None:
    """RunError if something is at the address; ConfigError and DataError as `fetched`."""
    with _one_line(address, "written"):
        system, path = _system(address)
        with suppress(FileNotFoundError):
            system.info(path)
            raise RunError(f"{address}: exists already: choose another --out, or remove it")


def _send(address: str, file: Path) -> None:
    check_free(address)  # again: somebody else may have been quicker
    with _one_line(address, "written"):
        system, path = _system(address)
        protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
        if protocols & _WHOLE:
            system.put_file(str(file), path)
            return
        beside = f"{path}.partial"
        system.put_file(str(file), beside)
        system.mv(beside, path)


def _system(address: str) -> tuple[Any, str]:
    require("remote")
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3", "Protocol not known: x"
        raise ConfigError(f"{address}: {error}") from error
    system.invalidate_cache()  # of listings, which a process that stays would see again
    return system, str(path)


def _files(system: Any, path: str) -> tuple[dict[str, dict[str, Any]], bool]:
    """Files at or below a path by their names relative to it, each with what its storage says of it; and whether the
    path is a file. DataError where there is none."""
    about = system.info(path)  # FileNotFoundError, and what else goes wrong, which `isfile` would call no file
    if about["type"] == "file":
        return {PurePosixPath(path).name: {**about, "name": path}}, True
    found = {name: of for name, of in sorted(system.find(path, detail=True).items()) if of["type"] == "file"}
    below = path.strip("/")
    names = {name: name.strip("/").removeprefix(below).lstrip("/") for name in found}
    # An object whose name ends in a slash stands for an empty folder.
    there = {short: {**found[name], "name": name} for name, short in names.items() if short and name[-1] != "/"}
    if not there:
        raise DataError(f"{path}: there is no file in this folder")
    return there, False


def _bring(
    system: Any, there: Mapping[str, Any], folder: Path, older: Mapping[tuple[str, str], Path], advance: Advance
) -> None:
    """Fetch into `folder` what is not there yet. older: files of older copies by name and mark."""
    marks = _marks(there)
    for name, about in there.items():
        file = folder / "files" / name
        if ".." in PurePosixPath(name).parts:
            raise DataError(f"{about['name']}: leads out of its folder; rename it")
        if file.is_file():  # whole, from a call that was killed
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if (same := older.get((name, json.dumps(marks[name], sort_keys=True)))) is not None:
            with suppress(OSError):  # where there are no links, it is fetched
                os.link(same, file)
                continue
        with atomic.replacing(file) as partial:
            system.get_file(about["name"], str(partial), callback=_told(advance, name))
    for left in folder.rglob(".*.partial"):  # of calls that were killed
        left.unlink()
    atomic.write_json(folder / _MARKS, marks)


def _older_copies(source: str) -> dict[tuple[str, str], Path]:
    """Files of the copies of an address that are in the cache, by name and mark."""
    found: dict[tuple[str, str], Path] = {}
    for copy in cache.root().glob(f"remote-{_short(source)}-*"):
        with suppress(OSError, ValueError):
            marks = json.loads((copy / _MARKS).read_text())
            found |= {
                (name, json.dumps(mark, sort_keys=True)): copy / "files" / name for name, mark in marks.items() if mark
            }
    return found


def _marks(there: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _mark(about) for name, about in there.items()}


def _mark(about: Mapping[str, Any]) -> dict[str, str] | None:
    """What of a file's description changes when the file does; None where its storage says nothing of the kind."""
    told = {key: str(about[key]) for key in _CHANGING if about.get(key) is not None}
    return {"size": str(about.get("size")), **told} if told else None


def _told(advance: Advance, name: str) -> Any:
    from fsspec.callbacks import Callback

    class Told(Callback):  # type: ignore[misc]
        def call(self, hook_name: Any = None, **_: Any) -> None:
            advance(name, self.value, self.size or 0)

    return Told()


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _one_line(address: str, verb: str) -> Iterator[None]:
    """Whatever a storage's driver raises as one line: each has errors of its own, and few of them are OSErrors."""
    try:
        yield
    except SiriusError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{address}: no such file or folder ({error})") from error
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0]
        root = str(cache.root())
        if isinstance(error, OSError) and (
            str(error.filename).startswith(root) or (verb != "written" and error.errno in _FULL)
        ):
            raise ConfigError(
                f"{root}: cannot keep {address} ({words}): make room there, or name another folder in {cache.VARIABLE}"
            ) from error
        raise DataError(f"{address}: cannot be {verb} ({type(error).__name__}: {words})") from error
