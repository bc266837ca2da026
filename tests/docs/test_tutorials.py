"""The code of the tutorials is run as a reader would, block after block, in one folder on small simulated data.

Files are blocks whose title is a file name; `sh` and `python` blocks are run; a `text` block with the title "prints" is
what the block before it must print. Blocks whose title says "not run" need a GPU, a network or time. YAML without a
title is a part of a configuration, and must be one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from sirius_rec import cli
from sirius_rec.config import structure

DOCS = Path(__file__).resolve().parents[2] / "docs"
START = DOCS / "start.md"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
OTHERS = [DOCS / f"{name}.md" for name in ("extending", "theory", "operations", "serving", "catalogue")]
# Two nights, each command in a process of its own; others that train for a while.
SLOW = dict.fromkeys(("nightly", "own_log", "tuning"), pytest.mark.slow)
_FENCE = re.compile(r"^```(\w*)([^\n`]*)\n(.*?)^```[ \t]*$", re.M | re.S)
_FILE = re.compile(r"[\w./-]+\.\w+")
# Blocks that are not run, by page: whoever adds one says so here.
NOT_RUN = {"start.md": 2, "own_model.md": 3, "report.md": 1, "operations.md": 4, "serving.md": 2}


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str
    line: int

    @property
    def is_run(self) -> bool:
        return self.language in ("sh", "bash", "python", "yaml", "jsonl", "csv") and "not run" not in self.title

    @property
    def is_file(self) -> bool:
        return bool(_FILE.fullmatch(self.title))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', fence[2])
        found.append(Block(fence[1], title[1] if title else "", fence[3], text.count("\n", 0, fence.start()) + 1))
    return found


Runner = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """run(page, put={text: other}): its blocks in order, in the current folder, with texts replaced in them."""
    from sirius_rec.data.sources import SOURCES
    from sirius_rec.objectives.parts import ANCHORS, COMPARISONS, LINKS, REWARDS
    from sirius_rec.objectives.presets import LOSSES
    from sirius_rec.recipes.methods import METHODS

    monkeypatch.setenv("SIRIUS_CACHE", str(Path.cwd() / "cache"))
    tables = (SOURCES, LOSSES, REWARDS, LINKS, COMPARISONS, ANCHORS, METHODS)
    for table in tables:  # what a page adds is taken out again
        for name, value in table.items():
            monkeypatch.setitem(table, name, value)  # type: ignore[arg-type]
    before = [(table, set(table)) for table in tables]
    yield lambda page, put=None: _run_page(page, monkeypatch, put or {})  # type: ignore[misc]
    for table, names in before:
        for name in set(table) - names:
            del table[name]  # type: ignore[attr-defined]


def _run_page(page: Path, monkeypatch: pytest.MonkeyPatch, put: dict[str, str]) -> None:
    names: dict[str, Any] = {"__name__": "tutorial"}
    printed = ""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        for text, other in put.items():
            block = replace(block, text=block.text.replace(text, other))
        if block.title == "prints":
            assert printed.split() == block.text.split(), f"{where}: printed\n{printed}"
        elif not block.is_run:
            continue
        elif block.is_file:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            printed = "".join(_run_line(line, where, monkeypatch) for line in _lines(block.text))
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, where, "exec"), names)
            printed = out.getvalue()
        elif block.language == "yaml":
            structure(yaml.safe_load(block.text), where)
        else:
            raise AssertionError(f"{where}: a {block.language} block needs a file name or 'not run' as its title")


def _lines(text: str) -> list[str]:
    """Commands of a block: continued lines and quotes joined, comments and blank lines left out."""
    commands = [""]
    for line in text.replace("\\\n", " ").splitlines():
        commands[-1] += line
        try:
            shlex.split(commands[-1], comments=True)
        except ValueError:  # the quote goes on
            commands[-1] += "\n"
        else:
            commands.append("")
    return [command for command in commands if shlex.split(command, comments=True)]


def _run_line(line: str, where: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`sirius …` and `python FILE` in this process, which has torch already; anything else by the shell."""
    words = shlex.split(line, comments=True)
    plain = not set(line.split("#")[0]) & set("|><;&$")
    if words[0] == "sirius" and plain:
        out = io.StringIO()
        monkeypatch.setattr(sys, "argv", words)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, f"{where}: {line}\n{out.getvalue()}"
        return out.getvalue()
    if words[0] == "python" and plain:
        monkeypatch.setattr(sys, "argv", words[1:])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            runpy.run_path(words[1], run_name="__main__")
        return out.getvalue()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(["bash", "-c", line], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{where}: {line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after the page of the first five minutes, which the tutorials go on in. Copy it."""
    return tmp_path_factory.mktemp("tutorials") / "first"


def _first(first_run: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    if not first_run.is_dir():
        folder = first_run.with_name("making")
        folder.mkdir()
        monkeypatch.chdir(folder)
        run(START)
        folder.rename(first_run)


def test_the_first_five_minutes(first_run: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    _first(first_run, run, monkeypatch)
    assert (first_run / "runs/first/report.html").is_file()


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=SLOW.get(page.stem, ()), id=page.stem) for page in TUTORIALS]
)
def test_tutorial(page: Path, first_run: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _first(first_run, run, monkeypatch)
    folder = tmp_path / "work"
    shutil.copytree(first_run, folder)
    monkeypatch.chdir(folder)
    run(page)


@pytest.fixture
def mine(first_run: Path, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of pages that speak of a run called mine, made with my.yaml."""
    _first(first_run, run, monkeypatch)
    shutil.copytree(first_run / "runs/first", tmp_path / "runs/mine")
    shutil.copy(first_run / "first.yaml", tmp_path / "my.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in OTHERS if page.stem != "serving"], ids=lambda page: page.stem)
def test_code_of_other_pages(page: Path, run: Runner, mine: Path) -> None:
    run(page)


def test_code_of_the_page_on_serving(run: Runner, mine: Path, at_work: Callable[..., Any]) -> None:
    """Its requests, of a service with the models of its second command."""
    pytest.importorskip("fastapi", reason="the service needs the extra serve")
    pytest.importorskip("cohere", reason="the page shows Cohere's client")
    from sirius_rec.recipes import serving
    from sirius_rec.serving.options import Service
    from sirius_rec.serving.server import application

    what = serving.Source(str(mine / "runs/mine"), ("dpo_sirius", "sft"), service=Service())
    app = application(partial(serving.load, what), what.service, log=lambda line: None)
    with at_work(app) as address:
        run(DOCS / "serving.md", put={"http://localhost:8000": address, "localhost:8000": address})


def test_blocks_that_are_not_run_are_few_and_known() -> None:
    found = {
        page.name: sum("not run" in block.title for block in blocks(page)) for page in (START, *TUTORIALS, *OTHERS)
    }
    assert {name: count for name, count in found.items() if count} == NOT_RUN


@pytest.mark.parametrize("page", [START, *TUTORIALS, *OTHERS], ids=lambda page: page.stem)
def test_every_block_is_run_or_says_that_it_is_not(page: Path) -> None:
    for block in blocks(page):
        known = block.is_run or "not run" in block.title or block.language in ("text", "json")
        assert known, f"{page.name}:{block.line}: language {block.language!r}"
