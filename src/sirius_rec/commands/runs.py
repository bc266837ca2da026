"""demo, run, compare, sft, align, evaluate: configuration in, run folder out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sirius_rec import processes
from sirius_rec.commands.common import (
    AddressOption,
    ConfigArg,
    EngineOption,
    JsonOption,
    OutOption,
    OverridesArg,
    RunArg,
    app,
    check_json,
    cluster_of,
    log,
    open_run_folder,
    say,
    train_stages,
    write_json,
)
from sirius_rec.errors import ConfigError

if TYPE_CHECKING:
    from sirius_rec.cluster import Cluster


@app.command(short_help="The whole story on a simulated catalogue.")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo"),
    json_file: JsonOption = None,
) -> None:
    """The whole story on a simulated catalogue: data, SFT, DPO and softmax DPO with and without SIRIUS, report.

    Example: sirius demo --out runs/demo
    """
    log("sirius demo: a simulated catalogue whose true preferences are known; a tiny language model learns it (SFT),")
    log("is aligned by DPO and softmax DPO, each with and without the SIRIUS anchor, on 3 seeds, and is compared with")
    log("SFT continued for as long. At most 5 minutes on 2 cores. It can be stopped and started again at any time.")
    _run(Path("demo"), None, out, json_file)


@app.command(short_help="Everything a configuration asks for; resumable.")
def run(
    config: ConfigArg,
    overrides: OverridesArg = None,
    out: OutOption = None,
    json_file: JsonOption = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Train nothing: count steps, tokens, memory, hours.")] = False,
    on: Annotated[
        str | None, typer.Option("--on", help="Device of a dry run: a100, h100, h200, l40s, rtx4090.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="What a dry run counts with, where the backbone's own cannot be had.")
    ] = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Run everything a configuration asks for; started again, it goes on where it stopped.

    Example: sirius run configs/lastfm.yaml align.epochs=3 --out runs/lastfm

    Example: sirius run configs/paper/lastfm.yaml --dry-run --on a100 --tokenizer models/llama2
    """
    if not dry and (on is not None or tokenizer is not None):
        raise ConfigError("--on, --tokenizer: are for --dry-run")
    cluster = cluster_of(engine, address)
    if dry:
        _dry_run(config, overrides, on or "a100", tokenizer, json_file)
    else:
        _run(config, overrides, out, json_file, cluster)


def _dry_run(
    config: Path, overrides: list[str] | None, device: str, tokenizer: str | None, json_file: Path | None
) -> None:
    from sirius_rec.commands.common import load
    from sirius_rec.extras import require
    from sirius_rec.terminal import print_dry_run

    require("train")
    from sirius_rec.recipes.dry_run import dry_run

    check_json(json_file)
    content = dry_run(load(config, overrides), device=device, tokenizer=tokenizer, say=log)
    print_dry_run(content)
    write_json(json_file, content)


def _run(
    config: Path,
    overrides: list[str] | None,
    out: Path | None,
    json_file: Path | None,
    cluster: Cluster | None = None,
    *,
    compared: bool = False,
) -> None:
    from sirius_rec.recipes.diagnosis import read_diagnostics
    from sirius_rec.recipes.story import STAGES, finish
    from sirius_rec.terminal import print_answer, print_comparison, print_results

    check_json(json_file)
    run = train_stages(config, overrides, out, STAGES, cluster)
    finish(run, log, compared=compared)
    if not processes.is_main():
        return
    made = run.folder.comparison if compared else run.folder.results
    results = json.loads(made.read_text())
    (print_comparison if compared else print_results)(results)
    print_answer(results, read_diagnostics(run))
    write_json(json_file, results)
    say(f"{'comparison' if compared else 'results'}: {made}")
    if run.folder.report.is_file():
        say(f"report: {run.folder.report}")


