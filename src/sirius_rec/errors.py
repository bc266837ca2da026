"""The exception tree.

    SiriusError                  anything a user can cause and fix; the command line prints it as one line
    ├── ConfigError              an option is unknown, of the wrong type, out of range, or contradicts another
    ├── DataError                an input file or table is not what it should be
    ├── PromptError              a prompt cannot be built or does not fit the model's context
    ├── ScoringError             candidates cannot be scored the way that was asked for
    ├── TrainingError            training cannot start or go on (NaN loss, failed self-check)
    └── RunError                 a run folder cannot be used (another config, truncated checkpoint)

Library code raises these with a message that says what, where, and what to do. Only `cli.py` turns them into one
line and exit code 2. Broken invariants of our own are `assert`s, not `SiriusError`s. `Stopped` stands beside the tree,
as KeyboardInterrupt does, so that no handler takes it for an error.
"""

import errno
import os
import re

# Faults of the storage, not of the program: disk full, no permission, read-only, quota, file size limit.
_STORAGE = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG)
_CUT_OFF = ("inline_container.cc", "iostream error")
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_NUMBER = re.compile(r"(?:os error|\[Errno) (\d+)")


class SiriusError(Exception):
    """Base of every error that a user can cause and fix."""


class ConfigError(SiriusError, ValueError):
    """An option is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(SiriusError, ValueError):
    """An input file or table is not what it should be."""


class PromptError(SiriusError, ValueError):
    """A prompt cannot be built, or does not fit the model's context."""


class ScoringError(SiriusError, RuntimeError):
    """Candidates cannot be scored the way that was asked for."""


class TrainingError(SiriusError, RuntimeError):
    """Training cannot start or cannot go on."""


class RunError(SiriusError, RuntimeError):
    """A run folder cannot be used."""


class Stopped(BaseException):
    """SIGTERM ended the work; the same command goes on with it."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in a line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def memory_error(error: BaseException) -> str | None:
    """What an error, or one that it grew out of, says if it is that a device or this machine has no memory left; else
    None."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, MemoryError):
            return (str(at) and first_line(at)) or "out of memory"
        # By name: whoever asks may not have torch.
        if type(at).__name__ == "OutOfMemoryError" or any(words in str(at) for words in _NO_MEMORY):
            return ". ".join(first_line(at).split(". ")[:2]).rstrip(".")
        at = at.__cause__ or at.__context__
    return None


def storage_error(error: BaseException) -> str | None:
    """The system's words if an error, or one that it grew out of, says that the storage cannot be written; else None.

    Libraries dress such errors differently: safetensors and shutil quote the number, torch's zip writer complains
    about its own position or stream.
    """
    at: BaseException | None = error
    while at is not None:
        numbers = [at.errno] if isinstance(at, OSError) else []
        numbers += [int(number) for number in _NUMBER.findall(str(at))]
        for number in numbers:
            if number in _STORAGE:
                return os.strerror(number)
        if isinstance(at, RuntimeError) and any(words in str(at) for words in _CUT_OFF):
            return "the file was cut off in writing, the disk may be full"
        at = at.__cause__ or at.__context__
    return None
