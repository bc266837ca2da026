"""The benches on a tiny model: rivals compute the same, counts of operations by hand, every bench gives its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.bench import cost, cuda, end_to_end, flops, measures, run
from sirius_rec.bench.rivals import SCORERS
from sirius_rec.bench.shapes import LLAMA_2_7B, PAD, TINY_SHAPE, Shape, build_model, random_rows
from sirius_rec.bench.timing import compared, interleaved, ratio
from sirius_rec.errors import ConfigError, ScoringError
from sirius_rec.scoring.rows import PromptCompletions, pack


def quiet(line: str) -> None:
    pass


def test_rivals_compute_the_same_log_probs() -> None:
    model = build_model(TINY_SHAPE).eval()
    rows = random_rows(3, 4, vocabulary=200, prompt=20)
    with torch.no_grad():
        ours = SCORERS["packed"](model, rows, PAD)
        assert (ours < -1).all()
        for name, scorer in SCORERS.items():
            assert (scorer(model, rows, PAD) - ours).abs().max() <= 1e-4, name


def test_a_rival_that_differs_is_not_timed() -> None:
    with pytest.raises(ScoringError, match=r"other differs from packed rows by 0\.5: their times cannot be compared"):
        measures.require_equal("other", torch.tensor([1.0, 1.5]), torch.tensor([1.0, 1.0]), 1e-3)
    with pytest.raises(ScoringError, match="by nan"):
        measures.require_equal("other", torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-3)


def test_operations_by_hand() -> None:
    """Prompt of 3, candidates of 3 and 1 tokens (2 and 0 inputs): 5 distinct tokens, 3 logit rows.

    Pairs: 6 inside the prompt, 2 · 3 + 3 of the first candidate: 15. One layer of width 2: 4 · 4 + 3 · 2 · 4 = 40
    weights; 10 in the head; 4 · 2 operations a pair.
    """
    shape = Shape("hand", hidden=2, intermediate=4, layers=1, heads=1, vocabulary=5)
    rows = [PromptCompletions([1, 1, 1], [[4, 4, 2], [2]])]
    assert flops.bound(shape, rows) == 2 * (5 * 40 + 3 * 10) + 15 * 8
    # 6 pairs of the prompt, and 2 columns that are given all 5.
    assert flops.packed(shape, rows) == 2 * (5 * 40 + 3 * 10) + 16 * 8
    # Rows of 5 and 3 inputs, 3 and 1 logits, triangles of 15 and 6.
    assert flops.separate(shape, rows) == 2 * (8 * 40 + 4 * 10) + 21 * 8
    assert flops.separate(shape, rows, full_logits=True) == 2 * (8 * 40 + 8 * 10) + 21 * 8


def test_the_count_of_packed_operations_is_what_torch_counts() -> None:
    """Matrix products as torch's own counter sees them, with eager attention, which takes the whole square."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(TINY_SHAPE).eval()
    model.set_attn_implementation("eager")  # two products that the counter sees
    rows = random_rows(2, 3, vocabulary=200, prompt=30)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        SCORERS["packed"](model, rows, PAD)
    width, prompt = max(row.packed_length for row in rows), min(len(row.prompt) for row in rows)
    saved = prompt * width - prompt * (prompt + 1) // 2
    square = flops.packed(TINY_SHAPE, rows) + 2 * saved * 4 * TINY_SHAPE.hidden * TINY_SHAPE.layers
    assert counter.get_total_flops() == pytest.approx(square, rel=0.01)


