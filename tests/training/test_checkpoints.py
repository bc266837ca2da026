"""Checkpoints are whole or not there; the metrics log agrees with the checkpoint after a resume."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sirius_rec import SiriusConfig, SiriusTrainer
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


class Full(TrainerCallback):
    """From step `step` on, no file may grow beyond `size` bytes: what a full disk or a quota does to a writer."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("cut", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_is_one_line_and_costs_no_finished_checkpoint(
    cut: str, tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]
) -> None:
    """The writer of the weights and that of the optimiser word it differently; both runs go on to the same weights."""
    titles = ["Red", "Blur", "Air"]
    records = [{"prompt": f"{n}: ", "chosen": titles[n % 3], "rejected": titles[(n + 1) % 3]} for n in range(12)]

    def trainer(folder: str, *callbacks: TrainerCallback) -> SiriusTrainer:
        args = SiriusConfig(
            str(tmp_path / folder), per_device_train_batch_size=2, num_train_epochs=1, save_steps=2, use_cpu=True,
            disable_tqdm=True, learning_rate=1e-2,
        )  # fmt: skip
        return SiriusTrainer(tiny_llama(tokenizer), args, records, tokenizer, callbacks=list(callbacks))

    whole = trainer("whole")
    whole.train()
    limit = (tmp_path / "whole" / "checkpoint-2" / cut).stat().st_size - 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RunError) as caught:
            trainer("run", Full(3, limit)).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.fullmatch(
        r".*/run/checkpoint-4: cannot be written \(.+\): fix that and start the same command again; finished "
        "checkpoints are kept",
        str(caught.value),
    )
    assert resume_point(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    resumed = trainer("run")
    resumed.train(resume_from_checkpoint=True)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
