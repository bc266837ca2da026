"""The command line: thin. Every error a user can cause becomes one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from sirius_rec import processes, stopping
from sirius_rec.errors import ConfigError, SiriusError, Stopped, place_fault

if TYPE_CHECKING:
    from sirius_rec.config import Config
    from sirius_rec.recipes.run_folder import RunFolder

app = typer.Typer(
    name="sirius",
    help="Preference alignment of language-model recommenders, with reward-hacking evidence and honest evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigArg = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; the packaged ones go by name: demo.")]
OverridesArg = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Overrides, for example align.epochs=3.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/<name>.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the outcome to this JSON file.")]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


def say(text: str) -> None:
    """One line; of several processes the main one speaks."""
    if processes.is_main():
        print(text, flush=True)


def _load(config: Path, overrides: list[str] | None) -> Config:
    from sirius_rec.config import load_config

    packaged = Path(__file__).parent / "configs" / f"{config}.yaml"
    return load_config(packaged if not config.exists() and packaged.is_file() else config, overrides)


def _open(config: Path, overrides: list[str] | None, out: Path | None) -> tuple[RunFolder, Config]:
    from sirius_rec.recipes.run_folder import open_run

    loaded = _load(config, overrides)
    path = out or Path("runs") / loaded.name
    processes.join(cpu=loaded.compute.device == "cpu")
    if not processes.is_main():  # the main process makes the folder
        processes.wait()
    run = open_run(path, loaded)
    if processes.is_main():
        processes.wait()
    return run, loaded


def _check_json(path: Path | None, option: str = "--json") -> None:
    """Say before the work, not after it, that its outcome cannot be written."""
    if path is None:
        return
    if path.is_dir():
        example = path / ("report.html" if option == "--out" else "outcome.json")
        raise ConfigError(f"{option} {path}: is a folder: name a file in it, for example {example}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: the folder {path.absolute().parent} does not exist: make it first")


def _write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _stages(config: Path, overrides: list[str] | None, out: Path | None, stages: tuple[str, ...]) -> RunFolder:
    from sirius_rec.recipes.story import run_stages

    run, loaded = _open(config, overrides, out)
    run_stages(run, loaded, stages, say)
    return run


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo"),
    json_file: JsonOption = None,
) -> None:
    """The whole story on a simulated catalogue: data, SFT, DPO and softmax DPO with and without SIRIUS, report.

    Example: sirius demo --out runs/demo
    """
    say("sirius demo: a simulated catalogue whose true preferences are known; a tiny language model learns it (SFT),")
    say("is aligned by DPO and softmax DPO, each with and without the SIRIUS anchor, on 3 seeds, and is compared with")
    say("SFT continued for as long. At most 5 minutes on 2 cores. It can be stopped and started again at any time.")
    _run(Path("demo"), None, out, json_file)


@app.command()
def run(config: ConfigArg, overrides: OverridesArg = None, out: OutOption = None, json_file: JsonOption = None) -> None:
    """Run everything a configuration asks for; started again, it goes on where it stopped.

    Example: sirius run configs/lastfm.yaml align.epochs=3 --out runs/lastfm
    """
    _run(config, overrides, out, json_file)


def _run(config: Path, overrides: list[str] | None, out: Path | None, json_file: Path | None) -> None:
    from sirius_rec.recipes.story import STAGES, finish
    from sirius_rec.terminal import print_results

    _check_json(json_file)
    folder = _stages(config, overrides, out, STAGES)
    finish(folder, folder.config(), say)
    if not processes.is_main():
        return
    results = json.loads(folder.results.read_text())
    print_results(results)
    _write_json(json_file, results)
    say(f"results: {folder.results}")
    say(f"report:  {folder.path / 'report.html'}")


@app.command()
def compare(
    config: ConfigArg, overrides: OverridesArg = None, out: OutOption = None, json_file: JsonOption = None
) -> None:
    """Train and score every method and arm × seed on the same slates; tests against the strongest baseline.

    Does what is missing of `sirius run` and goes on where it stopped.

    Example: sirius compare configs/compare.yaml --out runs/compare --json table.json
    """
    from sirius_rec.data.store import open_dataset
    from sirius_rec.recipes import comparison
    from sirius_rec.recipes.story import STAGES, finish
    from sirius_rec.terminal import print_comparison

    _check_json(json_file)
    folder = _stages(config, overrides, out, STAGES)
    loaded = folder.config()
    finish(folder, loaded, say)
    if not processes.is_main():
        return
    results = comparison.compare(folder, loaded, open_dataset(folder.data))
    print_comparison(results)
    _write_json(json_file, results)
    say(f"comparison: {folder.path / comparison.FILE}")
    say(f"report:     {folder.path / 'report.html'}")


@app.command()
def prepare(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file with a data section.")] = None,
    overrides: OverridesArg = None,
    source: Annotated[str | None, typer.Option(help="Source name, instead of a CONFIG.")] = None,
    input: Annotated[Path | None, typer.Option(help="File or folder of the source.")] = None,
    out: Annotated[Path | None, typer.Option(help="Data folder to write.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Prepare a data set: events or windows in, frozen slates out.

    Example: sirius prepare configs/lastfm.yaml --out data/lastfm

    Example: sirius prepare --source table --input logs/ --out data/mine data.slates='[{size: 100}]'
    """
    from sirius_rec.config import parse_config
    from sirius_rec.config_yaml import apply_overrides
    from sirius_rec.data.statistics import summary_lines
    from sirius_rec.progress import byte_bar
    from sirius_rec.recipes.story import prepare_data

    extra = list(overrides or [])
    if config is not None and "=" in str(config) and not config.exists():
        extra, config = [str(config), *extra], None
    if (config is None) == (source is None):
        raise ConfigError("prepare: give either a CONFIG or --source (with --input)")
    if config is not None and input is not None:
        raise ConfigError("prepare: --input goes with --source; beside a CONFIG write data.input=PATH")
    if out is None:
        raise ConfigError("prepare: say where to write with --out DATA")
    _check_json(json_file)
    if config is not None:
        loaded = _load(config, extra)
    else:
        data = {"source": source, "input": None if input is None else str(input)}
        loaded = parse_config(apply_overrides({"data": data}, extra), "command line")
    with byte_bar("reading") as advance:
        dataset = prepare_data(loaded, None, say, out, advance)
    for line in summary_lines(dataset):
        say(line)
    _write_json(json_file, dataset.info)


