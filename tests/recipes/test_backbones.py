"""Real backbones through the recipes: a local folder with LoRA, what is missing, what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, PromptError, RunError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.recipes import models
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.story import STAGES, finish, run_stages
from sirius_rec.training.backbones import load_backbone, load_tokenizer, load_trained

Mini = Callable[..., Config]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Path:
    """A local folder with a model and its tokenizer, as a user would name it."""
    target = tmp_path / "model"
    tiny_llama(tokenizer, max_position_embeddings=1024).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.mark.slow
def test_a_local_folder_with_lora_runs_to_the_report(mini: Mini, tmp_path: Path, folder: Path) -> None:
    few = ("arms=[dpo_sirius]", "align.epochs=1", "evaluation.generation_rows=4", "evaluation.baseline=sft",
           "sft.examples_per_epoch=96", "align.examples_per_epoch=64")  # fmt: skip
    config = mini(f"backbone.name={folder}", "backbone.lora={rank: 2}", *few)
    opened = Run(open_run(tmp_path / "run", config), config)
    run_stages(opened, STAGES, lambda text: None)
    finish(opened, lambda text: None)
    run = opened.folder
    assert (run.path / "report.html").is_file()
    assert not (run.path / "pretrain").exists()
    for stage in (run.sft(0), run.arm("dpo_sirius", 0)):
        assert (stage / "best" / "adapter_model.safetensors").is_file()
    results = json.loads(run.results.read_text())
    # The reference of an arm is the SFT adapter: before its first step nothing has moved.
    assert results["curves"]["dpo_sirius"]["0"][0]["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert results["curves"]["dpo_sirius"]["0"][0]["hr@1"] == max(p["hr@1"] for p in results["curves"]["sft"]["0"][1:])


def test_refusals_before_training_leave_no_folder(mini: Mini, tmp_path: Path, folder: Path) -> None:
    """The mended configuration can then use the same --out."""
    for overrides, error, message in (
        (["backbone.name=" + str(tmp_path / "none")], ConfigError, "no such folder"),
        (["backbone.tiny.context=12"], PromptError, "exceed the context of 12 tokens"),
        (["prompts.chat=true"], PromptError, "no chat template"),
        (["evaluation.slates=[test-uniform-7-s0]"], ConfigError, "no test slates 'test-uniform-7-s0'"),
    ):
        config = mini(*overrides)
        run = open_run(tmp_path / "run", config)
        with pytest.raises(error, match=message):
            run_stages(Run(run, config), STAGES, lambda text: None)
        assert not run.path.exists(), overrides


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_refused(mini: Mini, tmp_path: Path) -> None:
    config = mini("compute.device=cuda")
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        run_stages(Run(open_run(tmp_path / "run", config), config), STAGES, lambda text: None)


def test_a_damaged_model_names_the_stage_folder(tmp_path: Path, folder: Path) -> None:
    stage = tmp_path / "sft" / "s0"
    stage.mkdir(parents=True)
    folder.rename(stage / "best")
    weights = stage / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match=f"{stage}: the model in best/ cannot be read .*: delete this folder"):
        load_trained(stage / "best", "tiny")


def test_a_special_token_inside_a_title_is_refused(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="'A</s>' contains a special token"):
        Encoder(tokenizer).check_distinct(["Air", "A</s>"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without CUDA")
def test_what_needs_cuda_is_refused_in_one_line_without_it(
    mini: Mini, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    named = [f"backbone.name={folder}", "backbone.lora={rank: 2}"]
    quantized = [*named, "backbone.quantization=4bit", "compute.device=auto"]
    find = importlib.util.find_spec

    def pretending(spec: Any) -> Callable[..., Any]:
        return lambda name, *rest: spec if name == "bitsandbytes" else find(name, *rest)

    for spec, overrides, message in (
        (None, quantized, r"needs bitsandbytes: pip install 'sirius-rec\[qlora\]'$"),
        (object(), quantized, "4bit needs a CUDA device, and torch sees none: remove quantization$"),
        (None, [*named, "backbone.attention=flex"], "flex trains on CUDA only: use auto or sdpa$"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(importlib.util, "find_spec", pretending(spec))
            config = mini(*overrides)
            run = open_run(tmp_path / "run", config)
            with pytest.raises(ConfigError, match=message) as caught:
                run_stages(Run(run, config), ("sft",), lambda text: None)
            assert "\n" not in str(caught.value)
            assert not run.path.exists()
    with pytest.raises(ConfigError, match=r"backbone.quantization: 4-bit weights cannot be trained: add lora"):
        mini(f"backbone.name={folder}", "backbone.quantization=4bit")


def test_an_adapter_as_backbone_is_merged_into_its_base(
    tmp_path: Path, folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, mini: Mini
) -> None:
    """Its base is written in it; a relative one is found beside the adapter from any directory."""
    from peft import LoraConfig, get_peft_model

    from sirius_rec.recipes.models import configured_context
    from sirius_rec.training.backbones import load_backbone, load_tokenizer

    torch.manual_seed(0)
    options = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False)
    adapted = get_peft_model(load_backbone(folder), options).eval()
    adapted.peft_config["default"].base_model_name_or_path = "model"
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    merged = load_backbone(tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=0)
    assert (merged(ids).logits - load_backbone(folder).eval()(ids).logits).abs().max() > 1e-3
    assert load_tokenizer(tmp_path / "adapter").get_vocab() == tokenizer.get_vocab()
    assert configured_context(mini(f"backbone.name={tmp_path / 'adapter'}")) == 1024
    # Its base would be loaded in full precision: said before anything, with CUDA or without.
    with pytest.raises(
        ConfigError, match=r"^backbone\.quantization: '.*adapter' is an adapter, which cannot be merged"
    ):
        load_backbone(tmp_path / "adapter", quantization="4bit")
    config = mini(f"backbone.name={tmp_path / 'adapter'}", "backbone.lora={rank: 2}", "backbone.quantization=4bit")
    with pytest.raises(ConfigError, match="is an adapter, which cannot be merged into 4-bit weights"):
        run_stages(Run(open_run(tmp_path / "run", config), config), ("sft",), lambda text: None)
    assert not (tmp_path / "run").exists()


def test_local_folders_are_absolute_and_the_home_directory_is_expanded(
    mini: Mini, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder is served and gone on with from any directory, whatever the path was when it was made."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    relative = mini(f"backbone.name={folder.name}")
    assert relative.backbone.name == str(folder) == mini(f"backbone.name=~/{folder.name}").backbone.name
    run = open_run(tmp_path / "run", relative)
    monkeypatch.chdir("/")
    assert run.config().backbone.name == str(folder)
    load_tokenizer(run.config().backbone.name)
    assert mini("backbone.name=org/model").backbone.name == "org/model"  # no such folder here: a hub id
    config = mini("data.source=table", "data.input=~/logs", "data.prepared=~/data")
    assert (config.data.input, config.data.prepared) == (folder.parent / "logs", folder.parent / "data")


@pytest.mark.parametrize("name", ["a/b/c", "./model", "~/none", "model"])
def test_a_missing_folder_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Never with the hub's own words about the form of its ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (load_tokenizer, load_backbone):
        with pytest.raises(
            ConfigError, match=rf"backbone '{name}': .*(no such folder, seen from|and) {tmp_path}"
        ) as caught:
            load(name)
        assert "Repo id" not in str(caught.value)


def test_kinds_of_lora(tokenizer: Any, tiny_llama: Callable[..., Any]) -> None:
    from sirius_rec.training.backbones import add_lora

    plain = add_lora(tiny_llama(tokenizer), rank=4, alpha=8)
    assert {name.split(".")[-4] for name, _ in plain.named_parameters() if "lora_A" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    scaled = add_lora(tiny_llama(tokenizer), rank=4, alpha=8, rslora=True, targets=["q_proj", "v_proj"])
    layers = [module for module in scaled.modules() if isinstance(getattr(module, "scaling", None), dict)]
    assert layers and {layer.scaling["default"] for layer in layers} == {8 / 4**0.5}
    assert {name.split(".")[-4] for name, _ in scaled.named_parameters() if "lora_A" in name} == {"q_proj", "v_proj"}
    magnitudes = [
        n for n, _ in add_lora(tiny_llama(tokenizer), rank=2, dora=True).named_parameters() if "magnitude" in n
    ]
    assert magnitudes
    with pytest.raises(ConfigError, match=r"backbone\.lora\.targets: .*not found") as caught:
        add_lora(tiny_llama(tokenizer), targets=["qqq"])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_folder_with_dora_and_noise_trains_and_is_tracked(mini: Mini, tmp_path: Path, folder: Path) -> None:
    """Evidence of reward hacking stands in TensorBoard's files, which outlive the checkpoints."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    few = ("arms=[dpo]", "align.epochs=1", "evaluation.generation_rows=0", "evaluation.baseline=sft",
           "sft.examples_per_epoch=64", "align.examples_per_epoch=64", "sft.neftune_alpha=5",
           "training.report_to=[tensorboard]")  # fmt: skip
    config = mini(f"backbone.name={folder}", "backbone.lora={rank: 2, dora: true}", *few)
    opened = Run(open_run(tmp_path / "run", config), config)
    run_stages(opened, ("sft", "align"), lambda text: None)
    assert sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir()) == ["dpo s0", "sft s0"]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "dpo s0")).Reload()
    assert {"train/reward_margin", "train/insensitive@0.1", "eval/hr@1"} <= set(events.Tags()["scalars"])


