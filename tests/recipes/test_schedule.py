"""Jobs: order, workers, errors, and workers that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sirius_rec.cluster import Cluster
from sirius_rec.config import Config
from sirius_rec.errors import DataError, RunError, TrainingError
from sirius_rec.extras import missing
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.schedule import Job, run_jobs
from sirius_rec.recipes.story import STAGES, stage_jobs


def quiet(line: str) -> None:
    pass


def test_a_fusion_waits_for_its_parts_each_by_the_seed_that_it_has(mini: Callable[..., Config], tmp_path: Path) -> None:
    """What comes out the same with every seed runs once, as seed 0, which need not be one of the run's."""
    inner = "{method: fusion, name: inner, options: {of: [ease, item_knn]}}"
    outer = "{method: fusion, name: outer, options: {of: [inner, sft]}}"
    config = mini("seeds=[5,6]", f"methods=[ease, {inner}, {outer}]")
    jobs = {job.name: job for job in stage_jobs(Run(open_run(tmp_path / "run", config), config), STAGES)}
    assert jobs["inner s0"].after & set(jobs) == {"ease s0", "item_knn s0"}
    assert jobs["outer s6"].after & set(jobs) == {"inner s0", "sft s6", "evaluate sft s6"}


def test_slates_of_one_retriever_wait_for_each_other(mini: Callable[..., Config], tmp_path: Path) -> None:
    """Side by side both would train it."""
    by = "[{retriever: sasrec, size: 5}, {retriever: ease, size: 5}, {retriever: sasrec, size: 9}]"
    slates = "data.slates=[{size: 6}, {protocol: full, splits: [test]}]"
    config = mini(slates, "prompts.slate=false", "methods=[sasrec, ease]", f"evaluation.retrieved={by}")
    jobs = {job.name: job for job in stage_jobs(Run(open_run(tmp_path / "run", config), config), STAGES)}
    found = {name: job.after for name, job in jobs.items() if name.startswith("retrieve ")}
    small, ease, large = (name for word in ("sasrec-5", "ease-5", "sasrec-9") for name in found if word in name)
    assert found == {small: frozenset(), ease: frozenset(), large: frozenset([small])}
    assert jobs["sasrec s0"].after >= found.keys()


