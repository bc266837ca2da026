"""`sirius paper`: run folders or results.json files, and what the paper's tables and figures are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.scoring import current_results

# The paper's figure → which of a run's figures show it (files in RUN/figures).
FIGURES = {
    "1b": ("margin_*",),
    "2": ("figure2",),
    "3": ("insensitive_shares", "margin_*"),
    "4": ("golden_*",),
    "5": ("figure5",),
}


def read(named: str) -> dict[str, Any]:
    """Results of a run folder or of a file; `goodreads=PATH` says which of the paper's data sets they stand for
    (`data.source`; `data.read_by` is then the source that read them).

    RunError for what holds no results, or those of another evaluation than the folder is configured for.
    """
    dataset, path = _parted(named)
    file = RunFolder(path).results if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        complete = all(key in results for key in ("summary", "config", "data"))
    except (OSError, ValueError, TypeError):
        complete = False
    if not complete:
        raise RunError(f"{file}: holds no results of a run: name a run folder that was evaluated, or its results.json")
    if path.is_dir() and RunFolder(path).config_file.is_file():
        current_results(Run.open(path))
    if dataset is not None:
        results["data"] = {**results["data"], "source": dataset, "read_by": results["data"].get("source")}
    return dict(results)


def _parted(named: str) -> tuple[str | None, Path]:
    """`NAME=PATH` → both; a path, which may hold "=" itself, by itself."""
    name, _, rest = named.partition("=")
    if not rest or Path(named).exists():
        return None, Path(named)
    if Path(name).name != name:
        raise ConfigError(f"{named}: a name in front of a run has no folders in it, and there is no such path")
    return name, Path(rest)


def figure_files(number: str, runs: Sequence[str]) -> dict[str, Path]:
    """One of the paper's figures from all run folders: file name (of several runs behind the run's) → file.

    ConfigError where there are none.
    """
    if number not in FIGURES:
        raise ConfigError(f"--figure {number}: the paper has figures {', '.join(FIGURES)}")
    folders = {path / "figures": name or path.resolve().name for name, path in map(_parted, runs)}
    found: dict[str, Path] = {}
    for folder, run in folders.items():
        for file in (file for pattern in FIGURES[number] for file in sorted(folder.glob(f"{pattern}.*"))):
            name = file.name if len(folders) == 1 else f"{run}-{file.name}"
            if name in found:
                raise ConfigError(f"--figure {number}: two runs are called {run}: tell them apart with NAME=RUN")
            found[name] = file
    if not found:
        raise ConfigError(f"--figure {number}: none of it in {', '.join(map(str, folders))}: run `sirius report` first")
    return found
