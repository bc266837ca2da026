"""Whatever breaks a write off, the old file is whole and nothing is left over."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec import atomic

SOURCE = Path(atomic.__file__).parent


class Broken:
    """An array that cannot be made."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("breaks off")


def _folder(path: Path) -> None:
    with atomic.replacing(path) as partial:
        partial.mkdir()
        (partial / "first").write_text("written")
        raise RuntimeError("breaks off")


def _interrupted(path: Path) -> None:
    with atomic.replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


HALF = "half " * 100_000 + "\ud800"  # what is before the lone surrogate could be written

BREAKING: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: atomic.write_text(path, HALF),
    "npz": lambda path: atomic.write_npz(path, {"good": np.zeros(1000), "bad": Broken()}),
    "folder": _folder,
    "interrupt": _interrupted,
}


@pytest.mark.parametrize("name", BREAKING)
@pytest.mark.parametrize("existed", [True, False])
def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str, existed: bool) -> None:
    path = tmp_path / "target"
    if existed:
        path.write_text("old")
    with pytest.raises((RuntimeError, UnicodeEncodeError, KeyboardInterrupt)):
        BREAKING[name](path)
    assert [p.name for p in tmp_path.iterdir()] == (["target"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on the way"
    atomic.write_text(folder / "text", "Straße\n")
    atomic.write_bytes(folder / "bytes", b"\x00\x01")
    atomic.write_json(folder / "json", {"b": 1, "a": [None]})
    atomic.write_npz(folder / "npz", {"x": np.arange(3)})
    assert (folder / "text").read_bytes() == "Straße\n".encode()
    assert (folder / "bytes").read_bytes() == b"\x00\x01"
    assert (folder / "json").read_text() == '{\n "a": [\n  null\n ],\n "b": 1\n}\n'
    assert np.load(folder / "npz")["x"].tolist() == [0, 1, 2]
    mask = os.umask(0)
    os.umask(mask)
    assert all(p.stat().st_mode & 0o777 == 0o666 & ~mask for p in folder.iterdir())
    assert sorted(p.name for p in folder.iterdir()) == ["bytes", "json", "npz", "text"]


def _limited(code: str, *arguments: Path, limit: int = 4096) -> subprocess.CompletedProcess[str]:
    """Run `code` where no file may grow beyond `limit` bytes: what a full disk looks like to a program."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )


WRITERS = {
    "--json of a command": "from sirius_rec.commands import common; common.write_json(path, list(range(10000)))",
    "figure": "from sirius_rec.report import plots; plots.write(path.parent, path.stem, 'svg', b'x' * 10000)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "old.png"
    path.write_text("old")
    code = f"""
import sys
from pathlib import Path
from sirius_rec import cli, commands
path = Path(sys.argv[1])
def app(**_):
    {WRITERS[writer]}
cli.app = app
cli.main()
"""
    ended = _limited(code, path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"sirius: {path}: File too large: ") and ended.stderr.count("\n") == 1
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["old.png"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.write_text("old")
    code = """
import os, sys
from pathlib import Path
from sirius_rec import atomic
with atomic.replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.parquet")) and [p.suffix for p in tmp_path.glob(".*")] == [".partial"]


def test_errors_name_the_target(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError) as taken:
        atomic.write_text(tmp_path / "folder", "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError) as below:
        atomic.write_text(tmp_path / "file" / "below", "x")
    assert taken.value.filename == str(tmp_path / "folder") and below.value.filename is not None
    assert ".partial" not in f"{taken.value} {below.value}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    atomic.write_text(link, "new")
    assert link.is_symlink() and (tmp_path / "real" / "file").read_text() == "new"
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["file"]


def test_streams_are_written_directly(tmp_path: Path) -> None:
    """--json /dev/stdout, a pipe, and a shell that has sent its output to a file."""
    code = "from pathlib import Path; from sirius_rec import atomic; atomic.write_json(Path('/dev/stdout'), [1])"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) == [1]
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
        assert os.fstat(out.fileno()).st_size == (tmp_path / "out").stat().st_size > 0
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    atomic.write_text(pipe, "through")
    reader.join(10)
    assert read == ["through"] and pipe.is_fifo()


def test_readers_see_a_whole_file_while_threads_write(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    contents = [[number] * 20_000 for number in range(4)]
    atomic.write_json(path, contents[0])

    def write(content: list[int]) -> None:
        for _ in range(10):
            atomic.write_json(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert json.loads(path.read_text()) in contents
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_nobody_writes_otherwise() -> None:
    """Every other write is to a path that `replacing` gave, appends, or is locked and takes its name at the end."""
    writing = re.compile(
        r"\.write_(?:text|bytes)\(|\.open\(\"[wx]|os\.(?:replace|rename)\(|\.replace\([a-z_.]+ */|savez\("
    )
    found = {
        (path.relative_to(SOURCE).as_posix(), line.strip())
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if path.name != "atomic.py" and writing.search(line) and "atomic." not in line
    }
    assert {name for name, _ in found} == {
        "cache.py",  # the lock
        "data/download.py",  # the .part of a transfer, which goes on; members of an archive
        "data/mapped.py",  # inside a folder of replacing
        "data/store.py",  # inside a folder of replacing; a finished folder gets its name
        "data/sharded/counting.py",  # inside folders of replacing
        "data/sharded/parts.py",
        "data/sharded/partition.py",
        "data/sharded/passes.py",  # finished parts get their place
        "data/sharded/shard.py",
        "data/sharded/slates.py",
        "data/sharded/work.py",  # the lock
        "recipes/run_folder.py",  # the lock
    }, sorted(found)
