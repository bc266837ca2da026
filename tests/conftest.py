"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _shared_folder() -> Path | None:
    """The folder of real data beside the checkout, or $SIRIUS_SHARED; None where there is none."""
    named = os.environ.get("SIRIUS_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`shared/data` with the real data sets; the test is skipped, saying so, where it is absent."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip("real data not found: put it in ../shared/data or set SIRIUS_SHARED")
    return folder / "data"


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """`shared/models` with real tokenizers; the test is skipped, saying so, where it is absent."""
    folder = _shared_folder()
    if folder is None or not (folder / "models").is_dir():
        pytest.skip("real tokenizers not found: put them in ../shared/models or set SIRIUS_SHARED")
    return folder / "models"
