"""diagnose, report, theory, bench: what a run, the theory and the machine show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sirius_rec.commands.common import (
    AddressOption,
    ConfigArg,
    EngineOption,
    JsonOption,
    OverridesArg,
    app,
    check_json,
    cluster_of,
    log,
    refuse_options,
    say,
    write_json,
)
from sirius_rec.errors import ConfigError

TuneOption = Annotated[Path | None, typer.Option("--out", help="Folder to make. Default: runs/<name>-tuned.")]


@app.command(short_help="Reward-hacking evidence of a run.")
def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a RewardHackingMonitor's folder.")],
    influence: Annotated[
        int,
        typer.Option(min=0, help="Probe so many validation slates: does a step on (i, j) move (i, k) as Eq. 10 says?"),
    ] = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write every evaluation as CSV.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Reward-hacking evidence: onset, margins against held-out ranking, insensitive shares, golden-reward fit.

    Example: sirius diagnose runs/lastfm --influence 200 --csv curves.csv
    """
    from sirius_rec.recipes import diagnosis
    from sirius_rec.recipes.run import Run
    from sirius_rec.recipes.run_folder import RunFolder
    from sirius_rec.terminal import print_diagnostics

    check_json(json_file)
    check_json(csv, "--csv")
    if RunFolder(run).config_file.is_file() or not (run / "metrics.jsonl").is_file():
        diagnostics = diagnosis.diagnose_run(Run.open(run), influence_rows=influence, log=log)
    else:
        diagnostics = diagnosis.diagnose_log(run)
    print_diagnostics(diagnostics)
    write_json(json_file, diagnostics)
    if csv is not None:
        diagnosis.write_curves_csv(run, csv)
        say(f"curves: {csv}")


@app.command(short_help="One HTML page of one run, or of several.")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders over the same data and slates.")],
    baseline: Annotated[str | None, typer.Option(metavar="METHOD", help="What paired tests are against.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page. Default: RUN/report.html, and RUN/figures/.")] = None,
) -> None:
    """One self-contained HTML page of one run, or of several side by side; figures as PNG and SVG beside it.

    Example: sirius report runs/lastfm --baseline item_knn

    Example: sirius report runs/a runs/b --out compared.html
    """
    from sirius_rec.extras import require

    require("report")
    from sirius_rec.recipes.reporting import report_run
    from sirius_rec.recipes.run import Run

    check_json(out, "--out")
    opened = [Run.open(run) for run in runs]
    say(f"report: {report_run(*opened, baseline=baseline, out=out)}")


@app.command(short_help="The paper's tables and figures, beside ours.")
def paper(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]RUN...", help="Run folders or results.json; goodreads=RUN names its data."),
    ],
    table: Annotated[int | None, typer.Option(min=1, max=6, help="One of the paper's tables.")] = None,
    figure: Annotated[str | None, typer.Option(help="One of its figures: 1b, 2, 3, 4, 5.")] = None,
    form: Annotated[
        Literal["md", "csv", "tex"] | None, typer.Option("--format", help="Of a table. Default: md.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the table is written, or a folder for the figure.")] = None,
) -> None:
    """A table of the SIRIUS paper: our values beside the paper's own, protocol and backbone named, and what is missing.

    Example: sirius paper runs/lastfm goodreads=runs/books --table 1 --format tex --out table1.tex

    Example: sirius paper runs/lastfm --figure 1b --out figures/
    """
    import shutil

    from sirius_rec import atomic
    from sirius_rec.recipes.papers import figure_files, read

    if (table is None) == (figure is None):
        raise ConfigError("sirius paper: name one of --table 1 … 6 and --figure 1b, 2, 3, 4, 5")
    if figure is not None:
        refuse_options({"--format": form}, "of a table alone; figures are there as PNG and SVG")
        for name, file in figure_files(figure, runs).items():
            if out is None:
                say(str(file))
            else:
                out.mkdir(parents=True, exist_ok=True)
                say(str(shutil.copy2(file, out / name)))
        return
    from sirius_rec.report.paper import paper_table

    check_json(out, "--out")
    assert table is not None
    text = paper_table(table, [read(run) for run in runs]).text(form or "md")
    if out is None:
        print(text, end="")
    else:
        atomic.write_text(out, text)
        say(f"table: {out}")


