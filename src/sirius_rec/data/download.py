"""Official files from their publishers: the terms shown first, resumed where a transfer broke off, checked, unpacked.

`FOLDER/download.json` records each file's address, size, SHA-256, and what it was checked against. Where the publisher
states no checksum, the SHA-256 of the first download is what later ones are held to.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import ssl
import stat
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from sirius_rec import atomic
from sirius_rec.data.official import OFFICIAL, Official, RemoteFile
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Advance

RECORD = "download.json"
ATTEMPTS = 5
_TIMEOUT = 60.0
_CHUNK = 1 << 20
# No archive of these data sets unpacks to more than some tenfold; deflate could reach a thousandfold.
_LARGEST_RATIO = 100
_AGENT = {"User-Agent": "sirius-rec"}

Say = Callable[[str], None]


class _BrokeOff(Exception):
    """A transfer ended early, or the server is busy: worth another attempt."""


def find(name: str, registry: Mapping[str, Official] = OFFICIAL) -> Official:
    """The data set called `name`.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    if name not in registry:
        near = get_close_matches(name, registry, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`sirius data list` shows the names"
        raise ConfigError(f"no official data set is called {name!r}; {hint}")
    return registry[name]


def terms(name: str, registry: Mapping[str, Official] = OFFICIAL) -> list[str]:
    """What to show before anything is fetched: title, page, terms, files."""
    known = find(name, registry)
    files = ", ".join(file.name for file in known.files)
    return [f"{known.title} ({known.page})", f"terms: {known.terms}", f"files: {files}"]


def listing(registry: Mapping[str, Official] = OFFICIAL) -> list[str]:
    """One line per data set, and the terms once per group of equal ones."""
    lines: list[str] = []
    last = None
    for name, known in registry.items():
        if known.terms != last:
            lines.append(f"{known.terms} {known.page}")
            last = known.terms
        lines.append(f"  {name:<42} {known.title}")
    return lines


def download(
    name: str,
    folder: Path,
    *,
    registry: Mapping[str, Official] = OFFICIAL,
    say: Say | None = None,
    advance: Advance | None = None,
    attempts: int = ATTEMPTS,
    wait: float = 1.0,
) -> Path:
    """Fetch the files of a data set into `folder`; what is there and unchanged is not fetched again.

    A transfer that breaks off is taken up where it stopped, at once and in a later call, as long as the server says
    that the file is still the same.

    Args:
        attempts: transfers of one file before giving up; each one that brings something on starts the count anew.
        wait: seconds before the second attempt; doubled for each further one.

    Returns:
        `folder`, which `sirius prepare --input` takes.

    Raises:
        ConfigError: no data set is called so.
        DataError: a file cannot be fetched, has another checksum than stated or recorded, or is an archive with members
            that would be written outside the folder.
    """
    known = find(name, registry)
    say = say or (lambda line: None)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(folder)
    for file in known.files:
        path = folder / file.name
        entry = record.get(file.name)
        if path.is_file() and entry is not None:
            if _digest(path, "sha256") != entry["sha256"]:
                raise DataError(f"{path}: has changed since it was fetched; remove it and start again")
            say(f"{file.name}: already there, unchanged")
        else:
            if not path.is_file():
                _fetch(file.url, path, advance, attempts, wait, say)
            record[file.name] = entry = _checked(file, path, attempts, wait)
            say(f"{file.name}: {entry['bytes']:,} bytes, sha256 {entry['sha256'][:16]}…, {entry['checked']}")
            atomic.write_json(folder / RECORD, record)
        if file.unpack and not ("members" in entry and all((folder / name).is_file() for name in entry["members"])):
            entry["members"] = unpack(path, folder)
            say(f"{file.name}: unpacked {len(entry['members'])} files")
            atomic.write_json(folder / RECORD, record)
    return folder


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry["sha256"], str) for entry in record.values()):
            raise TypeError("sha256 is not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a record of downloads ({error}); remove it and start again") from error
    return dict(record)


def _checked(file: RemoteFile, path: Path, attempts: int, wait: float) -> dict[str, Any]:
    """The record of a fetched file; one with another checksum than the publisher's is removed."""
    entry = {"url": file.url, "bytes": path.stat().st_size, "sha256": _digest(path, "sha256")}
    if file.md5_url is None:
        return {**entry, "checked": "recorded on this first download: the publisher states no checksum"}
    stated = _stated_md5(file.md5_url, attempts, wait)
    got = _digest(path, "md5")
    if got != stated:
        path.unlink()
        raise DataError(f"{file.url}: its MD5 is {got}, {file.md5_url} states {stated}; it was removed, start again")
    return {**entry, "md5": got, "checked": f"its MD5 is the one that {file.md5_url} states"}


