"""A GGUF file as a run's backbone: to the report, gone on with elsewhere, ranked with; SmolLM2 itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sirius_rec import cache
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.merging import merge_runs
from sirius_rec.recipes.ranking import load_plain_model
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import STAGES, finish, run_stages
from sirius_rec.training.backbones import load_backbone, load_tokenizer

# PEFT looks for the base's configuration where an adapter says it is: asking the hub for a path, or for `smollm2`.
pytestmark = pytest.mark.filterwarnings("error:Could not find a config file")
Mini = Callable[..., Config]
FEW = ("arms=[dpo_sirius]", "align.epochs=1", "evaluation.generation_rows=4", "evaluation.baseline=sft",
       "sft.examples_per_epoch=64", "align.examples_per_epoch=32", "backbone.lora={rank: 2}")  # fmt: skip


@pytest.fixture
def file(tmp_path: Path, write_gguf: Callable[..., Path], tokenizer: Any, tiny_llama: Callable[..., Any]) -> Path:
    (tmp_path / "models").mkdir()
    model = tiny_llama(tokenizer, max_position_embeddings=1024)
    return write_gguf(tmp_path / "models" / "tiny.gguf", model, tokenizer)


def _named(file: Path) -> tuple[str, str]:
    return f"backbone.name={file.parent}", f"backbone.gguf_file={file.name}"


@pytest.mark.slow
def test_a_run_on_a_gguf_file(mini: Mini, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the report; then on a machine with another cache, as the same run; then ranked with, by adapter alone."""
    config = mini(*_named(file), *FEW)
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, ("sft",), lambda text: None)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "elsewhere"))
    cache_of_sft = tmp_path / "cache"
    cache_of_sft.rename(tmp_path / "gone")
    sft = (run.folder.sft(0) / "done.json").read_text()
    run = Run(open_run(tmp_path / "run", mini(*_named(file), *FEW)), config)
    run_stages(run, STAGES, lambda text: None)
    finish(run, lambda text: None)
    assert (run.folder.sft(0) / "done.json").read_text() == sft
    assert "tiny.gguf" in (run.folder.path / "report.html").read_text()
    for stage in (run.folder.sft(0), run.folder.arm("dpo_sirius", 0)):
        for checkpoint in ("best", "last"):
            adapter = json.loads((stage / checkpoint / "adapter_config.json").read_text())
            assert adapter["base_model_name_or_path"] == str(file), "a path of this machine's cache"
            assert f"base_model: {file}\n" in (stage / checkpoint / "README.md").read_text()
    best = run.folder.sft(0) / "best"
    assert load_tokenizer(best)("Air")["input_ids"] == load_tokenizer(file)("Air")["input_ids"]
    ids = torch.tensor([[5, 6, 7]])
    assert (load_backbone(best)(ids).logits - load_backbone(file)(ids).logits).abs().max() > 1e-4
    for name in (best, file):
        assert load_plain_model(str(name)).recipe["weights"], name


@pytest.mark.slow
def test_a_run_goes_on_with_the_file_it_was_begun_with(
    mini: Mini, tmp_path: Path, file: Path, tiny_llama: Callable[..., Any], tokenizer: Any, write_gguf: Any
) -> None:
    config = mini(*_named(file), *FEW)
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, ("sft",), lambda text: None)
    write_gguf(file, tiny_llama(tokenizer, seed=1, max_position_embeddings=1024), tokenizer)
    with pytest.raises(RunError, match=f"made with another file of backbone '{file}' .*: install the one it was made"):
        run_stages(Run(run.folder, config), STAGES, lambda text: None)
    other = mini(*_named(file), *FEW, "seeds=[1]")
    run_stages(Run(open_run(tmp_path / "other", other), other), ("sft",), lambda text: None)
    with pytest.raises(RunError, match="were made with different files of backbone"):
        merge_runs([tmp_path / "run", tmp_path / "other"], tmp_path / "both")


def test_what_contradicts_itself_is_refused(mini: Mini, tmp_path: Path, file: Path) -> None:
    for overrides, message in (
        (["backbone.gguf_file=x.gguf"], "backbone.gguf_file: tiny has no file of yours"),
        (["backbone.name=smollm2", "backbone.gguf_file=x.gguf"], "backbone.gguf_file: smollm2 has no file of yours"),
        ([f"backbone.name={file.parent}", "backbone.gguf_file=x.bin"], "'x.bin' must be the name of a .gguf file"),
        ([f"backbone.name={file}"], "backbone.name: must be a folder: write the name of the .gguf file"),
    ):
        with pytest.raises(ConfigError, match=message):
            mini(*overrides)
    file.write_bytes(file.read_bytes()[:5000])
    config = mini(*_named(file), *FEW)
    folder = open_run(tmp_path / "run", config)
    with pytest.raises(ConfigError, match=f"^{file}: cannot be read as a GGUF model"):
        run_stages(Run(folder, config), ("sft",), lambda text: None)
    assert not folder.path.exists()


def test_smollm2_is_a_name_wherever_one_stands(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like tiny, it is no folder, even where there is one of that name."""
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert mini("backbone.name=smollm2").backbone.model == "smollm2"


@pytest.mark.slow
def test_smollm2_with_lora_learns_and_goes_on_elsewhere(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real weights through SFT and alignment: the loss falls, the adapter names its base, the cache may move."""
    from sirius_rec.training.gguf import fingerprint, packaged
    from sirius_rec.training.metrics_log import read_metrics

    try:
        packaged()
    except ConfigError as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    config = mini(
        "backbone.name=smollm2", *FEW, "prompts.chat=true", "evaluation.validation_rows=8", "data.limits={test: 8}",
        "sft.epochs=2", "sft.batch_size=16", "align.batch_size=16",
    )  # fmt: skip
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, ("sft",), lambda text: None)
    losses = [line["loss"] for line in read_metrics(run.folder.sft(0) / "metrics.jsonl") if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0], losses
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "elsewhere"))
    run_stages(Run(open_run(tmp_path / "run", config), config), STAGES, lambda text: None)
    best = run.folder.arm("dpo_sirius", 0) / "best"
    assert json.loads((best / "adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2"
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in (best / "README.md").read_text()
    assert json.loads((run.folder.backbone / "gguf.json").read_text())["sha256"] == fingerprint("smollm2")
