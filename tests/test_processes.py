"""Processes under a launcher: what one of them does when it ends."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any

import pytest

from sirius_rec import processes


@pytest.mark.parametrize("launched", [True, False])
def test_a_single_launched_process_ends_the_group_that_its_trainer_makes(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --num_processes 1` on a GPU ended with NCCL's warning that the group was never destroyed."""
    registered: list[Callable[[], Any]] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "1")
    processes.join(cpu=True)
    assert registered == ([processes._leave] if launched else [])
