"""Processes under a launcher: what one of them does when it ends."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import nullcontext
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


@pytest.mark.parametrize(
    ("here", "anywhere", "raised"),
    [(None, False, None), (None, True, SystemExit), (ValueError, True, ValueError), (ValueError, None, ValueError)],
)
def test_one_that_fails_keeps_its_error_and_the_others_leave(
    here: type[Exception] | None,
    anywhere: bool | None,
    raised: type[BaseException] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """anywhere: what the processes tell each other; None where another one is gone."""

    def told(flag: bool, device: object) -> bool:
        if anywhere is None:
            raise RuntimeError("Connection closed by peer")
        return anywhere

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    monkeypatch.setattr(processes, "any_of_them", told)
    with pytest.raises(raised) if raised else nullcontext(), processes.one_for_all():
        if here:
            raise here("mine")