@app.command(short_help="Every method on the same slates, tested.")
def compare(
    config: ConfigArg,
    overrides: OverridesArg = None,
    out: OutOption = None,
    json_file: JsonOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Train and score every method and arm × seed on the same slates; tests against evaluation.baseline, where it is
    set, else the strongest baseline.

    Does what is missing of `sirius run` and goes on where it stopped.

    Example: sirius compare configs/compare-lastfm.yaml --out runs/compare --json table.json
    """
    _run(config, overrides, out, json_file, cluster_of(engine, address), compared=True)


@app.command(short_help="Supervised fine-tuning only.")
def sft(config: ConfigArg, overrides: OverridesArg = None, out: OutOption = None) -> None:
    """Supervised fine-tuning only (with pretraining for the tiny backbone).

    Example: sirius sft configs/lastfm.yaml --out runs/lastfm
    """
    say(f"done: {train_stages(config, overrides, out, ('sft',)).folder.path / 'sft'}")


@app.command(short_help="Every arm's preference alignment.")
def align(config: ConfigArg, overrides: OverridesArg = None, out: OutOption = None) -> None:
    """Every arm's preference alignment, with what it needs before.

    Example: sirius align configs/lastfm.yaml --out runs/lastfm
    """
    say(f"done: {train_stages(config, overrides, out, ('sft', 'align')).folder.path / 'align'}")


@app.command(short_help="Seeds trained apart become one run.")
def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, same data, different seeds.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to make.")],
) -> None:
    """One run folder of several that trained different seeds of the same configuration, in an array job say.

    Then `sirius evaluate OUT` has the table over all seeds.

    Example: sirius merge runs/seed0 runs/seed1 runs/seed2 --out runs/all
    """
    from sirius_rec.recipes.merging import merge_runs

    folder = merge_runs(runs, out)
    seeds = ", ".join(map(str, folder.config().seeds))
    say(f"done: {folder.path} (seeds {seeds}); `sirius evaluate {folder.path}` makes its table")


@app.command(short_help="The chosen recipe, trained on all data.")
def refit(
    run: RunArg,
    out: Annotated[Path, typer.Option("--out", help="Run folder to make.")],
    overrides: OverridesArg = None,
    method: Annotated[str | None, typer.Option("--method", help="Any of the run's. Default: best on val.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the run. Default: the best on val.")] = None,
    retriever: Annotated[
        str | None, typer.Option("--retriever", help="Another of its methods, fitted too, to find candidates for it.")
    ] = None,
) -> None:
    """Train what a run chose on validation slates once more, on all of its data, validation and test rows too.

    Each stage stops behind the epoch that was best there. Nothing is left to measure it on: its figures are the run's.
    `sirius rank`, `recommend`, `serve` and `export` take the folder as any run.

    Example: sirius refit runs/mine --out runs/final

    Example: sirius refit runs/mine --method dpo_sirius --retriever sasrec data.input=logs/today --out runs/final
    """
    from sirius_rec.extras import require

    require("train")
    from sirius_rec.recipes.methods import build_methods
    from sirius_rec.recipes.refitting import refit as fit_again
    from sirius_rec.recipes.run import Run

    fitted = fit_again(
        Run.open(run), out, method=method, seed=seed, retriever=retriever, overrides=overrides or (), log=log
    )
    origin = fitted.folder.origin()
    assert origin is not None
    every = fitted.dataset.n_all_train
    read = build_methods(fitted.config)[origin["method"]].train_rows(fitted)
    rows = f"{every:,} rows"
    if read is not None and read < every:
        rows = f"{read:,} of {every:,} rows, as many as its stages and limits take"
    found = "" if retriever is None else f", with {retriever} to find its candidates"
    say(
        f"done: {out} ({origin['method']} of seed {origin['seed']}{found}, {rows}); its figures are those of "
        f"{origin['run']}"
    )


@app.command(name="export", short_help="A model that others can open.")
def export_model(
    run: RunArg,
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    method: Annotated[
        str | None, typer.Option("--method", help="SFT, an arm, or one trained like it. Default: best on val.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the run. Default: the best on val.")] = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Which one.")] = "best",
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base.")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Of the weights. Default: as trained."),
    ] = None,
) -> None:
    """A run's language model as a folder for transformers or peft: weights, tokenizer, prompt, and a model card.

    The card is made from the run: data with its fingerprint, audit, table with intervals, limits, and code that ranks.

    Example: sirius export runs/lastfm --method dpo_sirius --out lastfm-dpo-sirius --merge
    """
    from sirius_rec.extras import require

    require("train")
    from sirius_rec.recipes.exporting import export
    from sirius_rec.recipes.run import Run

    chosen, of = export(Run.open(run), out, method=method, seed=seed, checkpoint=checkpoint, merge=merge, dtype=dtype)
    say(f"done: {out} ({chosen.key} of seed {of}, {checkpoint} checkpoint); {out / 'README.md'} says how to use it")


@app.command(short_help="Score what is trained; results and table.")
def evaluate(
    run: RunArg,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value]...", help="Of evaluation and compute: evaluation.generation_rows=2000, for example."
        ),
    ] = None,
    json_file: JsonOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """Score the trained methods on the test slates; results.json and the table. Trains nothing;
    formulas (item-kNN, EASE) are computed. What is measured may change: the run folder keeps it.
    A comparison and a report that the folder has are made anew.

    Example: sirius evaluate runs/lastfm evaluation.generation_rows=2000
    """
    from sirius_rec.extras import require

    require("train")
    from sirius_rec.recipes.run import Run
    from sirius_rec.recipes.scoring import check_trained
    from sirius_rec.recipes.story import remeasure, run_stages
    from sirius_rec.terminal import print_results

    check_json(json_file)
    cluster = cluster_of(engine, address)
    opened = Run.open(run)
    for given in overrides or ():
        if re.split(r"[.=]", given)[0] not in ("evaluation", "compute"):
            raise ConfigError(
                f"{given}: sirius evaluate trains nothing: only evaluation and compute may be changed here; what is "
                "trained is changed by `sirius run`"
            )
    if overrides:
        opened = open_run_folder(opened.folder.config_file, overrides, run)
    check_trained(opened, formulas=False)
    run_stages(opened, ("evaluate",), log, cluster)
    if not processes.is_main():
        return
    results = remeasure(opened, log)
    print_results(results)
    write_json(json_file, results)
