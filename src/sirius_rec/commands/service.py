"""serve: a ranker over HTTP."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sirius_rec.commands.common import app, log, say
from sirius_rec.commands.serve import (
    ChatOption,
    CheckpointOption,
    DtypeOption,
    HistoryOption,
    ItemsOption,
    SeedOption,
    SlateOption,
    TemplateOption,
    given,
    is_run,
)


@app.command(short_help="Answer over HTTP: rerank, recommend, a page.")
def serve(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or a causal LM: hub id, folder, file.")],
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Any of a run's, KEY or KEY@last; again for a second one. Default: best on val."),
    ] = None,
    seed: SeedOption = None,
    checkpoint: CheckpointOption = None,
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1, this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8000; 0 for a free one.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on the port, each with the models. Default: 1.")
    ] = None,
    titles: Annotated[bool, typer.Option("--titles", help="Everything is a title, also beyond the catalogue.")] = False,
    api_keys: Annotated[Path | None, typer.Option(help="Bearer keys, one per line; also $SIRIUS_API_KEYS.")] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Origin that a browser may call from; again for more.")] = None,
    prefix_cache: Annotated[
        int | None, typer.Option(help="MiB for each model's prompts, 0: off. Default: 256.")
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Of one batch. Default: 16384.")] = None,
    batch_requests: Annotated[int | None, typer.Option(help="Of one batch. Default: 64.")] = None,
    batch_wait: Annotated[float | None, typer.Option(help="Milliseconds to wait for others. Default: 2.")] = None,
    queue: Annotated[int | None, typer.Option(help="Requests that may wait; then 429. Default: 256.")] = None,
    max_body: Annotated[int | None, typer.Option(help="Bytes of a request. Default: 1048576.")] = None,
    max_candidates: Annotated[int | None, typer.Option(help="Of a request. Default: 1000.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="For an answer; then 503. Default: 30.")] = None,
    drain: Annotated[float | None, typer.Option(help="Seconds for open requests at SIGTERM. Default: 30.")] = None,
    log_content: Annotated[bool, typer.Option("--log-content", help="Histories and candidates in the log.")] = False,
    items: ItemsOption = None,
    template: TemplateOption = None,
    slate: SlateOption = None,
    max_history: HistoryOption = None,
    chat: ChatOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Answer over HTTP what `sirius rank` and `sirius recommend` answer, with a page at /. SIGTERM drains, SIGHUP swaps
    the models for what the run holds by then.

    Keys of clients: $SIRIUS_API_KEYS or --api-keys. docs/serving.md has every field, limit and metric.

    Example: sirius serve runs/lastfm --method dpo_sirius --method sft --port 8000
    """
    from sirius_rec.extras import require

    require("train")
    require("serve")
    from sirius_rec.recipes import serving
    from sirius_rec.serving.keys import api_keys as keys_of
    from sirius_rec.serving.options import Service, check
    from sirius_rec.serving.server import application
    from sirius_rec.serving.server import serve as listen

    plain = {"--template": template, "--slate": slate, "--max-history": max_history, "--chat": chat,
             "--dtype": dtype}  # fmt: skip
    listed = None if items is None else str(items)
    own = {"host": host, "port": port, "workers": workers, "drain": drain, "api_keys": api_keys,
           "cors": tuple(cors) if cors else None, "log_content": log_content or None}  # fmt: skip
    limits = {"body": max_body, "candidates": max_candidates, "seconds": max_seconds}
    wait = None if batch_wait is None else batch_wait / 1e3
    batching = {"tokens": batch_tokens, "requests": batch_requests, "wait": wait, "queue": queue,
                "prefix_cache": prefix_cache}  # fmt: skip
    default = Service()
    service = replace(
        _with(default, own), limits=_with(default.limits, limits), batching=_with(default.batching, batching)
    )
    check(service)
    if is_run(model, plain, {"--method": method or None, "--seed": seed, "--checkpoint": checkpoint}):
        keys = tuple(method or ())
        source = serving.Source(model, keys, seed, checkpoint or "best", titles, items=listed, service=service)
    else:
        source = serving.Source(model, plain=given(plain), titles=titles, items=listed, service=service)
    serving.check(source)
    if keys_of(api_keys).open and service.host not in ("127.0.0.1", "localhost", "::1"):
        log(f"warning: {service.host} is open to others, and there are no keys: set SIRIUS_API_KEYS")
    if service.workers > 1:
        listen(serving.hand_on(source), service, say)
    else:
        listen(application(partial(serving.load, source), service), service, say)
    say("drained: every open request was answered")


def _with(default: Any, given: dict[str, Any]) -> Any:
    """A dataclass with what was given in place of its defaults."""
    names = {field.name for field in fields(default)}
    assert set(given) <= names, set(given) - names
    return replace(default, **{name: value for name, value in given.items() if value is not None})
