"""`sirius probe`: rankers that answer by place and by item; a model that knows all and one that knows nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes import probing
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.methods.sft import Sft
from sirius_rec.recipes.probing import probe_memory, probe_order
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import prepare_data


class By:
    """A ranker that scores by a rule."""

    def __init__(self, rule: Callable[[np.ndarray], np.ndarray]) -> None:
        self.rule = rule

    def score(self, histories: Sequence[np.ndarray], candidates: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self.rule(np.asarray(slate)) for slate in candidates]


def test_what_answers_by_place_and_what_answers_by_item(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sft, "ranker", lambda *a: By(lambda slate: -np.arange(len(slate), dtype=float)))
    found = probe_order(trained, rows=40, orders=4)
    assert found["first"] == 1 and found["last"] == 0 and found["uniform_p"] < 1e-6
    # of six candidates the first of two random orders is another one in 5 of 6
    assert found["changed"]["mean"] == pytest.approx(5 / 6, abs=0.08)
    assert found["rows"] == 40 and len(found["hr@1"]) == 4 and sum(found["places"]) == pytest.approx(1)
    monkeypatch.setattr(Sft, "ranker", lambda *a: By(lambda slate: slate.astype(float)))
    found = probe_order(trained, rows=40, orders=4)
    assert found["changed"]["mean"] == 0 and found["uniform_p"] > 1e-4
    assert {one["mean"] for one in found["hr@1"]} == {found["hr@1_averaged"]["mean"]}
    assert found["averaged_less_single"] == {"mean": 0, "low": 0, "high": 0}


def test_slates_that_differ_in_size(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrieved slates may lack the target's place: the last place is each row's own, and the far ones are rarer."""
    whole = trained.slates

    def some(name: str) -> Any:
        frame = whole(name)
        short = [row[: 3 + n % 4] for n, row in enumerate(frame["candidates"].to_list())]
        return frame.with_columns(pl.Series("candidates", short, dtype=frame["candidates"].dtype))

    monkeypatch.setattr(trained, "slates", some, raising=False)
    monkeypatch.setattr(probing, "target_positions", lambda slates, targets: np.zeros(len(slates), dtype=np.int64))
    monkeypatch.setattr(Sft, "ranker", lambda *a: By(lambda slate: np.arange(len(slate), dtype=float)))
    assert probe_order(trained, rows=40, orders=4)["last"] == 1
    monkeypatch.setattr(Sft, "ranker", lambda *a: By(lambda slate: slate.astype(float)))
    assert probe_order(trained, rows=40, orders=8)["uniform_p"] > 1e-3


def test_averaging_takes_an_orders_noise_away(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are a little ahead everywhere, the place shown adds up to five: averaged, a target wins more often."""
    targets = set(trained.dataset.examples("test")["target"].to_list())

    def rule(slate: np.ndarray) -> np.ndarray:
        return np.array([2.0 * (item in targets) for item in slate]) - np.arange(len(slate))

    monkeypatch.setattr(Sft, "ranker", lambda *a: By(rule))
    assert probe_order(trained, rows=40, orders=8)["averaged_less_single"]["mean"] > 0


def test_the_command_on_a_real_model(trained: Run) -> None:
    arguments = ["probe", "order", str(trained.folder.path), "--rows", "20", "--orders", "2"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and "the answer differs between two orders in" in result.output
    assert "sft, seed 0, on test-uniform-6-s0: 20 rows in 2 orders each" in result.output


@pytest.fixture
def pretrained(mini: Callable[..., Config], tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Run:
    """A run on a folder, of which nothing is trained."""
    tiny_llama(tokenizer, max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = mini(f"backbone.name={tmp_path / 'model'}")
    run = Run(open_run(tmp_path / "run", config), config)
    prepare_data(config, run.folder, lambda line: None)
    return run


def test_random_weights_know_nothing(pretrained: Run) -> None:
    found = probe_memory(pretrained, rows=54)
    for key in ("titles", "order"):
        assert found[key]["low"] <= 0.5 <= found[key]["high"] and found[key]["n"] > 20, key


def test_one_that_knows_all_is_found(pretrained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a rule: the true rest of a title, and a history in the order of events, score higher."""
    names = pretrained.dataset.titles
    encoder = pretrained.encoder
    titles = {tuple(encoder.tokenizer(title, add_special_tokens=False)["input_ids"]) for title in names}
    true = {
        tuple(encoder.prompt("\n".join([*(names[i] for i in history), ""])))
        for history in pretrained.dataset.examples("test")["history"].to_list()
    }

    def by_heart(model: Any, rows: Any, pad_id: int, **options: Any) -> list[np.ndarray]:
        out = []
        for row in rows:
            if len(row.completions) == 2:
                out.append(np.array([float((*row.prompt, *ids) in titles) for ids in row.completions]))
            else:
                out.append(np.array([float(tuple(row.prompt) in true)]))
        return out

    monkeypatch.setattr(probing, "score_rows", by_heart)
    found = probe_memory(pretrained, rows=54)
    # now and then another title's rest makes a title, too, or a shuffled history is the same
    assert found["titles"]["mean"] > 0.95 and found["order"]["mean"] > 0.95
    assert found["nats_in_order"]["mean"] > 0.9


def test_probes_that_cannot_be(trained: Run, mini: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--orders 1: two or more"):
        probe_order(trained, orders=1)
    with pytest.raises(ConfigError, match="the tiny backbone has read nothing"):
        probe_memory(trained)
    with pytest.raises(RunError, match="popularity"):
        probe_order(trained, method="popularity")
    hidden = Run(trained.folder, trained.config.changed(prompts={"slate": False}))
    with pytest.raises(ConfigError, match="do not list the candidates"):
        probe_order(hidden)
