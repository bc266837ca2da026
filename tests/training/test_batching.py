"""What a step consists of and what its examples weigh, whatever the split over processes and accumulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.batching import StepLayout, spread
from sirius_rec.training.records import PreferenceDataset

SPLITS = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (2, 2, 2), (1, 2, 4)]


def rows_of(lengths: list[int]) -> list[PromptCompletions]:
    return [PromptCompletions([5] * n, [[7, 2], [8] * (n % 3) + [2], [9, 9, 2]]) for n in lengths]


def steps(dataset: PreferenceDataset) -> list[list[list[tuple[int, float]]]]:
    """Per step and process, the (row, weight) it computes, as a sequential sampler and accelerate deal them out."""
    layout = dataset.layout
    slots = [dataset[i] for i in range(len(dataset))]
    batches = [slots[at : at + layout.micro] for at in range(0, len(slots), layout.micro)]
    rounds = [batches[at : at + layout.processes] for at in range(0, len(batches), layout.processes)]
    assert all(len(one) == layout.processes for one in rounds)
    out = []
    for at in range(0, len(rounds), layout.accumulation):
        step = rounds[at : at + layout.accumulation]
        out.append([[(d.row, d.weight) for one in step for d in one[p]] for p in range(layout.processes)])
    return out


@pytest.mark.parametrize("n_rows", [16, 13, 9])
def test_the_same_examples_in_every_step_and_each_counts_the_same(n_rows: int) -> None:
    rows = rows_of(np.random.default_rng(n_rows).integers(1, 40, n_rows).tolist())
    seen = []
    for split in SPLITS:
        dataset = PreferenceDataset(rows, negatives=1, seed=3, layout=StepLayout(*split))
        dataset.set_epoch(2)
        examples = []
        for number, step in enumerate(steps(dataset)):
            n_rounds = len(step[0]) // split[0] if split[2] > 1 else -(-len(step[0]) // split[0])
            # The Trainer divides by the rounds, and the processes' gradients are averaged.
            counted = {row: w / n_rounds / split[2] for one in step for row, w in one if w > 0}
            in_step = min(8, n_rows - 8 * number)
            assert len(counted) == in_step
            assert list(counted.values()) == pytest.approx([1 / in_step] * in_step)
            examples.append(sorted(counted))
        assert sorted(itertools.chain(*examples)) == list(range(n_rows))
        seen.append(examples)
    assert all(examples == seen[0] for examples in seen)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_weights_of_a_step_are_a_mean(n_examples: int, micro: int, accumulation: int, processes: int) -> None:
    layout = StepLayout(micro, accumulation, processes)
    slots = layout.slots(n_examples)
    assert 0 <= slots - n_examples < micro * processes
    for start in range(0, slots, layout.batch):
        in_step = range(start, min(start + layout.batch, slots))
        rounds = -(-len(in_step) // (micro * processes))
        total = sum(layout.weight(slot, n_examples) for slot in in_step)
        assert total / rounds / processes == pytest.approx(1.0)
    if n_examples >= layout.batch:
        assert layout.weight(0, n_examples) == pytest.approx(1 / micro)


def test_padding_is_at_most_three_per_cent_of_varied_rows() -> None:
    """Lengths as a real tokenizer gives them on Last.fm: mean 200, deviation 25; candidates of 2 to 9 tokens."""
    rng = np.random.default_rng(0)
    rows = [
        PromptCompletions([5] * int(n), [[7] * int(m) for m in rng.integers(2, 10, 20)])
        for n in rng.normal(160, 25, 1000).clip(60)
    ]
    for micro, limit in ((32, 0.03), (8, 0.01)):
        dataset = PreferenceDataset(rows, negatives=3, score_unsampled=0, layout=StepLayout(micro, 32 // micro))
        real = padded = 0
        for at in range(0, len(dataset), micro):
            drawn = [dataset[i] for i in range(at, min(at + micro, len(dataset)))]
            lengths = [
                len(rows[d.row].prompt) + sum(len(rows[d.row].completions[c]) - 1 for c in d.columns) for d in drawn
            ]
            real, padded = real + sum(lengths), padded + max(lengths) * len(lengths)
        assert 1 - real / padded <= limit


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 99))
def test_rows_spread_over_users_are_the_same_share_of_every_one(counts: list[int], seed: int) -> None:
    user_R = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    order = spread(user_R, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(user_R)))
    for n in {1, len(user_R) // 3, len(user_R) // 2, len(user_R)}:
        taken = np.bincount(user_R[order[:n]], minlength=len(counts))
        for count, got in zip(counts, taken, strict=True):
            assert abs(got - n * count / len(user_R)) < 1 + len(counts) * count / len(user_R)
    for user in range(len(counts)):  # neighbours, the first behind the last
        rows = np.flatnonzero(user_R == user).tolist()
        turns = [rows.index(r) for r in order.tolist() if user_R[r] == user]
        assert turns == [(turns[0] + k) % len(rows) for k in range(len(rows))]