@app.command("audit")
def audit_command(
    slates: Annotated[Path, typer.Argument(metavar="DATA_OR_SLATES", help="Data folder, JSON list or JSON lines.")],
    train: Annotated[list[Path] | None, typer.Option(help="What guessers may learn from; may be repeated.")] = None,
    val: Annotated[list[Path] | None, typer.Option(help="The same, of the val split; may be repeated.")] = None,
    ids: Annotated[Path | None, typer.Option(help="CSV of numeric ids by item_id or title: orders to try.")] = None,
    items: Annotated[Path | None, typer.Option(help="CSV of item_id, title; items.csv near the files.")] = None,
    name: Annotated[str | None, typer.Option("--slates", help="Which slates of a data folder.")] = None,
    scores: Annotated[Path | None, typer.Option(help="A model's scores: what no leak explains.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of shuffles and resamples.")] = 0,
    json_file: JsonOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 on a leak.")] = False,
) -> None:
    """Blind guessers on any slates: how much HR@1 needs no user, and whether the slates leak.

    Reads data folders, S-DPO's JSON (historyList, itemList, trueSelection), TRL records (prompt, chosen, rejected) and
    JSON lines (history, target, candidates[, timestamp, user_id, split, epoch]).

    Example: sirius audit data/lastfm

    Example: sirius audit lastfm-test.json --train windows.jsonl.gz --val lastfm-val.json --ids hetrec_ids.csv --strict
    """
    from sirius_rec.audit.audit import audit
    from sirius_rec.audit.printing import print_audit

    _check_json(json_file)
    result = audit(
        slates, train=train or (), val=val or (), ids=ids, items=items, slates=name, scores=scores, seed=seed
    )
    print_audit(result)
    _write_json(json_file, result)
    if strict and result["verdict"] == "leak":
        raise typer.Exit(1)


