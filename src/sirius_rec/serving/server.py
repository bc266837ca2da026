"""The process around the application: one port, SIGTERM that drains, SIGHUP that swaps models, several workers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvicorn

from sirius_rec.errors import ConfigError, RunError, SiriusError
from sirius_rec.serving.app import create_app
from sirius_rec.serving.engine import Engine
from sirius_rec.serving.guard import App, json_log
from sirius_rec.serving.metrics import FOLDER, Metrics
from sirius_rec.serving.models import Loaded
from sirius_rec.serving.options import Service

_SWITCH = 0.0005  # seconds
_STARTING = 600  # seconds that a restarted worker may take to load its models


def application(load: Callable[[], Loaded], service: Service, log: Callable[[dict[str, Any]], None] = json_log) -> App:
    """Everything of one process: models loaded, the engine's thread started with the application, signals answered."""
    engine = Engine(load, service.batching, Metrics())

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        # The engine's thread would keep the interpreter for 5 ms at a time, and the front stand still meanwhile.
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        engine.start()
        if threading.current_thread() is threading.main_thread():
            _answer_signals(engine, service, log)
        log({"event": "ready", "models": list(engine.loaded.models)})
        yield
        await asyncio.to_thread(engine.stop)
        sys.setswitchinterval(before)
        log({"event": "stopped"})

    return create_app(engine, service, lifespan, log)


def _answer_signals(engine: Engine, service: Service, log: Callable[[dict[str, Any]], None]) -> None:
    """SIGTERM and Ctrl-C: for `notice` seconds say 503 to what is new, then let uvicorn close the port and wait for
    what is open; a second one ends at once. SIGHUP: swap the models.

    A worker that is only replaced goes on answering in that time, but takes no connection any more: others do.
    """
    loop = asyncio.get_running_loop()

    def drain(before: Callable[[int, Any], Any], number: int, frame: Any) -> None:
        if engine.leaving:
            before(number, frame)
            return
        engine.leaving = True
        engine.draining = service.workers == 1 or _all_end()
        event = {"event": "draining" if engine.draining else "replaced", "signal": signal.Signals(number).name}
        loop.call_soon_threadsafe(log, event)  # not here, where another line may be half written
        if not engine.draining:
            loop.call_soon_threadsafe(_accept_no_more, before)
        loop.call_soon_threadsafe(loop.call_later, service.notice, before, number, None)

    def swap(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(lambda: loop.run_in_executor(None, _reload, engine, log))

    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)  # uvicorn's
        if callable(before):
            signal.signal(number, partial(drain, before))
    if hasattr(signal, "SIGHUP") and service.workers == 1:
        signal.signal(signal.SIGHUP, swap)


def _accept_no_more(handler: Any) -> None:
    """Close the listening sockets of the uvicorn server whose signal handler this is; its connections stay."""
    for listening in getattr(getattr(handler, "__self__", None), "servers", ()):
        listening.close()


def _all_end() -> bool:
    """Whether the parent of this worker ends, or only replaces it."""
    return _ending(os.environ.get(FOLDER, "")).exists()


def _ending(folder: str) -> Path:
    return Path(folder) / "ending"


def _reload(engine: Engine, log: Callable[[dict[str, Any]], None]) -> None:
    try:
        log({"event": "swapped", "models": list(engine.reload().models)})
    except SiriusError as error:
        log({"event": "not swapped", "why": " ".join(str(error).split())})
    except Exception as error:  # nobody reads what this thread raises
        log({"event": "not swapped", "why": f"{type(error).__name__}: {' '.join(str(error).split())}"})


def serve(app: App | str, service: Service, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then return. app: an application, or for several workers the name of what makes
    one. ConfigError where the port cannot be had; RunError where workers did not start."""
    config = uvicorn.Config(
        app, host=service.host, port=service.port, factory=isinstance(app, str), workers=service.workers,
        access_log=False, log_level="warning", server_header=False, lifespan="on", ws="none",
        http="sirius_rec.serving.bounded:Bounded" if find_spec("httptools") else "h11", proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(service.drain)), timeout_worker_healthcheck=_STARTING,
    )  # fmt: skip
    listening = _bound(service)
    host, port = listening.getsockname()[:2]
    say(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}")
    # uvicorn hands a signal on to whoever was there before, once everything is closed: it was obeyed already.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, f: None)
    if service.workers == 1:
        uvicorn.Server(config).run(sockets=[listening])
        return
    folder = tempfile.mkdtemp(prefix="sirius-metrics-")
    os.environ[FOLDER] = folder
    try:
        _workers(config, listening)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _workers(config: uvicorn.Config, listening: socket.socket) -> None:
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    class Parent(Multiprocess):
        """Tells its workers whether all of them end."""

        def terminate_all(self) -> None:
            _ending(os.environ[FOLDER]).touch()
            super().terminate_all()

    parent = Parent(config, sockets=[listening])
    parent.run()
    if any(process.exitcode == STARTUP_FAILURE for process in parent.processes):
        raise RunError("a worker could not load its models; its log says why")


def _bound(service: Service) -> socket.socket:
    family = socket.AF_INET6 if ":" in service.host else socket.AF_INET
    # Named as TCP, for asyncio turns off Nagle's algorithm only then, which costs 40 ms of each kept-alive answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((service.host, service.port))
    except OSError as error:
        listening.close()
        raise ConfigError(f"--port {service.port}: {service.host} cannot be listened on ({error.strerror})") from None
    listening.listen(2048)
    listening.set_inheritable(True)
    return listening
