"""Whether a configuration belongs to a run folder: what may change under way, and what may grow.

Keys that change what is trained are held fast, those of alignment from its first step on. Those that only say how it is
computed (`Options.HOW` of each section, a method's `free_options`) or what is measured of it (`Options.MEASURED`) may
change at any time. Seeds, arms and methods may be added.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sirius_rec.atomic import write_json
from sirius_rec.config import ArmSection, Config, MethodSection
from sirius_rec.errors import RunError
from sirius_rec.options import Options
from sirius_rec.recipes.environment import environment
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods import kind_of
from sirius_rec.recipes.run_folder import ENVIRONMENT, LOCK, RunFolder

# Every entry is computed for itself, so a longer list leaves what is done as it is.
_GROW = ("seeds", "arms", "methods")
_UNSET = object()


def open_run(path: Path, config: Config) -> RunFolder:
    """Make the run folder, or go on in one of the same configuration.

    Arms and methods of which nothing was begun may be changed or taken away, and a method's own seeds may grow. A
    changed configuration is written by `adopt`, once it is known to be sound and nobody else works in the folder.

    RunError if it was made with another configuration (naming the first difference) or holds something else.
    """
    folder = RunFolder(path)
    if folder.config_file.is_file():
        _require_same(folder, folder.config(), config)
        return folder
    # What describes the machine may be there alone: it is written first, and a kill may have come in between. A tuning
    # that was refused leaves its lock.
    if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - {ENVIRONMENT, LOCK}):
        raise RunError(f"{path}: exists and is not a run folder: choose another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / ENVIRONMENT, environment(config))
        folder.write_config(config)
    except OSError as error:
        raise RunError(f"{path}: cannot write the run folder ({error.strerror}): choose another --out") from error
    return folder


def _require_same(folder: RunFolder, saved: Config, config: Config) -> None:
    difference = first_difference(folder, saved, config)
    if difference:
        raise RunError(
            f"{folder.path}: this run folder was made with another configuration ({difference}): choose another --out"
        )


def adopt(folder: RunFolder, config: Config) -> None:
    """Make `config`, which `open_run` let pass, the folder's, and say what changes; call it under the lock.

    RunError if another process has begun since what `config` would change.
    """
    saved = folder.config()
    if saved != config:
        _require_same(folder, saved, config)
        before, after = (_held(one, _GROW, measured=True) for one in (saved, config))
        for changed in _differences(before, after):
            log(f"{folder.path}: {changed}")
        folder.write_config(config)


def first_difference(folder: RunFolder, saved: Config, current: Config, *, whole: bool = False) -> str | None:
    """In words, the first thing that the folder holds fast and `current` changes or lacks.

    whole: alignment that is not begun and what is measured must be the same, too.
    """
    before, after = (_held(config, _GROW, measured=whole) for config in (saved, current))
    if not whole and not folder.aligned():
        for held in (before, after):
            held["align"] = {"from": held["align"]["from"]}
    difference = _difference(before, after)
    if difference:
        begun = difference.startswith("align.") and not whole
        return f"{difference}; alignment has begun" if begun and folder.aligned() else difference
    if not set(saved.seeds) <= set(current.seeds):
        return f"seeds: saved {list(saved.seeds)!r}, now {list(current.seeds)!r}"
    for place in ("arms", "methods"):
        entries: dict[str, Any] = {entry.key: entry for entry in getattr(current, place)}
        for entry in getattr(saved, place):
            if not folder.begun(entry.key):
                continue
            where = f"{place}.{entry.key}"
            if entry.key not in entries:
                return f"{where}: begun in the folder, missing now"
            other = entries[entry.key]
            old, new = _seeds(entry, saved), _seeds(other, current)
            if not set(old) <= set(new):
                return f"{where}.seeds: saved {list(old)!r}, now {list(new)!r}"
            difference = _difference(_held_entry(entry), _held_entry(other), where)
            if difference:
                return difference
    return None


def _seeds(entry: ArmSection | MethodSection, config: Config) -> tuple[int, ...]:
    return getattr(entry, "seeds", None) or config.seeds


def _held(options: Options, leave_out: tuple[str, ...] = (), measured: bool = False) -> dict[str, Any]:
    """Options as plain values, without those that only say how something is computed.

    measured: with those that say what is measured.
    """
    dumped, kind = options.model_dump(mode="json"), type(options)
    free = {*kind.HOW, *leave_out} | (set() if measured else kind.MEASURED)
    held = {}
    for key in kind.model_fields:
        if key not in free:
            value = getattr(options, key)
            held[key] = _held(value, measured=measured) if isinstance(value, Options) else dumped[key]
    return held


def _held_entry(entry: ArmSection | MethodSection) -> dict[str, Any]:
    """What of an arm or method decides what comes out, with one seed."""
    held = _held(entry, leave_out=("seeds",))
    if isinstance(entry, MethodSection):
        free = kind_of(entry.method).free_options
        held["options"] = {key: value for key, value in held["options"].items() if key not in free}
    return held


def _difference(old: Any, new: Any, place: str = "") -> str | None:
    """The first place where two configurations differ, in words."""
    return next(_differences(old, new, place), None)


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    lists = isinstance(old, list) and isinstance(new, list)
    if lists and all(isinstance(entry, dict) for entry in (*old, *new)):
        old, new = (dict(enumerate(entries)) for entries in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=str):
            where = f"{place}.{key}" if place else str(key)
            yield from _differences(old.get(key, _UNSET), new.get(key, _UNSET), where)
    elif old != new:
        before, after = ("not set" if value is _UNSET else repr(value) for value in (old, new))
        yield f"{place}: saved {before}, now {after}"
