"""A preparation that was stopped anywhere goes on, does nothing twice, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sirius_rec.data.options import Sharding, SlateOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sharded.work import work_folder
from sirius_rec.errors import ConfigError, DataError, RunError

from .conftest import options

SMALL = Sharding(5, block=4000, rows=170, events=250)
PASSES = ["looking", "reading", "ordering", "filtering", "windowing", "fingerprint of the", "freezing", "fingerprints",
          "writing"]  # fmt: skip


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", PASSES)
def test_stopped_at_any_pass_it_goes_on(log: Path, tmp_path: Path, at: str) -> None:
    out = tmp_path / "out"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith(at) and said.count(line) == 1:
            raise Stop

    asked = options(slates=(SlateOptions(size=5), SlateOptions(size=4, protocol="popularity")), limits={"train": 60})
    with pytest.raises(Stop):
        prepare("table", log, out, **asked, sharding=SMALL, progress=say)
    assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in work_folder(out).rglob("*") if path.is_file()}
    kept = [path for path in before if path.parent.parent.name in ("shards", "parts", "frozen")]
    assert bool(kept) == (PASSES.index(at) >= 3)
    if work_folder(out).exists():
        (work_folder(out) / "shards").mkdir(exist_ok=True)
        (work_folder(out) / "shards" / ".00001.7-7.partial").mkdir()  # as a killed process leaves it
    made = prepare("table", log, out, **asked, sharding=SMALL, progress=say)
    assert made.info == prepare("table", log, tmp_path / "memory", **asked).info
    assert not work_folder(out).exists()
    for whole in ("ordering", "filtering"):  # passes that are done with as a whole
        assert sum(line.startswith(whole) for line in said) == (2 if whole == at else 1)


def test_finished_pieces_are_not_made_again(log: Path, tmp_path: Path) -> None:
    """What a second run finds it takes: a shard with another user's name in it shows up in the outcome."""
    out = tmp_path / "out"

    def say(line: str) -> None:
        if line.startswith("filtering"):
            raise Stop

    with pytest.raises(Stop):
        prepare("table", log, out, **options(), sharding=Sharding(1), progress=say)
    ids = work_folder(out) / "shards" / "00000" / "ids"
    ids.write_bytes(ids.read_bytes().replace(b"u1\0", b"x1\0"))
    changed = prepare("table", log, out, **options(), sharding=Sharding(1))
    assert "x1" in set(changed.examples("train")["user_id"]) | set(changed.examples("test")["user_id"])


def test_the_folder_belongs_to_one_recipe_and_input(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    shutil.copytree(log, folder)
    out = tmp_path / "out"

    def say(line: str) -> None:
        if line.startswith("ordering"):
            raise Stop

    with pytest.raises(Stop):
        prepare("table", folder, out, **options(), sharding=SMALL, progress=say)
    with pytest.raises(RunError, match=r"out.preparing: was begun with other settings or input \(differs in: recipe\)"):
        prepare("table", folder, out, **options(seed=1), sharding=SMALL)
    with pytest.raises(RunError, match=r"differs in: sharding"):
        prepare("table", folder, out, **options(), sharding=Sharding(6))
    with (folder / "interactions.csv").open("a") as file:
        file.write("u1,i1,1300000000,1,buy\n")
    with pytest.raises(RunError, match=r"differs in: files"):
        prepare("table", folder, out, **options(), sharding=SMALL)
    shutil.rmtree(work_folder(out))
    work_folder(out).mkdir()
    (work_folder(out) / "mine.txt").touch()
    with pytest.raises(RunError, match="is in the way of the work folder"):
        prepare("table", folder, out, **options(), sharding=SMALL)


def test_two_processes_do_not_prepare_one_folder(log: Path, tmp_path: Path) -> None:
    def say(line: str) -> None:
        if line.startswith("ordering"):
            with pytest.raises(RunError, match="another process is at work there"):
                prepare("table", log, tmp_path / "out", **options(), sharding=SMALL)

    prepare("table", log, tmp_path / "out", **options(), sharding=SMALL, progress=say)


def test_a_kill_in_the_last_moment_leaves_a_folder_that_the_next_start_removes(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("table", log, out, **options(), sharding=SMALL)
    work_folder(out).mkdir()
    (work_folder(out) / "work.json").write_text("{}")
    prepare("table", log, out, **options(), sharding=SMALL)
    assert not work_folder(out).exists()


def test_what_shards_cannot_do_is_refused(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protocol hard ranks the catalogue by all train rows at once"):
        prepare("table", log, tmp_path / "a", slates=(SlateOptions(protocol="hard"),), sharding=SMALL)
    with pytest.raises(ConfigError, match=r"data.shards: source simulated is read at once"):
        prepare("simulated", None, tmp_path / "a", sharding=SMALL)
    with pytest.raises(DataError, match="no such file"):
        prepare("table", tmp_path / "none", tmp_path / "a", sharding=SMALL)
    with pytest.raises(ConfigError, match="ties='random'"):
        prepare("table", log, tmp_path / "a", options={"ties": "random"}, sharding=SMALL)
    assert list(tmp_path.iterdir()) == []
    for wrong in ({"shards": 0}, {"shards": 3, "jobs": 0}, {"shards": 70_000}):
        with pytest.raises(ConfigError, match=r"is not a whole number of at least 1|more than 65,536"):
            Sharding(**wrong)


def command(log: Path, out: Path, jobs: int) -> list[str]:
    settings = ["data.window={max_history: 4, min_history: 2}", "data.slates=[{size: 5}]"]
    return [sys.executable, "-m", "sirius_rec", "prepare", *settings, "--source", "table", "--input", str(log), "--out",
            str(out), "--shards", "5", "--jobs", str(jobs)]  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(log: Path, tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: what a full disk looks like to a program."""
    out = tmp_path / "out"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    done = subprocess.run(command(log, out, 1), capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "out.preparing: cannot be written (File too large): it holds 0.0 GB" in last and "GB are free" in last
    assert "Traceback" not in done.stderr and not out.exists()
    again = subprocess.run(command(log, out, 1), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    expected = prepare("table", log, tmp_path / "memory", **options())
    assert json.loads((out / "dataset.json").read_text()) == expected.info


@pytest.mark.slow
@pytest.mark.parametrize("at", PASSES[1:-1])
def test_killed_in_any_pass_it_goes_on(tmp_path: Path, at: str) -> None:
    """A real kill of the parent: its workers end too, and the same command finishes what they began."""
    folder, out = tmp_path / "log", tmp_path / "out"
    folder.mkdir()
    rows = "".join(f"u{k % 4001},i{k * 7919 % 1201},{k // 3}\n" for k in range(120_000))
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{k},T{k}\n" for k in range(1201)))
    with subprocess.Popen(command(folder, out, 2), stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith(at):
                time.sleep(0.05)
                children = [
                    int(p) for p in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
                ]
                os.kill(running.pid, signal.SIGKILL)
                break
        else:
            raise AssertionError(f"{at} was never said")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_alive(child) for child in children):
        time.sleep(0.1)
    assert not any(_alive(child) for child in children)
    assert at == "fingerprints" or not out.exists()  # the last pass is short, and may have been over
    again = subprocess.run(command(folder, out, 2), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    expected = prepare("table", folder, tmp_path / "memory", **options())
    assert json.loads((out / "dataset.json").read_text()) == expected.info


def _alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
