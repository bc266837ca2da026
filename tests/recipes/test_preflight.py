"""What is refused before anything is trained, where the backbone's configuration names no context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, PromptError
from sirius_rec.recipes import story
from sirius_rec.recipes.methods import finetuned
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.schema import CANDIDATES, HISTORY, SlateName

Check = Callable[..., None]


@pytest.fixture
def check(mini: Callable[..., Config], tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Check:
    """check(titles, *overrides): the checks of one row with a history of two items and a slate of two."""
    monkeypatch.setattr(finetuned, "configured_context", lambda config: None)
    monkeypatch.setattr(Run, "tokenizer", tokenizer)
    monkeypatch.setattr(Run, "validation_slates", SlateName("val", "uniform", 2, 0))

    def check_all(titles: list[str], *overrides: str) -> None:
        run = Run(RunFolder(tmp_path / "run"), mini(*overrides))
        run.__dict__["dataset"] = SimpleNamespace(
            info={},
            titles=titles,
            slate_names=[],
            examples=lambda split: pl.DataFrame({HISTORY: [[0, 1]]}),
            slates=lambda name: pl.DataFrame({CANDIDATES: [[1, 0]]}),
        )
        story._check(run, ())

    return check_all


def test_titles_that_cannot_be_told_apart(check: Check) -> None:
    check(["Air", "Blur"])
    with pytest.raises(PromptError, match="'A</s>' contains a special token"):
        check(["Air", "A</s>"])


def test_titles_that_cannot_be_marked(check: Check, tokenizer: Any) -> None:
    """LLaRA would find out after SFT and every arm."""
    tokenizer.chat_template = "{{ messages[0]['content'] | trim }}: "
    check(["Air", "Blur"], "methods=[llara]", "prompts.chat=true")
    with pytest.raises(PromptError, match="private-use character"):
        check(["Air", "B\ue000"], "methods=[llara]")
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}: "
    check(["Air", "Blur"], "prompts.chat=true")
    with pytest.raises(PromptError, match="the chat template changes the text"):
        check(["Air", "Blur"], "methods=[llara]", "prompts.chat=true")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["arms=[{loss: dpo, negatives_from: on_policy}]", "prompts.slate=false"], "arms: dpo.* searches"),
        (["methods=[llara]"], "methods: llara saves"),
    ],
)
def test_weights_in_parts(
    check: Check, monkeypatch: pytest.MonkeyPatch, kind: str, asked: list[str], message: str
) -> None:
    check(["Air", "Blur"], *asked)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")  # as `accelerate launch` does
    with pytest.raises(ConfigError, match=f"{message}.*: no FSDP, no DeepSpeed"):
        check(["Air", "Blur"], *asked)
