"""A service over rankers of a line each, without torch; and the application called in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import numpy as np
import pytest

from sirius_rec.rankers.answers import Unknown
from sirius_rec.rankers.requests import Request

pytest.importorskip("fastapi", reason="the service needs the extra serve")

from sirius_rec.serving.app import create_app
from sirius_rec.serving.engine import Engine
from sirius_rec.serving.metrics import Metrics
from sirius_rec.serving.models import Catalogue, Loaded, Model, Responder, Size
from sirius_rec.serving.options import Batching, Limits, Service

TITLES = ["Air", "Blur", "Can", "Red House Painters", "Low & <b>High</b>", "Öx", "i1"]
IDS = [f"i{n}" for n in range(len(TITLES))]


@dataclass
class Scripted:
    """What a test says of the ranker. batches: sizes of the calls so far."""

    batches: list[int] = field(default_factory=list)
    before: Callable[[list[Request]], None] = lambda requests: None

    def score(self, requests: list[Request]) -> list[Any]:
        """log-prob of item n behind h items of history: −n − h."""
        self.batches.append(len(requests))
        self.before(requests)
        return [np.array([-float(IDS.index(c)) - len(r.history) for c in r.candidates]) for r in requests]

    def check(self, request: Request) -> str | None:
        unknown = next((c for c in (*request.history, *request.candidates) if c not in IDS), None)
        return None if unknown is None else f"item {unknown!r} is not in the catalogue"


def loaded_of(scripted: Scripted, key: str = "lm", tokens: int = 10) -> Loaded:
    """A language model that also recommends, and `counts`, which ranks by what is no log-prob."""
    wish: dict[str, Any] = {}

    def recommend(requests: list[Request]) -> list[Any]:
        scripted.batches.append(len(requests))
        return [{"items": IDS[: wish["top"]], "titles": TITLES[: wish["top"]], "exact": True} for _ in requests]

    popular = Unknown(lambda item: item in IDS, lambda requests: [np.arange(len(r.candidates)) for r in requests])
    rank = Responder(scripted.score, scripted.check, popular, lambda request: Size(str(request.history), tokens, 1))
    from_all = Responder(recommend, scripted.check, popular, ask=lambda top, seen: wish.update(top=top))
    counts = Responder(lambda requests: [np.arange(len(r.candidates)) for r in requests], scripted.check, popular)
    models = [
        Model(key, {"method": key}, True, rank, from_all),
        Model("counts", {}, False, counts, None, "slates only"),
    ]
    return Loaded({m.key: m for m in models}, Catalogue(IDS, TITLES, open=False))


class Running:
    """A started engine and its application. log: its lines."""

    def __init__(self, scripted: Scripted, service: Service) -> None:
        self.scripted, self.service = scripted, service
        self.engine = Engine(lambda: loaded_of(scripted), service.batching, Metrics())
        self.log: list[dict[str, Any]] = []
        self.app: Any = create_app(self.engine, service, log=self.log.append)

    def together(self, *calls: tuple[str, str, dict[str, Any]]) -> list[httpx2.Response]:
        """Requests sent at once: (method, path, options of httpx2)."""

        async def all_of_them() -> list[httpx2.Response]:
            transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
                return await asyncio.gather(*(client.request(m, p, **options) for m, p, options in calls))

        return asyncio.run(all_of_them())

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.together(("GET", path, options))[0]

    def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return self.together(("POST", path, {"json": body, **options}))[0]

    def metric(self, line: str) -> float:
        text = self.get("/metrics", headers=self.headers).text
        found = [row.rsplit(" ", 1)[1] for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0]) if found else 0.0

    headers: dict[str, str] = {}  # noqa: RUF012


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    """running(scripted=…, limits={…}, batching={…}, **service) → a started service, stopped with the test."""
    made: list[Running] = []

    def start(
        scripted: Scripted | None = None,
        limits: dict[str, Any] | None = None,
        batching: dict[str, Any] | None = None,
        **service: Any,
    ) -> Running:
        whole = Service(**service, limits=replace(Limits(), **(limits or {})))
        whole = replace(whole, batching=replace(Batching(wait=0.05), **(batching or {})))
        made.append(Running(scripted or Scripted(), whole))
        made[-1].engine.start()
        return made[-1]

    yield start
    for one in made:
        one.engine.stop()


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def other() -> Callable[[str], Loaded]:
    """other(key) → models of which the first has another name."""
    return lambda key: loaded_of(Scripted(), key)
