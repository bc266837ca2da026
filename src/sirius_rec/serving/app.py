"""The routes. What a request asks is parsed here, answered by the engine, and said in the form of its client."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse

from sirius_rec.errors import ScoringError, SiriusError
from sirius_rec.rankers.answers import finite, ordered
from sirius_rec.serving.bodies import Asked, RecommendBody, Refused, RerankBody, parse_recommend, parse_rerank, reranked
from sirius_rec.serving.description import description_page
from sirius_rec.serving.engine import Answer, Engine, Job, Kind
from sirius_rec.serving.guard import App, Disconnected, Guard, Receive, Scope, Send, json_log
from sirius_rec.serving.keys import admin_key, api_keys
from sirius_rec.serving.metrics import CONTENT_TYPE
from sirius_rec.serving.models import Loaded
from sirius_rec.serving.options import Service

Handler = Callable[[Request], Awaitable[Response]]
PAGE = Path(__file__).parent / "page"
# The page loads its own two files and calls its own service, nothing else; nobody may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


class Routes:
    """Handlers of one service. In several workers a reload is the parent's business, which has them all restarted."""

    def __init__(self, engine: Engine, service: Service) -> None:
        self.engine, self.service = engine, service
        self._number = 0
        self.examples = random.Random()

    async def rerank(self, request: Request, *, documents: bool = True) -> Response:
        loaded = self.engine.loaded
        self._number += 1
        limits = self.service.limits
        body = request.state.body
        asked = parse_rerank(body, limits, loaded.catalogue, self._number, documents=documents)
        answer = await self._answer("rank", asked, loaded, request)
        # Rounded and checked as `sirius rank` does it.
        order = ordered(answer.request, answer.said, None)
        results = reranked(asked, answer.model, loaded.catalogue, answer.said, order, "by" in answer.marks)
        tokens = answer.size.n_prompt + answer.size.n_candidates
        return _json({
            "id": request.state.id, "model": answer.model.key, "results": results,
            "usage": {"total_tokens": tokens, "prompt_tokens": answer.size.n_prompt},
            "meta": {"tokens": {"input_tokens": tokens, "output_tokens": 0}}, **answer.marks,
        })  # fmt: skip

    async def recommend(self, request: Request) -> Response:
        loaded = self.engine.loaded
        self._number += 1
        asked = parse_recommend(request.state.body, self.service.limits, loaded.catalogue, self._number)
        answer = await self._answer("recommend", asked, loaded, request)
        return _json({"id": request.state.id, "model": answer.model.key, **answer.said, **answer.marks})

    async def _answer(self, kind: Kind, asked: Asked, loaded: Loaded, request: Request) -> Answer:
        log = request.state.log
        log |= {"history": len(asked.request.history), "candidates": len(asked.request.candidates)}
        if self.service.log_content:
            log["content"] = {"history": asked.request.history, "candidates": asked.request.candidates}
        job = self.engine.submit(kind, asked, loaded)
        answer = await self._waited(job, request)
        log |= {"model": answer.model.key, "batch": answer.batch, "queued_ms": round(answer.queued * 1e3, 2)}
        if kind == "rank":
            try:
                finite(answer.request, answer.said, ())
            except ScoringError:
                why = "a score is not a finite number; the model's weights are damaged"
                raise Refused(500, why, outcome="error") from None
        return answer

    async def _waited(self, job: Job, request: Request) -> Answer:
        """The answer, unless the client goes away or the time is up: then nobody computes it."""
        seconds, loop = self.service.limits.seconds, asyncio.get_running_loop()

        def give_up(why: Exception) -> None:
            if not job.answer.done():
                job.gone = True
                job.answer.set_exception(why)

        late = Refused(503, f"no answer within {seconds:g} seconds", 1, "timeout")
        timer = loop.call_later(seconds, give_up, late)
        gone = loop.create_task(_gone(request))
        gone.add_done_callback(lambda task: None if task.cancelled() else give_up(Disconnected()))
        try:
            return await job.answer
        finally:
            timer.cancel()
            gone.cancel()
            job.gone = job.gone or not job.answer.done() or job.answer.cancelled()

    async def models(self, request: Request) -> Response:
        loaded = self.engine.loaded
        data = [
            {"id": m.key, "object": "model", "default": m is loaded.default,
             "scores": "log-probs" if m.log_probs else "scores", "recommends": m.recommend is not None, **m.about}
            for m in loaded.models.values()
        ]  # fmt: skip
        items = {"items": len(loaded.catalogue), "titles": loaded.catalogue.open}
        return _json({"object": "list", "data": data, **items, **loaded.about})

    async def items(self, request: Request, search: str = "", sample: int = 0, limit: int = 20) -> Response:
        catalogue = self.engine.loaded.catalogue
        limit = max(1, min(limit, 100))
        if sample > 0:
            numbers = self.examples.sample(range(len(catalogue)), min(sample, limit, len(catalogue)))
            return _json({"items": [{"id": catalogue.ids[n], "title": catalogue.titles[n]} for n in numbers]})
        return _json({"items": await asyncio.to_thread(catalogue.search, search[:200], limit)})

    async def health(self, request: Request) -> Response:
        return _json({"status": "alive", "version": version("sirius-rec")})

    async def ready(self, request: Request) -> Response:
        if not self.engine.ready:
            why = "failed: start it again" if self.engine.broken else "shutting down"
            raise Refused(503, why, 1, "error" if self.engine.broken else "draining")
        return _json({"status": "ready", "models": list(self.engine.loaded.models)})

    async def metrics(self, request: Request) -> Response:
        return Response(await asyncio.to_thread(self.engine.metrics.text), media_type=CONTENT_TYPE)

    async def reload(self, request: Request) -> Response:
        if self.service.workers > 1:
            os.kill(os.getppid(), signal.SIGHUP)
            return _json({"status": "workers are being restarted one by one"}, 202)
        try:
            loaded = await asyncio.to_thread(self.engine.reload)
        except SiriusError as error:
            raise Refused(409, f"the old models stay: {' '.join(str(error).split())}") from None
        except Exception as error:  # damaged weights, no memory: whatever it is, nothing was swapped
            request.state.log["why"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise Refused(409, f"the old models stay: {type(error).__name__} while the new ones were loaded") from error
        return _json({"status": "swapped", "models": list(loaded.models)})

    async def page(self, request: Request) -> Response:
        name, kind = _FILES[request.url.path]
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return FileResponse(PAGE / name, media_type=kind, headers=headers)

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(description_page(request.app.openapi()), headers={"content-security-policy": POLICY})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _json(content: Any, status: int = 200) -> Response:
    text = _ENCODER.encode(content)
    return Response(text.encode("utf-8", "replace"), status, media_type="application/json")


def create_app(
    engine: Engine,
    service: Service,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    log: Callable[[dict[str, Any]], None] = json_log,
) -> App:
    """The application around an engine that runs; keys are read from the environment and `service.api_keys`."""
    routes = Routes(engine, service)
    app = FastAPI(
        title="sirius-rec", version=version("sirius-rec"), lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False,
        description="Reranking and recommendation by the models of a run. docs/serving.md says what each field means.",
    )  # fmt: skip

    def route(
        path: str, handler: Callable[..., Awaitable[Response]], summary: str, body: Any = None, **more: Any
    ) -> None:
        if body is not None:
            schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
            definitions.update(schema.pop("$defs", {}))
            content = {"application/json": {"schema": schema}}
            more["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
        app.add_api_route(path, handler, summary=summary, methods=more.pop("methods", ["GET"]), **more)

    definitions: dict[str, Any] = {}
    direct: dict[str, Handler] = {
        "/v1/rerank": routes.rerank,
        "/rerank": routes.rerank,
        "/v2/rerank": partial(routes.rerank, documents=False),
        "/v1/recommend": routes.recommend,
    }
    bodies = {"/v1/recommend": ("The best of the catalogue", RecommendBody),
              "/v2/rerank": ("Rank candidates, as Cohere's clients ask", RerankBody)}  # fmt: skip
    for path, handler in direct.items():
        summary, body = bodies.get(path, ("Rank candidates", RerankBody))
        route(path, _handler(handler), summary, body, methods=["POST"])
    route("/v1/models", _handler(routes.models), "What is served")
    route("/v1/items", routes.items, "Search the catalogue, or draw from it")
    route("/health", _handler(routes.health), "Whether the process lives")
    route("/ready", _handler(routes.ready), "Whether it takes requests")
    route("/metrics", _handler(routes.metrics), "For Prometheus")
    route("/admin/reload", _handler(routes.reload), "Open the run again and swap the models", methods=["POST"])
    route("/docs", _handler(routes.docs), "The description as a page", include_in_schema=False)
    for path in _FILES:
        route(path, _handler(routes.page), "The page", include_in_schema=False)
    _with_definitions(app, definitions)
    app.add_exception_handler(RequestValidationError, _in_one_line)
    own: dict[str, Any] = {
        "limits": service.limits,
        "keys": api_keys(service.api_keys),
        "admin": admin_key(),
        "admit": engine.admit,
        "leaving": lambda: engine.leaving,
        "metrics": engine.metrics,
        "log": log,
    }
    app.add_middleware(Guard, **own)
    whole = _shortened(app, direct, own)
    if service.cors:
        whole = CORSMiddleware(
            whole, allow_origins=list(service.cors), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    return whole


def _shortened(app: App, direct: Mapping[str, Handler], guard: Mapping[str, Any]) -> App:
    """The application, with what is asked most answered without its layers, which take longer than a small model."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        response = await direct[scope["path"]](Request(scope, receive))
        await response(scope, receive, send)

    guarded = Guard(respond, **guard)

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        short = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in direct
        await (guarded if short else app)(scope, receive, send)

    return whole


def _handler(handler: Callable[..., Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The handler with nothing but the request to read off its signature."""

    async def handle(request: Request) -> Response:
        return await handler(request)

    handle.__name__ = getattr(handler, "__name__", "rerank")
    return handle


async def _in_one_line(request: Request, error: Any) -> Response:
    """What FastAPI says of a parameter, as every other refusal; it would repeat the value."""
    first = error.errors()[0]
    return _json({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 400)


def _with_definitions(app: FastAPI, definitions: dict[str, Any]) -> None:
    """Put what the bodies refer to into the description, which FastAPI makes of signatures alone."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        made = make()
        made.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        return made

    app.openapi = openapi  # type: ignore[method-assign]
