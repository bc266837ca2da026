"""Fetching official files, against a server on this machine that does what real ones do wrong."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.data.download import download, find, listing, terms, unpack
from sirius_rec.data.official import OFFICIAL, Official, RemoteFile
from sirius_rec.data.sources import SOURCES
from sirius_rec.errors import ConfigError, DataError

CONTENT = bytes(range(256)) * 4000


class Site:
    """What the server holds and how it behaves.

    files: path → content. break_at: how many bytes the next answers bring before the connection is cut. etag, ranges:
    whether it names versions and answers partial requests. log: (path, Range header, status) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_at: list[int] = []
        self.status: list[int] = []
        self.etag = True
        self.ranges = True
        self.elsewhere = 0  # how many bytes further on than asked a partial answer begins
        self.log: list[tuple[str, str | None, int]] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = site.files.get(self.path)
            wanted = self.headers.get("Range")
            status = site.status.pop(0) if site.status else (404 if content is None else 200)
            body = content or b""
            tag = f'"{hashlib.md5(body).hexdigest()}"'
            start = 0
            if status == 200 and wanted and site.ranges and self.headers.get("If-Range") == tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) + site.elsewhere
                site.elsewhere = 0
                status = 206 if start < len(body) else 416
            site.log.append((self.path, wanted, status))
            self.send_response(status)
            rest = body[start:] if status in (200, 206) else b""
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if status == 416:
                self.send_header("Content-Range", f"bytes */{len(body)}")
            if site.etag:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            cut = site.break_at.pop(0) if site.break_at and rest else len(rest)
            self.wfile.write(rest[:cut])
            if cut < len(rest):
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()


def registry(site: Site, name: str = "data.bin", **options: Any) -> dict[str, Official]:
    file = RemoteFile(f"{site.url}/{name}", **options)
    return {"it": Official("It", "table", "page", "Some terms.", (file,))}


def fetch(site: Site, folder: Path, known: dict[str, Official] | None = None, **options: Any) -> list[str]:
    said: list[str] = []
    download("it", folder, registry=known or registry(site), say=said.append, **{"wait": 0.0, **options})
    return said


