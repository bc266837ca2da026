"""The benches on a tiny model: rivals compute the same, counts of operations by hand, every bench gives its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.bench import catalogue, cost, cuda, end_to_end, flops, measures, run
from sirius_rec.bench.rivals import SCORERS
from sirius_rec.bench.shapes import (
    LLAMA_2_7B,
    PAD,
    TINY_SHAPE,
    LogShape,
    Shape,
    build_model,
    log_rows,
    random_rows,
)
from sirius_rec.bench.timing import compared, interleaved, ratio
from sirius_rec.errors import ConfigError, ScoringError
from sirius_rec.scoring import chunks
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import build_tree, count_nodes


def quiet(line: str) -> None:
    pass


def test_rivals_compute_the_same_log_probs() -> None:
    model = build_model(TINY_SHAPE).eval()
    rows = random_rows(3, 4, vocabulary=200, prompt=20)
    with torch.no_grad():
        ours = SCORERS["trees"](model, rows, PAD)
        assert (ours < -1).all()
        for name, scorer in SCORERS.items():
            assert (scorer(model, rows, PAD) - ours).abs().max() <= 1e-4, name


def test_a_rival_that_differs_is_not_timed() -> None:
    with pytest.raises(ScoringError, match=r"other differs from trees by 0\.5: their times cannot be compared"):
        measures.require_equal("other", torch.tensor([1.0, 1.5]), torch.tensor([1.0, 1.0]), 1e-3)
    with pytest.raises(ScoringError, match="by nan"):
        measures.require_equal("other", torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-3)


def test_operations_by_hand() -> None:
    """Prompt of 3, candidates of 3 and 1 tokens (2 and 0 inputs), and the prompt again: 5 nodes, 3 of them read.

    Pairs: depths 0 to 4 and themselves: 15. One layer of width 2: 4 · 4 + 3 · 2 · 4 = 40 weights; 10 in the head; 4 · 2
    operations a pair.
    """
    shape = Shape("hand", hidden=2, intermediate=4, layers=1, heads=1, vocabulary=5)
    rows = [PromptCompletions([1, 1, 1], [[4, 4, 2], [2]]), PromptCompletions([1, 1, 1], [[2]])]
    assert flops.bound(shape, rows) == 2 * (5 * 40 + 3 * 10) + 15 * 8
    assert flops.attention_over_bound(rows) == 25 / 15
    # One chunk of five nodes is given all five.
    assert flops.layout(shape, rows) == 2 * (5 * 40 + 3 * 10) + 25 * 8
    # Rows of 5, 3 and 3 inputs, 3, 1 and 1 logits, triangles of 15, 6 and 6.
    assert flops.separate(shape, rows) == 2 * (11 * 40 + 5 * 10) + 27 * 8
    assert flops.separate(shape, rows, full_logits=True) == 2 * (11 * 40 + 11 * 10) + 27 * 8


def test_the_count_of_operations_is_what_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products as torch's own counter sees them, attention as two products (as where scores are capped)."""
    from torch.utils.flop_counter import FlopCounterMode

    from sirius_rec.scoring import tree_attention

    monkeypatch.setattr(chunks, "CHUNK", 8)
    kernel = tree_attention._kernel
    monkeypatch.setattr(tree_attention, "_by_products", lambda options: True)
    monkeypatch.setattr(
        tree_attention, "_kernel", lambda *args: kernel(*args[:-1], {**args[-1], "softcap": 50.0, "dropout": 0.0})
    )
    model = measures._prepared(TINY_SHAPE).eval()
    rows = random_rows(3, 3, vocabulary=200, prompt=30)
    assert len(build_tree(rows).groups) > 1
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        SCORERS["trees"](model, rows, PAD)
    assert counter.get_total_flops() == pytest.approx(flops.layout(TINY_SHAPE, rows), rel=0.01)


def test_operations_are_near_the_bound() -> None:
    """On every shape that is timed: the CPU shape's attention is large, a 7B model's is a small part."""
    counted = cost.bench_flops(quiet)
    assert max(row["layout_over_bound"] for row in counted if row["shape"] == LLAMA_2_7B.name) <= 1.005
    assert len(counted) == 28 + 2 * len(measures.STEPS)
    assert all(1 <= row["layout_over_bound"] <= 1.05 for row in counted)


def test_rows_of_a_log() -> None:
    """Histories grow from a multiple of 10 and share what comes before; sliding ones share only the instruction."""
    anchored, sliding = (log_rows(LogShape(20, 1, anchored=a), 80, vocabulary=500) for a in (True, False))
    assert all(len(row.completions) == 2 for row in anchored)
    separate = [sum(count_nodes([row]) for row in rows) for rows in (anchored, sliding)]
    assert count_nodes(anchored) < 0.3 * separate[0]
    assert 2 * count_nodes(anchored) < count_nodes(sliding) < 0.8 * separate[1]
    (shown,) = log_rows(LogShape(20, 3, slate_shown=True), 1, vocabulary=500)
    text = shown.prompt
    for ids in shown.completions:
        assert any(text[at : at + len(ids) - 1] == ids[:-1] for at in range(len(text)))


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
    (row,) = compared({"trees": np.array([1.0]), "other": np.array([2.0])}, bench="x", k=1)
    assert (row["baseline"], row["ratio"], row["seconds_trees"]) == ("other", 2.0, 1.0)


