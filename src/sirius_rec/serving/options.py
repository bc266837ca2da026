"""What the service allows and how it computes: one place for every default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from sirius_rec.errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. body: bytes. text: characters of one id or title. seconds: from the last byte of
    the body to the answer. body_seconds: for the body to arrive."""

    body: int = MIB
    candidates: int = 1000
    history: int = 1000
    text: int = 2000
    top: int = 1000
    seconds: float = 30.0
    body_seconds: float = 10.0


@dataclass(frozen=True)
class Batching:
    """requests, tokens: of one batch at most (one request may exceed the tokens; prompts that are equal count once).
    wait: seconds that a request waits for others. queue: requests that may wait. prefix_cache: MiB for the prompts
    of each model, 0 for none."""

    requests: int = 64
    tokens: int = 16384
    wait: float = 0.002
    queue: int = 256
    prefix_cache: int = 256


@dataclass(frozen=True)
class Service:
    """host, port, workers: processes on one port, each with the models. drain: seconds that open requests get after
    SIGTERM. notice: seconds before the port closes, in which new requests are told 503. cors: origins that a browser
    may call from. api_keys: a file of keys, one per line. log_content: put histories and candidates into the log."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    drain: float = 30.0
    notice: float = 0.5
    cors: tuple[str, ...] = ()
    api_keys: Path | None = None
    log_content: bool = False
    limits: Limits = Limits()
    batching: Batching = Batching()


def check(service: Service) -> None:
    """ConfigError for a value out of range, named as the command line names it."""
    least = {"prefix_cache": 0, "wait": 0, "notice": 0, "port": 0, "drain": 0}
    for part in (service, service.limits, service.batching):
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            low = least.get(field.name, 1 if isinstance(value, int) else 1e-3)
            if not low <= value < float("inf"):
                raise ConfigError(f"--{field.name.replace('_', '-')} {value:g}: give {low:g} or more")
    if service.port > 65535:
        raise ConfigError(f"--port {service.port}: ports go up to 65535")
    for origin in service.cors:
        if not origin.startswith(("http://", "https://")) or origin.rstrip("/").count("/") != 2:
            raise ConfigError(f"--cors {origin}: give an origin such as https://shop.example")
