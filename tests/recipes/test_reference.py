"""The reference cache: log π_ref once per prompt and candidate, under a key of all it depends on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec.config import Config
from sirius_rec.errors import RunError
from sirius_rec.recipes import models, reference, training
from sirius_rec.recipes import records as recipe_records
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.schema import SlateName


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> RunFolder:
    """A copy of the miniature run that may be damaged."""
    shutil.copytree(trained.run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_it_holds_what_the_sft_model_says(trained: Any) -> None:
    """Against the naive scorer on single rows: train rows in order, column 0 the target, the rest in slate order."""
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.scoring.scorer import score_rows
    from sirius_rec.training.records import encode_records

    run, config, dataset = trained.run, trained.config, trained.dataset
    cached = reference.read_reference(run, config, 0)
    assert [len(cached[split]) for split in ("train", "val")] == [dataset.examples(s).height for s in ("train", "val")]
    encoder = Encoder(models.load_run_tokenizer(run, config))
    model = models.load_stage_model(config, run.stage("sft", 0) / "best")
    for split, rows in (("train", [0, 9]), ("val", [3])):
        name = SlateName(split, "uniform", 6, 0)
        records = recipe_records.slate_records(dataset, name, config.prompts.form(), np.array(rows))
        direct = score_rows(model, encode_records(records, encoder), encoder.pad_id, mode="naive", max_tokens=8192)
        for row, logps in zip(rows, direct, strict=True):
            assert cached[split][row].shape == (6,)
            np.testing.assert_allclose(cached[split][row], logps, atol=1e-4)


def test_the_key_changes_with_the_weights(run: RunFolder, trained: Any) -> None:
    before = reference._reference_key(run, trained.config, trained.dataset, 0)
    assert before == reference._reference_key(trained.run, trained.config, trained.dataset, 0)
    weights = run.stage("sft", 0) / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert reference._reference_key(run, trained.config, trained.dataset, 0) != before
    with pytest.raises(RunError, match=r"s0\.npz: the reference cache is missing or of another model: run"):
        reference.read_reference(run, trained.config, 0)


@pytest.mark.parametrize(
    "override", ["prompts.template=music", "prompts.slate=false", "align.examples_per_epoch=9", "compute.scoring=naive"]
)
def test_the_key_changes_with_what_is_scored(trained: Any, mini: Callable[..., Config], override: str) -> None:
    keys = {reference._reference_key(trained.run, config, trained.dataset, 0) for config in (mini(), mini(override))}
    assert len(keys) == 2


def test_a_damaged_cache_is_made_again(run: RunFolder, trained: Any) -> None:
    whole = run.reference(0).read_bytes()
    run.reference(0).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="the reference cache is missing"):
        reference.read_reference(run, trained.config, 0)
    reference.reference(str(run.path), 0)
    again, before = (reference.read_reference(folder, trained.config, 0) for folder in (run, trained.run))
    for split in ("train", "val"):
        assert np.array_equal(np.concatenate(again[split]), np.concatenate(before[split]))


def test_a_whole_cache_is_kept(run: RunFolder) -> None:
    before = run.reference(0).stat().st_mtime_ns
    reference.reference(str(run.path), 0)
    assert run.reference(0).stat().st_mtime_ns == before


def test_missing(run: RunFolder, trained: Any) -> None:
    run.reference(0).unlink()
    with pytest.raises(RunError, match="the reference cache is missing"):
        training.align(str(run.path), "dpo_sirius", 0)