def test_a_whole_file_is_fetched_once_and_recorded(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = CONTENT
    calls: list[tuple[str, int, int]] = []
    said = fetch(site, tmp_path / "new" / "folder", advance=lambda *call: calls.append(call))
    folder = tmp_path / "new" / "folder"
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert sorted(path.name for path in folder.iterdir()) == ["data.bin", "download.json"]
    entry = json.loads((folder / "download.json").read_text())["data.bin"]
    assert entry["sha256"] == hashlib.sha256(CONTENT).hexdigest() and entry["bytes"] == len(CONTENT)
    assert "the publisher states no checksum" in entry["checked"] and "states no checksum" in said[0]
    assert calls[-1] == ("data.bin", len(CONTENT), len(CONTENT))
    assert fetch(site, folder) == ["data.bin: already there, unchanged"]
    assert len(site.log) == 1
    (folder / "data.bin").write_bytes(b"other")
    with pytest.raises(DataError, match=r"data.bin: has changed since it was fetched"):
        fetch(site, folder)


def test_an_answer_from_another_place_is_not_appended(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"], site.break_at, site.elsewhere = CONTENT, [1000], 5
    said = fetch(site, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert any("went on from another place" in line for line in said)


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = CONTENT
    site.break_at = [300_000, 1, 400_000]
    fetch(site, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [(wanted, status) for _, wanted, status in site.log] == [
        (None, 200),
        ("bytes=300000-", 206),
        ("bytes=300001-", 206),
        ("bytes=700001-", 206),
    ]


def test_a_later_call_goes_on_too(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = CONTENT
    site.break_at = [300_000, 0, 0, 0]
    with pytest.raises(DataError, match=r"data.bin: the transfer broke off .*3 attempts brought no more; start again"):
        fetch(site, tmp_path, attempts=3)
    assert not (tmp_path / "data.bin").exists()
    site.break_at = []
    fetch(site, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert site.log[-1][1:] == ("bytes=300000-", 206)


@pytest.mark.parametrize("behaviour", ["changed", "no ranges", "no version"])
def test_parts_of_two_files_are_never_joined(site: Site, tmp_path: Path, behaviour: str) -> None:
    site.files["/data.bin"] = CONTENT
    site.etag = behaviour != "no version"
    site.ranges = behaviour != "no ranges"
    site.break_at = [300_000, 0]
    with pytest.raises(DataError, match="attempts brought no more"):
        fetch(site, tmp_path, attempts=1)
    site.break_at = []
    if behaviour == "changed":
        site.files["/data.bin"] = CONTENT[::-1]
    fetch(site, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == site.files["/data.bin"]


def test_a_part_that_is_whole_or_too_long(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = CONTENT
    tag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    for part in (CONTENT, CONTENT + b"more"):
        folder = tmp_path / str(len(part))
        folder.mkdir()
        (folder / "data.bin.part").write_bytes(part)
        (folder / "data.bin.part.validator").write_text(tag)
        fetch(site, folder)
        assert (folder / "data.bin").read_bytes() == CONTENT


def test_busy_servers_are_asked_again_and_absent_files_are_not(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = CONTENT
    site.status = [503, 429]
    fetch(site, tmp_path)
    assert [status for *_, status in site.log] == [503, 429, 200]
    with pytest.raises(DataError, match=r"absent: the server answered 404 Not Found; see the page"):
        fetch(site, tmp_path, registry(site, "absent"))
    assert len(site.log) == 4
    nowhere = {"it": Official("It", "table", "p", "t", (RemoteFile("http://127.0.0.1:9/x"),))}
    with pytest.raises(DataError, match=r"cannot be reached .*and 2 attempts"):
        fetch(site, tmp_path, nowhere, attempts=2)
    local = {"it": Official("It", "table", "p", "t", (RemoteFile("file:///etc/hostname"),))}
    with pytest.raises(DataError, match="only http and https"):
        fetch(site, tmp_path, local)


def test_checksums_of_the_publisher(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = CONTENT
    known = registry(site, md5_url=f"{site.url}/data.md5")
    site.files["/data.md5"] = b"MD5 (data.bin) = " + hashlib.md5(CONTENT).hexdigest().upper().encode() + b"\n"
    said = fetch(site, tmp_path / "good", known)
    assert "its MD5 is the one that" in said[0]
    site.files["/data.md5"] = b"0123456789abcdef0123456789abcdef  data.bin\n"
    with pytest.raises(
        DataError, match=r"data.bin: its MD5 is [0-9a-f]+, .* states 0123.*; it was removed, start again"
    ):
        fetch(site, tmp_path / "bad", known)
    assert list((tmp_path / "bad").iterdir()) == []
    site.files["/data.md5"] = b"<html>not found</html>"
    with pytest.raises(DataError, match=r"data.md5: states 0 MD5 checksums"):
        fetch(site, tmp_path / "none", known)


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_archives_are_unpacked_beside(site: Site, tmp_path: Path) -> None:
    site.files["/data.zip"] = zipped({"ml/u.data": b"1", "ml/deep/er.txt": b"2"})
    known = registry(site, "data.zip", unpack=True)
    fetch(site, tmp_path, known)
    assert (tmp_path / "ml" / "u.data").read_bytes() == b"1"
    assert (tmp_path / "ml" / "deep" / "er.txt").read_bytes() == b"2"
    (tmp_path / "ml" / "u.data").unlink()
    fetch(site, tmp_path, known)
    assert (tmp_path / "ml" / "u.data").is_file() and len(site.log) == 1


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:/evil", "a\\..\\..\\evil", "..", "link/../../evil", "a/.."]
)
def test_members_that_climb_out_are_refused_and_nothing_is_unpacked(site: Site, tmp_path: Path, name: str) -> None:
    site.files["/data.zip"] = zipped({"good.txt": b"1", name: b"2"})
    folder = tmp_path / "in" / "side"
    with pytest.raises(DataError, match=r"data.zip: member '.*' would be written outside .*; nothing was unpacked"):
        fetch(site, folder, registry(site, "data.zip", unpack=True))
    assert sorted(path.name for path in folder.iterdir()) == ["data.zip", "download.json"]
    assert not list(tmp_path.rglob("evil"))


def test_links_bombs_and_broken_archives_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc")
    with pytest.raises(DataError, match="member 'link' is a link"):
        unpack(archive, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to(tmp_path / "elsewhere")
    archive.write_bytes(zipped({"out/x": b"1"}))
    with pytest.raises(DataError, match="would be written outside"):
        unpack(archive, tmp_path / "in")
    archive.write_bytes(zipped({"zeros": bytes(150 << 20)}))
    with pytest.raises(DataError, match="over 100 times its size; refused"):
        unpack(archive, tmp_path)
    good = zipped({"a": b"12345" * 1000})
    for damaged in (good[:-30], b"no zip", good[:60] + b"\xff\xff" + good[62:]):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x.zip: not a sound zip archive"):
            unpack(archive, tmp_path)
    archive.write_bytes(zipped({"a": b"1", "a/b": b"2"}))
    with pytest.raises(DataError, match="not a sound zip archive"):
        unpack(archive, tmp_path)


def test_a_damaged_record_is_named(site: Site, tmp_path: Path) -> None:
    site.files["/data.bin"] = CONTENT
    for text in ("{", "[]", '{"data.bin": 5}'):
        (tmp_path / "download.json").write_text(text)
        with pytest.raises(DataError, match=r"download.json: not a record of downloads"):
            fetch(site, tmp_path)


def test_a_file_is_no_folder(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="f: is a file; name a folder"):
        fetch(site, tmp_path / "f")


def test_the_registry() -> None:
    assert len(OFFICIAL) > 40
    for name, known in OFFICIAL.items():
        assert known.source in SOURCES and known.terms and known.page.startswith("https://")
        assert name == name.lower() and len({file.name for file in known.files}) == len(known.files)
        for file in known.files:
            assert file.url.startswith("https://") and (file.unpack == file.name.endswith(".zip"))
    assert "No redistribution" in terms("movielens-100k")[1]
    assert "files: ml-100k.zip" in terms("movielens-100k")[2]
    assert sum(name in line for name in OFFICIAL for line in listing()) >= len(OFFICIAL)
    with pytest.raises(ConfigError, match=r"no official data set is called 'movielens100k'; did you mean"):
        find("movielens100k")
    with pytest.raises(ConfigError, match="`sirius data list` shows the names"):
        find("zzz")
