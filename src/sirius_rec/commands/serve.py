"""rank: requests in, ranked answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sirius_rec.commands.common import app, check_json, say
from sirius_rec.errors import DataError


@app.command()
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
    template: Annotated[str, typer.Option(help="Prompt of a plain model.")] = "generic",
    slate: Annotated[bool, typer.Option(help="Whether the prompt of a plain model lists the candidates.")] = True,
    max_history: Annotated[int, typer.Option(min=0, help="Newest items shown to a plain model.")] = 10,
    chat: Annotated[bool, typer.Option("--chat", help="Prompt a plain model by its chat template.")] = False,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Weights of a plain model.")] = "float32",
) -> None:
    """Rank requests with a trained model, in a stream; killed and started again, it goes on where it stopped.

    Requests hold item ids of the run's catalogue, or titles (--titles; always with a plain model). Bounded memory.

    Example: sirius rank --model runs/lastfm --input requests.jsonl --out ranked.jsonl --top 10
    """
    from sirius_rec.progress import byte_bar
    from sirius_rec.rankers.requests import AnswerFile, rank_file
    from sirius_rec.recipes.ranking import load_plain_model, load_run_ranker
    from sirius_rec.recipes.run import Run
    from sirius_rec.recipes.run_folder import RunFolder

    check_json(out, "--out")
    if not input.exists():  # before the model is loaded
        raise DataError(f"--input {input}: no such file")
    if RunFolder(Path(model)).config_file.is_file():
        served = load_run_ranker(Run.open(model), method=method, seed=seed, checkpoint=checkpoint, titles=titles)
    else:
        served = load_plain_model(
            model, template=template, shows_slate=slate, max_history=max_history, chat=chat, dtype=dtype
        )
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
