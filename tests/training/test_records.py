"""Records in all of TRL's forms, refusals that name record and column, and the negatives of an epoch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.errors import ConfigError, DataError, PromptError, SiriusError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.scoring.rows import PromptCompletions, check_context
from sirius_rec.training.batching import StepLayout
from sirius_rec.training.records import Draw, PreferenceDataset, TreeCollator, encode_records

GOOD = {"prompt": "Air\n", "chosen": "Red", "rejected": ["Blur", "Low"]}
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} => {% endif %}"
)


@pytest.fixture
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer)


def test_string_and_list_of_rejected_texts(encoder: Encoder) -> None:
    one, many, none = encode_records(
        [{**GOOD, "rejected": "Blur"}, GOOD, {"prompt": "Air\n", "chosen": "Red"}], encoder
    )
    assert one.completions == [encoder.completion("Red"), encoder.completion("Blur")]
    assert many.completions == [encoder.completion(t) for t in ("Red", "Blur", "Low")]
    assert none.completions == [encoder.completion("Red")]
    assert one.prompt == many.prompt == encoder.prompt("Air\n")


def test_chat_messages(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT
    encoder = Encoder(tokenizer)
    record = {
        "prompt": [{"role": "user", "content": "Air"}],
        "chosen": [{"role": "assistant", "content": "Red"}],
        "rejected": [{"role": "assistant", "content": "Blur"}],
    }
    (row,) = encode_records([record], encoder)
    assert tokenizer.decode(row.prompt) == "[user] Air => "
    assert row.completions == [encoder.completion("Red"), encoder.completion("Blur")]
    several = {**record, "rejected": [[{"role": "assistant", "content": t}] for t in ("Blur", "Low")]}
    assert len(encode_records([several], encoder)[0].completions) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": ""}, "record 1: 'chosen' must be a text that is not empty, got ''"),
        ({"chosen": None}, "record 1: 'chosen' must be a text"),
        ({"chosen": 7}, "record 1: 'chosen' must be a text"),
        ({"chosen": "Bj\ud800rk"}, "record 1: 'chosen' holds half a character (a lone surrogate): 'Bj\\ud800rk'"),
        ({"chosen": ["Red", "Blur"]}, "record 1: 'chosen' must be a text"),
        ({"rejected": ["Blur", ""]}, "record 1: 'rejected' must be a text"),
        ({"rejected": ["Blur", None]}, "record 1: 'rejected' must be a text"),
        ({"rejected": 7}, "record 1: 'rejected' must be a text"),
        ({"rejected": ["Blur", "Red"]}, "record 1: the chosen text 'Red' is also among the rejected ones"),
        ({"rejected": "Red"}, "record 1: the chosen text 'Red' is also among the rejected ones"),
        ({"prompt": None}, "record 1: 'prompt' must be a text or a list of chat messages"),
        ({"prompt": 3}, "record 1: 'prompt' must be a text or a list of chat messages"),
        ({"prompt": []}, "record 1: 'prompt' must be a text or a list of chat messages"),
        ({"prompt": [{"role": "user", "content": "Air"}]}, "record 1: 'prompt' is not of the same kind"),
    ],
)
def test_bad_records_are_named(encoder: Encoder, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        encode_records([GOOD, {**GOOD, **change}], encoder)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["prompt", "chosen"])
def test_missing_columns_are_named(encoder: Encoder, column: str) -> None:
    record = {k: v for k, v in GOOD.items() if k != column}
    with pytest.raises(DataError, match=f"record 1: column '{column}' is missing \\(has: .*rejected"):
        encode_records([GOOD, record], encoder)


def test_no_records(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="the data set has no records"):
        encode_records([], encoder)


def test_chat_messages_need_a_template(encoder: Encoder) -> None:
    with pytest.raises(SiriusError, match="no chat template"):
        encode_records([{**GOOD, "prompt": [{"role": "user", "content": "Air"}]}], encoder)


def test_empty_prompt(encoder: Encoder) -> None:
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        encode_records([GOOD, {**GOOD, "prompt": ""}], encoder)


def test_context_counts_prompt_and_longest_completion() -> None:
    """Two of three rows need more than 6 positions: 5 + 3 − 1 = 7 and 8 + 1 − 1 = 8."""
    rows = [
        PromptCompletions([9] * 5, [[4, 5, 2], [2]]),
        PromptCompletions([9] * 8, [[2]]),
        PromptCompletions([9] * 5, [[4, 2]]),
    ]
    check_context(rows, 8)
    check_context(rows, None)
    message = r"2 of 3 prompts with their longest completion exceed the model's context of 6 tokens \(longest: 8\)"
    with pytest.raises(PromptError, match=message):
        check_context(rows, 6)


def rows_of(n_rows: int, n_rejected: int) -> list[PromptCompletions]:
    """Completion c of row r is the token 100 r + c and the end of sequence."""
    return [PromptCompletions([5], [[100 * r + c + 10, 2] for c in range(n_rejected + 1)]) for r in range(n_rows)]


def epoch_columns(dataset: PreferenceDataset, epoch: int) -> list[list[int]]:
    dataset.set_epoch(epoch)
    return [dataset.draw(r).columns.tolist() for r in range(len(dataset.rows))]


def test_negatives_are_redrawn_each_epoch_and_reproducible() -> None:
    one, two = (PreferenceDataset(rows_of(8, 9), negatives=3, seed=5) for _ in range(2))
    first, second = epoch_columns(one, 0), epoch_columns(one, 1)
    assert first != second
    assert epoch_columns(two, 1) == second
    assert epoch_columns(two, 0) == first
    assert epoch_columns(PreferenceDataset(rows_of(8, 9), negatives=3, seed=6), 0) != first
    assert len({tuple(c) for c in first}) > 1  # rows differ from each other


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
    rejected=st.integers(1, 12),
    k=st.integers(0, 12),
    others=st.sampled_from([0, 1, 4, "all"]),
)
def test_draws(seed: int, epoch: int, rejected: int, k: int, others: int | str) -> None:
    """The positive first, then k different rejected ones, then as many others as asked for."""
    k = min(k, rejected)
    dataset = PreferenceDataset(rows_of(3, rejected), negatives=k, score_unsampled=others, seed=seed)
    dataset.set_epoch(epoch)
    draw = dataset.draw(1)
    assert draw.row == 1
    assert draw.n_sampled == k
    columns = draw.columns.tolist()
    assert columns[0] == 0
    assert len(set(columns)) == len(columns)
    assert set(columns) <= set(range(rejected + 1))
    assert len(columns) == 1 + (rejected if others == "all" else min(rejected, k + int(others)))


@pytest.mark.parametrize(("per_epoch", "epochs"), [(None, 3), (5, 2), (5, 0), (5, 7)])
def test_columns_drawn_are_those_of_the_epochs(per_epoch: int | None, epochs: int) -> None:
    """Row by row, against what the slots of each epoch give; and the data set is left at its epoch."""
    dataset = PreferenceDataset(rows_of(8, 9), negatives=2, score_unsampled=1, seed=5, examples_per_epoch=per_epoch)
    expected: list[set[int]] = [set() for _ in range(8)]
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for slot in range(len(dataset)):
            expected[dataset[slot].row].update(dataset[slot].columns.tolist())
    dataset.set_epoch(1)
    order = dataset.order.tolist()
    found = dataset.columns_drawn(epochs)
    assert [columns.tolist() for columns in found] == [sorted(columns) for columns in expected]
    assert dataset.epoch == 1 and dataset.order.tolist() == order, "asking changed it"
    assert {len(columns) for columns in found} - {0} >= ({4} if epochs == 2 else set())


def test_every_negative_is_drawn_about_equally_often() -> None:
    """400 epochs, 1 of 4: each is expected 100 times, standard deviation 8.7; 5 deviations are allowed."""
    dataset = PreferenceDataset(rows_of(1, 4), negatives=1, score_unsampled=0)
    counts = np.bincount([epoch_columns(dataset, e)[0][1] for e in range(400)], minlength=5)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 100).max() < 44


def test_all_negatives() -> None:
    draw = PreferenceDataset(rows_of(2, 5), negatives="all")[0]
    assert draw.n_sampled == 5
    assert sorted(draw.columns.tolist()) == list(range(6))


def test_more_negatives_than_there_are() -> None:
    rows = [*rows_of(2, 5), *rows_of(1, 2)]
    with pytest.raises(ConfigError, match="3 negatives were asked for, but record 2 has only 2 rejected completions"):
        PreferenceDataset(rows, negatives=3)
    PreferenceDataset(rows, negatives=2)
    with pytest.raises(ConfigError, match="all negatives were asked for, but record 3 has only 0 rejected"):
        PreferenceDataset([*rows, *rows_of(1, 0)], negatives="all")
    PreferenceDataset([*rows, *rows_of(1, 0)], negatives=0)


@pytest.mark.parametrize(("n_rows", "per_epoch"), [(10, 5), (10, 4), (7, 3)])
def test_examples_per_epoch_walks_through_all_rows_before_repeating(n_rows: int, per_epoch: int) -> None:
    dataset = PreferenceDataset(rows_of(n_rows, 2), negatives=1, examples_per_epoch=per_epoch)
    assert len(dataset) == per_epoch
    seen = []
    for epoch in range(3 * n_rows):
        dataset.set_epoch(epoch)
        seen += [dataset[i].row for i in range(per_epoch)]
    # However the epochs cut the walk, at no time was a row seen twice more than another.
    for n in range(per_epoch, len(seen) + 1, per_epoch):
        counts = np.bincount(seen[:n], minlength=n_rows)
        assert counts.max() - counts.min() <= 1
    assert seen[:per_epoch] != list(range(per_epoch))  # a seeded order, not the file's


def test_more_examples_per_epoch_than_rows_is_all_rows() -> None:
    dataset = PreferenceDataset(rows_of(4, 2), negatives=1, examples_per_epoch=9)
    assert sorted(dataset[i].row for i in range(len(dataset))) == [0, 1, 2, 3]


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 5), st.integers(0, 1000))
def test_grouping_by_length_is_a_permutation(n_rows: int, group: int, epoch: int, seed: int) -> None:
    """Every row once per epoch, another order in each, the incomplete batch last, similar lengths together."""
    lengths = np.random.default_rng(seed).integers(1, 50, n_rows)
    rows = [PromptCompletions([5] * int(n), [[7, 2], [8, 2]]) for n in lengths]
    dataset = PreferenceDataset(rows, negatives=1, seed=seed, layout=StepLayout(group))
    dataset.set_epoch(epoch)
    order = [dataset[i].row for i in range(n_rows)]
    assert sorted(order) == list(range(n_rows))
    batches = [sorted(lengths[order[at : at + group]]) for at in range(0, n_rows, group)]
    if group > 1:
        full = sorted(batch for batch in batches if len(batch) == group)
        assert all(one[-1] <= other[0] for one, other in itertools.pairwise(full))
    again = PreferenceDataset(rows, negatives=1, seed=seed, layout=StepLayout(group))
    again.set_epoch(epoch)
    assert [again[i].row for i in range(n_rows)] == order


def test_the_order_changes_with_the_epoch() -> None:
    dataset = PreferenceDataset(rows_of(20, 1), negatives=1, layout=StepLayout(4))
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        orders.append([dataset[i].row for i in range(20)])
    assert orders[0] != orders[1] != orders[2]


def test_collator_by_hand() -> None:
    rows = rows_of(2, 3)
    collator = TreeCollator(rows, with_rows=True)
    draws = [Draw(1, np.array([0, 3, 1]), 1), Draw(0, np.array([0, 2]), 1)]
    assert "ref_logp_BC" not in collator(draws)
    collator.ref_logps = [np.array([-1.0, -2.0, -3.0, -4.0]), np.array([-5.0, -6.0, -7.0, -8.0])]
    batch = collator(draws)
    tree = batch["tree"]
    read = sorted(zip(tree.candidate_M.tolist(), tree.target_M.tolist(), strict=True))
    assert read == [(0, 2), (0, 110), (1, 2), (1, 113), (2, 2), (2, 111), (3, 2), (3, 10), (4, 2), (4, 12)]
    assert batch["weight_B"].tolist() == [0.5, 0.5]
    assert batch["sampled_BC"].tolist() == [[False, True, False], [False, True, False]]
    assert tree.valid_BC.tolist() == [[True, True, True], [True, True, False]]
    assert batch["row_B"].tolist() == [1, 0]
    assert batch["ref_logp_BC"].tolist() == [[-5.0, -8.0, -6.0], [-1.0, -3.0, 0.0]]
    assert batch["rows"][1].completions == [[10, 2], [12, 2]]
    assert batch["ref_logp_BC"].dtype == torch.float32


def test_collator_does_not_mark_absent_columns_as_sampled() -> None:
    rows = [*rows_of(1, 3), *rows_of(1, 1)]
    dataset = PreferenceDataset(rows, negatives="all")
    batch = TreeCollator(rows)([dataset[0], dataset[1]])
    assert batch["sampled_BC"].tolist() == [[False, True, True, True], [False, True, False, False]]