@app.command(short_help="Insensitive regions, areas, the paper's errata.")
def theory(
    out: Annotated[Path, typer.Option("--out", help="Folder for figure2 and figure5 (PNG and SVG).")] = Path("theory"),
    model: Annotated[str, typer.Option(help="Preference model: bradley_terry or thurstone.")] = "bradley_terry",
    points: Annotated[int, typer.Option(min=1000, help="Random points per Monte Carlo area.")] = 4_000_000,
    json_file: JsonOption = None,
) -> None:
    """Areas of the insensitive regions, Example 1, the paper's errata, and Figures 2 and 5.

    Example: sirius theory --out theory --json theory.json
    """
    from sirius_rec.extras import require

    require("report")
    from sirius_rec.report.theory_plots import write_theory_figures
    from sirius_rec.terminal import print_theory
    from sirius_rec.theory import claims
    from sirius_rec.theory.preference import MODELS

    check_json(json_file)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file: name a folder for the figures")
    if model not in MODELS:
        raise ConfigError(f"--model {model!r} is unknown: choose one of {', '.join(MODELS)}")
    chosen = MODELS[model]
    content = {
        "model": model,
        "areas": claims.area_table(model=chosen, points=points),
        "example1": claims.example_1(chosen),
        "errata": claims.errata(),
    }
    print_theory(content)
    write_json(json_file, content)
    for path in write_theory_figures(out, chosen):
        say(f"figure: {path}")


@app.command(short_help="Equal tuning, then fresh seeds.")
def tune(
    config: ConfigArg,
    overrides: OverridesArg = None,
    out: TuneOption = None,
    json_file: JsonOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
) -> None:
    """The same number of trials for every arm and method on validation; then each winner with fresh seeds, tested once.

    Killed and started again, it goes on. OUT/winners is a run folder like any other.

    Example: sirius tune configs/movielens.yaml tune.trials=12 compute.jobs=4 --out runs/tuned
    """
    from sirius_rec.commands.common import load
    from sirius_rec.extras import require
    from sirius_rec.terminal import print_tuning

    require("train")
    require("tune")
    from sirius_rec.recipes.tuning.tuning import RESULTS
    from sirius_rec.recipes.tuning.tuning import tune as tune_all

    check_json(json_file)
    loaded = load(config, overrides)
    folder = out or Path("runs") / f"{loaded.name}-tuned"
    content = tune_all(loaded, folder, cluster_of(engine, address))
    print_tuning(content)
    write_json(json_file, content)
    say(f"tuning:  {folder / RESULTS}")
    say(f"winners: {folder / 'winners'}")


@app.command(short_help="Order of candidates; data known by heart.")
def probe(
    what: Annotated[Literal["order", "memory"], typer.Argument(metavar="WHAT", help="order or memory.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    method: Annotated[str | None, typer.Option("--method", help="Of `order`. Default: the best on validation.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of `order`: the method's.")] = None,
    rows: Annotated[int, typer.Option(min=20, help="Test rows, or titles.")] = 300,
    orders: Annotated[
        int | None, typer.Option(min=2, help="Of `order`: permutations of each slate. Default: 5.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """order: how often does the answer change when the slate in the prompt is permuted, and what does HR@1 do?
    memory: does the backbone, before training, know these titles, and these users' sequences, by heart?

    Example: sirius probe order runs/lastfm --orders 5

    Example: sirius probe memory runs/lastfm --rows 500 --json memory.json
    """
    from sirius_rec.extras import require
    from sirius_rec.recipes.run import Run
    from sirius_rec.terminal import print_probe

    require("train")
    from sirius_rec.recipes.probing import probe_memory, probe_order

    check_json(json_file)
    if what == "memory":
        refuse_options(
            {"--method": method, "--seed": seed, "--orders": orders}, "of `order` alone; memory asks the backbone"
        )
    opened = Run.open(run)
    if what == "order":
        content = probe_order(opened, method=method, seed=seed, orders=orders or 5, rows=rows, say=log)
    else:
        content = probe_memory(opened, rows=rows, say=log)
    print_probe(what, content)
    write_json(json_file, content)


@app.command("bench", short_help="Performance figures with their baselines.")
def bench_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="step, score, memory, cost, end-to-end, cuda, catalogue.")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Smaller batches, fewer rounds: at most 3 minutes.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Where `cost` draws its figure (PNG).")] = None,
    model: Annotated[Path | None, typer.Option(help="Run folder whose catalogue `catalogue` searches.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Performance figures, candidate trees against what people use today, on the same batch, interleaved.

    Example: sirius bench step --quick --json step.json

    Example: sirius bench catalogue --model runs/lastfm --json catalogue.json
    """
    from sirius_rec.extras import require

    require("train")
    from sirius_rec.bench.run import environment, run_bench
    from sirius_rec.recipes.environment import processor, versions
    from sirius_rec.recipes.run import quiet

    check_json(json_file)
    check_json(plot, "--plot")
    if name != "cost":
        refuse_options({"--plot": plot}, "for `sirius bench cost`, which alone draws")
    quiet()
    task = None
    if model is not None:
        if name != "catalogue":
            raise ConfigError(f"--model: is for `sirius bench catalogue`; {name} makes its own model")
        from sirius_rec.recipes.recommending import bench_task
        from sirius_rec.recipes.run import Run

        task = bench_task(Run.open(model), users=2 if quick else 8)
    rows, seconds = run_bench(name, quick=quick, say=say, plot=plot, task=task)
    content = {"environment": environment(processor(), versions()), "quick": quick, "seconds": round(seconds, 1)}
    write_json(json_file, {**content, "rows": rows})
    log(f"done in {seconds:.0f} s")
