"""The cache: a folder is made once, by one of several processes, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sirius_rec import cache
from sirius_rec.errors import ConfigError

_MAKER = """
import sys, time
from pathlib import Path
from sirius_rec import cache
from sirius_rec.processes import log

def make(folder):
    Path(sys.argv[1], "made").open("a").write("x")
    time.sleep(1.5)
    (folder / "content").write_text("whole")

Path(sys.argv[1], f"here-{sys.argv[2]}").touch()
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.01)
print((cache.made_from(Path(sys.argv[1], "model.gguf"), "1", make, log) / "content").read_text())
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    return file


def _write(folder: Path) -> None:
    (folder / "content").write_text("whole")


def test_made_once_for_every_content_and_form(file: Path) -> None:
    made = cache.made_from(file, "1", _write)
    assert made.parent == cache.root() and cache.holds(made) and not cache.holds(file.parent)
    assert made.name == f"model-{hashlib.sha256(b'weights').hexdigest()[:12]}-1"
    assert cache.made_from(file, "1", lambda folder: pytest.fail("made again")) == made
    file.write_bytes(b"others!")  # as many bytes
    others = cache.made_from(file, "1", _write)
    assert len({made, others, cache.made_from(file, "2", _write)}) == 3
    file.rename(file.with_name("renamed.gguf"))
    assert cache.made_from(file.with_name("renamed.gguf"), "1", _write) != others  # the name is for people


def test_an_error_leaves_nothing_and_a_killed_process_leaves_no_trouble(file: Path) -> None:
    def fail(folder: Path) -> None:
        _write(folder)
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        cache.made_from(file, "1", fail)
    assert [entry.name for entry in cache.root().iterdir() if not entry.name.endswith(".lock")] == []
    name = f"model-{cache.fingerprint(file)[:12]}-1"
    left = cache.root() / f".{name}.77-1.partial"
    left.mkdir()
    _write(cache.made_from(file, "1", _write))
    assert not left.exists()


def test_a_file_of_the_same_size_and_time_is_another_file(file: Path) -> None:
    """As `cp -p` and `rsync -t` leave it: a data set must not be taken for unchanged."""
    before, stat = cache.fingerprint(file), file.stat()
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.fingerprint(file) != before


def test_of_two_processes_one_makes_it_and_the_other_waits(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MAKER, str(tmp_path)]
    both = [
        subprocess.Popen([*command, str(n)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(2)
    ]
    while not all((tmp_path / f"here-{n}").exists() for n in range(2)):
        time.sleep(0.01)
        assert all(process.poll() is None for process in both)
    (tmp_path / "go").touch()
    said = [process.communicate() for process in both]
    assert [out for out, _ in said] == ["whole\n"] * 2
    assert (tmp_path / "made").read_text() == "x"
    assert sum("reading model.gguf" in err for _, err in said) == 1
    assert sum("waiting for another process" in err for _, err in said) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_cache_that_cannot_be_written_is_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ConfigError, match=r"No space left.*another folder in SIRIUS_CACHE$") as caught:
        cache.made_from(file, "1", full)
    assert "\n" not in str(caught.value) and str(tmp_path / "cache") in str(caught.value)
    monkeypatch.setenv(cache.VARIABLE, "/proc/no/such/cache")
    with pytest.raises((ConfigError, FileNotFoundError)):
        cache.made_from(file, "1", _write)


def test_the_default_is_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "sirius-rec"
