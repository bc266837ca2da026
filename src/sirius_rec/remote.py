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

_MARKS = "marks.jsonl"  # of a copy, a line for each file that was fetched
_ROUNDS = 5  # listings of an address that changes meanwhile
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
    copies = cache.root() / f"remote-{_short(source)}"
    with _one_line(source, "read"):
        system, path = _system(source)
        copies.parent.mkdir(parents=True, exist_ok=True)
        with cache.one_at_a_time(copies, say):
            there, alone = _files(system, path)
            for _ in range(_ROUNDS):
                marks = {name: _mark(about) for name, about in there.items()}
                # Of what says nothing of changes each call makes a copy.
                version = json.dumps(marks, sort_keys=True) if None not in marks.values() else str(time.time_ns())
                folder = copies.with_name(f"{copies.name}-{_short(version)}")
                if folder.is_dir():
                    break
                say(f"fetching {source}; kept in {folder}")
                coming = copies.with_name(f".{copies.name}.coming")
                _bring(system, there, marks, coming, _older_copies(copies), advance)
                system.invalidate_cache()
                there, alone = _files(system, path)
                if {name: _mark(about) for name, about in there.items()} == marks:
                    coming.rename(folder)
                    break
            else:
                raise DataError(f"{source}: changed {_ROUNDS} times while it was fetched: wait until it is left alone")
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
    if address.startswith(("http://", "https://")):
        raise ConfigError(f"--out {address}: is read, not written: name a file, or an address of a storage (s3://…)")
    with _one_line(address, "written"):
        system, path = _system(address)
        with suppress(FileNotFoundError):
            system.info(path)
            raise RunError(f"{address}: exists already: choose another --out, or remove it")


def _send(address: str, file: Path) -> None:
    try:
        check_free(address)  # again: somebody else may have been quicker
        with _one_line(address, "written"):
            system, path = _system(address)
            if _protocols(system) & _WHOLE:
                system.put_file(str(file), path)
                return
            beside = f"{path}.partial"
            system.put_file(str(file), beside)
            system.mv(beside, path)
    except SiriusError as error:
        raise type(error)(f"{error}; all answers are kept in {file.parent}, and the same command sends them") from error


def _protocols(system: Any) -> set[str]:
    return {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)


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
    # `find` of other storages leaves out, without a word, what it cannot list.
    found = system.find(path, detail=True) if _protocols(system) & _WHOLE else dict(_walked(system, path))
    below = path.strip("/")
    names = {name: name.strip("/").removeprefix(below).lstrip("/") for name in found}
    # An object whose name ends in a slash stands for an empty folder.
    there = {names[name]: {**found[name], "name": name} for name in sorted(found) if names[name] and name[-1] != "/"}
    if not there:
        raise DataError(f"{path}: there is no file in this folder")
    return there, False


def _walked(system: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for about in system.ls(path, detail=True):
        name = str(about["name"])
        if about["type"] == "directory":
            if name.strip("/") != path.strip("/"):  # some list a folder in itself
                yield from _walked(system, name)
        elif about["type"] == "file":
            yield name, about
        else:
            raise DataError(f"{name}: is neither a file nor a folder ({about['type']}): take it out of there")


def _bring(
    system: Any,
    there: Mapping[str, Any],
    marks: Mapping[str, Any],
    folder: Path,
    older: Mapping[tuple[str, str], Path],
    advance: Advance,
) -> None:
    """Fetch into `folder` what it does not hold as it is now. older: files of older copies by name and mark."""
    held = _held(folder)
    for name in held.keys() - {name for name, mark in marks.items() if mark and held.get(name) == mark}:
        (folder / "files" / name).unlink(missing_ok=True)
    for name, about in there.items():
        file = folder / "files" / name
        if ".." in PurePosixPath(name).parts:
            raise DataError(f"{about['name']}: leads out of its folder; rename it")
        if held.get(name) == marks[name] and file.is_file():
            continue
        _make_room(file, folder)
        same = older.get((name, json.dumps(marks[name], sort_keys=True)))
        if same is None or not _linked(same, file):
            with atomic.replacing(file) as partial:
                system.get_file(about["name"], str(partial), callback=_told(advance, name))
        with (folder / _MARKS).open("a") as record:
            record.write(json.dumps([name, marks[name]]) + "\n")
    for left in folder.rglob(".*.partial"):  # of calls that were killed
        left.unlink()


def _make_room(file: Path, folder: Path) -> None:
    """The folder of a file, also where a file, or a folder by then empty, had its name."""
    for parent in reversed(file.relative_to(folder).parents[:-1]):
        if (folder / parent).is_file():
            (folder / parent).unlink()
    if file.is_dir():
        shutil.rmtree(file)
    file.parent.mkdir(parents=True, exist_ok=True)


def _linked(source: Path, target: Path) -> bool:
    with suppress(OSError):  # where there are no links, it is fetched
        target.unlink(missing_ok=True)
        os.link(source, target)
        return True
    return False


def _held(folder: Path) -> dict[str, Any]:
    """File → mark, of what was fetched into a folder; a torn last line is not counted."""
    held: dict[str, Any] = {}
    lines = (folder / _MARKS).read_text().splitlines() if (folder / _MARKS).is_file() else []
    for line in lines:
        with suppress(ValueError):
            name, mark = json.loads(line)
            held[name] = mark
    return held


def _older_copies(copies: Path) -> dict[tuple[str, str], Path]:
    """Files of the copies of an address that are in the cache, by name and mark."""
    found: dict[tuple[str, str], Path] = {}
    for copy in copies.parent.glob(f"{copies.name}-*"):
        marks = {name: mark for name, mark in _held(copy).items() if mark}
        found |= {(name, json.dumps(mark, sort_keys=True)): copy / "files" / name for name, mark in marks.items()}
    return found


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
