"""A scoring that was killed goes on with the rest, and what comes out is what it would have been, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec.scoring import kept, scorer
from sirius_rec.scoring.kept import KeptScores, scored_in_parts
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import score_rows


class Sized:
    pad_token_id, eos_token_id = 0, 2

    def __len__(self) -> int:
        return 40


class Killed(BaseException):
    pass


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is written as it comes."""
    monkeypatch.setattr(kept, "_EVERY", 0.0)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each forward pass: the rows of its batch."""
    made: list[int] = []
    original = scorer.logps
    monkeypatch.setattr(scorer, "logps", lambda model, rows, *a: made.append(len(rows)) or original(model, rows, *a))
    return made


def killed_after(rows: int) -> Callable[[int], None]:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if done >= rows:
            raise Killed

    return progress


ROWS = [PromptCompletions([5] * (3 + r), [[7 + c, 9, 2] for c in range(4)]) for r in range(9)]


@pytest.mark.parametrize(("mode", "tokens"), [("packed", 45), ("naive", 40), ("naive", 16)])
def test_a_killed_scoring_goes_on_with_the_rest(
    tiny_llama: Callable[..., Any], tmp_path: Path, at_once: None, passes: list[int], mode: str, tokens: int
) -> None:
    """naive 16: slates in parts, of which a killed scoring may have some."""
    model = tiny_llama(Sized()).eval()
    whole = score_rows(model, ROWS, 0, mode=mode, max_tokens=tokens)
    n = len(passes)
    assert n >= 3
    with pytest.raises(Killed):
        score_rows(
            model, ROWS, 0, mode=mode, max_tokens=tokens, kept=KeptScores(tmp_path / "k", "m"), progress=killed_after(4)
        )
    before = len(passes) - n
    assert 0 < before < n
    said: list[int] = []
    again = score_rows(
        model, ROWS, 0, mode=mode, max_tokens=tokens, kept=KeptScores(tmp_path / "k", "m"), progress=said.append
    )
    assert len(passes) == 2 * n
    assert said[0] >= 4 and sum(said) == len(ROWS)
    for one, other in zip(whole, again, strict=True):
        assert one.dtype == other.dtype == np.float32 and one.tobytes() == other.tobytes()


def test_scores_of_another_key_or_way_are_not_taken(
    tiny_llama: Callable[..., Any], tmp_path: Path, at_once: None, passes: list[int]
) -> None:
    model = tiny_llama(Sized()).eval()
    few = ROWS[:5]

    def score(of: str, rows: list[PromptCompletions], tokens: int, mode: str = "packed", bf16: bool = False) -> None:
        passes.clear()
        score_rows(model, rows, 0, mode=mode, max_tokens=tokens, bf16=bf16, kept=KeptScores(tmp_path / "k", of))

    for asked in (("a", ROWS, 45), ("b", ROWS, 45), ("b", few, 45), ("b", few, 90), ("b", few, 90, "naive"),
                  ("b", few, 90, "naive", True)):  # fmt: skip
        score(*asked)
        assert sum(passes) == len(asked[1])
    score(*asked)
    assert not passes


def test_every_file_says_what_it_is_of(tmp_path: Path, at_once: None) -> None:
    """Two lie side by side where the first could not be removed, or runs were copied into each other."""
    one, other = (KeptScores(tmp_path / "k", of) for of in "ab")
    for row, scores in enumerate((one, other)):
        scores.begin("")
        scores.add({row: np.array([row / 7])})
        scores.folder.rename(tmp_path / str(row))
    (tmp_path / "1").rename(other.folder)
    for file in (tmp_path / "0").glob("*.npz"):
        file.rename(other.folder / file.name)
    assert other.begin("") == {1: 1 / 7}


def test_a_damaged_file_is_made_again(
    tiny_llama: Callable[..., Any], tmp_path: Path, at_once: None, passes: list[int]
) -> None:
    model = tiny_llama(Sized()).eval()
    whole = score_rows(model, ROWS, 0, mode="packed", max_tokens=45, kept=KeptScores(tmp_path / "k", "m"))
    files = sorted((tmp_path / "k").glob("*.npz"))
    assert len(files) == len(passes) == 3
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-30])
    passes.clear()
    again = score_rows(model, ROWS, 0, mode="packed", max_tokens=45, kept=KeptScores(tmp_path / "k", "m"))
    assert len(passes) == 2
    assert [one.tobytes() for one in whole] == [one.tobytes() for one in again]


def test_files_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one a row: what has come for half a minute."""
    now = 0.0
    monkeypatch.setattr(kept.time, "monotonic", lambda: now)
    scores = KeptScores(tmp_path / "k", "m")
    scores.begin("")
    for row in range(100):
        now += 1.0
        scores.add({row: np.array([row / 7])})
    assert len(list((tmp_path / "k").glob("*.npz"))) == 3
    assert KeptScores(tmp_path / "k", "m").begin("") == {row: row / 7 for row in range(90)}
    scores.drop()
    assert not (tmp_path / "k").exists()