def test_a_tracker_that_is_not_there_is_refused(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sirius_rec.recipes import trackers

    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    config = mini("training.report_to=[wandb]")
    with pytest.raises(ConfigError, match=r"training\.report_to: wandb is not installed: pip install wandb"):
        run_stages(Run(open_run(tmp_path / "run", config), config), STAGES, lambda text: None)


def test_layers_are_compiled_where_they_train_and_where_the_reference_is_scored(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, without timing kernels; what only scores stays as it is, and other layers are another reference."""
    compiled: list[Any] = []
    monkeypatch.setattr("sirius_rec.scoring.compiled.compile_layers", compiled.append)
    monkeypatch.setattr(models, "_probed", lambda *given: pytest.fail("kernels were timed"))
    monkeypatch.setattr("sirius_rec.scoring.packed.use_tree_attention", lambda model: "candidate_tree")
    model = SimpleNamespace(
        parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]),
        config=SimpleNamespace(_attn_implementation="sdpa"),
    )
    plain, config = mini(), mini("backbone.compile=true")
    for rows in ([object()], ()):
        assert models.select_attention(RunFolder(tmp_path), config, model, rows, 0) == "candidate_tree"
    assert compiled == [model]
    models.select_attention(RunFolder(tmp_path), mini("backbone.attention=sdpa"), model, [object()], 0)
    assert compiled == [model]
    monkeypatch.setattr(models, "on_cpu", lambda config: False)
    models.check_device(config)
    for given, why in (
        ("align.gradient_checkpointing=true", r"computed again \(gradient_checkpointing of align\) are not compiled"),
        ("arms=[{loss: dpo, negatives_from: on_policy, pool: 4}]", "a copy that is not compiled"),
        ("backbone.attention=eager", "not with attention: eager"),
    ):
        more = [given, *(["prompts.slate=false"] if "on_policy" in given else [])]
        with pytest.raises(ConfigError, match=r"backbone\.compile: .*" + why):
            models.check_device(mini("backbone.compile=true", *more))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"backbone\.compile: is for a GPU"):
        models.check_device(config)
    assert not plain.backbone.compile


def test_timing_kernels_on_a_gpu_is_announced_and_done_once(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first training on an H100 stood silent for a minute and more: flex attention was being compiled."""
    timed = []
    model = SimpleNamespace(
        parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]),
        config=SimpleNamespace(_attn_implementation="sdpa"),
    )
    monkeypatch.setattr(models, "_probed", lambda *given: timed.append(given) or {"chosen": "candidate_tree"})
    monkeypatch.setattr("sirius_rec.scoring.packed.use_tree_attention", lambda model: "candidate_tree")
    for _ in range(2):
        assert models.select_attention(RunFolder(tmp_path), mini(), model, [object()], 0) == "candidate_tree"
    assert len(timed) == 1
    assert capsys.readouterr().err.count("timing the attention kernels") == 1