def test_the_count_of_attention_is_what_its_calls_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks with columns left out between: queries × keys of the real calls, causal ones as a triangle."""
    from transformers.integrations import sdpa_attention

    pairs: list[int] = []
    original = sdpa_attention.sdpa_attention_forward

    def counted(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        n, m = query.shape[2], key.shape[2]
        pairs.append(len(query) * (n * (n + 1) // 2 if mask is None else n * m))
        return original(module, query, key, value, mask, **options)

    model = measures._prepared(TINY_SHAPE)
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", counted)
    rows = random_rows(2, 100, vocabulary=TINY_SHAPE.vocabulary)
    with torch.no_grad():
        SCORERS["packed"](model, rows, PAD)
    batch = pack(rows, PAD)
    assert any(chunk.back > batch.prompt_end for chunk in batch.chunks)
    dense = flops._dense(TINY_SHAPE, batch.input_ids_BT.numel(), int(batch.keep_BT.sum()))
    assert sum(pairs) == (flops.packed(TINY_SHAPE, rows) - dense) // (4 * TINY_SHAPE.hidden)


def test_packed_rows_are_near_the_bound() -> None:
    """Nowhere along the axes: the CPU shape's attention is large, a 7B model's is a small part."""
    rows = cost.bench_flops(quiet)
    assert max(row["packed_over_bound"] for row in rows if row["shape"] == LLAMA_2_7B.name) <= 1.005
    assert len(rows) == 28
    assert all(1 <= row["packed_over_bound"] < 1.05 for row in rows)


def test_every_way_runs_once_per_round() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_by_hand() -> None:
    found = ratio(np.array([4.0, 6.0, 8.0]), np.array([2.0, 2.0, 4.0]))
    assert found["ratio"] == 3.0
    assert found["ratio_low"] <= 3.0 <= found["ratio_high"]
    same = ratio(np.full(5, 6.0), np.full(5, 2.0))
    assert (same["ratio"], same["ratio_low"], same["ratio_high"]) == (3.0, 3.0, 3.0)
    (row,) = compared({"packed": np.array([1.0]), "other": np.array([2.0])}, bench="x", k=1)
    assert (row["baseline"], row["ratio"], row["seconds_packed"]) == ("other", 2.0, 1.0)


def test_step_score_and_memory_give_their_rows(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    batches = {1: 2, 3: 2}
    step = measures.bench_step(quick=True, say=quiet, shape=TINY_SHAPE, batches=batches)
    assert [(row["k"], row["baseline"]) for row in step] == [
        (1, "completion_logits"), (1, "full_logits"), (1, "completion_logits_chunks"), (1, "trl"),
        (3, "completion_logits"), (3, "full_logits"), (3, "completion_logits_chunks"),
    ]  # fmt: skip
    score = measures.bench_score(quick=True, say=quiet, shape=TINY_SHAPE, slates=(5,))
    separate = {"completion_logits", "completion_logits_chunks", "full_logits"}
    assert {row["baseline"] for row in score} == {*separate, "generate"}
    # The update is the same for both, so it can only bring the ratio nearer to one.
    for row in step:
        assert row["seconds_update"] > 0
        assert abs(row["ratio_with_update"] - 1) <= abs(row["ratio"] - 1)
    memory = measures.bench_memory(quick=True, say=quiet, shape=TINY_SHAPE, batches=batches)
    for row in memory:
        assert row["ratio"] > 1
    for row in (*step, *score, *memory):
        assert {"bench", "k", "slate", "baseline", "ratio", "ratio_low", "ratio_high"} <= set(row)
    json.dumps([*step, *score, *memory])


def test_cost_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "AXES", {"slate": ((2, 4), lambda n, v: random_rows(1, n, vocabulary=v, prompt=20))})
    rows = cost.bench_cost(quick=False, say=quiet, shape=TINY_SHAPE)
    assert [row["value"] for row in rows] == [2, 4]
    assert all(row["seconds_bound"] > 0 for row in rows)
    cost.draw_cost(rows, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes()[:4] == b"\x89PNG"


def test_end_to_end_accounts_for_the_time() -> None:
    shape = Shape("small", hidden=32, intermediate=48, layers=2, heads=4, vocabulary=1200)
    (row,) = end_to_end.bench_end_to_end(quick=True, say=quiet, shape=shape, steps=2)
    shares = row["shares"]
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)
    assert all(share > 0 for name, share in shares.items() if name != "else")
    assert row["outside_forward_backward"] == pytest.approx(1 - shares["forward"] - shares["backward"], abs=1e-3)
    assert row["examples_per_second"] > 0
    assert row["steps"] == 1


def test_cuda_code_on_a_cpu_and_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    with torch.compiler.set_stance("force_eager"):
        rows = cuda.bench_cuda(quick=True, say=lines.append, shape=TINY_SHAPE, device="cpu", batches={1: 4, 3: 4})
    assert [(row["k"], row["baseline"]) for row in rows] == [(1, "completion_logits"), (3, "completion_logits")]
    assert all(row["attention"] in ("sdpa", "tree_split") for row in rows)
    assert all(row["tflops"] > 0 and row["mfu"] is None for row in rows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.bench_cuda(quick=True, say=lines.append) == []
    assert lines[-1] == "cuda: skipped, torch sees no CUDA device"


def test_utilisation_by_hand() -> None:
    """Under LoRA frozen weights have no gradients: 2 operations forward and 2 backward per weight and token."""
    assert cuda.lora_step_operations(10) == 20
    assert cuda.peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert cuda.peak_of("Some Device") is None


def test_unknown_bench() -> None:
    with pytest.raises(ConfigError, match="no bench is called 'speed': choose one of step, score"):
        run.run_bench("speed", quick=True, say=quiet)


def test_the_command_writes_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from sirius_rec.cli import app

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    app(["bench", "cuda", "--json", str(tmp_path / "cuda.json")], standalone_mode=False)
    content = json.loads((tmp_path / "cuda.json").read_text())
    assert content["rows"] == []
    assert content["environment"]["versions"]["torch"]
    assert [shape["name"] for shape in content["environment"]["shapes"]] == ["cpu", "llama-2-7b"]
    assert "skipped" in capsys.readouterr().out  # what was measured is the result; "done" is not


def test_separate_rows_in_chunks_are_the_same_rows() -> None:
    model = build_model(TINY_SHAPE).eval()
    rows = random_rows(3, 5, vocabulary=TINY_SHAPE.vocabulary, prompt=12)
    with torch.no_grad():
        whole = SCORERS["completion_logits"](model, rows, PAD)
        assert (measures._in_chunks(model, rows, chunk=2) - whole).abs().max() <= 1e-5
