"""rank: requests in, ranked answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sirius_rec.commands.common import app, check_json, say
from sirius_rec.errors import ConfigError, DataError


@app.command(short_help="Rank requests with a trained model.")
def rank(
    model: Annotated[str, typer.Option(help="Run folder, or a causal LM: hub id or folder.")],
    input: Annotated[Path, typer.Option(help='JSON lines: {"history": [...], "candidates": [...][, "id": …]}.')],
    out: Annotated[Path, typer.Option("--out", help="JSON lines to write, one answer per request, in their order.")],
    method: Annotated[
        str | None, typer.Option(help="Of a run: sft, an arm or a network. Default: best on val.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a run. Default: the best on val.")] = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option(help="Of a run's language model.")] = "best",
    titles: Annotated[bool, typer.Option("--titles", help="Requests hold titles instead of item ids.")] = False,
    top: Annotated[int | None, typer.Option(min=1, help="Write the first K only.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over bad lines, saying so in their place.")
    ] = False,
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
    say(f"ranking with {served.name}")
    recipe = {**served.recipe, "input": str(input.resolve()), "top": top}
    with AnswerFile(out, recipe) as answers, byte_bar("ranking") as advance:
        if answers.answered:
            say(f"going on behind line {answers.answered}")
        answered, skipped = rank_file(
            input, answers, served.score, served.check, top=top, skip_bad=skip_bad, advance=advance
        )
        answers.finish()
    say(f"done: {out} (requests answered: {answered:,}; bad lines passed over: {skipped:,})")
