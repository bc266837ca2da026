"""rank, recommend: requests in, ranked answers out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sirius_rec.commands.common import (
    AddressOption,
    EngineOption,
    app,
    check_json,
    cluster_of,
    log,
    refuse_options,
    say,
)
from sirius_rec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sirius_rec.cluster import Cluster
    from sirius_rec.rankers.answers import Outcome
    from sirius_rec.recipes.answering import AnswererSpec
    from sirius_rec.recipes.ranking import Served
    from sirius_rec.remote import Place


ModelOption = Annotated[
    str, typer.Option("--model", help="Run folder, or a causal LM: hub id, folder, .gguf file or smollm2.")
]
AnswersOption = Annotated[
    str, typer.Option("--out", help="JSON lines to write, or an address (s3://…): one answer per request, in order.")
]
MethodOption = Annotated[str | None, typer.Option("--method", help="Any of a run's. Default: best on val.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Of a run. Default: the best on val.")]
CheckpointOption = Annotated[
    Literal["best", "last"] | None, typer.Option("--checkpoint", help="Of a run's language model. Default: best.")
]
TitlesOption = Annotated[bool, typer.Option("--titles", help="Requests hold titles instead of item ids.")]
SkipOption = Annotated[bool, typer.Option("--skip-bad", help="Pass over bad lines, saying so in their place.")]
UnknownOption = Annotated[
    Literal["drop", "refuse"] | None,
    typer.Option("--unknown", help="History items that the ranker does not know. Default: drop; not for titles read by "
                 "a language model, which knows none and reads all."),
]  # fmt: skip
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="Prompt of a plain model. Default: as exported, else generic."),
]
SlateOption = Annotated[
    bool | None, typer.Option("--slate/--no-slate", help="Whether a plain model's prompt lists the candidates.")
]
HistoryOption = Annotated[
    int | None,
    typer.Option("--max-history", min=0, help="Newest items shown. Default: as exported, else 10."),
]
ChatOption = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Prompt a plain model by its chat template. Default: as exported, else not."),
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option("--dtype", help="Of a plain model's weights.")
]
ItemsOption = Annotated[
    Path | None,
    typer.Option("--items", help="CSV or Parquet of item_id, title: a plain model's catalogue; of a run, new items."),
]
_REQUESTS = "JSON lines or Parquet, a folder or the address of such"
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes that answer. Default: 1; with Ray one per GPU or core.")
]


@app.command(short_help="Rank requests with a trained model.")
def rank(
    model: ModelOption,
    input: Annotated[
        str,
        typer.Option(help=f'{_REQUESTS}: {{"history": [...], "candidates": [...][, "id": …]}}.'),
    ],
    out: AnswersOption,
    method: MethodOption = None,
    seed: SeedOption = None,
    checkpoint: CheckpointOption = None,
    titles: TitlesOption = False,
    items: ItemsOption = None,
    top: Annotated[int | None, typer.Option(min=1, help="Write the first K only.")] = None,
    skip_bad: SkipOption = False,
    unknown: UnknownOption = None,
    template: TemplateOption = None,
    slate: SlateOption = None,
    max_history: HistoryOption = None,
    chat: ChatOption = None,
    dtype: DtypeOption = None,
    jobs: JobsOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Rank requests with a trained model, in a stream; killed and started again, it goes on where it stopped.

    Requests hold item ids of the run's catalogue or of --items, or titles (--titles; always with a plain model without
    --items). Bounded memory.

    Example: sirius rank --model runs/lastfm --input requests.jsonl --out ranked.jsonl --top 10
    """
    from sirius_rec.extras import require

    require("train")
    from sirius_rec.recipes.answering import AnswererSpec, opened
    from sirius_rec.recipes.ranking import load_plain_model, load_run_ranker

    source, target = _places(input, out)
    model, items = whole_path(model), items and items.absolute()
    plain = {"--template": template, "--slate": slate, "--max-history": max_history, "--chat": chat,
             "--dtype": dtype}  # fmt: skip
    if is_run(model, plain, {"--method": method, "--seed": seed, "--checkpoint": checkpoint}):
        of_run = chosen(method, seed, checkpoint)
        load = partial(opened, model, load_run_ranker, titles=titles, items=items, **of_run)
    else:
        load = partial(load_plain_model, model, items=items, titles=titles, **given(plain))
    spec = AnswererSpec(load, top, unknown != "refuse", skip_bad)
    _answer(spec, source, target, jobs, cluster_of(engine, address), verb="ranking", unknown=unknown)