def test_parts_that_are_there_are_not_computed_again(tmp_path: Path, at_once: None) -> None:
    asked: list[slice] = []

    def score(rows: slice) -> list[np.ndarray]:
        if len(asked) == 2:
            raise Killed
        asked.append(rows)
        return [np.array([row, row + 0.1]) for row in range(rows.start, rows.stop)]

    with pytest.raises(Killed):
        scored_in_parts(10, 4, score, KeptScores(tmp_path / "k", "m"), "", None)
    assert asked == [slice(0, 4), slice(4, 8)]
    next((tmp_path / "k").glob("*4.npz")).unlink()
    asked.clear()
    said: list[int] = []
    found = scored_in_parts(10, 4, score, KeptScores(tmp_path / "k", "m"), "", said.append)
    assert asked == [slice(4, 8), slice(8, 10)] and said == [4]
    assert [one.tolist() for one in found] == [[row, row + 0.1] for row in range(10)]


@pytest.mark.parametrize("processes", [2, 3])
def test_of_several_processes_one_brings_what_is_there(
    tiny_llama: Callable[..., Any], tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    model = tiny_llama(Sized()).eval()
    whole = score_rows(model, ROWS, 0, mode="packed", max_tokens=45)
    with pytest.raises(Killed):
        score_rows(
            model, ROWS, 0, mode="packed", max_tokens=45, kept=KeptScores(tmp_path / "k", "m"), progress=killed_after(4)
        )
    shares: list[dict[int, Any]] = []
    monkeypatch.setattr(scorer, "from_all", lambda own, *rest: shares.append(own))
    monkeypatch.setattr(KeptScores, "add", lambda self, found: None)  # as if all had begun together
    for rank in range(processes):
        monkeypatch.setattr(scorer, "place_in_group", lambda rank=rank: (rank, processes))
        score_rows(model, ROWS, 0, mode="packed", max_tokens=45, kept=KeptScores(tmp_path / "k", "m"))
    assert sorted(r for share in shares for r in share) == list(range(len(ROWS)))
    for share in shares:
        for r, logp_C in share.items():
            assert logp_C.tobytes() == whole[r].tobytes()


def test_what_is_kept_is_whole_batches(
    tiny_llama: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute may be over in the middle of one. Its rows would come from two processes: from the one that brings
    what is there, and from the one that scores the batch again."""
    monkeypatch.setattr(kept.time, "monotonic", iter(range(0, 10**6, 20)).__next__)
    model = tiny_llama(Sized()).eval()
    monkeypatch.setattr(scorer, "place_in_group", lambda: (1, 2))
    with pytest.raises(Killed):
        score_rows(
            model, ROWS, 0, mode="packed", max_tokens=45, kept=KeptScores(tmp_path / "k", "m"), progress=killed_after(1)
        )
    shares: list[dict[int, Any]] = []
    monkeypatch.setattr(scorer, "from_all", lambda own, *rest: shares.append(own))
    monkeypatch.setattr(KeptScores, "add", lambda self, found: None)  # as if both had begun together
    for rank in range(2):
        monkeypatch.setattr(scorer, "place_in_group", lambda rank=rank: (rank, 2))
        score_rows(model, ROWS, 0, mode="packed", max_tokens=45, kept=KeptScores(tmp_path / "k", "m"))
    assert sorted(r for share in shares for r in share) == list(range(len(ROWS)))
