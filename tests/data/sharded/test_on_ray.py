"""Shards on a Ray cluster: the same bytes as in one process, whoever leaves or is killed on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.cluster import Cluster
from sirius_rec.data.options import Sharding, SlateOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sharded.engine import engine
from sirius_rec.data.sharded.work import work_folder
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.extras import missing

from .conftest import options

needs_ray = pytest.mark.skipif(missing("ray") is not None, reason="needs Ray (extra ray)")
ASKED = options(slates=(SlateOptions(size=5), SlateOptions(size=4, protocol="popularity")), limits={"train": 900})


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120,000 events of 4,001 users: passes that take some seconds."""
    folder = tmp_path_factory.mktemp("large")
    rows = "".join(f"u{k % 4001},i{k * 7919 % 1201},{k // 3}\n" for k in range(120_000))
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{k},T{k}\n" for k in range(1201)))
    return folder


def test_options_that_do_not_fit(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def asked(*more: str) -> Any:
        arguments = ["prepare", "--source", "table", "--input", str(log), "--out", str(out), *more]
        return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)

    with pytest.raises(ConfigError, match="--address: is that of a Ray cluster: add --engine ray"):
        asked("--shards", "3", "--address", "auto")
    if missing("ray") is None:
        with pytest.raises(ConfigError, match="--engine ray: works on shards: add --shards N"):
            asked("--engine", "ray")
        with pytest.raises(ConfigError, match="--jobs: is for one machine"):
            asked("--shards", "3", "--engine", "ray", "--jobs", "2")
        with pytest.raises(ConfigError, match=r"--address 127.0.0.1:9: .*refused; is the cluster up"):
            asked("--shards", "3", "--engine", "ray", "--address", "127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


@needs_ray
@pytest.mark.slow
def test_one_node_writes_the_bytes_of_one_process_and_tells_the_same_errors(log: Path, tmp_path: Path) -> None:
    small = Sharding(7, block=4000, rows=170, events=250)
    prepare("table", log, tmp_path / "one", **ASKED, sharding=small)
    prepare("table", log, tmp_path / "ray", **ASKED, sharding=small, cluster=Cluster())
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")
    messages = []
    for cluster in (None, Cluster()):
        with pytest.raises(DataError) as caught:
            prepare("table", log, tmp_path / "bad", slates=(SlateOptions(size=90),), sharding=small, cluster=cluster)
        messages.append(str(caught.value))
        assert not (tmp_path / "bad").exists() and not work_folder(tmp_path / "bad").exists()
    assert messages[0] == messages[1] and "\n" not in messages[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "ray"]


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of one node with one core, on this machine; more may be added."""
    from ray.cluster_utils import Cluster as Nodes

    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield made
    finally:
        with suppress(Exception):
            made.shutdown()


def at_work(node: Any) -> int | None:
    """A process of a node in the middle of a call, stopped there; None if there is none."""
    raylet = node.all_processes["raylet"][0].process.pid
    for child in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split():
        with suppress(OSError):
            if b"ray::_call" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGSTOP)
                if b"ray::_call" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
                os.kill(int(child), signal.SIGCONT)
    return None


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("at", ["ordering", "freezing"])
def test_a_node_leaves_in_the_middle_of_a_call(
    nodes: Any, large: Path, tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(large)  # relative paths begin where the driver is, and not where a node was started
    sharding = Sharding(64, block=40_000, events=4000)
    leaving = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    stopped: list[int] = []

    def prepared(out: Path) -> list[str]:
        """What was said while the node left, if it had work in that call: a quick machine may be done before."""
        left, said = threading.Event(), list[str]()

        def leave() -> None:
            while not left.is_set():
                if (worker := at_work(leaving)) is not None:
                    stopped.append(worker)
                    nodes.remove_node(leaving, allow_graceful=False)
                    os.kill(worker, signal.SIGKILL)  # as all processes of a machine that is taken away
                    left.set()

        thread = threading.Thread(target=leave)

        def say(line: str) -> None:
            if line.startswith(at) and thread.ident is None:
                thread.start()
            said.append(f"{line}{' (left)' if left.is_set() else ''}")

        try:
            prepare("table", Path("."), out, **ASKED, sharding=sharding, cluster=Cluster(nodes.address), progress=say)
        finally:
            left.set()
            if thread.ident is not None:
                thread.join()
        return said

    for _ in range(5):
        shutil.rmtree(tmp_path / "ray", ignore_errors=True)
        said = prepared(tmp_path / "ray")
        if stopped:
            break
    assert stopped and "left" in said[-1], said
    prepare("table", Path("."), tmp_path / "one", **ASKED, sharding=sharding)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "one")


def command(log: Path, out: Path, *more: str) -> list[str]:
    settings = ["data.window={max_history: 4, min_history: 2}", "data.slates=[{size: 5}]"]
    return [sys.executable, "-m", "sirius_rec", "prepare", *settings, "--source", "table", "--input", str(log), "--out",
            str(out), "--shards", "64", *more]  # fmt: skip


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "number", "code"),
    [
        (("--engine", "ray"), (), signal.SIGKILL, -9),
        (("--engine", "ray"), (), signal.SIGTERM, 143),
        (("--engine", "ray"), ("--engine", "ray"), signal.SIGINT, 130),
        (("--jobs", "2"), ("--engine", "ray"), signal.SIGKILL, -9),
    ],
)
def test_stopped_on_one_engine_it_goes_on_with_another(
    large: Path, tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...], number: int, code: int
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command(large, out, *first), stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("ordering"):
                while not any((work_folder(out) / "shards").glob("[0-9]*")):
                    time.sleep(0.01)
                running.send_signal(number)
                break
        told = running.stderr.read()
    assert running.returncode == code and "Traceback" not in told
    assert ("start the same command again to go on" in told) == (code > 0)
    kept = {path: path.stat().st_mtime_ns for path in (work_folder(out) / "shards").glob("[0-9]*/item.npy")}
    assert kept and not out.exists()
    again = subprocess.run(command(large, out, *second), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    prepare("table", large, tmp_path / "one", **options(), sharding=Sharding(64))
    assert files_of(out) == files_of(tmp_path / "one")


# Functions that workers find in this module.


def busy(folder: str) -> None:
    """Writes a folder that is there already, as a call that was believed lost has left it meanwhile."""
    target = Path(folder, "made")
    if (target / "file").is_file():
        return
    other = Path(folder, "other")
    other.mkdir()
    (other / "file").touch()
    target.mkdir()
    (target / "file").write_text("first")
    os.replace(other, target)


def killed(folder: str) -> None:
    with Path(folder, "tries").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def bug(folder: str) -> None:
    raise ZeroDivisionError("a bug of ours")


def full(folder: str) -> None:
    raise OSError(28, "No space left on device", folder)


def threads(folder: str) -> tuple[str | None, str]:
    return os.environ.get("POLARS_MAX_THREADS"), os.getcwd()


@needs_ray
@pytest.mark.slow
def test_what_calls_come_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(on: Any, run: Callable[..., Any]) -> Any:
        return next(iter(on.map(run, [(str(tmp_path),)])))[1]

    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[3]}:{os.environ.get('PYTHONPATH', '')}")
    with engine(1, Cluster()) as on:
        assert one(on, threads) == ("1", os.getcwd())
        assert one(on, busy) is None and (tmp_path / "made" / "file").read_text() == "first"
        with pytest.raises(ZeroDivisionError, match="a bug of ours"):
            one(on, bug)
        with pytest.raises(OSError, match="No space left") as caught:
            one(on, full)
        assert caught.value.errno == 28 and caught.value.filename == str(tmp_path)
        with pytest.raises(RunError, match=r"^Ray: .*; start the same command again to go on$"):
            one(on, killed)
        assert (tmp_path / "tries").read_text() == "x" * 6
        on.reach([tmp_path / "tries"], tmp_path / "out" / "deep")
        with pytest.raises(RunError, match=r"none: node .* does not see it: --engine ray reads and writes on a disk"):
            on.reach([tmp_path / "none"], tmp_path / "out")
