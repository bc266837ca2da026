"""Checkpoints are whole or not there; the metrics log agrees with the checkpoint after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from sirius_rec.errors import RunError
from sirius_rec.training.checkpoints import (
    MARKER,
    check_complete,
    list_checkpoints,
    mark_complete,
    prune,
    resume_point,
    step_of,
)
from sirius_rec.training.metrics_log import MetricsLog, read_metrics


def checkpoint(folder: Path, step: int, *, marked: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    (path / "model.bin").write_bytes(b"x" * 100)
    (path / "deep" / "state.json").write_text("{}")
    if marked:
        mark_complete(path)
    return path


def test_newest_marked_checkpoint_by_number(tmp_path: Path) -> None:
    assert resume_point(tmp_path) is None
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [9, 10, 100]
    assert resume_point(tmp_path) == tmp_path / "checkpoint-100"


def test_what_a_kill_left_behind_is_removed(tmp_path: Path) -> None:
    whole, torn = checkpoint(tmp_path, 5), checkpoint(tmp_path, 6, marked=False)
    assert resume_point(tmp_path) == whole
    assert not torn.exists()
    assert (whole / MARKER).exists()


def test_truncated_or_lost_files(tmp_path: Path) -> None:
    damaged = checkpoint(tmp_path, 5)
    check_complete(damaged)
    (damaged / "model.bin").write_bytes(b"x" * 60)
    with pytest.raises(RunError, match=r"checkpoint-5: checkpoint is damaged, model\.bin has 60 bytes instead of 100"):
        resume_point(tmp_path)
    (damaged / "model.bin").unlink()
    with pytest.raises(RunError, match=r"model\.bin is missing: delete this folder"):
        resume_point(tmp_path)
    assert damaged.exists()  # nothing is repaired silently


def test_a_checkpoint_can_be_marked_again(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    (path / "more").write_text("y")
    mark_complete(path)
    check_complete(path)
    assert sorted(p.name for p in path.iterdir()) == ["complete.json", "deep", "model.bin", "more"]


def test_prune_keeps_the_newest_and_the_named(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    prune(tmp_path, keep={2})
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [2, 4]
    prune(tmp_path, keep=set())
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [4]


def test_metrics_rewind(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.rewind(3)  # nothing there yet
    for step in (0, 2, 4, 6):
        log.write({"kind": "train", "step": step, "loss": 1 / (step + 1)})
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 5: not a metrics line"):
        read_metrics(log.path)
    log.rewind(4)
    lines = read_metrics(log.path)
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[2]["loss"] == 1 / 5  # numbers survive the way through text
    log.write({"kind": "train", "step": 5})
    assert [line["step"] for line in read_metrics(log.path)] == [0, 2, 4, 5]
    log.rewind(-1)
    assert read_metrics(log.path) == []


def test_a_torn_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    for tolerate in (False, True):
        with pytest.raises(RunError, match="line 2: not a metrics line"):
            read_metrics(path, tolerate_tail=tolerate)