def _stated_md5(url: str, attempts: int, wait: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "md5"
        _fetch(url, path, None, attempts, wait, lambda line: None)
        text = path.read_bytes()[:10_000].decode("utf-8", "replace").lower()
    found = re.findall(r"\b[0-9a-f]{32}\b", text)
    if len(set(found)) != 1:
        raise DataError(f"{url}: states {len(set(found))} MD5 checksums, one is expected; start again later")
    return str(found[0])


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _fetch(url: str, path: Path, advance: Advance | None, attempts: int, wait: float, say: Say) -> None:
    """Fetch `url` to `path` by way of `path.part`, in as many transfers as it takes."""
    part = path.with_name(f"{path.name}.part")
    left, pause = attempts, wait
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _transfer(url, part, path.name, advance)
            break
        except _BrokeOff as error:
            after = part.stat().st_size if part.is_file() else 0
            left, pause = (attempts, wait) if after > before else (left, pause)
            left -= 1
            if left <= 0:
                raise DataError(
                    f"{url}: {error}, and {attempts} attempts brought no more; start again to go on"
                ) from error
            say(f"{path.name}: {error}; going on")
            time.sleep(pause)
            pause *= 2
    part.replace(path)
    _validator_file(part).unlink(missing_ok=True)


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")


def _transfer(url: str, part: Path, name: str, advance: Advance | None) -> None:
    """One transfer: what is missing of `part` if the server still has the same file, else all of it."""
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url}: only http and https addresses are fetched")
    kept = _validator_file(part)
    done = part.stat().st_size if part.is_file() and kept.is_file() else 0
    headers = dict(_AGENT)
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": kept.read_text(encoding="utf-8")}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
            total = _begin(answer, done, part, kept)
            with part.open("ab") as stream:
                while chunk := answer.read(_CHUNK):
                    stream.write(chunk)
                    if advance:
                        advance(name, stream.tell(), total or 0)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or what is here is longer than the file
            if _total(error.headers.get("Content-Range", "")) == done:
                return
            part.unlink()
            raise _BrokeOff("what was fetched before does not fit the file") from error
        if error.code == 429 or error.code >= 500:
            raise _BrokeOff(f"the server answered {error.code}") from error
        raise DataError(
            f"{url}: the server answered {error.code} {error.reason}; see the page of the data set"
        ) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _BrokeOff(f"the transfer broke off ({type(error).__name__})") from error
    except urllib.error.URLError as error:
        raise _BrokeOff(f"cannot be reached ({error.reason})") from error
    if total is not None and (got := part.stat().st_size) != total:
        if got > total:
            part.unlink()
        raise _BrokeOff(f"the transfer broke off at {got:,} of {total:,} bytes")


def _begin(answer: Any, done: int, part: Path, kept: Path) -> int | None:
    """Make `part` what this answer goes on from; the size of the whole file, if the server says it."""
    if answer.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != done:
            part.unlink(missing_ok=True)
            raise _BrokeOff("the server went on from another place")
        return None if span[2] == "*" else int(span[2])
    part.write_bytes(b"")
    tag, changed = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
    validator = tag if tag and not tag.startswith("W/") else changed
    kept.unlink(missing_ok=True)
    if validator:  # without one nobody can tell whether the rest belongs to the same file
        atomic.write_text(kept, validator)
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _total(content_range: str) -> int | None:
    size = content_range.rpartition("/")[2]
    return int(size) if size.isdigit() else None


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack a zip archive into `folder`, all of it or nothing; the names of its files.

    Raises:
        DataError: a member would be written outside the folder, is a link, or the archive is broken or suspiciously
            large inside.
    """
    try:
        with zipfile.ZipFile(archive) as packed, tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as partial:
            members = [info for info in packed.infolist() if not info.is_dir()]
            for info in members:
                _check_member(archive, info, folder)
            size = sum(info.file_size for info in members)
            if size > _LARGEST_RATIO * max(archive.stat().st_size, _CHUNK):
                raise DataError(
                    f"{archive}: would unpack to {size:,} bytes, over {_LARGEST_RATIO} times its size; refused"
                )
            names = [PurePosixPath(info.filename) for info in members]
            for number, info in enumerate(members):
                with packed.open(info) as source, (Path(partial) / str(number)).open("wb") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
            for number, name in enumerate(names):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(partial) / str(number)).replace(folder / name)
    except (
        zipfile.BadZipFile, zlib.error, EOFError,
        RuntimeError,  # a password, or (NotImplementedError) a compression that zipfile does not know
        FileExistsError, NotADirectoryError, IsADirectoryError,  # two members that want one place
    ) as error:  # fmt: skip
        raise DataError(f"{archive}: not a sound zip archive ({error}); remove it and start again") from error
    return [str(name) for name in names]


def _check_member(archive: Path, info: zipfile.ZipInfo, folder: Path) -> None:
    name = PurePosixPath(info.filename)
    outside = name.is_absolute() or ".." in name.parts or not name.parts or re.search(r"[\\:\0]", info.filename)
    if outside or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{archive}: member {info.filename!r} would be written outside {folder}; nothing was unpacked")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{archive}: member {info.filename!r} is a link; nothing was unpacked")