# Workers cannot import a test module; these live in an importable file beside the test's data.
JOBS = '''
import os, time
from pathlib import Path
from sirius_rec.errors import DataError

def note(folder, name):
    """Writes when it started and ended, and where."""
    started = time.monotonic()
    time.sleep(0.2)
    Path(folder, name).write_text(f"{started} {time.monotonic()} {os.getpid()}")

def fail(folder, name):
    raise DataError("row 3: no title")

def bug(folder, name):
    raise ZeroDivisionError("a bug of ours")

def full(folder, name):
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 302.00 MiB. GPU 0 has a total of 79.18 GiB")

def die(folder, name):
    os._exit(9)

def die_once(folder, name):
    once = Path(folder, "died")
    if not once.exists():
        once.touch()
        os.kill(os.getpid(), 9)
    note(folder, name)

def stay(folder, name):
    Path(folder, name).write_text(str(os.getpid()))
    time.sleep(60)
'''


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """make(name, function, *needs) → a job that works in tmp_path."""
    (tmp_path / "schedule_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delitem(sys.modules, "schedule_jobs", raising=False)
    import schedule_jobs

    return lambda name, function, *after: Job(
        name, getattr(schedule_jobs, function), (str(tmp_path), name), frozenset(after)
    )


def times(folder: Path, name: str) -> tuple[float, float, int]:
    started, ended, pid = (folder / name).read_text().split()
    return float(started), float(ended), int(pid)


def test_in_this_process(jobs: Callable[..., Job], tmp_path: Path) -> None:
    said: list[str] = []
    # "before" is no job of this run: it was done in an earlier one
    run_jobs([jobs("a", "note", "before"), jobs("b", "note", "a")], workers=1, threads=None, log=said.append)
    assert times(tmp_path, "b")[0] >= times(tmp_path, "a")[1]
    assert times(tmp_path, "a")[2] == os.getpid()
    assert [line[:10] for line in said] == ["[1/2] a do", "[2/2] b do"]


def test_two_workers_side_by_side_in_order(jobs: Callable[..., Job], tmp_path: Path) -> None:
    listed = [jobs("a", "note"), jobs("b", "note"), jobs("c", "note", "a", "b")]
    run_jobs(listed, workers=2, threads=None, log=quiet)
    a, b, c = (times(tmp_path, name) for name in "abc")
    assert a[2] != os.getpid() != b[2]
    assert c[0] >= max(a[1], b[1])


def test_an_error_in_this_process_stops_the_rest(jobs: Callable[..., Job], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^row 3: no title$"):
        run_jobs([jobs("a", "fail"), jobs("b", "note")], workers=1, threads=None, log=quiet)
    assert not (tmp_path / "b").exists()


def test_an_error_in_a_worker_stops_the_rest_and_keeps_its_type(jobs: Callable[..., Job], tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=r"^row 3: no title$"):
        run_jobs([jobs("a", "fail"), jobs("b", "stay"), jobs("c", "note")], workers=2, threads=None, log=quiet)
    assert time.monotonic() - started < 20  # b would have stayed for a minute
    assert not (tmp_path / "c").exists()
    # b may have been ended before it came to write its number.
    if (tmp_path / "b").exists() and (number := (tmp_path / "b").read_text()):
        assert gone(int(number))


def test_a_bug_in_a_worker_shows_where_it_happened(jobs: Callable[..., Job]) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_jobs([jobs("a", "bug"), jobs("b", "note")], workers=2, threads=None, log=quiet)
    assert "schedule_jobs.py" in str(caught.value.__cause__)


def test_a_job_without_memory_is_named_with_what_to_do(jobs: Callable[..., Job]) -> None:
    """Three trainings side by side filled a GPU of 80 GiB, and the run ended with a traceback of 60 lines."""
    why = r"^a: CUDA out of memory\. Tried to allocate 302\.00 MiB: lower "
    with pytest.raises(TrainingError, match=why + r"the stage's micro_batch_size \(or .* start the same command again"):
        run_jobs([jobs("a", "full")], workers=4, threads=None, log=quiet)  # alone, in this process
    with pytest.raises(TrainingError, match=why + r"compute\.jobs \(2 side by side\), the stage's micro_batch_size"):
        run_jobs([jobs("a", "full"), jobs("b", "stay")], workers=2, threads=None, log=quiet)


def test_a_killed_worker_is_said_in_one_line(jobs: Callable[..., Job]) -> None:
    with pytest.raises(TrainingError, match=r"was killed \(out of memory\?\): start the same command again"):
        run_jobs([jobs("a", "die"), jobs("b", "stay")], workers=2, threads=None, log=quiet)


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether the process ends in time; one that ended but was not reaped counts as gone."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


PARENT = """
import sys
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.schedule import Job, run_jobs
from sirius_rec.recipes.story import STAGES, stage_jobs
import schedule_jobs

if __name__ == "__main__":
    folder = sys.argv[1]
    try:
        run_jobs([Job(n, schedule_jobs.stay, (folder, n)) for n in "ab"], workers=2, threads=None, log=print)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_workers_end_with_their_parent(
    jobs: Callable[..., Job], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    files = [tmp_path / "a", tmp_path / "b"]
    deadline = time.monotonic() + 600
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    assert parent.pid not in pids
    if sent == signal.SIGINT:
        os.killpg(parent.pid, sent)  # as Ctrl-C does: the whole group gets it
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=600)
    assert parent.returncode == status
    assert "Traceback" not in errors
    assert all(gone(pid) for pid in pids)


def test_ctrl_c_while_a_worker_starts_is_answered_afterwards() -> None:
    script = """
import os, signal, time
from sirius_rec.workers import workers_ignore_interrupts

try:
    with workers_ignore_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        print("started")
except KeyboardInterrupt:
    print("answered")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.split() == ["started", "answered"], done.stderr


@pytest.mark.skipif(missing("ray") is not None, reason="needs Ray (extra ray)")
@pytest.mark.slow
def test_on_ray_they_keep_their_order_and_errors_and_one_whose_worker_dies_is_done_again(
    jobs: Callable[..., Job], tmp_path: Path
) -> None:
    said: list[str] = []

    def on_ray(*listed: Job, files: tuple[Path, ...] = ()) -> None:
        run_jobs(listed, workers=1, threads=1, log=said.append, cluster=Cluster(), files=files)

    on_ray(jobs("c", "note", "a", "b"), jobs("a", "die_once"), jobs("b", "note"))
    a, b, c = (times(tmp_path, name) for name in "abc")
    assert (tmp_path / "died").exists() and a[2] != os.getpid() != b[2]
    assert c[0] >= max(a[1], b[1])
    assert said[-1].startswith("[3/3] c done in ")
    with pytest.raises(DataError, match=r"^row 3: no title$"):
        on_ray(jobs("f", "fail"), jobs("s", "stay"), jobs("n", "note", "s"))
    assert not (tmp_path / "n").exists()
    if (tmp_path / "s").exists() and (number := (tmp_path / "s").read_text()):
        assert gone(int(number))
    with pytest.raises(RunError, match="does not see it"):
        on_ray(jobs("x", "note"), files=(tmp_path / "none",))
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(missing("ray") is not None, reason="needs Ray (extra ray)")
@pytest.mark.slow
def test_sigterm_while_ray_waits_is_what_it_is_elsewhere() -> None:
    script = """
import os, signal, threading, time
from sirius_rec import stopping
from sirius_rec.cluster import Cluster, Tasks
from sirius_rec.errors import Stopped

stopping.listen()
try:
    with Tasks(Cluster()) as tasks:
        call = tasks.submit(time.sleep, 600)
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while not tasks.wait([call]):
            pass
except Stopped as stopped:
    print(stopped)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout == "stopped by SIGTERM\n", done.stderr
