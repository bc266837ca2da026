"""Steps of whole runs of users' rows: order, draws, resumption, and the loss of a step however it is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sirius_rec.errors import ConfigError, DataError
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import count_nodes
from sirius_rec.training.batching import StepLayout
from sirius_rec.training.records import PreferenceDataset

USERS = ["ann"] * 5 + ["bob"] * 2 + ["cy"] * 4 + ["di"] * 1
# A user's histories grow from eight items of their own; all begin with the same instruction.
ROWS = [
    PromptCompletions(
        [3, 4, *[10 + "abcd".index(user[0])] * 8, *range(20, 20 + USERS[:n].count(user))], [[5, 2], [6, 2], [7, 2]]
    )
    for n, user in enumerate(USERS)
]


def dataset(**options: Any) -> PreferenceDataset:
    return PreferenceDataset(ROWS, negatives=1, users=USERS, seed=3, **options)


def runs(order: np.ndarray) -> list[tuple[str, list[int]]]:
    """Users in turn, with their rows."""
    found: list[tuple[str, list[int]]] = []
    for r in order.tolist():
        if not found or found[-1][0] != USERS[r]:
            found.append((USERS[r], []))
        found[-1][1].append(r)
    return found


def test_an_epoch_has_every_user_once_with_all_rows_in_order() -> None:
    orders = []
    for epoch in range(6):
        data = dataset(layout=StepLayout(2, 2))
        data.set_epoch(epoch)
        assert {user: rows for user, rows in runs(data.order)} == {
            user: [r for r, u in enumerate(USERS) if u == user] for user in USERS
        }
        assert len(runs(data.order)) == 4
        orders.append(tuple(user for user, _ in runs(data.order)))
    assert len(set(orders)) > 3


def test_shorter_epochs_walk_through_all_users() -> None:
    """Epochs of four: together the first three have all twelve rows, and each few users."""
    data, seen = dataset(examples_per_epoch=4), []
    for epoch in range(3):
        data.set_epoch(epoch)
        assert len(data) == 4
        assert len(runs(data.order)) <= 3
        seen += data.order.tolist()
    assert sorted(seen) == list(range(12))


def test_negatives_do_not_depend_on_the_order() -> None:
    alone, shared = PreferenceDataset(ROWS, negatives=1, seed=3), dataset()
    assert alone.order.tolist() != shared.order.tolist()
    for epoch in range(2):
        alone.set_epoch(epoch), shared.set_epoch(epoch)
        for r in range(12):
            assert alone.draw(r).columns.tolist() == shared.draw(r).columns.tolist()


def test_a_step_costs_less() -> None:
    def cost(data: PreferenceDataset) -> int:
        steps = [data.order[at : at + 4] for at in range(0, 12, 4)]
        return sum(count_nodes([ROWS[r] for r in step]) for step in steps)

    alone = [cost(PreferenceDataset(ROWS, negatives=1, seed=s, layout=StepLayout(4))) for s in range(5)]
    shared = [cost(PreferenceDataset(ROWS, negatives=1, users=USERS, seed=s, layout=StepLayout(4))) for s in range(5)]
    assert max(shared) < min(alone)


def test_the_heaviest_micro_batch_is_that_with_most_nodes() -> None:
    """One user's rows with a long history cost less together than short ones of many users."""
    long = [PromptCompletions([*range(3, 60), 60 + n], [[5, 2]]) for n in range(8)]
    short = [PromptCompletions([100 + n] * 20, [[5, 2]]) for n in range(8)]
    users = ["long"] * 8 + [f"short{n}" for n in range(8)]
    data = PreferenceDataset([*long, *short], negatives=0, users=users, seed=1, layout=StepLayout(8))
    batches = [data.order[at : at + 8].tolist() for at in (0, 8)]
    nodes = [count_nodes([data.rows[r] for r in batch]) for batch in batches]
    assert count_nodes(data.heaviest()) == max(nodes)
    assert sum(row.length("naive") for row in data.heaviest("naive")) == max(
        sum(data.rows[r].length("naive") for r in batch) for batch in batches
    )


Build = Callable[..., Any]


def records() -> list[dict[str, Any]]:
    names = ["Air", "Low", "Red", "Blur", "Pulp"]
    return [
        {"prompt": "\n".join([user, *names[: 1 + n % 4]]) + "\n", "chosen": "Suede", "rejected": names, "user": user}
        for n, user in enumerate(USERS)
    ]


@pytest.fixture
def build(tmp_path: Any, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Build:
    from sirius_rec.training.config import SiriusConfig
    from sirius_rec.training.trainer import SiriusTrainer

    def make(micro: int, name: str = "run", data: Any = None, **options: Any) -> Any:
        args = SiriusConfig(
            output_dir=str(tmp_path / name), loss="dpo", share="user", per_device_train_batch_size=micro,
            gradient_accumulation_steps=4 // micro, num_train_epochs=2, logging_steps=1, save_strategy="steps",
            save_steps=1, use_cpu=True, disable_tqdm=True, learning_rate=1e-2, lr_scheduler_type="constant", **options,
        )  # fmt: skip
        return SiriusTrainer(tiny_llama(tokenizer), args, data or records(), tokenizer)

    return make


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_step_is_the_mean_over_its_examples_however_it_is_split(build: Build) -> None:
    one, four = build(4, "one"), build(1, "four")
    one.train(), four.train()
    assert len(losses(one)) == 6
    np.testing.assert_allclose(losses(four), losses(one), rtol=1e-4)


def test_resuming_is_exact(build: Build) -> None:
    whole = build(2, "whole")
    whole.train()
    stopped = build(2, "stopped", max_steps=4)
    stopped.train()
    again = build(2, "stopped")
    again.train(resume_from_checkpoint=True)
    assert losses(again)[-2:] == losses(whole)[-2:]
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert ours.equal(theirs)


def test_what_is_refused(build: Build) -> None:
    unowned = records()
    del unowned[3]["user"]
    with pytest.raises(DataError, match="record 3: share: user needs to know whose it is: give every record a 'user'"):
        build(2, data=unowned)
    unowned[3]["user"] = float("nan")
    with pytest.raises(DataError, match="record 3: share: user needs to know whose it is"):
        build(2, data=unowned)
    from sirius_rec.training.config import SiriusConfig

    with pytest.raises(ConfigError, match="share: choose one of none, user, got 'users'"):
        SiriusConfig(share="users").check()
