"""The processes of one run under torchrun or `accelerate launch`: who prepares and writes, and who waits.

Every process goes through the same jobs in the same order. Training and scoring are shared; whatever is not is done by
the main process while the others wait. Without a launcher there is one process, and all of this does nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

# Others wait while the main process trains a network or scores a table; the usual 10 minutes would end the run.
_PATIENCE = timedelta(hours=12)
_YES = ("1", "true", "t", "yes", "y", "on")  # as accelerate reads its variables


def count() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def split_weights() -> bool:
    """Whether `accelerate launch` was told to split weights over the processes, by FSDP or DeepSpeed.

    It says so in the environment alone: `fsdp` and `deepspeed` of TrainingArguments stay empty.
    """
    return any(os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in _YES for kind in ("FSDP", "DEEPSPEED"))


def log(text: str) -> None:
    """Progress: one flushed line on standard error; the main process speaks."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def join(*, cpu: bool) -> None:
    """Meet the other processes. cpu: compute on CPUs (gloo) even where there are devices."""
    if "WORLD_SIZE" in os.environ:  # alone under a launcher, too: the trainer makes a group, and NCCL wants its end
        atexit.register(_leave)
    if count() == 1:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=_PATIENCE)


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.barrier()


@contextmanager
def one_for_all() -> Iterator[None]:
    """What the main process does inside, while the others wait at the end; where one fails, the others end, too.

    Raises in that one what it raised; the others leave without a word.
    """
    failed = False
    try:
        yield
    except BaseException:
        failed = True
        raise
    finally:
        if count() > 1 and _told(failed) and not failed:
            raise SystemExit(2)


def _told(failed: bool) -> bool:
    """Whether any process failed. What failed here is not hidden by others that have gone already."""
    import torch

    if not torch.distributed.is_initialized():
        return failed
    try:
        return any_of_them(failed, "cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    except RuntimeError:
        if failed:
            return True
        raise


def any_of_them(flag: bool, device: object) -> bool:
    """Whether the flag is set in any process; all of them must ask."""
    if count() == 1:
        return flag
    import torch

    told = torch.tensor([float(flag)], device=torch.device(str(device)))
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told.item() > 0)