data_app = typer.Typer(help="Official data files: list them, fetch them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.command("download")
def download_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `sirius data list`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder. Default: data/raw/NAME.")] = None,
) -> None:
    """Fetch a data set's official files from its publisher: resumed where it broke off, checked, and unpacked.

    Example: sirius data download movielens-100k --out data/raw/movielens-100k
    """
    from sirius_rec.data.download import download, terms
    from sirius_rec.progress import byte_bar

    for line in terms(name):
        say(line)
    with byte_bar("fetching") as advance:
        folder = download(name, out or Path("data") / "raw" / name, say=say, advance=advance)
    say(f"done: {folder}")


@data_app.command("list")
def list_command() -> None:
    """The data sets that `sirius data download` knows, with their terms.

    Example: sirius data list
    """
    from sirius_rec.data.download import listing

    for line in listing():
        say(line)


@app.command()
def sft(config: ConfigArg, overrides: OverridesArg = None, out: OutOption = None) -> None:
    """Supervised fine-tuning only (with pretraining for the tiny backbone).

    Example: sirius sft configs/lastfm.yaml --out runs/lastfm
    """
    say(f"done: {_stages(config, overrides, out, ('sft',)).path / 'sft'}")


@app.command()
def align(config: ConfigArg, overrides: OverridesArg = None, out: OutOption = None) -> None:
    """Every arm's preference alignment, with what it needs before.

    Example: sirius align configs/lastfm.yaml --out runs/lastfm
    """
    say(f"done: {_stages(config, overrides, out, ('sft', 'align')).path / 'align'}")


@app.command()
def evaluate(run: RunArg, json_file: JsonOption = None) -> None:
    """Score the trained models and floors on the test slates; results.json and the table. Trains nothing.

    Example: sirius evaluate runs/lastfm
    """
    from sirius_rec.data.store import open_dataset
    from sirius_rec.recipes.evaluation import check_trained, collect
    from sirius_rec.recipes.run_folder import RunFolder
    from sirius_rec.recipes.story import run_stages
    from sirius_rec.terminal import print_results

    _check_json(json_file)
    folder = RunFolder(run)
    config = folder.config()
    check_trained(folder, config)
    run_stages(folder, config, ("evaluate",), say)
    if not processes.is_main():
        return
    results = collect(folder, config, open_dataset(folder.data))
    print_results(results)
    _write_json(json_file, results)


@app.command()
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
    from sirius_rec.recipes.run_folder import RunFolder
    from sirius_rec.terminal import print_diagnostics

    _check_json(json_file)
    folder = RunFolder(run)
    if folder.config_file.is_file() or not (run / "metrics.jsonl").is_file():
        folder.config()
        diagnostics = diagnosis.diagnose_run(folder, influence_rows=influence, say=say)
    else:
        diagnostics = diagnosis.diagnose_log(run)
    print_diagnostics(diagnostics)
    _write_json(json_file, diagnostics)
    if csv is not None:
        diagnosis.write_curves_csv(run, csv)
        say(f"curves: {csv}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders over the same data and slates.")],
    baseline: Annotated[str | None, typer.Option(metavar="METHOD", help="What paired tests are against.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page. Default: RUN/report.html, and RUN/figures/.")] = None,
) -> None:
    """One self-contained HTML page of one run, or of several side by side; figures as PNG and SVG beside it.

    Example: sirius report runs/lastfm --baseline item_knn

    Example: sirius report runs/a runs/b --out compared.html
    """
    from sirius_rec.recipes.evaluation import report_run
    from sirius_rec.recipes.run_folder import RunFolder

    _check_json(out, "--out")
    folders = [RunFolder(run) for run in runs]
    for folder in folders:
        folder.config()
    say(f"report: {report_run(*folders, baseline=baseline, out=out)}")


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
) -> None:
    """Rank requests with a trained model, in a stream; killed and started again, it goes on where it stopped.

    Requests hold item ids of the run's catalogue, or titles (--titles; always with a plain model). Bounded memory.

    Example: sirius rank --model runs/lastfm --input requests.jsonl --out ranked.jsonl --top 10
    """
    from sirius_rec.progress import byte_bar
    from sirius_rec.rankers.requests import AnswerFile, rank_file
    from sirius_rec.recipes.ranking import load_plain_model, load_run_ranker
    from sirius_rec.recipes.run_folder import RunFolder

    _check_json(out, "--out")
    folder = RunFolder(Path(model))
    if folder.config_file.is_file():
        served = load_run_ranker(folder, method=method, seed=seed, checkpoint=checkpoint, titles=titles)
    else:
        served = load_plain_model(model, template=template, shows_slate=slate, max_history=max_history)
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


