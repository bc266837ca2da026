"""Optional packages: what is missing is said in one line, with the command that installs it, before any work."""

from __future__ import annotations

from importlib.util import find_spec

from sirius_rec.errors import ConfigError

_PACKAGES = {
    "train": ("torch", "transformers", "peft", "accelerate"),
    "report": ("matplotlib", "jinja2"),
    "tune": ("optuna",),
    "rectools": ("rectools.models.nn.transformers.ligr",),
    "ray": ("ray",),
    "remote": ("fsspec",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
}


def missing(extra: str) -> str | None:
    """Why what an extra brings cannot be used, and what to do; None where all of it is there.

    Looked for, not imported: that takes seconds, which a command that trains no language model need not wait.
    """
    for package in _PACKAGES[extra]:
        try:
            found = find_spec(package)
        except (ImportError, ValueError):  # of a package around it; of a module without a specification
            found = None
        if found is None:
            return f"this needs {package.partition('.')[0]}: pip install 'sirius-rec[{extra}]'"
    return None


def require(extra: str) -> None:
    """ConfigError where a package of an extra is missing."""
    problem = missing(extra)
    if problem:
        raise ConfigError(problem)
