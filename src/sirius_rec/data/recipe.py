"""What a dataset folder was made from: the same recipe finds its folder again, another one is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sirius_rec import atomic, cache
from sirius_rec.data.options import Preparation
from sirius_rec.data.sources import source_of
from sirius_rec.data.sources.files import events_files
from sirius_rec.data.store import FORMAT, INFO_FILE, Dataset, open_dataset
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.remote import is_address

NO_OPTIONS = ("path", "seed", "advance")  # parameters of a source that have a place of their own


def make_recipe(asked: Preparation) -> dict[str, Any]:
    """What a dataset folder was made from, as dataset.json keeps it; options with the source's defaults."""
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "source": asked.source,
        "input": None if asked.input is None else str(asked.input),
        "options": _with_defaults(asked.source, asked.options),
        "filter": asked.filter.model_dump(),
        "split": asked.split.model_dump(),
        "window": asked.window.model_dump(),
        "slates": [option.model_dump() for option in asked.slates],
        "seed": asked.seed,
        "limits": asked.limits,
    }
    # Recipes older than these options are without them, and stay as they are.
    if asked.unusable != "refuse" or asked.max_title is not None:
        recipe |= {"unusable": asked.unusable, "max_title": asked.max_title}
    if asked.held_out:
        recipe |= {"hold_out": asked.held_out.model_dump()}
    # through JSON, so that it equals what is read back (tuples are lists there, paths are text)
    return dict(json.loads(json.dumps(recipe, default=str)))


def reusable(out: Path, recipe: dict[str, Any]) -> Dataset | None:
    """The dataset in `out` if this recipe wrote it from the same input, None if nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / INFO_FILE).is_file():
        raise RunError(f"{out}: exists and is not a dataset; choose another folder or remove it")
    dataset = open_dataset(out)
    if parts := _differences(dataset, recipe):
        raise RunError(
            f"{out}: was prepared with another recipe (differs in: {parts}); choose another folder or remove it"
        )
    if is_address(recipe["input"]):  # which may hold more by now; what was read of it does not change
        return dataset
    files = dataset.info["source"]["notes"].get("files", [])
    if recipe["source"] == "table" and Path(recipe["input"], "interactions").is_dir():
        names = {str(path) for path in events_files(Path(recipe["input"]))[1]}
        if more := sorted(names - {file["path"] for file in files}):
            raise RunError(f"{out}: {more[0]} was not there when it was prepared; choose another folder or remove it")
    for file in files:
        path = Path(file["path"])
        if path.is_file() and cache.fingerprint(path) != file["sha256"]:
            raise RunError(f"{out}: {path} has changed since it was prepared; choose another folder or remove it")
    return dataset


def adopted(folder: Path, out: Path, recipe: dict[str, Any]) -> Dataset:
    """A copy in `out` of the dataset in `folder`, which the same recipe made from any input.

    Raises:
        ConfigError: another recipe made it. DataError: it is damaged. RunError: out holds something else.
    """
    there = out if (out / INFO_FILE).is_file() else folder
    if not there.exists():
        raise DataError(f"data.prepared {folder}: no such folder: name one that `sirius prepare` made")
    dataset = open_dataset(there)
    if parts := _differences(dataset, {**recipe, "input": dataset.info.get("recipe", {}).get("input")}):
        raise ConfigError(f"{there}: was prepared with another recipe (differs in: {parts}); take over its settings")
    if there == out:  # taken over before; the folder it came from may be gone
        if folder.exists() and open_dataset(folder).fingerprint != dataset.fingerprint:
            raise RunError(f"{out}: exists and is not a copy of {folder}; choose another folder or remove it")
        return dataset
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: exists and is not a copy of {folder}; choose another folder or remove it")
    dataset.verify()
    try:
        with atomic.replacing(out) as partial:
            shutil.copytree(folder, partial)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror or error}); choose another folder") from error
    return open_dataset(out)


def _differences(dataset: Dataset, recipe: dict[str, Any]) -> str:
    """The parts in which a dataset's recipe is another one; options that it does not name are at their defaults."""
    saved = dict(dataset.info.get("recipe", {}))
    if saved.get("source") == recipe["source"]:
        saved["options"] = _with_defaults(recipe["source"], saved.get("options", {}))
    return ", ".join(sorted(k for k in recipe.keys() | saved.keys() if recipe.get(k) != saved.get(k)))


def _with_defaults(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(source_of(source)).parameters
    empty = inspect.Parameter.empty
    defaults = {name: p.default for name, p in parameters.items() if name not in NO_OPTIONS and p.default is not empty}
    return dict(json.loads(json.dumps({**defaults, **options}, default=str)))