@app.command(short_help="The best of the whole catalogue.")
def recommend(
    model: ModelOption,
    input: Annotated[
        str,
        typer.Option(help=f'{_REQUESTS}: {{"history": [...][, "exclude": [...], "id": …]}}.'),
    ],
    out: AnswersOption,
    top: Annotated[int, typer.Option(min=1, help="Items of an answer.")] = 10,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out what the history holds.")] = False,
    max_opened: Annotated[
        int | None, typer.Option(min=1, help="Prefixes of titles opened per request at most. Default: no limit.")
    ] = None,
    retriever: Annotated[
        str | None, typer.Option(help="Method of the run that finds candidates, which the model then orders.")
    ] = None,
    retrieve: Annotated[int | None, typer.Option(min=1, help="How many it finds. Default: 100.")] = None,
    items: ItemsOption = None,
    method: MethodOption = None,
    seed: SeedOption = None,
    checkpoint: CheckpointOption = None,
    titles: TitlesOption = False,
    skip_bad: SkipOption = False,
    unknown: UnknownOption = None,
    template: TemplateOption = None,
    max_history: HistoryOption = None,
    chat: ChatOption = None,
    dtype: DtypeOption = None,
    jobs: JobsOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """The best of the whole catalogue for each history, in a stream; started again, it goes on where it stopped.

    With a language model the list is exact and says so: titles are searched by their beginnings, and what is not
    opened is proved to score less. With --max-opened a search may end before that ("exact": false, "bound": …).

    Example: sirius recommend --model runs/lastfm --input histories.jsonl --top 10 --exclude-seen --out top.jsonl

    With --retriever a network or a baseline of the run finds the candidates, and the model orders these alone: quicker,
    and no longer exact.

    Example: sirius recommend --model smollm2 --items items.csv --input histories.jsonl --out top.jsonl

    Example: sirius recommend --model runs/lastfm --retriever sasrec --input histories.jsonl --out top.jsonl
    """
    from sirius_rec.extras import require

    require("train")
    from sirius_rec.rankers.requests import RECOMMENDING
    from sirius_rec.recipes.answering import AnswererSpec, opened
    from sirius_rec.recipes.recommending import load_plain_recommender, load_run_recommender
    from sirius_rec.recipes.reranking import load_run_reranker

    source, target = _places(input, out)
    model, items = whole_path(model), items and items.absolute()
    plain = {"--template": template, "--max-history": max_history, "--chat": chat, "--dtype": dtype}
    asked: dict[str, Any] = {"titles": titles, "top": top, "exclude_seen": exclude_seen}
    of_run = chosen(method, seed, checkpoint)
    if retriever is None:
        refuse_options({"--retrieve": retrieve}, "how many items --retriever finds: name one")
    if retriever is not None and max_opened is not None:
        raise ConfigError("--max-opened: bounds a search of the whole catalogue; with --retriever there is none")
    of_a_run = is_run(model, plain, {"--method": method, "--seed": seed, "--checkpoint": checkpoint})
    if retriever is not None and not of_a_run:
        raise ConfigError(f"--retriever: {model} is no run folder, and has no other methods")
    if retriever is not None:
        refuse_options({"--items": items}, "for a search of the whole catalogue; --retriever finds items of the run's")
    load: Callable[[], Served]
    if retriever is not None:
        load = partial(
            opened, model, load_run_reranker, retriever=retriever, retrieve=retrieve or 100, **of_run, **asked
        )
    elif of_a_run:
        load = partial(opened, model, load_run_recommender, max_opened=max_opened, items=items, **of_run, **asked)
    elif items is None:
        raise ConfigError(f"--items: {model} is no run folder: name its catalogue, a table of item_id and title")
    else:
        load = partial(load_plain_recommender, model, items, max_opened=max_opened, **given(plain), **asked)
    spec = AnswererSpec(load, top, unknown != "refuse", skip_bad)
    # A request takes a second or so: few at a time, so that little is lost with a kill.
    cluster = cluster_of(engine, address)
    _answer(spec, source, target, jobs, cluster, verb="recommending", unknown=unknown, form=RECOMMENDING, part=32)


def whole_path(model: str) -> str:
    """A folder or file by its absolute path, for workers that begin elsewhere; a hub id as it is.

    ConfigError for a path of which only the folder is there: no hub is asked for a run whose name was mistyped.
    """
    path = Path(model)
    if not path.exists() and path.parent != Path() and path.parent.is_dir():
        raise ConfigError(f"{model}: {path.parent} holds no {path.name}: name a run folder, or a model")
    return str(path.absolute()) if path.exists() else model


def _places(input: str, out: str) -> tuple[Place, Place]:
    """Where requests are and answers go; what is wrong with them is said before the model is loaded."""
    from sirius_rec.remote import check_free, located

    source, target = located(input), located(out)
    if isinstance(source, Path) and not source.exists():
        raise DataError(f"--input {source}: no such file")
    if str(out).endswith(".parquet"):
        raise ConfigError(f"--out {out}: answers are JSON lines: name it .jsonl")
    check_json(target, "--out") if isinstance(target, Path) else check_free(target)
    return source, target


def is_run(model: str, plain: dict[str, Any], of_run: dict[str, Any]) -> bool:
    """Whether a model is a run folder. ConfigError where options are given that are for the other kind of model."""
    from sirius_rec.recipes.run_folder import RunFolder

    if not RunFolder(Path(model)).config_file.is_file():
        refuse_options(of_run, f"for run folders alone, and {model} is a plain model")
        return False
    refuse_options(plain, f"for plain models alone; {model} is a run folder, which has its own prompts")
    return True


def chosen(method: str | None, seed: int | None, checkpoint: str | None) -> dict[str, Any]:
    """Which model of a run, as arguments of what loads it."""
    return {"method": method, "seed": seed, "checkpoint": checkpoint or "best"}


def given(plain: dict[str, Any]) -> dict[str, Any]:
    """Options of plain models that were given, as arguments."""
    names = {"--slate": "shows_slate"}
    return {names.get(o, o[2:].replace("-", "_")): value for o, value in plain.items() if value is not None}


def _answer(
    spec: AnswererSpec,
    source: Place,
    target: Place,
    jobs: int | None,
    cluster: Cluster | None,
    *,
    verb: str,
    unknown: str | None,
    **options: Any,
) -> None:
    """Answer a file, and say what came of it. options: of `answer_file`."""
    from sirius_rec.progress import byte_bar
    from sirius_rec.rankers.answers import AnswerFile, answer_file
    from sirius_rec.recipes.answering import answerer_pool
    from sirius_rec.remote import fetched, outbox

    with byte_bar("fetching") as advance:
        input = fetched(source, log, advance)
    with answerer_pool(spec, jobs, cluster) as pool:
        if unknown is not None and not pool.about.knows:
            raise ConfigError(
                f"--unknown {unknown}: a language model reads any title, in the catalogue or not: leave it out"
            )
        log(f"{verb} with {pool.about.name}")
        at = str(source.resolve()) if isinstance(source, Path) else source
        recipe = {**pool.about.recipe, "input": at, "top": spec.top, "unknown": unknown or "drop"}
        box = outbox(target)
        with AnswerFile(box.path, recipe) as answers, byte_bar(verb) as advance:
            if answers.answered:
                log(f"going on behind line {answers.answered}")
            outcome = answer_file(input, answers, pool.each, advance=advance, named=str(source), **options)
            answers.finish(box.send)
    if outcome.unread:
        log(f"warning: {len(outcome.unread):,} titles are not in the catalogue ({min(outcome.unread)!r}, …): this "
            "backbone was trained from scratch on it and knows nothing of them")  # fmt: skip
    _report(source, target, outcome, answers.earlier)


def _report(source: Place, target: Place, outcome: Outcome, earlier: Outcome) -> None:
    """What was answered. earlier: by calls before this one. DataError where all of it was refused."""
    counts = {"bad lines passed over": outcome.skipped, "unknown history items dropped": outcome.dropped,
              "answered by popularity alone": outcome.by_popularity}  # fmt: skip
    rest = "".join(f"; {what}: {count:,}" for what, count in counts.items() if count or what.startswith("bad"))
    here = "in this call, " if earlier.answered + earlier.skipped else ""
    say(f"done: {target} ({here}requests answered: {outcome.answered:,}{rest})")
    if outcome.skipped + earlier.skipped and not outcome.answered + earlier.answered:
        raise DataError(f"{source}: every request was refused; {target} says why, line by line")
