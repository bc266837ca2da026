"""SIGTERM, as batch systems send it: a training saves at its next step and ends; everything else ends at once (chat
requests that are under way are awaited).

All files are written whole or not at all, so that what is not training can be interrupted anywhere.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sirius_rec.errors import Stopped


class _State:
    requested = False
    trainings = 0
    ends = False


def _answer(number: int, frame: FrameType | None) -> None:
    _State.requested = True
    if _State.trainings:
        return
    if _State.ends:
        os._exit(0)
    raise Stopped("stopped by SIGTERM")


def listen(*, ends: bool = False) -> None:
    """Answer SIGTERM in this process from now on (main thread only; elsewhere nothing happens).

    ends: outside of trainings end the process without a word, for workers, whose parent speaks for them.
    """
    _State.ends = ends
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _answer)


def requested() -> bool:
    """Whether SIGTERM has come."""
    return _State.requested


@contextmanager
def after_a_checkpoint() -> Iterator[None]:
    """Inside, SIGTERM only sets `requested`: who trains looks at it after each step, saves, and raises `Stopped`."""
    _State.trainings += 1
    try:
        yield
    finally:
        _State.trainings -= 1
    if _State.requested and not _State.trainings:
        raise Stopped("stopped by SIGTERM")
