"""A Ray cluster: one that is running, or one that is started on this machine; and calls of functions on it.

This package must be installed on every node, and the files that calls read and write must be where every node sees
them. Whoever calls writes nothing twice: a call whose worker or node is lost is made again elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from sirius_rec import __version__, cache
from sirius_rec.errors import ConfigError, RunError, SiriusError, Stopped, first_line
from sirius_rec.extras import require

_AGAIN = 5  # times that a call is made again whose worker or node was lost
_TO_END = 10.0  # seconds that workers get to end


@dataclass(frozen=True)
class Cluster:
    """address: of a cluster that is running (`HOST:PORT`, or `auto`); None starts one on this machine."""

    address: str | None = None

    @contextmanager
    def joined(self, *, logs: bool = False) -> Iterator[None]:
        """Be its driver. logs: show here what workers print. ConfigError without Ray, or where it is not reached."""
        require("ray")
        import ray

        try:
            try:
                self._knock()
                with _own_sigterm():
                    # "local": without an address Ray would join whatever cluster runs on this machine.
                    ray.init(
                        address=self.address or "local",
                        include_dashboard=False,
                        log_to_driver=logs,
                        logging_level="error",
                    )
            except (OSError, ValueError, RuntimeError) as error:
                words = first_line(error)
                raise ConfigError(f"--address {self.address}: {words}; is the cluster up?") from error
            yield
        finally:
            ray.shutdown()

    def _knock(self) -> None:
        """OSError where nobody listens at the address: Ray would try for more than ten minutes."""
        host, colon, port = (self.address or "").rpartition("://")[2].rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray answers SIGTERM by a silent exit; it is answered as it was before, also while Ray starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stopped:
        signal.signal(signal.SIGTERM, before)
        if stopped.code == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stopped() -> Iterator[None]:
    """Where Ray waits, it makes a SystemError of the `Stopped` that SIGTERM raises."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, Stopped):
            raise error.__cause__ from None
        raise


def room() -> tuple[int, str]:
    """How many workers with a GPU each, or without GPUs a core each, the joined cluster has room for; and of what."""
    import ray

    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    return (gpus, "GPUs") if gpus else (max(1, int(there.get("CPU", 1))), "cores")


def result(get: Callable[[], Any]) -> Any:
    """What `get` fetches from Ray: the error of a call is raised as it is, and Ray's own as a RunError of one line."""
    from ray.exceptions import RayError, RayTaskError

    try:
        with _stopped():
            return get()
    except RayTaskError as error:
        if isinstance(error.cause, SiriusError):
            raise error.cause from None
        if isinstance(error.cause, RuntimeError) and "failed to import on the worker" in str(error.cause):
            raise RunError(
                f"a node of the Ray cluster does not have sirius-rec {__version__}: install the same on every node"
            ) from error
        if isinstance(error.cause, Exception) and not isinstance(error.cause, RayError):
            raise error.cause from error  # whose text is the traceback of the worker
        raise
    except RayError as error:
        raise RunError(f"Ray: {first_line(error).rstrip('.:')}; start the same command again to go on") from error


class Tasks:
    """Calls on a cluster, as `Workers` makes them on one machine, for as long as the context lasts; after an error it
    ends what is under way. room: how many calls the cluster makes side by side.

    start: called before each call with `arguments`. environment: variables that workers begin with. gpus: each call has
    a GPU to itself where the cluster has any. logs: show here what calls print.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        start: Callable[..., None] | None = None,
        arguments: tuple[Any, ...] = (),
        environment: Mapping[str, str] | None = None,
        gpus: bool = False,
        logs: bool = False,
    ) -> None:
        self._cluster, self._gpus, self._logs = cluster, gpus, logs
        self._place = (os.getcwd(), dict(environment or {}))
        self._start = (start, arguments)
        self._refs: dict[Future[Any], Any] = {}
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        self._inside.enter_context(self._cluster.joined(logs=self._logs))
        import ray

        found, what = room()
        self.room = found if self._gpus else max(1, int(ray.cluster_resources().get("CPU", 1)))
        options = {"num_cpus": 1, "num_gpus": int(self._gpus and what == "GPUs"), "max_retries": _AGAIN}
        self._remote = ray.remote(**options)(_call)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with self._inside:
            if error is not None:
                self._end()

    def submit(self, run: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a picklable function called on some node; `wait` makes its future done."""
        future: Future[Any] = Future()
        self._refs[future] = self._remote.remote(*self._place, pickle.dumps((*self._start, run, arguments)))
        return future

    def wait(self, futures: Collection[Future[Any]]) -> set[Future[Any]]:
        """Those that are done, after at most a second."""
        import ray

        of = {self._refs[future]: future for future in futures}
        done = set()
        with _stopped():
            ready = ray.wait(list(of), num_returns=1, timeout=1.0)[0]
        for ref in ready:
            done.add(future := of[ref])
            del self._refs[future]
            try:
                future.set_result(result(partial(ray.get, ref)))
            except Exception as error:
                future.set_exception(error)
        return done

    def reach(self, paths: Iterable[Path]) -> None:
        """RunError unless every node sees these paths, and has the versions of packages that this process has."""
        import ray
        from ray.exceptions import NodeDiedError, TaskUnschedulableError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        def fault(ref: Any) -> str | None:
            with suppress(NodeDiedError, TaskUnschedulableError):  # a node that has just left
                return cast(str | None, ray.get(ref))
            return None

        call = pickle.dumps((None, (), _look, ([str(path) for path in paths], _versions())))
        refs = [
            self._remote.options(
                num_cpus=0, num_gpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(*self._place, call)
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        ]
        for ref in refs:
            if found := result(partial(fault, ref)):
                raise RunError(found)

    def _end(self) -> None:
        """End the calls that are under way."""
        import ray

        refs = list(self._refs.values())
        with suppress(Exception):
            for ref in refs:
                ray.cancel(ref, force=True)
            if refs:
                ray.wait(refs, num_returns=len(refs), timeout=_TO_END)


def _call(folder: str, environment: dict[str, str], pickled: bytes) -> Any:
    """In a worker. What is called is unpickled here, since its modules read the environment when they are imported."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    with suppress(OSError):  # where relative paths begin
        os.chdir(folder)
    start, given, run, arguments = pickle.loads(pickled)
    if start is not None:
        start(*given)
    return run(*arguments)


def _look(paths: list[str], versions: dict[str, str]) -> str | None:
    """What is wrong with the node of this worker."""
    node = socket.gethostname()
    if unseen := [path for path in paths if not os.path.exists(path)]:
        return (
            f"{unseen[0]}: node {node} of the Ray cluster does not see it: --engine ray reads and writes on a disk "
            "that every node has, at the same path; what is fetched from an address is in the cache, for which "
            f"{cache.VARIABLE} can name a folder there"
        )
    if differing := [f"{name} {mine}, not {versions[name]}" for name, mine in _versions().items()
                     if mine != versions[name]]:  # fmt: skip
        return f"node {node} of the Ray cluster has {', '.join(differing)}: install the same versions on every node"
    return None


def _versions() -> dict[str, str]:
    return {"sirius-rec": __version__, "polars": importlib.metadata.version("polars")}
