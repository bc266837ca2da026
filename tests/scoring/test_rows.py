"""The layout of packed rows, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.scoring import rows
from sirius_rec.scoring.rows import PackedBatch, PromptCompletions, pack


def test_layout_by_hand() -> None:
    """Prompt 10 11 12 with (20 21 2), (30 2) and the bare (2); and prompt 13 with (40 41 42 2), padded."""
    batch = pack(
        [PromptCompletions([10, 11, 12], [[20, 21, 2], [30, 2], [2]]), PromptCompletions([13], [[40, 41, 42, 2]])],
        pad_id=9,
    )
    assert batch.input_ids_BT.tolist() == [[10, 11, 12, 20, 21, 30], [13, 40, 41, 42, 9, 9]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 0, 0]]
    assert batch.segment_BT.tolist() == [[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, -1, -1]]
    assert batch.keep_BT.tolist() == [[False, False, True, True, True, True], [True, True, True, True, False, False]]
    # Kept rows: 0–3 are 12, 20, 21, 30; 4–7 are 13, 40, 41, 42. Every first token is read off the last prompt token.
    assert batch.source_M.tolist() == [0, 1, 2, 0, 3, 0, 4, 5, 6, 7]
    assert batch.target_M.tolist() == [20, 21, 2, 30, 2, 2, 40, 41, 42, 2]
    assert batch.candidate_M.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert batch.keep_BP.tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]
    assert batch.slot_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert batch.valid_BC.tolist() == [[True, True, True], [True, False, False]]
    assert batch.length_BC.tolist() == [[3, 2, 1], [4, 1, 1]]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(10, 99), min_size=1, max_size=6),
            st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=4), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_token_is_predicted_from_its_own_prefix(texts: list[tuple[list[int], list[list[int]]]]) -> None:
    """Walk back from each logit row through its segment and the prompt: it must be exactly x, y_1 … y_l−1."""
    batch = pack([PromptCompletions(prompt, ys) for prompt, ys in texts], pad_id=0)
    kept = batch.keep_BT.nonzero().tolist()
    padded = [(b, column) for b, columns in enumerate(batch.keep_BP.tolist()) for column in columns]
    assert [list(padded[slot]) for slot in batch.slot_N.tolist()] == kept
    m = 0
    for b, (prompt, ys) in enumerate(texts):
        ids, segment, position = (t[b] for t in (batch.input_ids_BT, batch.segment_BT, batch.position_ids_BT))
        for c, y in enumerate(ys):
            for n, token in enumerate(y):
                row, column = kept[int(batch.source_M[m])]
                assert row == b
                own = torch.arange(len(ids)) <= column
                seen = ids[own & ((segment == 0) | (segment == c + 1))].tolist()
                assert seen == prompt + y[:n]
                assert int(position[column]) == len(prompt) + n - 1
                assert int(batch.target_M[m]) == token
                assert int(batch.candidate_M[m]) == b * batch.valid_BC.shape[1] + c
                m += 1
            assert batch.length_BC[b, c] == len(y)
    assert m == len(batch.target_M)


def test_lengths_of_a_row() -> None:
    row = PromptCompletions([1, 2, 3], [[4, 5, 2], [6, 2]])
    assert row.packed_length == 3 + 2 + 1
    # 3 prompt tokens and 2 inputs of the longest completion
    assert row.longest_path == 5


def test_moving_a_batch_keeps_its_fields() -> None:
    batch = pack([PromptCompletions([1], [[2]])], pad_id=0)
    moved = batch.to("cpu")
    assert isinstance(moved, PackedBatch)
    for name, tensor in vars(batch).items():
        assert torch.equal(torch.as_tensor(getattr(moved, name)), torch.as_tensor(tensor))


def test_a_batch_needs_rows() -> None:
    with pytest.raises(ValueError, match="empty"):
        pack([], pad_id=0)


def test_pieces_give_every_column_all_that_it_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the tree mask: what a chunk leaves out is masked in every row, and the chunks are all columns but the
    first, in order; candidates cut by a border, whole prompts between, rows of very different lengths."""
    monkeypatch.setattr(rows, "CHUNK", 4)
    rng = np.random.default_rng(0)
    for _ in range(50):
        texts = [
            rows.PromptCompletions(
                [5] * int(rng.integers(1, 14)), [[7] * int(rng.integers(1, 9)) for _ in range(int(rng.integers(1, 7)))]
            )
            for _ in range(int(rng.integers(1, 5)))
        ]
        batch = rows.pack(texts, 0)
        segment_BT = batch.segment_BT
        width = segment_BT.shape[1]
        columns = [c for chunk in batch.chunks for c in range(chunk.first, chunk.end)]
        assert columns == list(range(batch.n_prompt, width))
        assert all(chunk.end - chunk.first <= 6 for chunk in batch.chunks)
        for chunk in batch.chunks:
            given = {*range(batch.prompt_end), *range(chunk.back, chunk.end)}
            for segment_T in segment_BT.tolist():
                for query in range(chunk.first, chunk.end):
                    if segment_T[query] != rows.PAD_SEGMENT:
                        sees = {k for k in range(query + 1) if segment_T[k] in (rows.PROMPT_SEGMENT, segment_T[query])}
                        assert sees <= given


def test_a_chunk_that_cuts_no_candidate_starts_at_its_border() -> None:
    """Candidates of as many inputs as fit a chunk evenly: nothing before the border is read again."""
    batch = pack([PromptCompletions([5], [[7] * 25] * 12)], pad_id=0)  # 24 inputs each, four to a chunk
    assert [(c.first, c.end, c.back) for c in batch.chunks] == [(1, 97, 1), (97, 193, 97), (193, 289, 193)]
    cut = pack([PromptCompletions([5], [[7] * 31] * 10)], pad_id=0)  # 30 inputs each: the border is in the fourth
    assert [(c.first, c.end, c.back) for c in cut.chunks] == [(1, 97, 1), (97, 193, 91), (193, 301, 181)]
