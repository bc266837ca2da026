"""RUN/: where everything of a run lies, and whether it belongs to the configuration at hand.

RUN/
  config.yaml  environment.json       what was run, on what
  data/                               the prepared data set (schema.py)
  backbone/                           tokenizer of the tiny backbone
  methods/<method>/s<seed>/           recommenders without a language model
  pretrain/s<seed>/  sft/s<seed>/  align/<arm>/s<seed>/
      metrics.jsonl  held_out/  checkpoints/  best/  last/  done.json
  reference/s<seed>.npz               cached log π_ref
  scores/  generation/                score tables and greedy answers
  results.json  diagnostics.json  report.html  figures/
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sirius_rec import atomic
from sirius_rec.atomic import write_json as write_json
from sirius_rec.config import ArmSection, Config, MethodSection, load_config
from sirius_rec.errors import RunError
from sirius_rec.rankers.chat.options import PLUMBING

# Sections that change how a run is computed but not what comes out.
_FREE = {"compute": {"jobs"}}
# Lists that may grow: every entry is computed for itself, so a longer list leaves what is done as it is.
_GROW = ("seeds", "arms", "methods")
ENVIRONMENT = "environment.json"
_LOCK = ".lock"
_UNSET = object()
_VERSIONS = ("sirius-rec", "torch", "transformers", "peft", "accelerate", "tokenizers", "polars", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    out = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def environment(config: Config) -> dict[str, Any]:
    """Versions, hardware, git revision and seeds, for environment.json."""
    revision = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "git_revision": revision or None,
        "seeds": list(config.seeds),
        "argv": sys.argv,
    }


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def backbone(self) -> Path:
        return self.path / "backbone"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def diagnostics(self) -> Path:
        return self.path / "diagnostics.json"

    def stage(self, name: str, seed: int) -> Path:
        """Folder of `pretrain`, `sft` or an arm's training."""
        parts = (name,) if name in ("pretrain", "sft") else ("align", name)
        return self.path.joinpath(*parts, f"s{seed}")

    def method(self, key: str, seed: int) -> Path:
        """Folder of a recommender without a language model."""
        return self.path / "methods" / key / f"s{seed}"

    def reference(self, seed: int) -> Path:
        return self.path / "reference" / f"s{seed}.npz"

    @property
    def scores(self) -> Path:
        return self.path / "scores"

    @property
    def generation(self) -> Path:
        return self.path / "generation"

    def config(self) -> Config:
        """The configuration that this folder was made with."""
        if not self.config_file.is_file():
            raise RunError(f"{self.path}: not a run folder (no config.yaml): make one with `sirius run CONFIG`")
        return load_config(self.config_file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process may train in a run folder; RunError if another one does. A killed one leaves no lock."""
        if sys.platform == "win32" or os.environ.get("RANK", "0") != "0":
            yield
            return
        import fcntl

        with (self.path / _LOCK).open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path}: another process is working in this run folder: wait for it or choose another --out"
                ) from None
            yield

    def adopt(self, config: Config) -> None:
        """Make `config`, which `open_run` let pass, the folder's; call it under the lock."""
        there, here = self.config().model_dump(mode="json"), config.model_dump(mode="json")
        if any(there[place] != here[place] for place in _GROW):
            _write_config(self, config)

    def discard_if_untrained(self) -> None:
        """Remove the folder again if nothing was trained in it yet, so that a mended configuration can use its name."""
        made = {self.config_file.name, ENVIRONMENT, _LOCK, self.data.name, self.backbone.name}
        if {entry.name for entry in self.path.iterdir()} <= made:
            shutil.rmtree(self.path)


def open_run(path: Path, config: Config) -> RunFolder:
    """Make the run folder, or go on in one of the same configuration, to which seeds, arms and methods may be added.

    Arms and methods of which nothing was begun may also be changed or taken away; a method's own seeds may grow, and
    chatrec's `PLUMBING` may change. A changed configuration is written by `RunFolder.adopt`, once it is known to be
    sound and nobody else works in the folder.

    RunError if it was made with another configuration (naming the first difference) or holds something else.
    """
    folder = RunFolder(path)
    if folder.config_file.is_file():
        there, here = folder.config().model_dump(mode="json"), config.model_dump(mode="json")
        difference = _difference({**there, **{place: here[place] for place in _GROW}}, here)
        difference = difference or _lost(folder, there, here)
        if difference:
            raise RunError(
                f"{path}: this run folder was made with another configuration ({difference}): choose another --out"
            )
        return folder
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path}: exists and is not a run folder: choose another --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / ENVIRONMENT, environment(config))
        _write_config(folder, config)
    except OSError as error:
        raise RunError(f"{path}: cannot write the run folder ({error.strerror}): choose another --out") from error
    return folder


def _write_config(folder: RunFolder, config: Config) -> None:
    atomic.write_text(folder.config_file, config.to_yaml())


def _lost(folder: RunFolder, there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """In words, the first seed that `here` lacks, or begun arm or method that it lacks or changes."""
    if not set(there["seeds"]) <= set(here["seeds"]):
        return f"seeds: {there['seeds']!r} there, {here['seeds']!r} here"
    for place, kind in (("arms", ArmSection), ("methods", MethodSection)):
        now = {kind(**entry).key: entry for entry in here[place]}
        for before in there[place]:
            key = kind(**before).key
            if not _begun(folder, key):
                continue
            if key not in now:
                return f"{place}.{key}: begun there, missing here"
            old, new = (entry.get("seeds") or run["seeds"] for entry, run in ((before, there), (now[key], here)))
            if not set(old) <= set(new):
                return f"{place}.{key}.seeds: {old!r} there, {new!r} here"
            found = _difference(_counting(before), _counting(now[key]), f"{place}.{key}")
            if found:
                return found
    return None


def _begun(folder: RunFolder, key: str) -> bool:
    """Whether an arm or method has a folder or scores."""
    made = (folder.stage(key, 0).parent, folder.method(key, 0).parent)
    return any(path.exists() for path in made) or any(folder.scores.glob(f"{key}-s[0-9]*"))


def _counting(entry: dict[str, Any]) -> dict[str, Any]:
    """What of an arm or method decides what comes out, with one seed."""
    out = {key: value for key, value in entry.items() if key != "seeds"}
    if entry.get("method") == "chatrec":
        out["options"] = {key: value for key, value in entry["options"].items() if key not in PLUMBING}
    return out


def _difference(old: Any, new: Any, place: str = "") -> str | None:
    """The first place where two configurations differ, in words."""
    lists = isinstance(old, list) and isinstance(new, list)
    if lists and all(isinstance(entry, dict) for entry in (*old, *new)):
        old, new = (dict(enumerate(entries)) for entries in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        free = _FREE.get(place, set())
        for key in sorted({*old, *new} - free, key=str):
            found = _difference(old.get(key, _UNSET), new.get(key, _UNSET), f"{place}.{key}" if place else str(key))
            if found:
                return found
        return None
    if old == new:
        return None
    said = ("not set" if value is _UNSET else repr(value) for value in (old, new))
    return "{}: {} there, {} here".format(place, *said)
