"""A reference scores the candidates that are drawn, and a training is the same as with all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from sirius_rec import SiriusTrainer
from sirius_rec.errors import TrainingError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.rankers.catalogue.trie import build_trie
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training import trainer as trainers
from sirius_rec.training.drawn import epochs_of, score_columns
from sirius_rec.training.mining import Catalogue

Build = Callable[..., SiriusTrainer]


def by_ids(rows: Sequence[PromptCompletions]) -> list[np.ndarray]:
    """A score that names the completion."""
    return [np.array([-float(ids[0]) for ids in row.completions], dtype=np.float32) for row in rows]


def test_only_these_columns_are_asked_for() -> None:
    rows = [PromptCompletions([1], [[10 * r + c, 2] for c in range(4)]) for r in range(3)]
    asked: list[PromptCompletions] = []

    def score(some: Sequence[PromptCompletions]) -> list[np.ndarray]:
        asked.extend(some)
        return by_ids(some)

    found = score_columns(rows, [np.array([0, 3]), np.array([], dtype=np.int64), np.array([1])], score)
    assert [row.completions for row in asked] == [[[0, 2], [3, 2]], [[21, 2]]]
    np.testing.assert_array_equal(found, [[0, np.nan, np.nan, -3], [np.nan] * 4, [np.nan, -21, np.nan, np.nan]])
    assert all(logp_C.dtype == np.float32 for logp_C in found)


def test_nothing_to_ask_for() -> None:
    def score(some: Sequence[PromptCompletions]) -> list[np.ndarray]:
        raise AssertionError("a model was asked about nothing")

    (found,) = score_columns([PromptCompletions([1], [[3, 2]])], [np.array([], dtype=np.int64)], score)
    assert np.isnan(found).all()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("how", [{"max_steps": 1}, {"max_steps": 4}, {"max_steps": 7}, {"num_train_epochs": 1.5}])
def test_epochs_that_a_training_begins(
    build: Build, world: Any, how: dict[str, Any], accumulation: int, drop_last: bool
) -> None:
    """Against the epochs that a training of 13 records in micro-batches of 4 goes through."""
    begun: set[int] = set()

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            begun.add(trainer.train_dataset.epoch)

    trainer = build(
        train_dataset=world(13), gradient_accumulation_steps=accumulation, dataloader_drop_last=drop_last,
        callbacks=[Watch()], **how,
    )  # fmt: skip
    expected = epochs_of(trainer.args, len(trainer.train_dataset), trainer.train_dataset.layout)
    trainer.train()
    assert begun == set(range(expected))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "dpo_sirius", "score_unsampled": 1, "num_train_epochs": 2, "examples_per_epoch": 8},
        {"loss": "softmax_dpo", "negatives": 2, "score_unsampled": 0, "num_train_epochs": 9, "max_steps": 4},
        {"loss": "dpo", "negatives_from": "hard", "pool": 2, "score_unsampled": 1, "num_train_epochs": 2},
        {"loss": "dpo", "score_unsampled": 1, "max_steps": 5, "gradient_accumulation_steps": 2},
    ],
)
def test_a_training_is_that_with_all_log_probs(
    build: Build, world: Any, tmp_path: Path, options: dict[str, Any], stream: bool
) -> None:
    records = world(12, n_rejected=7)
    options = {**options, "stream": stream, "train_dataset": records}
    ours = build(output_dir=str(tmp_path / "ours"), **options)
    scored: list[int] = []
    score = ours.score

    def counted(rows: Sequence[PromptCompletions], *others: Any) -> list[np.ndarray]:
        scored.extend(len(row.completions) for row in rows)
        return score(rows, *others)

    ours.score = counted  # type: ignore[method-assign]
    ours.train()
    assert 0 < sum(scored) < 12 * 8, "all candidates were scored"
    plain = build(output_dir=str(tmp_path / "plain"), **{**options, "stream": False})
    whole = build(output_dir=str(tmp_path / "whole"), ref_logps=plain.score(plain.train_dataset.rows), **options)
    whole.train()
    before = plain.model.state_dict()
    for name, values in whole.model.state_dict().items():
        # On average: Adam makes a step of the rounding of a gradient that is all but zero.
        assert (ours.model.state_dict()[name] - values).abs().mean() < 1e-6, name
    assert any((values - before[name]).abs().max() > 1e-3 for name, values in whole.model.state_dict().items())


@pytest.mark.parametrize("options", [{"loss": "dpo"}, {"loss": "softmax_dpo", "negatives": 2, "filter": True}])
def test_a_column_that_was_not_scored_stops_the_training(
    build: Build, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """What is read by mistake is NaN, not a number that looks right; a filter would take it for a pair to leave out."""
    monkeypatch.setattr(trainers, "epochs_of", lambda *args: 1)
    with pytest.raises(TrainingError, match="the reference log-probs are not finite"):
        build(score_unsampled=0, num_train_epochs=8, **options).train()


def test_a_longer_training_needs_another_reference(build: Build) -> None:
    """The model as it was before the first step is gone; as long a training has all that it reads."""
    trainer = build(score_unsampled=0)
    trainer.train()
    trainer.train()
    trainer.args.num_train_epochs = 3
    with pytest.raises(TrainingError, match="was scored for 1 epochs: for more of them make a new trainer"):
        trainer.train()


def test_a_policys_negatives_are_not_scored_before_they_are_found(
    build: Build, world: Any, catalogue: tuple[str, ...], tokenizer: Any
) -> None:
    records, everything = world(4), Encoder(tokenizer)
    found = Catalogue(build_trie(everything, catalogue), [np.array([], dtype=np.int64)] * 4)
    trainer = build(negatives_from="on_policy", pool=2, train_dataset=records, catalogue=found)
    trainer.score = None  # type: ignore[method-assign, assignment]
    trainer.train()
    assert trainer.collator.ref_logps is None
