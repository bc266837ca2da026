"""Hits, verdict rules, and what is left of a model's HR@1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sirius_rec.audit.audit import audit, read_audit
from sirius_rec.audit.evidence import Evidence, judge, monte_carlo_p, worst
from sirius_rec.audit.learned_order import learned_order
from sirius_rec.audit.model_scores import surviving
from sirius_rec.audit.recurring_negatives import _teachers
from sirius_rec.audit.slates import SlateSet, expected_hits
from sirius_rec.errors import DataError


def slate_set(candidates: list[list[int]], positions: list[int]) -> SlateSet:
    table, place = np.array(candidates), np.array(positions)
    n = len(table)
    target = table[np.arange(n), place]
    return SlateSet(
        "here", np.zeros((n, 0), dtype=np.int64), target, table, place, np.arange(n), np.arange(n), np.full(n, np.nan),
        np.array([""] * n),
    )  # fmt: skip


def test_expected_hits_count_ties_in_expectation() -> None:
    scores = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 9.0]])
    valid = np.array([[True] * 3, [True] * 3, [True, True, False]])
    assert expected_hits(scores, np.array([1, 0, 0]), valid).tolist() == [1 / 2, 1 / 3, 1.0]


def channel(name: str, p: float, excess: float) -> Evidence:
    n = 1000
    hits = np.zeros(n)
    hits[: round((0.05 + excess) * n)] = 1
    return Evidence(name, "channel", "", hits, np.arange(n), np.full(n, 0.05), p)


def test_verdicts_need_significance_after_holm_and_an_effect() -> None:
    """Three channels: p = .004 passes Holm at 1 % only in the third place (× 1), p = .003 not in the second (× 2)…"""
    big, small, none = channel("a", 1e-6, 0.03), channel("b", 0.004, 0.03), channel("c", 1e-6, 0.001)
    judge([big, small, none])
    # sorted p: 1e-6, 1e-6, 0.004 → adjusted 3e-6, 3e-6, 0.004
    assert [one.verdict for one in (big, small, none)] == ["leak", "leak", "clean"]
    two = [channel("a", 0.006, 0.03), channel("b", 0.9, 0.03)]
    judge(two)
    assert [one.verdict for one in two] == ["clean", "clean"]  # 0.006 × 2 = 0.012
    slight = [channel("a", 1e-6, 0.01)]
    judge(slight)
    assert slight[0].verdict == "caution"


def test_worst() -> None:
    assert worst([]) == "clean"
    assert worst(["caution", "leak", "clean"]) == "leak"


def test_monte_carlo_p_is_at_least_the_binomial_tail() -> None:
    """20 hits in 100 rows at chance 0.1: P(X ≥ 20) = 0.001979; controls with tiny spread do not undercut it."""
    hits = np.repeat([1.0, 0.0], [20, 80])
    p = monte_carlo_p(hits, np.full(100, 0.1), 10 + np.linspace(-0.01, 0.01, 50))
    assert p == pytest.approx(0.0019788, rel=1e-3)
    assert monte_carlo_p(hits, np.full(100, 0.2), np.arange(10.0) + 20) == 1.0


def test_no_row_teaches_itself_its_recurring_negatives() -> None:
    """Under any dealing: its own negatives would agree with its slate whole, whatever target they are dealt to."""
    rng = np.random.default_rng(0)
    slates = slate_set(np.sort(rng.permuted(np.tile(np.arange(30), (12, 1)), axis=1)[:, :8]).tolist(), [3] * 12)
    rows = np.arange(12)
    for _ in range(200):
        dealt = rng.permutation(12)
        teacher = _teachers(slates, slates.target_R[dealt], (rows, np.argsort(dealt)), rng)
        assert (teacher != rows[:, None]).all()


def test_learned_order_puts_a_hidden_order_right() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.permutation(60)  # item → place
    rows = [sorted(rng.choice(60, 8, replace=False), key=lambda item: hidden[item]) for _ in range(400)]
    place = learned_order(np.array(rows), 60)
    assert place is not None
    assert np.corrcoef(np.argsort(np.argsort(place)), hidden)[0, 1] > 0.98
    assert learned_order(np.full((3, 4), -1), 60) is None


def write_scores(path: Path, rows: list[list[float]]) -> Path:
    path.write_text("".join(json.dumps({"row": k, "scores": row}) + "\n" for k, row in enumerate(rows)))
    return path


def test_share_of_a_model_that_survives(tmp_path: Path) -> None:
    """Model right in rows 0, 1, 2 of 4; the leak gives rows 0 and 3 away: left 2 of 2 rows, 1.0 / 0.75."""
    slates = slate_set([[0, 1], [2, 3], [4, 5], [6, 7]], [0, 0, 0, 0])
    path = write_scores(tmp_path / "s.jsonl", [[2, 1], [2, 1], [2, 1], [1, 2]])
    leak = Evidence("position", "channel", "", np.array([1.0, 0, 0, 1.0]), np.arange(4), verdict="leak")
    fair = Evidence("popularity", "baseline", "", np.ones(4), np.arange(4))
    got = surviving(path, slates, [leak, fair], seed=0)
    assert got["leaking_probes"] == ["position"]
    assert (got["hr1"], got["rows_left"], got["hr1_left"]) == (0.75, 2, 1.0)
    assert got["share"] == pytest.approx(4 / 3)
    assert got["share_low"] <= got["share"] <= got["share_high"]
    without = surviving(path, slates, [fair], seed=0)
    assert without["share"] == 1.0 and without["leaking_probes"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"row": 0, "scores": [1, 2]}', r"s\.jsonl: row 1 has no score"),
        ('{"row": 9, "scores": [1, 2]}', r"line 1: row 9 is not among the 2 rows"),
        ('{"row": 0, "scores": [1]}', r"line 1: 1 scores for a slate of 2"),
        ('{"row": 0}', r"line 1: not \{\"row\": 0"),
        ('{"row": 1e999, "scores": [1, 2]}', r"line 1: not \{\"row\": 0"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 0, "scores": [2, 1]}', r"line 2: row 0 has scores already"),
        ("nonsense", r"line 1: not \{\"row\": 0"),
    ],
)
def test_score_faults(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match=message):
        surviving(tmp_path / "s.jsonl", slate_set([[0, 1], [2, 3]], [0, 1]), [], seed=0)


def test_read_audit(tmp_path: Path) -> None:
    assert read_audit(tmp_path) is None
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(DataError, match="not an audit"):
        read_audit(tmp_path)
    (tmp_path / "audit.json").write_text('{"format": 0}')
    with pytest.raises(DataError, match="format 0, this version reads 2"):
        read_audit(tmp_path)


def test_the_published_lastfm_file(shared_data: Path) -> None:
    """FIELD's figures: 0.592 from the val file alone, all 1,003 repeated targets in one slot, 0.784 by artist id."""
    folder = shared_data / "lastfm"
    result = audit(folder / "raw/lastfm-test.json", val=[folder / "raw/lastfm-val.json"], ids=folder / "hetrec_ids.csv")
    found = {one["name"]: one for one in result["probes"]}
    assert result["verdict"] == "leak"
    assert (result["rows"], result["slate_size"], result["chance"]) == (2495, 20, 0.05)
    position = found["position_per_target"]
    assert position["hr1"] >= 0.58
    assert position["repeated_targets"] == position["repeated_targets_in_one_slot"] == 1003
    assert found["order:hetrec_artist_id"]["hr1"] >= 0.77
    assert found["recurring_negatives"]["negatives_shared"] > 6
    assert {"position_per_target", "order:hetrec_artist_id", "recurring_negatives"} <= set(result["leaks"])
