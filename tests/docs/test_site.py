"""The site builds strictly and needs nothing from elsewhere; links between Markdown files lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^(`{3,}).*?^\1[ \t]*$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_LOADED = re.compile(r"<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("the site is not built: it needs the extra docs (mkdocs-material, mkdocstrings)")
    out = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not _LOADED.findall(page.read_text(encoding="utf-8")), page.name
    sheets = "".join(sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css"))
    assert not re.findall(r"url\(['\"]?(?:https?:)?//", sheets)


def test_commands_and_classes_have_their_place(site: Path) -> None:
    commands = (site / "command_line.html").read_text(encoding="utf-8")
    for command in ("sirius run", "sirius audit", "sirius recommend", "sirius data download"):
        assert f'id="{command.replace(" ", "-")}"' in commands
    assert "--max-opened" in commands
    training = (site / "reference/training.html").read_text(encoding="utf-8")
    assert 'id="sirius_rec.training.trainer.SiriusTrainer"' in training
    # `name: …` lines of a docstring are a list.
    assert "<li><code>epsilons</code>" in training


def test_files_outside_docs_are_pages_of_the_site(site: Path) -> None:
    losses = (site / "losses.html").read_text(encoding="utf-8")
    assert 'href="repository/src/sirius_rec/objectives/parts.py.html"' in losses
    assert (site / "repository/src/sirius_rec/objectives/parts.py.html").is_file()
    readme = (site / "repository/index.html").read_text(encoding="utf-8")
    assert 'href="../configuration.html"' in readme


def test_the_search_works_from_the_disk(site: Path, tmp_path: Path) -> None:
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not browser:
        pytest.skip("no Chromium found: install chromium to test the search in a browser")
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
    )
    page = f"{(site / 'losses.html').as_uri()}?q=insensitive"
    done = subprocess.run(
        [browser, *flags, "--virtual-time-budget=20000", f"--user-data-dir={tmp_path}", "--dump-dom", page],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert re.search(r"[1-9]\d* matching documents", done.stdout), done.stderr[-2000:]
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        made = target == ROOT / "docs/command_line.md"  # by docs/site_hooks.py
        assert target.exists() or made, f"{page.name}: {link}"
        if anchor and target.suffix == ".md" and not made:
            assert anchor in _anchors(target), f"{page.name}: {link}"


def _anchors(page: Path) -> set[str]:
    """Headings as GitHub and the site name them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower())) for heading in headings}
