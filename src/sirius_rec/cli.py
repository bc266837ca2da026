"""The command line: thin. Every error a user can cause becomes one line and exit code 2."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import typer

from sirius_rec import stopping
from sirius_rec.commands import app
from sirius_rec.errors import SiriusError, Stopped, memory_error, storage_error

__all__ = ["app", "main"]

_INTERRUPTED, _TERMINATED = 130, 143
# click's own error for a wrong command line; typer brings its own copy of click, so it is reached through typer.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def _fail(message: str) -> NoReturn:
    print(f"sirius: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Entry point: what a user can fix becomes one line on stderr and exit code 2; a bug of ours a traceback.

    SIGTERM ends with 143, 128 + 15, as for any process; in a training its step is saved first, and the line says that
    the work can be resumed. 0 is for work that is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or log that is not UTF-8 shows '?' for what it lacks
            stream.reconfigure(errors="replace")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stopping.listen()
    try:
        code = app(prog_name="sirius", standalone_mode=False)
    except Stopped as stopped:
        print(f"sirius: {stopped}; resumable: start the same command again to go on", file=sys.stderr)
        sys.exit(_TERMINATED)
    except SiriusError as error:
        _fail(str(error))
    except _UsageError as error:
        if len(sys.argv) == 1:  # `sirius` alone shows the help, which is no error
            print(error.format_message())  # type: ignore[attr-defined]
            sys.exit(0)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "sirius"
        _fail(f"{error.format_message()} See `{command} --help`.")  # type: ignore[attr-defined]
    except OSError as error:
        reason = storage_error(error)
        if reason is None:
            raise
        where = error.filename or "a file"
        _fail(f"{where}: {reason}: fix that and start the same command again; what was finished is kept")
    except (MemoryError, RuntimeError) as error:
        reason = memory_error(error)
        if reason is None:
            raise
        _fail(f"{reason}: have less done at once, or use a larger machine; what was finished is kept")
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # newer typer answers Ctrl-C itself, with this code and no word
        print("sirius: stopped; start the same command again to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
