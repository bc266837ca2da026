"""prepare, audit, data: files in, frozen slates and their audit out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sirius_rec.commands.common import (
    AddressOption,
    EngineOption,
    JsonOption,
    OverridesArg,
    app,
    check_json,
    cluster_of,
    load,
    log,
    say,
    write_json,
)
from sirius_rec.errors import ConfigError


@app.command(short_help="Events or windows in, frozen slates out.")
def prepare(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file with a data section.")] = None,
    overrides: OverridesArg = None,
    source: Annotated[str | None, typer.Option(help="Source name, instead of a CONFIG.")] = None,
    input: Annotated[str | None, typer.Option(help="File or folder of the source, or its address (s3://…).")] = None,
    out: Annotated[Path | None, typer.Option(help="Data folder to write.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Divide a large log; as data.shards=N.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes for shards; as compute.jobs=J.")] = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only name every problem of the files; 1 if any.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Prepare a data set: events or windows in, frozen slates out.

    Example: sirius prepare configs/lastfm.yaml --out data/lastfm

    Example: sirius prepare --source table --input logs/ --check

    Example: sirius prepare --source table --input logs/ --out data/mine data.slates='[{size: 100}]'

    Example: sirius prepare --source table --input logs/ --out data/large --shards 64 --jobs 8

    On a Ray cluster a shard is a call on some core; files go over a disk that every node has at the same path.

    Example: sirius prepare --source table --input /shared/logs/ --out /shared/large --shards 512 --engine ray

    Example: sirius prepare my.yaml --out data/mine data.window='{kind: anchored, max_history: 50, step: 25}'
    """
    from sirius_rec.config_yaml import apply_overrides
    from sirius_rec.data.checking import check_lines
    from sirius_rec.data.statistics import summary_lines
    from sirius_rec.progress import byte_bar
    from sirius_rec.recipes.configuration import parse_config
    from sirius_rec.recipes.story import prepare_data

    extra = list(overrides or [])
    if config is not None and "=" in str(config) and not config.exists():
        extra, config = [str(config), *extra], None
    if (config is None) == (source is None):
        raise ConfigError("prepare: give either a CONFIG or --source (with --input)")
    if config is not None and input is not None:
        raise ConfigError("prepare: --input goes with --source; beside a CONFIG write data.input=PATH")
    if out is None and not check:
        raise ConfigError("prepare: say where to write with --out DATA")
    cluster = cluster_of(engine, address)
    if cluster is not None and jobs is not None:
        raise ConfigError("--jobs: is for one machine; with --engine ray every core of the cluster has a call")
    extra += [f"data.shards={shards}"] if shards is not None else []
    extra += [f"compute.jobs={jobs}"] if jobs is not None else []
    check_json(json_file)
    if config is not None:
        loaded = load(config, extra)
    else:
        data = {"source": source, "input": input}
        loaded = parse_config(apply_overrides({"data": data}, extra), "command line")
    if check or out is None:
        with byte_bar("reading") as advance:
            lines, problems = check_lines(loaded.data.source, loaded.data.input, loaded.data.options, log, advance)
        for line in lines:
            say(line)
        raise typer.Exit(1 if problems else 0)
    with byte_bar("reading") as advance:
        dataset = prepare_data(loaded, out, log, advance, cluster)
    for line in summary_lines(dataset):
        say(line)
    write_json(json_file, dataset.info)


@app.command("audit", short_help="Blind probes: do slates give answers away?")
def audit_command(
    slates: Annotated[Path, typer.Argument(metavar="DATA_OR_SLATES", help="Data or run folder, or a file of slates.")],
    train: Annotated[list[Path] | None, typer.Option(help="What probes may learn from; may be repeated.")] = None,
    val: Annotated[list[Path] | None, typer.Option(help="The same, of the val split; may be repeated.")] = None,
    ids: Annotated[Path | None, typer.Option(help="CSV of numeric ids by item_id or title: orders to try.")] = None,
    items: Annotated[Path | None, typer.Option(help="CSV of item_id, title; items.csv near the files.")] = None,
    name: Annotated[str | None, typer.Option("--slates", help="Which slates of a data folder.")] = None,
    scores: Annotated[Path | None, typer.Option(help="A model's scores: what no leak explains.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of shuffles and resamples.")] = 0,
    json_file: JsonOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 on a leak.")] = False,
) -> None:
    """Blind probes on any slates: how much HR@1 needs no user, and whether the slates leak.

    Reads data folders, S-DPO's JSON (historyList, itemList, trueSelection), TRL records (prompt, chosen, rejected) and
    JSON lines (history, target, candidates[, timestamp, user_id, split, epoch]).

    Example: sirius audit data/lastfm

    Example: sirius audit lastfm-test.json --train windows.jsonl.gz --val lastfm-val.json --ids hetrec_ids.csv --strict
    """
    from sirius_rec.audit.audit import audit
    from sirius_rec.audit.printing import print_audit
    from sirius_rec.recipes.run_folder import RunFolder

    check_json(json_file)
    if RunFolder(slates).config_file.is_file():
        slates = RunFolder(slates).data
        log(f"auditing the data of this run: {slates}")
    result = audit(
        slates, train=train or (), val=val or (), ids=ids, items=items, slates=name, scores=scores, seed=seed
    )
    print_audit(result)
    write_json(json_file, result)
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
