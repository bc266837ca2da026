"""A log of five users, for the tests of preparing."""

from __future__ import annotations

from pathlib import Path

import pytest


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
