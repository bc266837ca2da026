"""The way of a log that does not fit into memory, pass by pass; the outcome is that of preparing it in memory.

Each pass reads files and writes files into the work folder, piece by piece, shard by shard or part by part; a finished
piece is not made again, so a preparation that was killed goes on. At no time is more held than a few pieces, and some
numbers per user and item.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec import __version__
from sirius_rec.cluster import Cluster
from sirius_rec.data.freezing import description, excludes
from sirius_rec.data.options import Preparation, Sharding
from sirius_rec.data.sharded.engine import Engine, engine
from sirius_rec.data.sharded.passes import Passes, Say
from sirius_rec.data.sharded.plan import Piece, Plan
from sirius_rec.data.sharded.source import LogFile
from sirius_rec.data.sharded.work import opened
from sirius_rec.data.sources.csv_records import Dialect
from sirius_rec.data.sources.files import file_note
from sirius_rec.data.sources.table import OpenTable, load, open_table
from sirius_rec.data.statistics import joint_statistics, paper_statistics
from sirius_rec.data.store import Dataset, give_name, open_dataset, write_info
from sirius_rec.errors import ConfigError, DataError


def prepare_sharded(
    asked: Preparation,
    input: Path,
    out: Path,
    recipe: dict[str, Any],
    sharding: Sharding,
    cluster: Cluster | None,
    say: Say,
) -> Dataset:
    """Write the dataset folder that `prepare` would, for source `table`.

    Raises:
        ConfigError, DataError, RunError: as `prepare`; and RunError where the work folder is another preparation's, or
            full, or not seen by a node of the cluster.
    """
    if any(option.protocol == "hard" for option in asked.slates):
        raise ConfigError(
            "slates: protocol hard ranks the catalogue by all train rows at once, which shards do not have; leave "
            "data.shards out, or the protocol"
        )
    with engine(sharding.jobs, cluster) as calls:
        defaults = {name: p.default for name, p in inspect.signature(load).parameters.items()}
        options = {**defaults, **asked.options}
        table = open_table(input, options)
        calls.reach(table.files, out)
        files = _look(calls, table, sharding, say)
        notes = [*(file.note for file in files), file_note(table.items_path)]
        divided = asdict(replace(sharding, jobs=1))
        versions = [__version__, pl.__version__]
        with opened(out, {"recipe": recipe, "files": notes, "sharding": divided, "versions": versions}) as folder:
            plan = Plan(
                folder=folder,
                rules=table.rules,
                files=files,
                pieces=[Piece(number, span) for number, file in enumerate(files) for span in file.spans],
                sharding=sharding,
                asked=asked,
                ties=options["ties"],
                keep_repeats=options["keep_repeats"],
                excluded=excludes(asked.slates, asked.split.kind != "user"),
                shown=table.shown,
            )
            plan_file = plan.save(f"plan-{os.getpid()}-{os.urandom(4).hex()}")
            _go(Passes(calls, plan, plan_file, say), table, recipe, notes)
            say(f"writing {out}")
            give_name(plan.final, out)
    return open_dataset(out)


def _go(passes: Passes, table: OpenTable, recipe: dict[str, Any], files: list[dict[str, Any]]) -> None:
    """All passes, and dataset.json beside the tables. files: provenance of the log's files and the catalogue's."""
    log = passes.events(table, files)
    counted = passes.counted(table)
    parts = passes.parts()
    frozen = passes.slates(passes.base(counted.items), parts, counted.items.height)
    fingerprints = passes.assemble(counted.items, frozen)
    windows = {name: sum(part["windows"][name] for part in parts) for name in parts[0]["windows"]}
    short = sum(part["short"] for part in parts)
    impressions = counted.impressions(log, sum(part["impressions"] for part in parts))
    info = {
        "recipe": recipe,
        "source": {"name": "table", "notes": {**log, **counted.notes}},
        "statistics": {
            **counted.statistics(windows), **joint_statistics(frozen.counts), **paper_statistics("table")
        },
        "filters": counted.filters(windows["repeats"])
        | impressions
        | ({"rows_without_enough_negatives_dropped": short} if short else {}),
        "titles": counted.titles,
        "slates": {
            str(name): description(name, exclude, frozen.rows(name.split), fingerprints[f"slates/{name}"])
            | frozen.filled_up(name)
            for name, exclude in frozen.names.items()
        },
    }  # fmt: skip
    write_info(passes.plan.final, info, fingerprints)


def _look(engine: Engine, table: OpenTable, sharding: Sharding, say: Say) -> list[LogFile]:
    """All files of the log, each read once."""
    say(f"looking at {table.path}")
    calls = [(file, table.dialect, tuple(table.rules.names.values()), sharding) for file in table.files]
    found: list[LogFile | str] = [""] * len(calls)
    for number, file in engine.map(_look_at, calls):
        found[number] = file
    for file in found:
        if isinstance(file, str):
            raise DataError(file)
        table.rules.check_columns(file.empty, file.path)
        if table.shown is not None:
            table.shown.check_columns(file.empty, file.path)
    return [file for file in found if isinstance(file, LogFile)]


def _look_at(path: Path, dialect: Dialect, wanted: Sequence[str], sharding: Sharding) -> LogFile | str:
    """The file, or the message of what is wrong with it, so that the first of several files is told."""
    try:
        return LogFile.look(path, dialect, wanted, sharding)
    except DataError as error:
        return str(error)
