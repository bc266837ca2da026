"""Held-out log-probs: what is written is read, and a resume drops what a killed run had gone ahead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sirius_rec.errors import RunError
from sirius_rec.training.held_out import HeldOutLog, read_held_out

ROWS = [np.array([-1.5, -2.25]), np.array([-0.125, -3.0, -4.0])]


def test_round_trip_in_order_of_steps(tmp_path: Path) -> None:
    log = HeldOutLog(tmp_path / "held_out")
    for step in (100, 20, 3):
        log.write(step, step / 100, [row - step for row in ROWS])
    (tmp_path / "held_out" / "notes.txt").write_text("not ours")
    found = read_held_out(tmp_path / "held_out")
    assert [(s.step, s.epoch) for s in found] == [(3, 0.03), (20, 0.2), (100, 1.0)]
    for snapshot in found:
        assert [row.tolist() for row in snapshot.logp_R] == [(row - snapshot.step).tolist() for row in ROWS]


def test_rewind(tmp_path: Path) -> None:
    log = HeldOutLog(tmp_path)
    log.rewind(5)  # nothing there yet
    for step in (0, 5, 6):
        log.write(step, float(step), ROWS)
    log.rewind(5)
    assert [s.step for s in read_held_out(tmp_path)] == [0, 5]
    log.rewind(-1)
    assert read_held_out(tmp_path) == [] == read_held_out(tmp_path / "absent")


def test_damage_is_one_line(tmp_path: Path) -> None:
    log = HeldOutLog(tmp_path)
    log.write(0, 0.0, ROWS)
    log.write(1, 1.0, ROWS[:1])
    with pytest.raises(RunError, match=r"step-1\.npz: 1 rows, but step 0 has 2"):
        read_held_out(tmp_path)
    whole = (tmp_path / "step-0.npz").read_bytes()
    (tmp_path / "step-1.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"step-1\.npz: not a file of held-out log-probs"):
        read_held_out(tmp_path)
