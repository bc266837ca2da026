"""A log of five users and a prepared world, for the tests of preparing and of what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from sirius_rec.data.options import SlateOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.store import Dataset


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Five users; user k has the items k … k+6 of ten, in order; two items share a title."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = "".join(f"u{k},i{k + step},{100 * k + step}\n" for k in range(5) for step in range(7))
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}", encoding="utf-8")
    items = "".join(f"i{k},{'Same' if k in (2, 4) else f'Title {k}'}\n" for k in range(14))
    (folder / "items.csv").write_text(f"item_id,title\n{items}", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 users of a simulated world with 120 items; never written to."""
    slates = (SlateOptions(), SlateOptions(size=50, seed=3, splits=("test",)))
    options = {"n_items": 120, "n_users": 40, "events_per_user": 16}
    return prepare("simulated", None, tmp_path_factory.mktemp("data") / "world", slates=slates, options=options)
