"""rank: requests in, ranked answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sirius_rec.commands.common import app, check_json, log, say
from sirius_rec.errors import ConfigError, DataError


@app.command(short_help="Rank requests with a trained model.")
def rank(
    model: Annotated[str, typer.Option(help="Run folder, or a causal LM: hub id, folder, .gguf file or smollm2.")],
    input: Annotated[Path, typer.Option(help='JSON lines: {"history": [...], "candidates": [...][, "id": …]}.')],
    out: Annotated[Path, typer.Option("--out", help="JSON lines to write, one answer per request, in their order.")],
    method: Annotated[str | None, typer.Option(help="Any of a run's. Default: best on val.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a run. Default: the best on val.")] = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option(help="Of a run's language model.")] = "best",
    titles: Annotated[bool, typer.Option("--titles", help="Requests hold titles instead of item ids.")] = False,
    top: Annotated[int | None, typer.Option(min=1, help="Write the first K only.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over bad lines, saying so in their place.")
    ] = False,
    unknown: Annotated[
        Literal["drop", "refuse"], typer.Option(help="History items that the ranker does not know.")
    ] = "drop",
    template: Annotated[str | None, typer.Option(help="Prompt of a plain model. Default: generic.")] = None,
    slate: Annotated[bool | None, typer.Option(help="Whether a plain model's prompt lists the candidates.")] = None,
    max_history: Annotated[int | None, typer.Option(min=0, help="Newest items shown. Default: 10.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Prompt a plain model by its chat template.")] = False,
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Of a plain model's weights.")] = None,
) -> None:
    """Rank requests with a trained model, in a stream; killed and started again, it goes on where it stopped.

    Requests hold item ids of the run's catalogue, or titles (--titles; always with a plain model). Bounded memory.

    Example: sirius rank --model runs/lastfm --input requests.jsonl --out ranked.jsonl --top 10
    """
    from sirius_rec.extras import require

    require("train")
    from sirius_rec.progress import byte_bar
    from sirius_rec.rankers.requests import AnswerFile, rank_file
    from sirius_rec.recipes.ranking import load_plain_model, load_run_ranker
    from sirius_rec.recipes.run import Run
    from sirius_rec.recipes.run_folder import RunFolder

    check_json(out, "--out")
    if not input.exists():  # before the model is loaded
        raise DataError(f"--input {input}: no such file")
    if RunFolder(Path(model)).config_file.is_file():
        plain = {"--template": template, "--slate": slate, "--max-history": max_history, "--chat": chat or None,
                 "--dtype": dtype}  # fmt: skip
        for option in (name for name, value in plain.items() if value is not None):
            raise ConfigError(f"{option}: is for plain models; {model} is a run folder, which holds its own prompts")
        served = load_run_ranker(Run.open(model), method=method, seed=seed, checkpoint=checkpoint, titles=titles)
    else:
        given = {"template": template, "shows_slate": slate, "max_history": max_history, "dtype": dtype}
        chosen = {name: value for name, value in given.items() if value is not None}
        served = load_plain_model(model, chat=chat, **chosen)
    log(f"ranking with {served.name}")
    recipe = {**served.recipe, "input": str(input.resolve()), "top": top, "unknown": unknown}
    with AnswerFile(out, recipe) as answers, byte_bar("ranking") as advance:
        if answers.answered:
            log(f"going on behind line {answers.answered}")
        dropping = served.unknown if unknown == "drop" else None
        outcome = rank_file(
            input, answers, served.score, served.check, top=top, skip_bad=skip_bad, unknown=dropping, advance=advance
        )
        answers.finish()
    for warning in served.warnings():
        log(f"warning: {warning}")
    counts = {"bad lines passed over": outcome.skipped, "unknown history items dropped": outcome.dropped,
              "answered by popularity alone": outcome.by_popularity}  # fmt: skip
    rest = "".join(f"; {what}: {count:,}" for what, count in counts.items() if count or what.startswith("bad"))
    say(f"done: {out} (requests answered: {outcome.answered:,}{rest})")
    if outcome.skipped and not outcome.answered:
        raise DataError(f"{input}: every request was refused; {out} says why, line by line")