@app.command()
def theory(
    out: Annotated[Path, typer.Option("--out", help="Folder for figure2 and figure5 (PNG and SVG).")] = Path("theory"),
    model: Annotated[str, typer.Option(help="Preference model: bradley_terry or thurstone.")] = "bradley_terry",
    points: Annotated[int, typer.Option(min=1000, help="Random points per Monte Carlo area.")] = 4_000_000,
    json_file: JsonOption = None,
) -> None:
    """Areas of the insensitive regions, Example 1, the paper's errata, and Figures 2 and 5.

    Example: sirius theory --out theory --json theory.json
    """
    from sirius_rec.report.theory_plots import write_theory_figures
    from sirius_rec.terminal import print_theory
    from sirius_rec.theory import claims
    from sirius_rec.theory.preference import MODELS

    _check_json(json_file)
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
    _write_json(json_file, content)
    for path in write_theory_figures(out, chosen):
        say(f"figure: {path}")


@app.command("bench")
def bench_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="step, score, memory, cost, end-to-end or cuda.")],
    quick: Annotated[bool, typer.Option("--quick", help="Smaller batches, fewer rounds: at most 3 minutes.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Where `cost` draws its figure (PNG).")] = None,
    json_file: JsonOption = None,
) -> None:
    """Performance figures, packed rows against what people use today, on the same batch, interleaved.

    Example: sirius bench step --quick --json step.json
    """
    from sirius_rec.bench.run import environment, run_bench
    from sirius_rec.recipes.job import quiet
    from sirius_rec.recipes.run_folder import processor, versions

    _check_json(json_file)
    _check_json(plot, "--plot")
    quiet()
    rows, seconds = run_bench(name, quick=quick, say=say, plot=plot)
    content = {"environment": environment(processor(), versions()), "quick": quick, "seconds": round(seconds, 1)}
    _write_json(json_file, {**content, "rows": rows})
    say(f"done in {seconds:.0f} s")


_INTERRUPTED, _TERMINATED = 130, 143
# click's own error for a wrong command line; typer brings its own copy of click, so it is reached through typer.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def _fail(message: str) -> NoReturn:
    print(f"sirius: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Entry point: what a user can mend becomes one line on stderr and exit code 2; a bug of ours a traceback.

    SIGTERM in a training saves its step, says how to go on, and exits with 0; elsewhere it exits with 143.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stopping.listen()
    try:
        code = app(prog_name="sirius", standalone_mode=False)
    except Stopped as stopped:
        print(f"sirius: {stopped}; start the same command again to go on", file=sys.stderr)
        sys.exit(0 if stopped.saved else _TERMINATED)
    except SiriusError as error:
        _fail(str(error))
    except _UsageError as error:
        if len(sys.argv) == 1:  # `sirius` alone shows the help, which is no error
            print(error.format_message())  # type: ignore[attr-defined]
            sys.exit(0)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "sirius"
        _fail(f"{error.format_message()} See `{command} --help`.")  # type: ignore[attr-defined]
    except OSError as error:
        reason = place_fault(error)
        if reason is None:
            raise
        where = error.filename or "a file"
        _fail(f"{where}: {reason}: mend that and start the same command again; what was finished is kept")
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # newer typer answers Ctrl-C itself, with this code and no word
        print("sirius: stopped; start the same command again to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
