"""What Prometheus reads. With several workers their values are summed through files that they share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's own name; set before it is imported, its values lie there
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The service's own registry, so that several services in one process do not share counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "sirius_requests_total", "Requests by outcome.", ["endpoint", "outcome"], registry=registry
        )
        self.seconds = Histogram(
            "sirius_request_seconds", "From the first byte to the answer.", ["endpoint"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch = Histogram("sirius_batch_requests", "Requests of a batch.", buckets=_SIZES, registry=registry)
        self.batch_seconds = Histogram(
            "sirius_batch_seconds", "The model's time for a batch.", buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("sirius_queue_length", "Requests that wait.", registry=registry, multiprocess_mode="livesum")
        self.tokens = Counter("sirius_tokens_total", "Tokens of answered requests.", ["kind"], registry=registry)
        self.prompts = Counter(
            "sirius_prefix_cache_prompts_total", "Prompts by what of them was cached: whole, part or none.",
            ["model", "found"], registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "sirius_prefix_cache_tokens_total",
            "Prompt tokens, reused or computed.",
            ["model", "how"],
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "sirius_prefix_cache_bytes", "What cached prompts take.", ["model"], registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.reloads = Counter("sirius_reloads_total", "Models swapped, by outcome.", ["outcome"], registry=registry)
        self._cached: dict[tuple[str, str], int] = {}

    def cache(self, model: str, counts: Mapping[str, int]) -> None:
        """Counts of a prefix cache since it was made, as increments; one that was made anew begins at 0 again."""
        for name, value in counts.items():
            if name == "bytes":
                self.cache_bytes.labels(model).set(value)
                continue
            before = self._cached.get((model, name), 0)
            grown = value - before if value >= before else value
            counter = self.prompt_tokens if name in ("reused", "computed") else self.prompts
            counter.labels(model, name).inc(grown)
            self._cached[model, name] = value

    def text(self) -> bytes:
        """The exposition format, of all workers."""
        if not (folder := os.environ.get(FOLDER)):
            return generate_latest(self.registry)
        registry: Any = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        bury(Path(folder))
        return generate_latest(registry)


def bury(folder: Path) -> None:
    """Take the gauges of processes that are no more out of the sums; counters stay."""
    for pid in _pids(folder.glob("gauge_live*.db")):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue


def _pids(files: Iterable[Path]) -> set[int]:
    return {int(last) for path in files if (last := path.stem.rpartition("_")[2]).isdigit()}
