"""Files by address (s3://, gs://, hdfs://, https://): fetched before they are read, sent when they are whole.

What an address means is fsspec's matter: s3:// needs s3fs, gs:// gcsfs, hdfs:// pyarrow, and credentials are found
where those look for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sirius_rec import atomic, cache
from sirius_rec.errors import ConfigError, DataError, RunError, SiriusError, storage_error
from sirius_rec.extras import require
from sirius_rec.progress import Advance

# A path on this machine, or an address.
Place = Path | str

_RECORD = "fetched.json"
# What storages say of a file that changes when the file does.
_MARKS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "created", "md5Hash", "generation")


def located(text: Place) -> Place:
    """An address as it is, anything else as a path (`~`: the home directory)."""
    return text if is_address(text) else Path(text).expanduser()


def is_address(text: Place | None) -> bool:
    return isinstance(text, str) and "://" in text


def fetched(
    source: Place, say: Callable[[str], None] = lambda line: None, advance: Advance = lambda name, done, total: None
) -> Path:
    """A path as it is; of an address, a copy in the cache of the file or folder that is there now.

    Files that did not change are not fetched again, nor are those that were whole when a call was killed.

    Raises:
        DataError: nothing is there, or it cannot be read. ConfigError: nothing is known of such addresses, a package
        for them is not installed, or the cache cannot be written.
    """
    if isinstance(source, Path) or not is_address(source):
        return Path(source)
    folder = cache.root() / f"remote-{_short(source)}"
    with _one_line(source, "read"):
        system, path = _system(source)
        there = _files(system, path)
        if not there:
            raise DataError(f"{source}: no such file or folder, or nothing in it")
        folder.mkdir(parents=True, exist_ok=True)
        with cache.one_at_a_time(folder):
            _bring(system, there, folder, source, say, advance)
    return folder / "files" / (next(iter(there)) if system.isfile(path) else "")


@dataclass(frozen=True)
class Outbox:
    """Where to write what belongs at `target`: `path`, which for an address is in the cache until it is sent."""

    target: Place
    path: Path

    @property
    def full(self) -> bool:
        """Whether all is written, and was not sent: the process was killed in between, or the network failed."""
        return self.target != self.path and self.path.exists()

    def send(self) -> None:
        """Bring the whole file to its address; DataError where that fails, and the next call tries again."""
        if isinstance(self.target, Path):
            return
        with _one_line(self.target, "written"):
            system, path = _system(self.target)
            system.put_file(str(self.path), path)
        self.path.unlink()
        self.path.parent.rmdir()


def outbox(target: Place, recipe: Mapping[str, Any]) -> Outbox:
    """recipe: of what is written; the same one finds again what a killed process left.

    RunError if something is at the address; ConfigError and DataError as `fetched`.
    """
    if isinstance(target, Path):
        return Outbox(target, target)
    check_free(target)
    folder = cache.root() / f"outbox-{_short(target + json.dumps(recipe, sort_keys=True, default=str))}"
    folder.mkdir(parents=True, exist_ok=True)
    return Outbox(target, folder / PurePosixPath(target).name)


def check_free(address: str) -> None:
    """RunError if something is at the address; ConfigError and DataError as `fetched`."""
    with _one_line(address, "written"):
        system, path = _system(address)
        if system.exists(path):
            raise RunError(f"{address}: exists already: choose another --out, or remove it")


def _system(address: str) -> tuple[Any, str]:
    require("remote")
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(address)
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3", "Protocol not known: x"
        raise ConfigError(f"{address}: {error}") from error
    system.invalidate_cache()  # of listings, which a process that stays would see again
    return system, str(path)


def _files(system: Any, path: str) -> dict[str, dict[str, Any]]:
    """Files at or below a path by their names relative to it, each with what its storage says of it, its path too."""
    if system.isfile(path):
        return {PurePosixPath(path).name: {**system.info(path), "name": path}}
    found = system.find(path, detail=True)
    start = len(path.rstrip("/")) + 1
    # An object whose name ends in a slash stands for an empty folder.
    return {n[start:]: {**about, "name": n} for n, about in sorted(found.items()) if n[start:] and n[-1] != "/"}


def _bring(
    system: Any,
    there: dict[str, dict[str, Any]],
    folder: Path,
    source: str,
    say: Callable[[str], None],
    advance: Advance,
) -> None:
    record_file, files = folder / _RECORD, folder / "files"
    record: dict[str, Any] = json.loads(record_file.read_text()) if record_file.exists() else {"address": source}
    known = record.setdefault("files", {})
    for name in [name for name in known if name not in there]:
        (files / name).unlink(missing_ok=True)
        del known[name]
    marks = {name: _mark(about) for name, about in there.items()}
    missing = [n for n, mark in marks.items() if mark is None or known.get(n) != mark or not (files / n).is_file()]
    if missing:
        size = sum(int(there[name].get("size") or 0) for name in missing)
        say(f"fetching {source}: {len(missing):,} of {len(there):,} files, {size / 1e6:,.0f} MB; kept in {folder}")
    for name in missing:
        target = files / name
        if not target.resolve().is_relative_to(files.resolve()):
            raise DataError(f"{source}: holds a file named {name!r}, which would be written elsewhere")
        with atomic.replacing(target) as partial:
            system.get_file(there[name]["name"], str(partial), callback=_told(advance, name))
        known[name] = marks[name]
        atomic.write_json(record_file, record)
    atomic.write_json(record_file, record)


def _mark(about: Mapping[str, Any]) -> dict[str, str] | None:
    """What of a file's description changes when the file does; None where its storage says nothing of the kind."""
    told = {key: str(about[key]) for key in _MARKS if about.get(key) is not None}
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
    except Exception as error:
        problem = storage_error(error)
        if problem and not isinstance(error, PermissionError):  # of which drivers make their own "access denied"
            raise ConfigError(
                f"{cache.root()}: cannot keep {address} ({problem}): make room there, or name another folder in "
                f"{cache.VARIABLE}"
            ) from error
        words = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"{address}: cannot be {verb} ({type(error).__name__}: {words})") from error
