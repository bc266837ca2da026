"""`sirius run --dry-run`: tokens by a direct count, operations and memory by hand, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.dry_run import Size, Stage, dry_run, memory, model_size
from sirius_rec.recipes.records import reading_records, slate_records, training_rows
from sirius_rec.recipes.run import Run
from sirius_rec.scoring.tree import count_nodes
from sirius_rec.training.records import encode_records

ROOT = Path(__file__).resolve().parents[2]
Mini = Callable[..., Config]


def test_tokens_are_those_of_a_direct_count(mini: Mini, trained: Run) -> None:
    """The data is smaller than the sample, so nothing is extrapolated but the last, shorter step."""
    config = mini("sft.batch_size=27", "align.batch_size=27")
    content = dry_run(config, device="a100")
    stages = {stage["name"]: stage for stage in content["stages"]}
    rows = training_rows(trained, config.sft, 0, 0)
    assert len(rows) % 27 == 0  # 432: no shorter step
    records = slate_records(trained.dataset, trained.train_slates, trained.template, rows)
    encoded = encode_records(records, trained.encoder)
    targets = [row.only([0]) for row in encoded]
    sft = stages["sft"]
    assert (sft["examples"], sft["epochs"], sft["steps"]) == (len(rows), 1, len(rows) // 27)
    separate = sum(row.length("naive") for row in targets)
    assert sft["tokens_separate"] == separate and sft["tokens_shared"] == sum(row.packed_length for row in targets)
    assert count_nodes(targets) < sft["tokens_tree"] < separate  # a step shares less than the whole data does
    reference = stages["reference"]
    assert reference["tokens_separate"] == sum(row.length("naive") for row in encoded)
    assert reference["tokens_shared"] == sum(row.packed_length for row in encoded)
    # every candidate of a slate of 6 is scored in each of two epochs
    assert stages["softmax_dpo"]["tokens_separate"] == 2 * reference["tokens_separate"]
    assert not reference["trains"] and stages["softmax_dpo"]["epochs"] == 2
    assert content["data"]["rows"]["train"] == len(rows)
    assert content["longest"] >= max(row.longest_path for row in encoded)
    assert content["prompt"].startswith("This user has chosen")


def test_a_reference_counts_what_is_drawn(mini: Mini, trained: Run) -> None:
    """Two of six candidates in each of two epochs: between two and three of them, with the target in both."""
    one, two, every = (
        dry_run(mini("arms=[dpo]", f"align.epochs={epochs}", f"align.score_unsampled={others}"), device="a100")[
            "stages"
        ]
        for epochs, others in ((1, 0), (2, 0), (1, "all"))
    )
    records = slate_records(trained.dataset, trained.train_slates, trained.template)
    prompts = sum(len(row.prompt) for row in encode_records(records, trained.encoder))
    once, twice, whole = (
        next(s["tokens_shared"] for s in stages if s["name"] == "reference") - prompts for stages in (one, two, every)
    )
    assert once < twice < 1.5 * once + 0.02 * whole and 0.25 * whole < once < 0.42 * whole
    policy = mini("prompts.slate=false", "arms=[{loss: dpo, negatives_from: on_policy, pool: 4}]")
    assert "reference" not in [stage["name"] for stage in dry_run(policy, device="a100")["stages"]]


def test_whole_histories_are_counted(mini: Mini, trained: Run) -> None:
    """`sft.targets: all`: every title but the first of each piece, against the records themselves."""
    text = f"prompts.template={{history: '{trained.template.history}', answer: null}}"
    given = (text, "prompts.slate=false", "sft.targets=all", "sft.piece=6", "sft.batch_size=16")
    once, twice, apart = (
        next(s for s in dry_run(mini(*given, *more), device="a100")["stages"] if s["name"] == "sft")
        for more in (["training.share=user"], ["training.share=user", "sft.epochs=2"], ["training.share=none"])
    )
    config = mini(*given)
    run = Run(trained.folder, config)
    records = reading_records(run.dataset, run.template, run.shown, piece=6, epochs=1, seed=0, shuffle=False)
    separate = sum(row.length("naive") for row in encode_records(records, run.encoder))
    assert once["examples"] == len(records) and once["steps"] == -(-len(records) // 16)
    assert once["tokens_separate"] == pytest.approx(separate, rel=0.03)
    assert twice["tokens_separate"] == pytest.approx(2 * separate, rel=0.05) and twice["epochs"] == 2
    assert apart["tokens_separate"] == pytest.approx(separate, rel=0.03)
    assert once["tokens_tree"] < 0.9 * apart["tokens_tree"], "the records of a piece are not together"


def test_operations_and_hours_by_hand(mini: Mini) -> None:
    content = dry_run(mini("seeds=[0, 1]"), device="h100")
    model, sft = content["model"], next(s for s in content["stages"] if s["name"] == "sft")
    expected = 6 * (model["layers"] * sft["tokens_tree"] + model["head"] * sft["head_tokens"])
    assert sft["operations"] == pytest.approx(expected)
    # So small a model waits for its 180 kernels a layer, 10 µs each.
    assert sft["passes"] == -(-sft["examples"] // 32) * sft["epochs"]
    assert sft["hours"] == pytest.approx(sft["passes"] * 180 * 1e-5 / 3600)
    assert content["hours"] == pytest.approx(2 * sum(stage["hours"] for stage in content["stages"]))


def test_hours_by_operations_or_by_launches() -> None:
    stage = Stage("sft", True, 1, 1, 1, 1, 1, 1, 1, 1, passes=100, operations=3.5e14)
    assert stage.seconds(1e12, depth=30) == pytest.approx(1000)
    assert stage.seconds(1e16, depth=30) == pytest.approx(100 * 30 * 180 * 1e-5)
    assert replace(stage, trains=False).seconds(1e16, depth=30) == pytest.approx(100 * 30 * 70 * 1e-5)


def test_validation_is_counted_and_what_is_not_is_said(mini: Mini, trained: Run) -> None:
    config = mini("evaluation.validation_rows=12", "arms=[softmax_dpo, simpo]", "sft.epochs=3", "align.epochs=2")
    content = dry_run(config, device="a100")
    stages = {stage["name"]: stage for stage in content["stages"]}
    # SFT before and after three epochs; softmax DPO after two, as it is its reference before them; SimPO has none.
    assert stages["validation, 9 times"]["examples"] == 9 * 12
    run = Run(trained.folder, config)
    rows = slate_records(run.dataset, run.validation_slates, run.template, run.validation_rows)  # type: ignore[arg-type]
    separate = sum(row.length("naive") for row in encode_records(rows, run.encoder))
    assert stages["validation, 9 times"]["tokens_separate"] == 9 * separate
    assert content["not_counted"][0] == "attention itself"
    assert ("answers by generation" in content["not_counted"]) == (config.evaluation.generation_rows > 0)
    bare = dry_run(mini("methods=[]", "backbone.pretrain=null", "evaluation.generation_rows=0"), device="a100")
    assert bare["not_counted"] == ["attention itself"]


def test_sizes_of_known_models(mini: Mini) -> None:
    lora = ("backbone.lora={rank: 32, alpha: 8}", "backbone.dtype=bfloat16")
    llama2 = model_size(mini("backbone.name=meta-llama/Llama-2-7b-hf", *lora))
    assert llama2.parameters == llama2.layers + 2 * llama2.head == 6_738_415_616  # as published
    # rank 32 on q, k, v, o (4096 → 4096) and gate, up, down (4096 ↔ 11008) of 32 layers
    assert llama2.trained == 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    llama3 = model_size(mini("backbone.name=meta-llama/Meta-Llama-3-8B-Instruct"))
    assert llama3.parameters == llama3.trained == 8_030_261_248


def test_a_head_tied_to_the_embeddings_counts_once(mini: Mini, tmp_path: Path) -> None:
    """SmolLM2 was said to have 163 million parameters; it has 135."""
    config = LlamaConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
                         tie_word_embeddings=True)  # fmt: skip
    config.save_pretrained(tmp_path)
    size = model_size(mini(f"backbone.name={tmp_path}"))
    assert (size.head, size.parameters) == (400, 400 + size.layers)
    assert size.trained == size.parameters


def test_memory_by_hand(mini: Mini) -> None:
    """800 weights (a tied head) of 2 bytes, 10 trained ones of 4 with 12 for gradient and AdamW; 2 layers, 5 tokens."""
    size = Size(parameters=800, layers=600, head=200, trained=10, width=4, depth=2, context=None)
    name = ("backbone.name=org/model", "backbone.lora={rank: 1}", "backbone.dtype=bfloat16")
    assert memory(mini(*name), size, 5) * 2**30 == pytest.approx(800 * 2 + 10 * 16 + 5 * 4 * 34 * 2)
    again = mini(*name, "align.gradient_checkpointing=true")
    assert memory(again, size, 5) * 2**30 == pytest.approx(800 * 2 + 10 * 16 + 5 * 4 * 34 + 5 * 4 * 2 * 2)
    assert memory(mini(), size, 5) * 2**30 == pytest.approx(800 * 4 + 10 * 12 + 5 * 4 * 68 * 2)


def test_rows_of_users_are_counted_as_they_share(mini: Mini) -> None:
    window = "data.window={kind: anchored, max_history: 8, min_history: 3, step: 4}"
    alone, shared = (
        dry_run(mini(window, "prompts.slate=false", f"training.share={kind}"), device="a100")
        for kind in ("none", "user")
    )
    assert shared["stages"][0]["tokens_tree"] < 0.8 * alone["stages"][0]["tokens_tree"]


@pytest.mark.parametrize("name", ["lastfm", "goodreads", "steam"])
def test_the_papers_recipes(name: str) -> None:
    config = load_config(ROOT / "configs" / "paper" / f"{name}.yaml")
    assert config.backbone.lora is not None and (config.backbone.lora.rank, config.backbone.lora.alpha) == (32, 8)
    assert config.sft.epochs == config.align.epochs == 5 and config.prompts.slate
    assert config.sft.batch_size == config.align.batch_size == (256 if name == "steam" else 128)
    anchors = {config.objective(arm).anchor_constant for arm in config.arms if arm.loss == "simpo_no_ln_sirius"}
    assert anchors == {0, 1, 10}
    # twelve baselines less ChatRec, which needs somebody's key; TALLRec as the paper's tables have it
    assert {m.method for m in config.methods} | {a.loss for a in config.arms} >= {
        "gru4rec", "caser", "sasrec", "morec", "zero_shot", "tallrec_listwise", "llara", "dpo", "simpo", "simpo_no_ln",
        "softmax_dpo",
    }  # fmt: skip


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["run", *map(str, arguments)], catch_exceptions=False)


def test_the_command_writes_nothing_but_its_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(ROOT / "tests" / "mini.yaml", "--dry-run", "--on", "l40s", "--json", tmp_path / "plan.json")
    assert result.exit_code == 0, result.output
    assert (
        "on one l40s (--on names another), at an assumed 35% of 362 TFLOP/s, or 10 µs" in result.output
        and "softmax_dpo" in result.output
    )
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert json.loads((tmp_path / "plan.json").read_text())["device"]["name"] == "l40s"


def test_dry_runs_that_cannot_be(mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--on tpu: choose one of a100"):
        dry_run(mini(), device="tpu")
    with pytest.raises(ConfigError, match="--dry-run: counts SFT and arms, and this configuration has neither"):
        dry_run(mini("arms=[]", "methods=[ease]", "evaluation.baseline=ease"), device="a100")
    with pytest.raises(ConfigError, match="--on, --tokenizer: are for --dry-run"):
        run(ROOT / "tests" / "mini.yaml", "--on", "a100")
    with pytest.raises(ConfigError, match=r"backbone\.name: no configuration of .*none"):
        dry_run(mini(f"backbone.name={tmp_path / 'none'}"), device="a100")
