"""Commands as a user starts them, and a finished miniature run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sirius_rec import cli
from sirius_rec.recipes.configuration import load_config

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Sirius = Callable[..., Outcome]


@pytest.fixture
def sirius(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Sirius:
    """sirius("run", …) → exit code, stdout and stderr of the command, run in this process."""

    def call(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sirius", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return call


@pytest.fixture
def refused(sirius: Sirius) -> Callable[..., str]:
    """The one line on stderr of a command that ends with exit code 2, without `sirius: `."""

    def call(*arguments: Any) -> str:
        outcome = sirius(*arguments)
        assert outcome.code == 2, outcome.err
        *progress, last = outcome.err.splitlines()
        assert last.startswith("sirius: ") and not any("Traceback" in line for line in progress), outcome.err
        return last.removeprefix("sirius: ")

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole miniature run. Copy it before changing anything."""
    from sirius_rec.recipes.adoption import open_run
    from sirius_rec.recipes.run import Run
    from sirius_rec.recipes.story import STAGES, finish, run_stages

    config = load_config(MINI, ["evaluation.generation_rows=0"])
    run = Run(open_run(tmp_path_factory.mktemp("cli") / "run", config), config)
    run_stages(run, STAGES, lambda line: None)
    finish(run, lambda line: None)
    return run.folder.path
