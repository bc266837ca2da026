"""What the commands share: the app, their common arguments, opening a run, writing an outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sirius_rec import atomic, processes
from sirius_rec.errors import ConfigError
from sirius_rec.processes import log as log

if TYPE_CHECKING:
    from sirius_rec.cluster import Cluster
    from sirius_rec.config import Config
    from sirius_rec.recipes.run import Run

app = typer.Typer(
    name="sirius",
    help="Preference alignment of language-model recommenders, with reward-hacking evidence and honest evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        from sirius_rec import __version__

        print(f"sirius-rec {__version__}")
        raise typer.Exit


# Commands that several processes of a launcher go through together.
_TOGETHER = ("demo", "run", "compare", "sft", "align", "refit", "evaluate")


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="The version, and nothing else.")
    ] = False,
) -> None:
    command = context.invoked_subcommand
    if processes.count() > 1 and command not in _TOGETHER:
        raise ConfigError(
            f"sirius {command}: is one process, which {processes.count()} of a launcher would do side by side: start "
            "it without torchrun or accelerate launch"
        )


ConfigArg = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; the packaged ones go by name: demo.")]
OverridesArg = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Overrides, for example align.epochs=3.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/<name>.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the outcome to this JSON file.")]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Processes of this machine, or a Ray cluster, whose nodes share a disk."),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Of the Ray cluster. Default: one that is started here.")
]


def cluster_of(engine: str, address: str | None) -> Cluster | None:
    """What --engine and --address name. ConfigError for an address without Ray, or where Ray is not installed."""
    from sirius_rec.cluster import Cluster
    from sirius_rec.extras import require

    if engine == "ray":
        require("ray")
        return Cluster(address)
    if address is not None:
        raise ConfigError("--address: is that of a Ray cluster: add --engine ray")
    return None


def say(text: str) -> None:
    """One line of the outcome, on standard output; of several processes the main one speaks."""
    if processes.is_main():
        print(text, flush=True)


def load(config: Path, overrides: list[str] | None) -> Config:
    from sirius_rec.recipes.configuration import load_config
    from sirius_rec.recipes.run_folder import RunFolder

    packaged = Path(__file__).parents[1] / "configs" / f"{config}.yaml"
    if RunFolder(config).config_file.is_file():
        raise ConfigError(f"{config}: is a run folder: give its configuration, {RunFolder(config).config_file}")
    return load_config(packaged if not config.is_file() and packaged.is_file() else config, overrides)


def open_run_folder(config: Path, overrides: list[str] | None, out: Path | None) -> Run:
    from sirius_rec.recipes.adoption import open_run
    from sirius_rec.recipes.run import Run
    from sirius_rec.recipes.run_folder import RunFolder

    loaded = load(config, overrides)
    path = out or Path("runs") / loaded.name
    processes.join(cpu=loaded.compute.device == "cpu")
    with processes.one_for_all():
        folder = open_run(path, loaded) if processes.is_main() else RunFolder(path)
    return Run(folder, loaded)


def refuse_options(options: Mapping[str, Any], why: str) -> None:
    """ConfigError for options that were given (None and False: not) and would be passed over in silence."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ConfigError(f"{', '.join(given)}: {why}")


def check_json(path: Path | None, option: str = "--json") -> None:
    """Say before the work, not after it, that its outcome cannot be written."""
    if path is None:
        return
    if path.is_dir():
        example = path / {"--out": "report.html", "--csv": "curves.csv", "--plot": "cost.png"}.get(
            option, "outcome.json"
        )
        raise ConfigError(f"{option} {path}: is a folder: name a file in it, for example {example}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: the folder {path.absolute().parent} does not exist: make it first")


def write_json(path: Path | None, content: Any) -> None:
    if path is not None:
        atomic.write_json(path, content)


def train_stages(
    config: Path,
    overrides: list[str] | None,
    out: Path | None,
    stages: tuple[str, ...],
    cluster: Cluster | None = None,
) -> Run:
    from sirius_rec.extras import missing, require

    require("train")  # before the folder is made
    from sirius_rec.recipes.story import run_stages

    without_report = missing("report") if "evaluate" in stages else None
    if without_report:
        log(f"there will be no report: {without_report}")
    run = open_run_folder(config, overrides, out)
    run_stages(run, stages, log, cluster)
    return run