def test_step_score_and_memory_give_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr(measures, "_TRL", LogShape(4, 1))
    steps = {LogShape(4, 0): 8, LogShape(4, 1): 8, LogShape(4, 3, slate_shown=True): 8}
    step = measures.bench_step(quick=True, say=quiet, shape=TINY_SHAPE, steps=steps)
    rivals = ["packed_candidates", "completion_logits"]
    assert [(row["k"], row["baseline"]) for row in step] == [
        *((0, name) for name in rivals), *((1, name) for name in (*rivals, "trl")), *((3, name) for name in rivals)
    ]  # fmt: skip
    assert [row["slate_shown"] for row in step] == [False] * 5 + [True] * 2
    for row in step:
        assert {"history", "slate_shown", "token_ratio", "ratio_low", "ratio_high"} <= set(row)
        assert row["token_ratio"] > 1
        # The update is the same for both, so it can only bring the ratio nearer to one.
        assert row["seconds_update"] > 0
        assert abs(row["ratio_with_update"] - 1) <= abs(row["ratio"] - 1)
    score = measures.bench_score(quick=True, say=quiet, shape=TINY_SHAPE, slates=(5,))
    assert {row["baseline"] for row in score} == {"packed_candidates", "completion_logits", "full_logits", "generate"}
    memory = measures.bench_memory(quick=True, say=quiet, shape=TINY_SHAPE, vocabularies={200: ("packed_candidates",)})
    assert [row["baseline"] for row in memory] == ["packed_candidates", "trl"]
    assert all(row["ratio"] > 1 for row in memory)
    for row in (*step, *score, *memory):
        assert {"bench", "k", "baseline", "ratio", "ratio_low", "ratio_high"} <= set(row)
    json.dumps([*step, *score, *memory])


def test_tokens_of_every_way_by_hand() -> None:
    """Two rows of a prompt of 3, of which 2 are shared, with two titles of two tokens each."""
    rows = [PromptCompletions([5, 6, 7 + r], [[9, 2], [10, 2]]) for r in range(2)]
    tokens = {name: measures._tokens(name, rows) for name in ("trees", "packed_candidates", "completion_logits")}
    assert tokens == {"trees": 2 + 2 * 3, "packed_candidates": 2 * 5, "completion_logits": 4 * 4}


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
    assert all(row["attention"] == "candidate_tree" for row in rows)
    assert all(row["tflops"] > 0 and row["mfu"] is None for row in rows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.bench_cuda(quick=True, say=lines.append) == []
    assert lines[-1] == "cuda: skipped, torch sees no CUDA device"


def test_steps_in_parts_have_the_gradients_of_the_whole() -> None:
    model = build_model(TINY_SHAPE)
    rows = random_rows(5, 3, vocabulary=TINY_SHAPE.vocabulary, prompt=20)
    ref_BC = torch.zeros(5, 3)
    found = []
    for at_once in (5, 2):
        kept: dict[str, torch.Tensor] = {}
        model.zero_grad = lambda kept=kept: kept.update((n, p.grad.clone()) for n, p in model.named_parameters())
        cuda.step_in_parts(SCORERS["trees"], model, rows, ref_BC, at_once)
        found.append(kept)
        del model.zero_grad
        model.zero_grad()
    assert found[0]
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


def test_a_way_takes_as_many_rows_as_there_is_memory_for() -> None:
    """Llama-2-7B with 16 rows of two candidates did not fit into 80 GiB, and nothing was measured."""
    tried = []

    def step(size: int) -> None:
        tried.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert cuda.most_at_once(step, 9) == 2
    assert tried == [9, 5, 3, 2]
    with pytest.raises(ScoringError, match="no memory for a step of one row"):
        cuda.most_at_once(lambda size: step(9), 2)


def test_the_catalogue_gives_its_rows() -> None:
    task = catalogue.made_up_task(TINY_SHAPE, titles=300, users=3, prompt=12)
    lines: list[str] = []
    rows = catalogue.bench_catalogue(quick=True, say=lines.append, task=task, ks=(1, 5), beams=(2, 300))
    names = ["exhaustive", "beam2", "beam300"]
    assert [(row["k"], row["baseline"]) for row in rows] == [(k, name) for k in (1, 5) for name in names]
    for row in rows:
        assert {"bench", "k", "baseline", "ratio", "opened_share", "beam_recall"} <= set(row)
        assert 0 < row["opened_share"] < 1
        assert (row["beam_recall"] is None) == (row["baseline"] == "exhaustive")
        assert row["ratio"] == pytest.approx(row["seconds_baseline"] / row["seconds_search"], rel=0.05)
    by = {(row["k"], row["baseline"]): row["beam_recall"] for row in rows}
    assert by[5, "beam2"] <= 0.4 < by[5, "beam300"] == 1  # as many beams as titles give nothing up
    assert len(lines) == len(rows)
    json.dumps(rows)


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
    assert [shape["name"] for shape in content["environment"]["shapes"]] == ["cpu", "smollm2-135m", "llama-2-7b"]
    assert "skipped" in capsys.readouterr().out  # what was measured is the result; "done" is not
